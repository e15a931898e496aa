"""The simulator drives the core and decides nothing."""

import pytest

from common.sched import Profile, Query, Scheduler, SchedulerOptions, parse_policy
from loadgen.simulate import Conditions, Report, Simulation
from tests.sched.harness import PROFILE


def steady(count: int, gap_us: int, slo_us: int) -> list[Query]:
    return [Query(i, i * gap_us, i * gap_us + slo_us) for i in range(count)]


def play(
    queries: list[Query],
    conditions: Conditions,
    announced: Profile | None = None,
    **options: int,
) -> Report:
    names = ["w0", "w1"]
    scheduler = Scheduler(parse_policy("slackfit:quantile=median"), SchedulerOptions(**options))  # type: ignore[arg-type]
    claims = dict.fromkeys(names, announced) if announced else None
    report = Simulation(scheduler, dict.fromkeys(names, PROFILE), conditions, claims).run(queries)
    scheduler.check()
    assert sorted(outcome.query.id for outcome in report.outcomes) == [query.id for query in queries]
    return report


def test_light_load_is_served_by_the_best_subnet() -> None:
    """One query every 100 ms with 30 ms to spare: all met, all by the large subnet, in its 20 ms plus two hops."""
    report = play(steady(50, 100_000, 30_000), Conditions(hop_us=500), reply_margin_us=500)
    assert report.attainment == 1.0
    assert report.accuracy == 80.0
    assert report.shares == {"big": 1.0}
    assert report.latency_us(0.5) == 21_000


def test_overload_rejects_what_cannot_be_served() -> None:
    """At twice the capacity, 4 rows per 16 ms and worker, half is served in time and the rest is rejected as late."""
    report = play(steady(4_000, 1_000, 60_000), Conditions())
    assert 0.45 < report.attainment < 0.55
    assert {outcome.reason for outcome in report.outcomes if not outcome.met} == {"late"}


def test_same_seed_same_outcomes() -> None:
    """Jitter and tail are drawn from the seed: a run repeats exactly, and another seed differs."""
    queries = steady(500, 5_000, 60_000)
    runs = [play(queries, Conditions(jitter=0.2, tail=0.05, seed=seed)).outcomes for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_dead_workers_lose_no_query() -> None:
    """Every query has its outcome when workers die in mid-batch, and when none is left."""
    deaths = ((100_500, "w0"), (200_500, "w1"))
    report = play(steady(400, 1_000, 60_000), Conditions(deaths=deaths))
    reasons = {outcome.reason for outcome in report.outcomes if outcome.query.arrival_us > 210_000}
    assert reasons == {"no_worker"}


def test_measured_profile_shows_jitter_and_overhead() -> None:
    """A profile measured under jitter has it in median and p95, and the overhead once per batch."""
    measured = Conditions(jitter=0.1, overhead_us=1_000).measured(PROFILE)
    assert measured.latency_us("small", 1) == pytest.approx(11_000 + 674, abs=1)
    assert measured.latency_us("small", 1, "p95") == pytest.approx(11_000 + 1_960, abs=1)


def test_announced_profile_need_not_be_true() -> None:
    """Workers that claim to be far faster than they are miss deadlines that honest ones meet."""
    claimed = Profile.from_dict(
        PROFILE.to_dict()
        | {
            "subnets": [
                {**subnet, "median_us": [1_000, 2_000, 3_000], "p95_us": [1_000, 2_000, 3_000]}
                for subnet in PROFILE.to_dict()["subnets"]
            ]
        }
    )
    queries = steady(50, 20_000, 19_000)
    honest, lying = play(queries, Conditions()), play(queries, Conditions(), claimed)
    assert honest.attainment == 1.0
    assert honest.shares == {"small": 1.0}
    assert lying.attainment < 0.9
