"""Bounds: the fluid one by hand and above the exact ones, these against an enumeration, policies below all.

The harness's profile: small (70 %) takes 10, 12, 14, 16 ms and big (80 %) 20, 30, 40, 50 ms for 1 to 4 rows.
"""

import sys
from collections.abc import Collection, Sequence
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.sched.core import Scheduler
from common.sched.policies import parse_policy
from common.sched.profile import Profile, Subnet
from common.sched.types import Query
from loadgen.bounds import fluid, latency_factor, optimum, search, zilp
from loadgen.conditions import Conditions
from loadgen.errors import InputError, MissingExtraError
from loadgen.report import met_slo
from loadgen.simulate import Simulation
from loadgen.workload import Tenant, Workload
from tests.sched.harness import BIG, PROFILE, SMALL, make_profile, query, slower
from tests.sched.specs import SPECS

SLOW = slower(PROFILE, 2)
MS = 1_000


def even(count: int, apart_ms: float, slo_ms: int) -> list[Query]:
    return [query(i, round(i * apart_ms * MS) + slo_ms * MS, round(i * apart_ms * MS)) for i in range(count)]


def enumerated(queries: Sequence[Query], workers: Sequence[Profile]) -> float:
    """Every batch of every subset, on every worker, in every order."""

    @cache
    def best(left: frozenset[Query], frees: tuple[int, ...]) -> float:
        most = 0.0
        for batch in (batch for size in range(1, len(left) + 1) for batch in combinations(left, size)):
            rows = sum(q.rows for q in batch)
            for worker, profile in enumerate(workers):
                if rows > profile.max_batch and len(batch) > 1:
                    continue
                for subnet in profile.subnets:
                    start_us = max(frees[worker], *(q.arrival_us for q in batch))
                    end_us = start_us + profile.latency_us(subnet.id, rows)
                    if all(end_us <= q.deadline_us and subnet.accuracy >= q.min_accuracy for q in batch):
                        then = best(left - set(batch), (*frees[:worker], end_us, *frees[worker + 1 :]))
                        most = max(most, len(batch) * subnet.accuracy + then)
        return most

    return best(frozenset(queries), (0,) * len(workers))


def simulated(spec: str, queries: Sequence[Query], workers: Sequence[Profile]) -> float:
    """The utility of a policy in a world without delays."""
    named = {f"worker-{i}": profile for i, profile in enumerate(workers)}
    ordered = sorted(queries, key=lambda q: q.arrival_us)
    kinds = [Tenant("", (q.deadline_us - q.arrival_us) / 1e3, q.rows, q.min_accuracy) for q in ordered]
    tenants = tuple(dict.fromkeys(kinds))
    workload = Workload(
        np.array([q.arrival_us for q in ordered]) / 1e6,
        np.array([tenants.index(kind) for kind in kinds], np.int32),
        tenants,
    )
    records = Simulation(Scheduler(parse_policy(spec)), named, Conditions()).run(workload)
    return float(records.accuracy[met_slo(records)].sum())


@st.composite
def mixed(draw: st.DrawFn, most: int = 4, rows: int = 1) -> list[Query]:
    """Queries by arrival, at multiples of 5 ms so that the ZILP has few starts."""
    drawn = [
        query(
            i,
            (arrival + slo) * 5 * MS,
            arrival * 5 * MS,
            rows=draw(st.integers(1, rows)),
            min_accuracy=draw(st.sampled_from([0.0, 0.0, 75.0, 90.0])),
        )
        for i in range(draw(st.integers(1, most)))
        for arrival, slo in [draw(st.tuples(st.integers(0, 8), st.integers(2, 16)))]
    ]
    return sorted(drawn, key=lambda q: q.arrival_us)


@st.composite
def alike(draw: st.DrawFn, most: int = 6) -> list[Query]:
    slo_ms = draw(st.integers(2, 16)) * 5
    arrivals_ms = sorted(draw(st.lists(st.integers(0, 10).map(lambda n: n * 5), min_size=1, max_size=most)))
    return [query(i, (ms + slo_ms) * MS, ms * MS) for i, ms in enumerate(arrivals_ms)]


