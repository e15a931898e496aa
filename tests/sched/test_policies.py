"""What each policy chooses, and how they are named; what all of them owe the core is in test_contract."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.sched.policies import PolicyError, View, available, parse_policy, spec_of
from common.sched.profile import Profile, Subnet
from common.sched.types import Choice
from tests.sched.harness import BIG, PROFILE, SMALL, Harness, dispatched, make_profile, make_view, query
from tests.sched.specs import ALL


@pytest.mark.parametrize(
    ("slack_us", "queued", "choice"),
    [
        (55_000, 9, Choice("big", 4)),
        (54_999, 9, Choice("small", 4)),
        (17_999, 9, Choice("small", 3)),
        (11_000, 9, Choice("small", 1)),
        (33_000, 2, Choice("big", 2)),
        (32_999, 2, Choice("small", 2)),
    ],
)
def test_maxbatch_prefers_batch_to_accuracy(slack_us: int, queued: int, choice: Choice) -> None:
    """MaxBatch takes the largest batch that fits at all, at most what is queued, then the best subnet for it."""
    view = make_view(PROFILE, [query(i) for i in range(queued)], slack_us)
    assert parse_policy("maxbatch").choose(view) == choice


@pytest.mark.parametrize(
    ("slack_us", "queued", "choice"),
    [
        (55_000, 9, Choice("big", 4)),
        (54_999, 9, Choice("big", 3)),
        (22_000, 9, Choice("big", 1)),
        (21_999, 9, Choice("small", 4)),
        (11_000, 9, Choice("small", 1)),
        (10_999, 9, None),
    ],
)
def test_maxacc_prefers_accuracy_to_batch(slack_us: int, queued: int, choice: Choice | None) -> None:
    """MaxAcc takes the most accurate subnet that serves the head alone, then the largest batch that still fits."""
    view = make_view(PROFILE, [query(i) for i in range(queued)], slack_us)
    assert parse_policy("maxacc").choose(view) == choice


@pytest.mark.parametrize(
    ("spec", "slack_us", "choice"),
    [
        ("fixed:big", 54_999, Choice("big", 3)),
        ("fixed:largest", 55_000, Choice("big", 4)),
        ("fixed:smallest", 13_000, Choice("small", 2)),
        ("fixed:smallest,quantile=median", 13_000, Choice("small", 2)),
        ("fixed:smallest,quantile=median", 12_000, Choice("small", 2)),
        ("fixed:smallest", 12_000, Choice("small", 1)),
        ("fixed:smallest", 10_500, None),
        ("fixed:smallest,late=drain", 10_500, Choice("small", 4)),
        ("fixed:smallest,late=shrink", 10_500, Choice("small", 1)),
    ],
)
def test_fixed_adapts_its_batch(spec: str, slack_us: int, choice: Choice | None) -> None:
    """The fixed subnet runs the largest batch that fits; if none does, the head goes, or is served as told."""
    policy = parse_policy(spec)
    view = make_view(PROFILE, [query(i) for i in range(9)], slack_us, PROFILE.index(policy.cheapest(PROFILE)))
    assert policy.choose(view) == choice


def test_fixed_rises_to_the_accuracy_demanded() -> None:
    """A query that demands more than the fixed subnet has is served by the cheapest that reaches it."""
    view = make_view(PROFILE, [query(1, min_accuracy=75.0)], 100_000)
    assert parse_policy("fixed:small").choose(view) == Choice("big", 4)


@pytest.mark.parametrize(
    ("spec", "slack_us", "min_accuracy", "choice"),
    [
        ("infaas", 100_000, 0.0, Choice("small", 4)),
        ("infaas", 13_000, 0.0, Choice("small", 2)),
        ("infaas:70.5", 54_999, 0.0, Choice("big", 3)),
        ("infaas", 54_999, 70.5, Choice("big", 3)),
        ("infaas:70,quantile=median", 50_000, 80.0, Choice("big", 4)),
        ("infaas:accuracy=80", 21_999, 0.0, None),
        ("infaas:accuracy=80,late=shrink", 21_999, 0.0, Choice("big", 1)),
    ],
)
def test_infaas_takes_the_cheapest_above_the_floor(
    spec: str, slack_us: int, min_accuracy: float, choice: Choice | None
) -> None:
    """The least accurate subnet that reaches the policy's floor and the head's runs the largest batch that fits."""
    policy = parse_policy(spec)
    queries = [query(i, min_accuracy=min_accuracy) for i in range(9)]
    assert policy.choose(make_view(PROFILE, queries, slack_us, PROFILE.index(policy.cheapest(PROFILE)))) == choice


def test_infaas_needs_a_subnet_above_the_floor() -> None:
    """A floor that no subnet of a profile reaches is refused with the profile, the floor and the best there is."""
    with pytest.raises(PolicyError, match=r"infaas: accuracy: no subnet of 'test' reaches 80\.5, the best has 80\.0"):
        parse_policy("infaas:80.5").cheapest(PROFILE)


# Medians by hand: small 10, 12, 14, 16 and big 20, 30, 40, 50 ms for 1 to 4 rows. Four buckets of 10 ms, from 10 to 50,
# keep small@4 (16 ms), big@1 (20), big@2 (30) and big@4 (50, with big@3 at 40 as the smaller batch).
BY_HAND = "slackfit:buckets=4,edge=pair,quantile=median"


@pytest.mark.parametrize(
    ("options", "slack_us", "queued", "choice"),
    [
        ("", 60_000, 9, Choice("big", 4)),
        ("", 50_000, 9, Choice("big", 4)),
        ("", 49_999, 9, Choice("big", 2)),
        ("", 30_000, 9, Choice("big", 2)),
        ("", 29_999, 9, Choice("big", 1)),
        ("", 19_999, 9, Choice("small", 4)),
        ("", 15_999, 9, None),  # below all buckets: let go
        (",late=drain", 15_999, 9, Choice("small", 4)),
        (",late=shrink", 15_999, 9, Choice("small", 3)),
        ("", 15_999, 2, Choice("small", 4)),  # below all buckets, but all that is queued fits
        ("", 19_999, 2, Choice("small", 4)),
        ("", 50_000, 1, Choice("big", 4)),
        (",batches=profiled", 49_999, 9, Choice("big", 2)),
    ],
)
def test_slackfit_by_hand(options: str, slack_us: int, queued: int, choice: Choice | None) -> None:
    """SlackFit takes the bucket closest below the slack, as worked out by hand for four buckets."""
    view = make_view(PROFILE, [query(i) for i in range(queued)], slack_us)
    assert parse_policy(BY_HAND + options).choose(view) == choice


@pytest.mark.parametrize(
    ("slack_us", "choice"),
    [(29_999, Choice("small", 4)), (30_000, Choice("big", 1)), (39_999, Choice("big", 1)), (40_000, Choice("big", 2))],
)
def test_slackfit_upper_edges_by_hand(slack_us: int, choice: Choice) -> None:
    """With upper edges a bucket is used only from its end on: big@2 takes 30 ms and waits for a slack of 40."""
    view = make_view(PROFILE, [query(i) for i in range(9)], slack_us)
    assert parse_policy("slackfit:buckets=4,edge=upper,quantile=median").choose(view) == choice


def test_slackfit_spends_a_short_queue_on_accuracy() -> None:
    """With fewer rows than the bucket's batch, a more accurate subnet takes its latency, unless told to keep."""
    mid = Subnet("mid", 75.0, (11_000, 15_500, 24_000), (11_000, 15_500, 24_000))
    view = make_view(make_profile(SMALL, mid, BIG), [query(1), query(2)], 16_000)
    assert parse_policy("slackfit:buckets=3,edge=pair,quantile=median").choose(view) == Choice("mid", 4)
    assert parse_policy("slackfit:buckets=3,edge=pair,quantile=median,partial=keep").choose(view) == Choice("small", 4)


