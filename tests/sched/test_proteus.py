"""Proteus: its program against enumeration, its demand by hand, and who runs what between two assignments."""

import sys
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.sched.policies import PolicyError, parse_policy
from common.sched.policies.proteus import Demand, capacity_per_s, plan
from common.sched.profile import Profile, Subnet
from common.sched.types import Batch, Choice, WorkerHello, WorkerLost
from tests.sched.conftest import Start
from tests.sched.harness import BIG, PROFILE, SMALL, dispatched, make_profile, make_view, query, rejected, slower

SLO_US = 110_000  # half of it is what big@4 takes: capacities are 4 rows in 18 ms, 222 a second, and 4 in 55, 72.7
NEAR = 0.02  # points: a hundredth that the solver may leave, and what more accurate workers may weigh


def served(assigned: list[tuple[float, float]], rows_per_s: float) -> float | None:
    """Accuracy of the demand on workers of (accuracy, capacity), the most accurate first; None if they cannot."""
    left, total = rows_per_s, 0.0
    for accuracy, capacity in sorted(assigned, reverse=True):
        taken = min(left, capacity)
        total, left = total + taken * accuracy, left - taken
    return total / rows_per_s if left <= 1e-9 * rows_per_s else None


def spread(groups: list[tuple[Profile, int]], counts: list[list[int]]) -> list[tuple[float, float]]:
    """(accuracy, capacity) of each worker."""
    return [
        (profile.subnets[index].accuracy, capacity_per_s(profile, index, SLO_US, "p95"))
        for (profile, _), row in zip(groups, counts, strict=True)
        for index, count in enumerate(row)
        for _ in range(count)
    ]


subnets = st.tuples(st.floats(50.0, 90.0), st.integers(2_000, 120_000))