fleets = st.lists(st.sampled_from([PROFILE, SLOW]), min_size=1, max_size=2)
bins = st.sampled_from([1, 10 * MS, 1000 * MS, None])


@pytest.mark.parametrize(
    ("slo_ms", "overhead_us", "small_ms", "big_ms"),
    [
        (100, 0, 16 / 4, 50 / 4),
        (100, 1000, 17 / 4, 51 / 4),
        (40, 0, 16 / 4, 40 / 3),  # a batch of four of big no longer fits the SLO
        (29, 0, 16 / 4, 20),
    ],
)
def test_fluid_of_a_steady_load(slo_ms: int, overhead_us: int, small_ms: float, big_ms: float) -> None:
    """A query every 8 ms on one worker: all served, big as often as the time up to the last deadline allows."""
    count = 200
    big = ((8 * (count - 1) + slo_ms) / count - small_ms) / (big_ms - small_ms)
    bound = fluid(even(count, 8, slo_ms), [PROFILE], overhead_us=overhead_us, bin_us=1)
    assert bound.attainment == pytest.approx(1.0)
    assert bound.accuracy == pytest.approx(70 + 10 * big)
    assert bound.utility == pytest.approx(count * (70 + 10 * big))


def test_fluid_of_an_overload() -> None:
    """A query every 2 ms on one worker: as many of small as there is time for, 4 ms each, and none of big."""
    bound = fluid(even(200, 2, 30), [PROFILE], bin_us=1)
    served = (2 * 199 + 30) / 4
    assert (bound.utility, bound.attainment, bound.accuracy) == pytest.approx((70 * served, served / 200, 70.0))


def test_fluid_with_jitter_pays_the_mean() -> None:
    """Prices are multiplied by the mean of 1 + |N(0, jitter)|, doubled at times."""
    drawn = 1 + np.abs(np.random.default_rng(0).normal(0, 0.2, 1_000_000))
    assert latency_factor(0.2, 0.01) == pytest.approx(drawn.mean() * 1.01, rel=1e-3)
    served = (2 * 199 + 30) / (4 * latency_factor(0.2, 0.01))
    bound = fluid(even(200, 2, 30), [PROFILE], jitter=0.2, tail=0.01, bin_us=1)
    assert bound.utility == pytest.approx(70 * served)


def test_fluid_where_a_smaller_batch_is_cheaper_by_the_row() -> None:
    """A profile may have its best time per row below the largest batch: that one is the price."""
    odd = make_profile(Subnet("odd", 70.0, (10_000, 10_000, 40_000), (10_000, 10_000, 40_000)))
    assert fluid(even(200, 2, 100), [odd], bin_us=1).utility == pytest.approx(70 * (2 * 199 + 100) / 5)


def test_fluid_counts_rows_but_utility_counts_queries() -> None:
    """A query of two rows costs twice as much and is worth as much; one of six goes alone, beyond the profile."""
    two = [query(i, 30 * MS, rows=2) for i in range(9)]
    assert fluid(two, [PROFILE]).utility == pytest.approx(70 * 30 / 8)
    six = [query(i, 30 * MS, rows=6) for i in range(9)]
    assert fluid(six, [PROFILE]).utility == pytest.approx(70 * 30 / 20)


@settings(max_examples=60, deadline=None)
@given(mixed(rows=5), fleets)
def test_zilp_is_the_best_of_all_schedules(queries: list[Query], workers: list[Profile]) -> None:
    """The ZILP equals an enumeration that shares nothing with it: SLOs, rows, floors and workers mixed."""
    assert zilp(queries, workers).utility == pytest.approx(enumerated(queries, workers))


@settings(max_examples=40, deadline=None)
@given(alike(most=5), st.integers(1, 2), st.sampled_from([0, 5 * MS]))
def test_search_is_the_zilp(queries: list[Query], workers: int, overhead_us: int) -> None:
    """Both exact methods agree where both apply."""
    found = search(queries, [PROFILE] * workers, overhead_us=overhead_us)
    assert found.utility == pytest.approx(zilp(queries, [PROFILE] * workers, overhead_us=overhead_us).utility)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 24), st.integers(5, 120), st.integers(1, 2))