def test_slackfit_breaks_ties_as_told() -> None:
    """Of two subnets with the same batch in one bucket, the more accurate or the faster is kept."""
    near = Subnet("near", 71.0, (10_100, 12_100, 16_100), (10_100, 12_100, 16_100))
    view = make_view(make_profile(SMALL, near), [query(i) for i in range(4)], 20_000)
    assert parse_policy("slackfit:buckets=1,edge=pair,quantile=median").choose(view) == Choice("near", 4)
    assert parse_policy("slackfit:buckets=1,edge=pair,quantile=median,ties=fast").choose(view) == Choice("small", 4)


def test_slackfit_fills_empty_buckets_as_told() -> None:
    """An empty bucket takes over the pair below it, or the largest batch of all pairs below it."""
    gap = Subnet("gap", 80.0, (40_000, 90_000, 95_000), (40_000, 90_000, 95_000))
    view = make_view(make_profile(SMALL, gap, batch_sizes=(1, 2, 4)), [query(i) for i in range(9)], 60_000)
    spec = "slackfit:buckets=9,quantile=median,batches=profiled,edge=upper"
    assert parse_policy(spec).choose(view) == Choice("gap", 1)
    assert parse_policy(spec + ",empty=best").choose(view) == Choice("small", 4)


def test_slackfit_margin_learns_from_residuals() -> None:
    """What is learned divides the slack: that quantile of what batches took, and the worker's correction."""
    policy = parse_policy("slackfit:buckets=4,edge=pair,quantile=learned,margin=0.9")
    view = make_view(PROFILE, [query(i) for i in range(9)], 60_000)
    assert policy.choose(view) == Choice("big", 2)  # nothing seen: 1.5 is assumed, which leaves 40 ms
    for _ in range(600):
        view.residuals.add(1.0)
    assert policy.choose(view) == Choice("big", 4)
    view.worker.correction = 2.0
    assert policy.choose(view) == Choice("big", 2)


