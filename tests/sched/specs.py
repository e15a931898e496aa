"""Policies that tests of all policies run against."""

# A spec for each registered policy, and further ones that take other paths.
SPECS = {
    "foresight": "foresight",
    "slackfit": "slackfit:quantile=p95",
    "maxbatch": "maxbatch",
    "maxacc": "maxacc",
    "fixed": "fixed:smallest",
    "infaas": "infaas",
    "coarse": "coarse:slackfit:quantile=p95",
    "proteus": "proteus",
    "brownout": "brownout",
}
MORE = [
    "fixed:largest,late=drain",
    "slackfit:buckets=1,quantile=p95",
    "slackfit:buckets=500,empty=best,quantile=p95",
    "slackfit:late=shrink,quantile=p95",
    "infaas:70",
    "coarse:brownout:late=shrink,quantile=median",
    "proteus:period_s=30,late=drain",
]
ALL = [*SPECS.values(), *MORE]