def test_search_of_a_burst_is_a_knapsack(count: int, slo_ms: int, workers: int) -> None:
    """Of queries that come at once, each worker takes the batches of most accuracy that fill the SLO."""

    @cache
    def packed(queries: int, left_us: int) -> float:
        return max(
            (
                size * subnet.accuracy + packed(queries - size, left_us - taken_us)
                for subnet in PROFILE.subnets
                for size in range(1, min(queries, PROFILE.max_batch) + 1)
                if (taken_us := PROFILE.latency_us(subnet.id, size)) <= left_us
            ),
            default=0.0,
        )

    slo_us = slo_ms * MS
    shares = range(count + 1) if workers == 2 else (count,)
    best = max(packed(share, slo_us) + packed(count - share, slo_us) for share in shares)
    assert search([query(i, slo_us) for i in range(count)], [PROFILE] * workers).utility == pytest.approx(best)


@settings(max_examples=40, deadline=None)
@given(alike(most=4), st.integers(1, 3))
def test_search_is_the_best_of_all_schedules(queries: list[Query], workers: int) -> None:
    """It equals the enumeration too, also where more workers than needed are there."""
    assert search(queries, [PROFILE] * workers).utility == pytest.approx(enumerated(queries, [PROFILE] * workers))


@settings(max_examples=60, deadline=None)
@given(alike(most=8), st.integers(1, 2), st.sampled_from([0.001, 0.01, 0.1]))
def test_a_tolerance_is_kept(queries: list[Query], workers: int, tolerance: float) -> None:
    """The utility is at least the optimum, and above it by no more than the tolerance."""
    exact = search(queries, [PROFILE] * workers).utility
    near = search(queries, [PROFILE] * workers, tolerance=tolerance).utility
    assert exact - 1e-6 <= near <= exact * (1 + tolerance) + 1e-6


def test_batches_on_two_workers_need_not_be_contiguous() -> None:
    """The first and the last query run beside the two between: no contiguous batches would serve two by the large one.

    {1, 2} waits for query 3 with {0, 3}, done as 0 is due; either neighbour of 1 or 2 in their place breaks a deadline.
    """
    profile = Profile(
        "nested",
        "emulated",
        (1, 2),
        (
            Subnet("quick", 70.0, (6_750, 7_000), (6_750, 7_000)),
            Subnet("large", 80.0, (9_900, 10_000), (9_900, 10_000)),
        ),
    )
    queries = [query(i, (at + 10) * MS, at * MS) for i, at in enumerate([0, 1, 1, 3])]
    assert search(queries, [profile] * 2).utility == 2 * 70 + 2 * 80
    assert zilp(queries, [profile] * 2).utility == pytest.approx(2 * 70 + 2 * 80)
    assert enumerated(queries, [profile] * 2) == 2 * 70 + 2 * 80


@settings(max_examples=60, deadline=None)
@given(mixed(most=6, rows=3), fleets, bins)
def test_fluid_is_never_below_the_zilp(queries: list[Query], workers: list[Profile], bin_us: int | None) -> None:
    """Whatever SLOs, rows, floors, workers and bins."""
    assert fluid(queries, workers, bin_us=bin_us).utility >= zilp(queries, workers).utility - 1e-6


@settings(max_examples=60, deadline=None)
@given(alike(most=12), st.integers(1, 2), bins)
def test_fluid_is_never_below_the_search(queries: list[Query], workers: int, bin_us: int | None) -> None:
    """On longer loads of one SLO as well."""
    workers_ = [PROFILE] * workers
    assert fluid(queries, workers_, bin_us=bin_us).utility >= search(queries, workers_).utility - 1e-6


@settings(max_examples=40, deadline=None)
@given(mixed(most=8, rows=3), fleets, st.integers(1, 10))
def test_more_helps(queries: list[Query], workers: list[Profile], longer: int) -> None:
    """Fluid grows with workers and with SLOs, and bins that divide others give no more than these."""
    utility = fluid(queries, workers, bin_us=10 * MS).utility
    later = [query(q.id, q.deadline_us + longer * MS, q.arrival_us, rows=q.rows) for q in queries]
    assert fluid(queries, [*workers, PROFILE], bin_us=10 * MS).utility >= utility - 1e-6
    assert fluid(later, workers, bin_us=10 * MS).utility >= utility - 1e-6
    assert fluid(queries, workers, bin_us=40 * MS).utility >= utility - 1e-6