def test_slackfit_is_quick_rather_than_let_go_what_will_probably_make_it() -> None:
    """A margin of few, bad batches, or a running one that may overrun, sheds nothing that is expected to make it."""
    policy = parse_policy("slackfit:buckets=4,edge=pair,margin=0.99")
    view = make_view(PROFILE, [query(i) for i in range(9)], 20_000)
    view.residuals.add(10.0)  # the margin leaves 2 ms, less than any batch takes
    assert policy.choose(view) == Choice("small", 4)
    behind = view._replace(start_us=30_000, slack_us=-10_000)  # expected to start at once all the same
    assert policy.choose(behind) == Choice("small", 4)
    hopeless = make_view(PROFILE, [query(i) for i in range(9)], 15_999)  # small@4 takes 16 ms
    assert policy.choose(hopeless) is None


NO_POLICY = 2.5


@dataclass(frozen=True)
class Halves:
    """A user's policy: the smallest subnet, on a share of the largest batch."""

    share: float = 0.5

    def cheapest(self, profile: Profile) -> str:
        return profile.smallest

    def choose(self, view: View) -> Choice | None:
        return Choice(view.profile.smallest, max(view.head.rows, round(self.share * view.profile.max_batch)))


class Lost(Halves):
    """Its cheapest subnet is not there."""

    def cheapest(self, profile: Profile) -> str:
        return "nowhere"


class Broken(Halves):
    """Fails when it is asked for its cheapest subnet."""

    def cheapest(self, profile: Profile) -> str:
        raise KeyError(profile.device)


@dataclass(frozen=True)
class Unreadable(Halves):
    """Has an option that no spec can tell."""

    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Switch(Halves):
    """Has an option of which `bool` would read every word as true."""

    on: bool = False


@dataclass(frozen=True)
class Misspelt(Halves):
    """Has an option of a type that is not there."""

    rows: "Rows" = 1  # type: ignore[name-defined]  # noqa: F821


@dataclass(frozen=True)
class Refusing(Halves):
    """Refuses its options by an error of its own."""

    def __post_init__(self) -> None:
        raise ValueError("share: too small")


@dataclass(frozen=True)
class Derived(Halves):
    """Has a field that is no option."""

    rest: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rest", 1.0 - self.share)


def test_a_field_that_is_derived_is_no_option() -> None:
    """What `__init__` does not take is neither told in the spec nor read from it."""
    policy = parse_policy(f"{__name__}:Derived:share=0.25")
    assert spec_of(policy) == f"{__name__}:Derived:share=0.25"
    assert parse_policy(spec_of(policy)) == policy
    with pytest.raises(PolicyError, match="unknown option 'rest', expected one of share"):
        parse_policy(f"{__name__}:Derived:rest=1")


