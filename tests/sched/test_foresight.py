"""Foresight, by hand: which subnets it uses, what it asks of those behind, and when it lets a head go.

One worker unless said otherwise; small takes 10, 12, 14, 16 ms and big 20, 30, 40, 50 ms for 1 to 4 rows.
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.sched.core import Scheduler
from common.sched.options import SchedulerOptions
from common.sched.policies import View, parse_policy
from common.sched.policies.foresight import Foresight
from common.sched.policies.lookahead import Ahead, hull
from common.sched.profile import Profile, Subnet
from common.sched.queue import EdfQueue
from common.sched.types import Arrived, Batch, BatchDone, Choice, Query, WorkerHello
from common.sched.worker import Worker
from loadgen.conditions import Conditions
from loadgen.evaluation.experiments import MIXED
from loadgen.profiles import load_profile
from loadgen.report import attained, met_slo
from loadgen.simulate import simulate
from loadgen.traces import make_arrivals
from loadgen.workload import Tenant, Workload, make_workload
from tests.sched.harness import PROFILE, SMALL, dispatched, make_profile, make_view, query

REAL = load_profile("rtx2080ti-reconstructed")
POLICY = parse_policy("foresight")


def seen(view: View, ratio: float = 1.0) -> View:
    """The view after 2,001 batches that took that much over what was predicted."""
    for _ in range(2_001):
        view.residuals.add(ratio)
    return view


def waiting(*deadlines_us: int) -> list[Query]:
    return [query(i, deadline_us) for i, deadline_us in enumerate(deadlines_us)]


def subnet(name: str, accuracy: float, us: int) -> Subnet:
    return Subnet(name, accuracy, (us // 4, us // 2, us), (us // 4, us // 2, us))


def test_subnets_off_the_hull_are_not_used() -> None:
    """Subnets below the line between two others are left out; where those are not eligible, they count."""
    profile = make_profile(
        subnet("a", 70, 10_000),
        subnet("below", 71, 30_000),  # from a to c, 70 to 78, the line passes 72.7 at 30 ms
        subnet("too", 75, 50_000),  # 75.3 there
        subnet("c", 78, 70_000),
        subnet("d", 79, 90_000),
        subnet("dear", 79.5, 200_000),
    )
    assert [profile.subnets[i].id for i in hull(profile, 0)] == ["a", "c", "d", "dear"]
    assert [profile.subnets[i].id for i in hull(profile, 1)] == ["below", "too", "c", "d", "dear"]


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 1_000)), min_size=1, max_size=8, unique_by=lambda x: x[0]))
def test_no_subnet_lies_above_the_hull(points: list[tuple[int, int]]) -> None:
    """Every subnet is on the hull, or a mix of two hull subnets is at least as accurate for the same work."""
    profile = make_profile(*(subnet(f"s{a}", a, 4_000 * us) for a, us in points))
    kept = [(profile.latency_us(profile.subnets[i].id, 4), profile.subnets[i].accuracy) for i in hull(profile, 0)]
    assert kept == sorted(kept)
    for us, accuracy in ((profile.latency_us(s.id, 4), s.accuracy) for s in profile.subnets):
        under = [point for point in kept if point[0] <= us]
        over = [point for point in kept if point[0] >= us]
        assert under  # the cheapest is kept
        (a_us, a), (b_us, b) = under[-1], (over or under)[0 if over else -1]
        mixed = a if a_us == b_us else a + (b - a) * (us - a_us) / (b_us - a_us)
        assert accuracy <= mixed + 1e-9


@pytest.mark.parametrize(
    ("slack_us", "ratio", "choice"),
    [
        (40_000, 1.0, Choice("big", 3)),  # three of four rows is full enough
        (39_999, 1.0, Choice("small", 4)),
        (40_000, 1.1, Choice("small", 4)),
        (45_334, 1.1, Choice("big", 3)),
        (45_333, 1.1, Choice("small", 4)),
        (18_134, 1.1, Choice("small", 4)),
    ],
)
def test_the_margin_is_what_was_seen(slack_us: int, ratio: float, choice: Choice) -> None:
    """A subnet must fill its batch within the slack if it takes a third more over its prediction than the worst did."""
    assert POLICY.choose(seen(make_view(PROFILE, waiting(slack_us, *[10**9] * 8), slack_us), ratio)) == choice


def test_what_no_plan_could_save_is_not_planned_for() -> None:
    """A batch in a hundred took 15 times its time. With room it is allowed for; with none, it is as if it had not been.

    Under an SLO of 100 ms 6.25 times the 16 ms of a full batch are the most that could be met.
    """

    def choice(rows_per_s: int, slow: float) -> Choice | None:
        view = make_view(PROFILE, waiting(*[100_000] * 9), 100_000)
        for number in range(2_000):
            view.residuals.add(slow if number % 100 == 0 else 1.0)
        view.rate.add(rows_per_s // 10, view.now_us)
        return POLICY.choose(view)

    assert choice(10, 15.0) == Choice("small", 1)
    assert choice(50, 4.9) == Choice("small", 4)  # 6.2 times: a third beyond the worst
    assert choice(50, 15.0) == choice(50, 1.0) == Choice("big", 4)


def test_the_target_is_the_operators() -> None:
    """A lower target forgives a rare slow batch, and buys accuracy with it."""
    view = make_view(PROFILE, waiting(40_000, *[10**9] * 8), 40_000)
    for i in range(1_000):
        view.residuals.add(2.0 if i % 100 == 0 else 1.0)
    assert parse_policy("foresight:target=0.999").choose(view) == Choice("small", 4)
    assert parse_policy("foresight:target=0.9").choose(view) == Choice("big", 3)


def test_a_short_queue_is_spent_on_accuracy() -> None:
    """With fewer rows queued than would fill a batch, all of them count as full."""
    assert POLICY.choose(seen(make_view(PROFILE, waiting(10**9), 20_000))) == Choice("big", 1)
    assert POLICY.choose(seen(make_view(PROFILE, waiting(10**9, 10**9), 29_999))) == Choice("small", 4)


@pytest.mark.parametrize(("due_us", "choice"), [(66_000, Choice("big", 4)), (65_999, Choice("small", 4))])
def test_those_behind_decide(due_us: int, choice: Choice) -> None:
    """Big is taken if the four behind it, after its 50 ms, can be met by small in 16 ms; else small."""
    queued = waiting(*[60_000] * 4, *[due_us] * 4)
    assert POLICY.choose(seen(make_view(PROFILE, queued, 60_000))) == choice


def test_those_behind_go_to_any_worker() -> None:
    """A second worker that is free takes those behind, so that the first may do its best; a busy one does not."""
    view = seen(make_view(PROFILE, waiting(*[60_000] * 4, *[60_500] * 4), 60_000))
    assert POLICY.choose(view) == Choice("small", 4)
    other = Worker("other", PROFILE, 0)
    assert POLICY.choose(view._replace(workers=(view.worker, other))) == Choice("big", 4)
    other.free_us = 50_000
    assert POLICY.choose(view._replace(workers=(view.worker, other))) == Choice("small", 4)


def test_those_who_will_arrive_count() -> None:
    """Arrivals at the measured rate, due an SLO later, keep a lone worker from a subnet that they could not follow."""
    queued = [query(i, 60_000) for i in range(4)]  # SLO 60 ms
    assert POLICY.choose(seen(make_view(PROFILE, queued, 60_000))) == Choice("big", 4)
    view = seen(make_view(PROFILE, queued, 60_000))
    view.rate.add(40, 0)  # 400 rows/s: four in each of the next 10 ms; after 50 ms, 16 ms each
    assert POLICY.choose(view) == Choice("small", 4)
    assert parse_policy("foresight:horizon_ms=0").choose(view) == Choice("big", 4)


def test_a_head_that_would_cost_others_is_let_go() -> None:
    """Time for one row of small: it is served if those behind are met all the same, or lost anyway; else let go.

    If more arrives than can be run, it is let go for a batch that fills.
    """

    def choice(*behind_us: int, rows_per_s: int = 0) -> Choice | None:
        view = seen(make_view(PROFILE, waiting(11_000, *behind_us), 11_000))
        view.rate.add(rows_per_s // 10, view.now_us)
        return POLICY.choose(view)

    assert choice(*[26_000] * 4) == Choice("small", 1)  # 10 ms, then 16 for four
    assert choice(*[25_999] * 4) is None  # met only without it
    assert choice(*[15_999] * 4) == Choice("small", 1)  # lost either way
    assert choice(*[15_999] * 4, rows_per_s=240) == Choice("small", 1)  # four rows take 16 ms: 250 a second
    assert choice(*[15_999] * 4, rows_per_s=260) is None


@pytest.mark.parametrize(("rows_per_s", "choice"), [(90, Choice("small", 1)), (110, None)])
def test_batches_that_shrank_by_waiting_must_carry_the_load(rows_per_s: int, choice: Choice | None) -> None:
    """A head that has waited 20 ms has time for one row now and had for four: batches of one carry 100 a second."""
    now_us = 1_000_000
    queries = [query(i, now_us + us, now_us - 20_000) for i, us in enumerate((11_000, *[15_999] * 4))]
    view = seen(make_view(PROFILE, queries, 11_000)._replace(now_us=now_us, start_us=now_us))
    view.worker.free_us = now_us
    view.rate.add(rows_per_s // 10, view.now_us)
    assert POLICY.choose(view) == choice


@pytest.mark.parametrize("ratio", [9.0, 300.0])
def test_a_hiccup_is_outlived(ratio: float) -> None:
    """Batches that took many times their time, for a while, end no service: it is as before when all is as before.

    A query every 10 ms on one worker, which can run 250 a second.
    """
    scheduler = Scheduler(POLICY, SchedulerOptions(max_in_flight=1))
    scheduler.handle(WorkerHello("w", PROFILE), 0)
    running: list[tuple[int, int, Batch]] = []
    met: set[int] = set()
    for number in range(6_000):
        now_us = number * 10_000
        commands = list(scheduler.handle(Arrived((query(number, now_us + 60_000, now_us),)), now_us))
        while running and running[0][1] <= now_us:
            started_us, ended_us, batch = running.pop()
            met |= {item.id for item in batch.queries if item.deadline_us >= ended_us}
            commands += scheduler.handle(BatchDone("w", batch.id, started_us, ended_us), now_us)
        for batch in dispatched(commands):
            took_us = round(PROFILE.latency_us(batch.subnet, batch.rows) * (ratio if 1_000 <= number < 1_020 else 1.0))
            running.append((now_us, now_us + took_us, batch))
    assert set(range(5_000, 5_900)) <= met


def test_a_head_with_a_slim_chance_is_served() -> None:
    """What lately happened leaves no time for the head, what is expected does: it is served, alone."""
    view = seen(make_view(PROFILE, waiting(11_000), 11_000), 1.5)
    assert POLICY.choose(view) == Choice("small", 1)
    assert POLICY.choose(view._replace(slack_us=9_999)) is None


def test_a_query_larger_than_every_batch_goes_alone() -> None:
    """Six rows where four are the largest batch: the most accurate subnet that has time for them."""
    view = seen(make_view(PROFILE, [query(0, 10**9, rows=6)], 10**6))
    assert POLICY.choose(view) == Choice("big", 6)


def test_one_subnet_is_enough() -> None:
    """A profile of one subnet leaves nothing to choose but the batch."""
    view = seen(make_view(make_profile(SMALL), waiting(*[10**9] * 9), 14_000))
    assert POLICY.choose(view) == Choice("small", 3)


def surprised(rows: int, queued: int = 4, slo_us: int = 100_000) -> View:
    """A view at 1 s, SLO 100 ms, 20 ms after so many rows came at once, which nothing had announced."""
    now_us = 1_000_000
    queries = [query(i, now_us + slo_us, now_us) for i in range(queued)]
    view = seen(make_view(PROFILE, queries, slo_us)._replace(now_us=now_us, start_us=now_us))
    view.rate.add(rows, now_us - 20_000)
    return view


def test_the_worst_surprise_must_be_met_if_it_came_now() -> None:
    """After the 50 ms of big, small has time for three batches of four: for 1.5 times eight rows, not nine."""
    assert POLICY.choose(surprised(8)) == Choice("big", 4)
    assert POLICY.choose(surprised(9)) == Choice("small", 4)
    assert parse_policy("foresight:burst=0").choose(surprised(9)) == Choice("big", 4)
    assert parse_policy("foresight:burst=1").choose(surprised(12)) == Choice("big", 4)
    assert parse_policy("foresight:burst=1").choose(surprised(13)) == Choice("small", 4)


def test_a_batch_is_as_long_as_what_is_there() -> None:
    """One row of big takes 20 ms, though four would fit: then small has time for five batches, 1.5 times 13 rows."""
    assert POLICY.choose(surprised(13, queued=1)) == Choice("big", 4)
    assert POLICY.choose(surprised(14, queued=1)) == Choice("small", 4)


def test_a_burst_runs_in_batches_of_which_two_fit_into_an_slo() -> None:
    """Under 30 ms an idle worker takes six rows, two batches of three in 14 ms each: not one of four and nothing else.

    The other is in one row of big for 20 ms, and has no time for any. Six are 1.5 times four.
    """

    def choice(rows: int, slo_us: int) -> Choice | None:
        view = surprised(rows, queued=1, slo_us=slo_us)
        return POLICY.choose(view._replace(workers=(view.worker, Worker("other", PROFILE, 0))))

    assert choice(4, 30_000) == Choice("big", 2)
    assert choice(5, 30_000) == Choice("small", 4)
    assert choice(4, 27_999) == Choice("small", 4)  # two of two rows


def test_a_batch_beyond_an_slo_is_of_no_use() -> None:
    """Within 26 ms the smallest subnet ends two rows of four: so two of the other are full enough.

    The two behind have the second worker, and there a batch of two.
    """
    quick, better = (10_000, 20_000, 40_000), (12_000, 24_000, 48_000)
    profile = make_profile(Subnet("quick", 70, quick, quick), Subnet("better", 80, better, better))
    view = seen(make_view(profile, waiting(*[26_000] * 4), 26_000))
    other = Worker("other", profile, 0)
    assert POLICY.choose(view._replace(workers=(view.worker, other))) == Choice("better", 2)
    other.free_us = 6_001
    assert POLICY.choose(view._replace(workers=(view.worker, other))) == Choice("quick", 2)
    assert POLICY.choose(view._replace(slack_us=25_000)) == Choice("quick", 2)  # 1 ms for the reply


@pytest.mark.parametrize(("rows_per_s", "choice"), [(210, Choice("small", 1)), (220, None)])
def test_full_batches_beyond_an_slo_carry_no_load(rows_per_s: int, choice: Choice | None) -> None:
    """Under 12.5 ms no batch of three ends in its 14 ms, which would be 214 a second: 220 are more than can be run."""
    view = seen(make_view(PROFILE, waiting(11_000, *[12_500] * 4), 11_000))
    view.rate.add(rows_per_s // 10, view.now_us)
    assert POLICY.choose(view) == choice


def test_a_burst_takes_what_batches_take_at_the_median() -> None:
    """A rare slow batch lengthens what one batch is planned with, not every batch of a burst.

    With target 0.999 big takes 1.75 times 50 ms (the margin is 2): 12 ms are left, too few for any burst.
    With 0.9 it takes 50 ms, and small three times 16.
    """
    view = surprised(8)
    for i in range(1_000):
        view.residuals.add(2.0 if i % 100 == 0 else 1.0)
    assert POLICY.choose(view) == Choice("small", 4)
    assert parse_policy("foresight:target=0.9").choose(view) == Choice("big", 4)
    slow = seen(surprised(8), 1.1)  # 1,200 batches, half of them at 1.1: their median
    assert parse_policy("foresight:target=0.4").choose(slow) == Choice("small", 4)


def test_little_seen_is_no_reason_to_trust_it() -> None:
    """Big is not taken at 2.4 times its 40 ms before a batch was seen, and is after 40 that took what was predicted."""
    view = make_view(PROFILE, waiting(96_000, *[10**9] * 8), 96_000)
    assert POLICY.choose(view) == Choice("small", 4)
    for _ in range(40):
        view.residuals.add(1.0)
    assert POLICY.choose(view) == Choice("big", 3)


@pytest.mark.parametrize("worker_us", [(0,), (0, 7_000), (3_000, 11_000, 40_000)])
@given(st.lists(st.integers(10_000, 200_000), min_size=1, max_size=24), st.sampled_from([1.0, 1.2]))
def test_those_behind_are_saved_as_by_a_queue_of_workers(
    worker_us: tuple[int, ...], deadlines_us: list[int], correction: float
) -> None:
    """Batches of equal length on the worker that is free first: the look-ahead says what playing them says."""
    queries = [query(0, 60_000), *(query(i, 60_000 + us) for i, us in enumerate(sorted(deadlines_us), 1))]
    view = seen(make_view(PROFILE, queries, 60_000))
    others = [Worker(f"w{us}", PROFILE, 0) for us in worker_us]
    for other, us in zip(others, worker_us, strict=True):
        other.free_us, other.correction = us, correction
    ahead = Ahead(view._replace(workers=(view.worker, *others)), Foresight(), 1.0)
    free = [(50_000, 1.0), *((us, correction) for us in worker_us)]
    dues_us, packed = view.queue.batches(4, 4, 99)
    for due_us in dues_us:
        free_us, factor = heappop(free)
        free_us += ceil((10_000, 10_000, 12_000, 14_000, 16_000)[packed] * factor)
        heappush(free, (free_us, factor))
        if free_us > due_us:
            assert not ahead.saved(50_000, 4, 0)
            return
    assert ahead.saved(50_000, 4, 0)


def simulated(spec: str, times_s: NDArray[np.float64], seed: int, rows: int = 1, tail: float = 0.0) -> float:
    """Attainment of eight workers with the reconstructed profile, SLO 36 ms, jitter 10 % where there is a tail."""
    workload = Workload.of_one(times_s, Tenant(slo_ms=36.0, rows=rows))
    conditions = Conditions(jitter=0.1 if tail else 0.0, tail=tail, seed=seed)
    return attained(simulate(Scheduler(parse_policy(spec)), workload, REAL, 8, conditions))[0]


def test_bursts_of_large_queries_are_met() -> None:
    """Queries of eight rows whose gaps have CV² 8: without a reserve for bursts the target is missed, with it held."""
    times_s = make_arrivals("bursty:base=187.5,variant=693.75,cv2=8", rate=None, duration_s=4.0, seed=0)
    assert simulated("foresight:burst=0", times_s, 0, rows=8) < 0.998
    assert simulated("foresight", times_s, 0, rows=8) >= 0.999


def test_bursts_out_of_silence_are_met() -> None:
    """450 queries within 5 ms each 0.4 s, in 2,000 q/s: the reserve learns from the first burst, which it can miss."""
    steady = np.arange(0.0, 4.0, 0.0005)
    bursts = np.concatenate([np.linspace(at_s, at_s + 0.005, 450) for at_s in np.arange(0.411, 4.0, 0.4)])
    times_s = np.sort(np.concatenate((steady, bursts)))
    assert simulated("foresight:burst=0", times_s, 0) < 0.997
    assert simulated("foresight", times_s, 0) > 0.9985


def test_an_slo_shorter_than_a_full_batch_is_no_reason_for_the_smallest_subnet() -> None:
    """100 q/s on eight workers, SLO 7 ms, where 16 rows take 7.35: all are met, nearly all by the most accurate."""
    workload = make_workload("poisson:rate=100", duration_s=10, slo_ms=7)
    attainment, accuracy = attained(simulate(Scheduler(POLICY), workload, REAL, 8, Conditions()))
    assert attainment == 1.0
    assert accuracy > 79.9


@pytest.mark.parametrize("seed", [0, 1])
def test_batches_do_not_stay_small_under_a_load_that_can_be_run(seed: int) -> None:
    """14,000 q/s on eight workers, SLO 7 ms: once a cold start's caution has passed all are met, where .41 were."""
    workload = make_workload("poisson:rate=14000", duration_s=1, slo_ms=7, seed=seed)
    met = met_slo(simulate(Scheduler(POLICY), workload, REAL, 8, Conditions()))
    assert met[len(met) // 2 :].mean() >= 0.999


def test_batches_of_which_most_exceed_the_slo_are_no_capacity() -> None:
    """Batches up to 512 of 2 ms a row, of which 14 rows end within 36 ms: overload does not end in batches of one.

    Eight workers in these carry 3,100 q/s, in batches of 512 as many as 3,900, and in batches of one 800.
    """
    profile = Profile.from_dict(
        {
            **REAL.to_dict(),
            "batch_sizes": [1, 512],
            "subnets": [
                {"id": name, "accuracy": accuracy, "median_us": [us, 103 * us], "p95_us": [us, 103 * us]}
                for name, accuracy, us in (("small", 70, 10_000), ("big", 80, 20_000))
            ],
        }
    )
    workload = make_workload("poisson:rate=3500", duration_s=3)
    attainment = {
        policy: attained(simulate(Scheduler(parse_policy(policy)), workload, profile, 8, Conditions()))[0]
        for policy in ("foresight", "slackfit")
    }
    assert attainment["foresight"] > max(0.5, attainment["slackfit"])


@pytest.mark.parametrize("rate", [6_000, 7_000, 9_000])
def test_more_than_can_be_met_is_met_as_far_as_possible(rate: int) -> None:
    """Three workers with capacity for some 6,000 q/s: more is met than under SlackFit; in batches of one it was .28."""
    workload = make_workload(f"poisson:rate={rate}", duration_s=2)
    conditions = Conditions(jitter=0.1)
    attainment = {
        policy: attained(simulate(Scheduler(parse_policy(policy)), workload, REAL, 3, conditions))[0]
        for policy in ("foresight", "slackfit")
    }
    assert attainment["foresight"] > attainment["slackfit"]


def test_a_burst_has_the_shortest_slo_that_waits() -> None:
    """Tenants of 36, 100 and 250 ms, one with a floor, and a burst of the first: each tenant's target is held.

    With the SLO of the head for those to come, the tenant of 36 ms attained .982 here.
    """
    workload = make_workload(MIXED.format(start=10, end=15), duration_s=30)
    records = simulate(Scheduler(parse_policy("foresight")), workload, REAL, 8, Conditions(jitter=0.1))
    met = met_slo(records)
    assert [tenant.name for tenant in workload.tenants] == ["interactive", "accurate", "background"]
    assert all(met[workload.tenant == code].mean() >= 0.999 for code in range(3))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_rare_slow_batch_finds_a_cold_start_prepared(seed: int) -> None:
    """One batch in a hundred takes twice its time: the target is held from the first batch on, over 4 s."""
    times_s = make_arrivals("bursty:base=1500,variant=2950,cv2=2", rate=None, duration_s=4.0, seed=seed)
    assert simulated("foresight", times_s, seed, tail=0.01) >= 0.999


def cut(rows: Sequence[int], skipped: int, size: int, most: int = 99) -> tuple[list[int], int]:
    queue = EdfQueue()
    queue.push([query(i, 1_000 + i, rows=n) for i, n in enumerate(rows)])
    return queue.batches(skipped, size, most)


def test_batches_behind_are_cut_in_order() -> None:
    """Behind the rows that leave, batches follow in EDF order; no query is split. Deadlines, rows of the largest."""
    assert cut([1] * 10, 4, 4) == ([1_004, 1_008], 4)
    assert cut([1] * 10, 0, 4, most=2) == ([1_001, 1_005], 4)
    assert cut([1] * 4, 4, 4) == ([], 0)
    assert cut([1] * 6, 4, 4) == ([1_004], 2)
    assert cut([3, 2, 1, 6, 1], 4, 4) == ([1_001, 1_003, 1_004], 4)
    assert cut([3, 2, 1, 1], 5, 4) == ([1_002], 2)


@given(st.integers(1, 30), st.integers(0, 20), st.integers(1, 8), st.integers(1, 5))
def test_single_rows_are_cut_alike(count: int, skipped: int, size: int, most: int) -> None:
    """The quick way for queries of one row gives what the long way gives for the same rows."""
    deadlines_us, largest = cut([1] * count, skipped, size, most)
    assert (deadlines_us, 2 * largest) == cut([2] * count, 2 * skipped, 2 * size, most)