@settings(max_examples=60, deadline=None)
@given(mixed(most=6), fleets, st.sampled_from(sorted(SPECS.values())))
def test_no_policy_exceeds_the_optimum(queries: list[Query], workers: list[Profile], spec: str) -> None:
    """Every registered policy, simulated without delays, stays at or below the ZILP."""
    assert simulated(spec, queries, workers) <= zilp(queries, workers).utility + 1e-6


@pytest.mark.parametrize("spec", SPECS.values())
@pytest.mark.parametrize("bin_us", [1, None])
def test_no_policy_exceeds_fluid_under_bursts(spec: str, bin_us: int | None) -> None:
    """300 queries of two SLOs in bursts on three workers."""
    rng = np.random.default_rng(7)
    arrivals_us = np.cumsum(rng.gamma(1 / 4, 4 * 3 * MS, 300)).astype(int).tolist()
    queries = [query(i, at_us + (60 + 60 * (i % 2)) * MS, at_us) for i, at_us in enumerate(arrivals_us)]
    workers = [PROFILE, PROFILE, SLOW]
    assert 0 < simulated(spec, queries, workers) <= fluid(queries, workers, bin_us=bin_us).utility


def test_a_workload_is_its_queries() -> None:
    """Tenants give SLO, rows and floor; the exact methods and the fluid one see the same queries in both forms."""
    tenants = (Tenant(slo_ms=40, rows=2), Tenant(slo_ms=80, min_accuracy=75.0))
    workload = Workload(np.array([0.0, 0.005, 0.005, 0.03]), np.array([0, 1, 1, 0], np.int32), tenants)
    queries = [
        query(0, 40 * MS, 0, rows=2),
        query(1, 85 * MS, 5 * MS, min_accuracy=75.0),
        query(2, 85 * MS, 5 * MS, min_accuracy=75.0),
        query(3, 70 * MS, 30 * MS, rows=2),
    ]
    assert fluid(workload, [PROFILE]) == fluid(queries, [PROFILE])
    assert optimum(workload, [PROFILE]).utility == pytest.approx(enumerated(queries, [PROFILE]))


@pytest.mark.parametrize("workers", [[PROFILE], [PROFILE, SLOW]])
def test_optimum_takes_whichever_suits(workers: Collection[Profile]) -> None:
    """Like queries on like workers are searched, unlike workers need the ZILP; both are the optimum."""
    queries = even(4, 5, 50)
    assert optimum(queries, workers).utility == pytest.approx(enumerated(queries, list(workers)))


def test_nothing_can_be_served() -> None:
    """A floor that no subnet meets, or an SLO that none can: a bound of zero, and no accuracy."""
    for hopeless in ([query(0, 90 * MS, min_accuracy=90.0)], [query(0, 9 * MS)]):
        for bound in (fluid(hopeless, [PROFILE]), zilp(hopeless, [PROFILE]), search(hopeless, [PROFILE])):
            assert (bound.utility, bound.attainment) == (0.0, 0.0)
            assert np.isnan(bound.accuracy)


def test_what_is_refused() -> None:
    """No queries, what the search is not made for, and instances too large for the ZILP: each names what it is."""
    with pytest.raises(InputError, match="queries=0"):
        fluid([], [PROFILE])
    with pytest.raises(InputError, match="queries=2: must have one SLO"):
        search([query(0, 50 * MS), query(1, 60 * MS)], [PROFILE])
    with pytest.raises(InputError, match="workers=2: must be alike"):
        search([query(0, 50 * MS)], [PROFILE, SLOW])
    fine = make_profile(SMALL, Subnet("fine", 80.0, (1_001, 1_777, 3_333), (1_001, 1_777, 3_333)))
    with pytest.raises(InputError, match="queries=40: the ZILP has more than"):
        zilp(even(40, 7.123, 2_000), [fine])


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install; the search needs none."""
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'superserve-mesh\[evaluate\]'"):
        fluid([query(0, 50 * MS)], [PROFILE])
    assert search([query(0, 50 * MS)], [PROFILE]).utility == BIG.accuracy