@pytest.mark.parametrize(("options", "rows"), [("", 2), (":share=0.75", 3)])
def test_a_users_own_policy_is_imported(options: str, rows: int) -> None:
    """`package.module:Class` names a policy that nobody registered; options follow, and its full spec reads back."""
    policy = parse_policy(f"{__name__}:Halves{options}")
    assert policy.choose(make_view(PROFILE, [query(1)], 50_000)) == Choice("small", rows)
    assert parse_policy(spec_of(policy)) == policy
    harness = Harness(spec_of(policy))
    harness.hello()
    batches = dispatched(harness.arrive(*(query(i) for i in range(9))))
    assert [len(batch.queries) for batch in batches] == [rows]
    harness.close()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("def choose(:", "SyntaxError: "),
        ("raise OSError('no disk')", "OSError: no disk"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_file_that_fails_is_no_policy(
    content: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's file that cannot be run is refused by its name and by what happened in it."""
    (tmp_path / "failing_policy.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PolicyError, match=f"policy: failing_policy:Mine: {words}"):
        parse_policy("failing_policy:Mine")


@pytest.mark.parametrize("spec", [*ALL, "fixed:big,late=shrink,quantile=median", f"coarse:{__name__}:Halves:share=1"])
def test_spec_is_read_back(spec: str) -> None:
    """The full spec of a policy, every option spelled out, parses to an equal policy."""
    policy = parse_policy(spec)
    assert parse_policy(spec_of(policy)) == policy


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "slickfit",
            "unknown 'slickfit', expected one of foresight, slackfit, maxbatch, maxacc, fixed, infaas, coarse, "
            "proteus, brownout, or module:Class of your",
        ),
        ("", "unknown '', expected one of"),
        ("slackfit:bucket=3", "slackfit: unknown option 'bucket', expected one of buckets, batches"),
        ("slackfit:buckets=many", "slackfit: buckets: expected int, got 'many'"),
        ("slackfit:buckets", "slackfit: buckets: expected int, got ''"),
        ("slackfit:buckets=0", "slackfit: buckets: expected 1 to 100000, got 0"),
        ("slackfit:margin=1", "slackfit: margin: .* got 1.0"),
        ("slackfit:quantile=p99", "slackfit: quantile: expected learned or median or p95, got 'p99'"),
        ("maxbatch:64", "maxbatch: unknown option '64', expected one of quantile, late"),
        ("maxacc:quantile=p99", "maxacc: quantile: expected median or p95, got 'p99'"),
        ("foresight:target=1", "foresight: target: .* got 1.0"),
        ("foresight:fill=0", "foresight: fill: .* got 0.0"),
        ("foresight:burst=-1", "foresight: burst: .* got -1.0"),
        ("foresight:horizon_ms=-1", "foresight: horizon_ms: .* got -1.0"),
        ("slickfit:buckets=3", "unknown 'slickfit', expected one of"),
        ("fixd:smallest", "policy: fixd:smallest: No module named 'fixd'; expected one of foresight, slackfit"),
        (":Mine", "policy: :Mine: .*; expected one of"),
        (".mine:Mine", "policy: .mine:Mine: .*; expected one of"),
        ("tests.nowhere:Mine", "policy: tests.nowhere:Mine: No module named 'tests.nowhere'"),
        (f"{__name__}:Nobody", "has no 'Nobody'"),
        (f"{__name__}:NO_POLICY", "expected a dataclass with cheapest and choose, got 2.5"),
        (f"{__name__}:Halves:share=much", "Halves: share: expected float, got 'much'"),
        (f"{__name__}:Halves:part=1", "Halves: unknown option 'part', expected one of share"),
        (f"{__name__}:Unreadable", "Unreadable: shares: an option is int, float, str or a Literal, not tuple"),
        (f"{__name__}:Switch:on=no", "Switch: on: an option is int, float, str or a Literal, not <class 'bool'>"),
        (f"{__name__}:Misspelt", "Misspelt: NameError: name 'Rows' is not defined"),
        (f"{__name__}:Refusing", "Refusing: ValueError: share: too small"),
        ("infaas:high", "infaas: accuracy: expected float, got 'high'"),
        ("infaas:101", "infaas: accuracy: expected percent between 0 and 100, got 101.0"),
        ("coarse", "coarse: needs policy, as in coarse:<policy>"),
        ("coarse:slickfit", "policy: unknown 'slickfit', expected one of"),
        ("coarse:slackfit:buckets=0;late=shed", "slackfit: buckets: expected 1 to 100000, got 0"),
        ("coarse:slackfit:late=shed,buckets=4", "coarse: unknown option 'buckets', expected one of policy, quantile"),
        ("coarse:coarse:slackfit", "coarse: policy: cannot be coarse itself, got 'coarse:slackfit'"),
        ("coarse:tests.nowhere:Mine:share=1", "policy: tests.nowhere:Mine: No module named 'tests.nowhere'"),
        ("proteus:period_s=0", "proteus: period_s: .* got 0.0"),
        ("proteus:gain=0", "proteus: gain: .* got 0.0"),
        ("proteus:headroom=nan", "proteus: headroom: .* got nan"),
        ("brownout:window_ms=0", "brownout: window_ms: .* got 0.0"),
        ("brownout:tail=1", "brownout: tail: .* got 1.0"),
        ("brownout:low=0.9", "brownout: low: expected 0 to high, which is 0.8, got 0.9"),
        ("fixed", "fixed: needs subnet, as in fixed:<subnet>"),
        ("fixed:", "fixed: needs subnet"),
        ("fixed:late=drain", "fixed: needs subnet"),
    ],
)
def test_wrong_specs_name_what_is_legal(spec: str, message: str) -> None:
    """A spec that cannot be read is refused with the part that is wrong and what would be right."""
    with pytest.raises(PolicyError, match=message):
        parse_policy(spec)


def test_available_describes_every_option() -> None:
    """The list of policies names each option with its values and default."""
    text = available()
    assert "late: shed or drain or shrink (default shed): " in text["maxbatch"]
    assert "subnet: str (required): " in text["fixed"]
    assert "margin: float (default 0.99): " in text["slackfit"]