@st.composite
def fleets(draw: st.DrawFn) -> list[tuple[Profile, int]]:
    """Up to two groups of up to three workers, with up to three subnets of any accuracy and speed."""
    fleet = []
    for _ in range(draw(st.integers(1, 2))):
        drawn = draw(st.lists(subnets, min_size=1, max_size=3))
        made = [Subnet(f"s{i}", a, (us // 3, us // 2, us), (us // 3, us // 2, us)) for i, (a, us) in enumerate(drawn)]
        fleet.append((make_profile(*made), draw(st.integers(1, 3))))
    return fleet


@settings(max_examples=60, deadline=None)
@given(groups=fleets(), rows_per_s=st.floats(1.0, 4_000.0))
def test_plan_is_the_best_of_all(groups: list[tuple[Profile, int]], rows_per_s: float) -> None:
    """No other assignment carries the demand more accurately; if none carries it, all run their smallest subnet."""
    counts = plan(groups, rows_per_s, SLO_US)
    assert [sum(row) for row in counts] == [count for _, count in groups]
    workers = [profile for profile, count in groups for _ in range(count)]
    options = [
        [(s.accuracy, capacity_per_s(profile, i, SLO_US, "p95")) for i, s in enumerate(profile.subnets)]
        for profile in workers
    ]
    values = [value for some in product(*options) if (value := served(list(some), rows_per_s)) is not None]
    if values:
        value = served(spread(groups, counts), rows_per_s * (1 - 1e-5))  # the solver's tolerance
        assert value is not None
        assert value >= max(values) - NEAR
    else:
        assert [row[0] for row in counts] == [count for _, count in groups]


@pytest.mark.parametrize(
    ("rows_per_s", "counts"),
    [(0.0, [0, 3]), (200.0, [0, 3]), (230.0, [1, 2]), (368.0, [2, 1]), (600.0, [3, 0]), (700.0, [3, 0])],
)
def test_plan_by_hand(rows_per_s: float, counts: list[int]) -> None:
    """Three workers carry 218 rows a second with big, 367 with one small, 517 with two, 666 with three, and no more."""
    assert plan([(PROFILE, 3)], rows_per_s, SLO_US) == [counts]


def test_unlike_workers_are_assigned_apart() -> None:
    """With one worker twice as slow, 222 + 23 rows a second carry 240, and 73 + 111 do not: the fast one goes down."""
    fleet = [(PROFILE, 1), (slower(PROFILE, 2), 1)]
    assert plan(fleet, 240.0, SLO_US) == [[1, 0], [0, 1]]


def test_what_does_not_fit_half_the_slo_is_not_assigned() -> None:
    """A subnet that takes more than half the SLO for one row is not used, even without any demand."""
    assert plan([(PROFILE, 2)], 0.0, 43_998) == [[2, 0]]
    assert plan([(PROFILE, 2)], 0.0, 44_000) == [[0, 2]]
    assert capacity_per_s(PROFILE, 1, 66_000, "p95") == pytest.approx(2e6 / 33_000)


def test_demand_by_hand() -> None:
    """The first second is the demand; each later one, empty ones too, moves it by its gain."""
    demand = Demand(0.5)
    demand.arrived(60, 500_000)
    demand.arrived(40, 1_499_999)
    assert demand.per_s is None
    demand.arrived(200, 1_500_000)
    assert demand.per_s == 100.0
    demand.close(2_500_000)
    assert demand.per_s == 150.0
    demand.close(4_500_000)
    assert demand.per_s == 37.5
    demand.arrived(10, 4_500_000)
    demand.close(10**14)
    assert demand.per_s == pytest.approx(0.0, abs=1e-9)


def test_first_second_runs_the_smallest_then_what_the_demand_allows(start: Start) -> None:
    """Nothing is known for a second; then a program is solved, and the next a period later, for the demand then."""
    core = start("proteus:period_s=5,gain=1,headroom=1")
    core.hello()
    number, subnets = 0, []
    for half in range(24):  # 1 row each half second; 150 rows between 5.5 and 6 s
        now_us, burst = half * 500_000, 150 if half == 11 else 0
        ask = [query(number + i, now_us + SLO_US, now_us) for i in range(1 + burst)]
        number += len(ask)
        sent = dispatched(core.arrive(*ask, now_us=now_us))
        while sent:
            subnets.append((half, sent[0].subnet))
            now_us += 10_000
            sent = dispatched(core.finish(sent[0], now_us - 10_000, now_us))
    of = dict(subnets)
    assert {of[0], of[1]} == {"small"}
    assert {of[half] for half in range(2, 12)} == {"big"}  # 1.0 s to 6 s: first program
    assert {of[half] for half in range(12, 22)} == {"small"}  # at 6 s the last second had 152 rows, big carries 72
    assert {of[half] for half in range(22, 24)} == {"big"}


@pytest.mark.parametrize(("headroom", "subnet"), [(1.8, "big"), (1.9, "small")])
def test_headroom_multiplies_the_demand(headroom: float, subnet: str) -> None:
    """At 40 rows a second the one worker runs big, which carries 72.7, until head-room asks for more than that."""
    learned = Demand(1.0)
    learned.arrived(40, 0)
    view = make_view(PROFILE, [query(1, SLO_US)], 100_000, learned=learned)
    choice = parse_policy(f"proteus:headroom={headroom}").choose(view._replace(now_us=1_000_000))
    assert choice == Choice(subnet, 4)


def test_workers_keep_what_they_run_and_newcomers_run_the_smallest(start: Start) -> None:
    """An assignment gives a subnet to those that have it first; a worker that joined later waits for the next one."""
    core = start("proteus:period_s=1000,gain=1,headroom=1")
    for number, (name, subnet) in enumerate([("a", "big"), ("b", "small")]):
        running = Batch(number, name, subnet, ())
        core.send(WorkerHello(name, PROFILE, (running,)))
        core.finish(running, 0, 20_000)
    late = core.arrive(*(query(i, 1) for i in range(150)), now_us=30_000)  # more than big carries on both
    assert len(rejected(late)) == 150
    now_us = 1_030_000
    (batch,) = dispatched(core.arrive(query(201, now_us + SLO_US, now_us), now_us=now_us))
    core.send(WorkerLost("b"), now_us)
    core.hello("c", now_us=now_us)
    (other,) = dispatched(core.arrive(query(202, now_us + SLO_US, now_us), now_us=now_us))
    assert {batch.worker: batch.subnet, other.worker: other.subnet} == {"a": "big", "c": "small"}


@pytest.mark.parametrize(
    ("slack_us", "min_accuracy", "choice"),
    [
        (54_999, 0.0, Choice("mid", 3)),
        (54_999, 76.0, Choice("big", 3)),
        (54_999, 71.0, Choice("mid", 3)),
        (21_999, 0.0, None),
    ],
)
def test_between_assignments_the_batch_adapts(slack_us: int, min_accuracy: float, choice: Choice | None) -> None:
    """The assigned subnet runs what fits; a head that demands more gets the cheapest that reaches it, or is let go."""
    learned = Demand(1.0)
    learned.assigned = {"w": 1}
    mid = Subnet("mid", 75.0, BIG.median_us, BIG.p95_us)
    queries = [query(i, min_accuracy=min_accuracy) for i in range(9)]
    view = make_view(make_profile(SMALL, mid, BIG), queries, slack_us, learned=learned)
    assert parse_policy("proteus").choose(view) == choice


def test_scipy_is_asked_for_when_a_worker_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scipy the policy is refused with the extra to install."""
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(PolicyError, match=r"proteus: needs scipy .*: pip install 'superserve-mesh\[evaluate\]'"):
        parse_policy("proteus").cheapest(PROFILE)
