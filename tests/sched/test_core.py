"""The rules at the top of `common/sched/core.py`, one by one."""

from dataclasses import replace

import pytest

from common.sched.core import Scheduler
from common.sched.options import SchedulerOptions
from common.sched.policies.base import Learner, PolicyError, View
from common.sched.profile import Profile, ProfileError
from common.sched.types import (
    Arrived,
    Batch,
    BatchDone,
    Choice,
    Query,
    Reason,
    Tick,
    WorkerDraining,
    WorkerHello,
    WorkerLost,
)
from tests.sched.conftest import Start
from tests.sched.harness import BIG, PROFILE, SMALL, dispatched, ids, make_profile, query, rejected, slower, wake_us


def test_schedule_by_hand(start: Start) -> None:
    """MaxBatch on one worker gives the schedule worked out by hand, times and all."""
    core = start()
    core.hello()
    # 40 ms of slack: small could run 4 rows; 3 are queued; big runs 3 in exactly 40 ms.
    (first,) = dispatched(core.arrive(query(1, 40_000), query(2, 40_000), query(3, 41_000)))
    assert (first.worker, first.subnet, ids(first)) == ("w", "big", [1, 2, 3])
    # The worker is free at 40 ms. Query 4 has 20 ms from there: big, alone. Query 5, later, has to wait.
    assert wake_us(core.arrive(query(4, 60_000, 5_000), now_us=5_000)) == 40_000
    (second,) = dispatched(core.send(Tick(), 40_000))
    assert (second.subnet, ids(second)) == ("big", [4])
    assert dispatched(core.arrive(query(5, 72_000, 40_000), now_us=40_000)) == []
    # The worker is predicted free at 60 ms. Query 5 then has 12 ms: small, alone.
    assert wake_us(core.finish(first, 0, 40_000)) == 60_000
    (third,) = dispatched(core.send(Tick(), 60_000))
    assert (third.subnet, ids(third)) == ("small", [5])
    core.finish(second, 40_000, 60_000)
    core.finish(third, 60_000, 70_000)
    assert core.outcomes == {i: ["done"] for i in range(1, 6)}


def test_queue_is_ordered_by_deadline_then_priority_then_id(start: Start) -> None:
    """Equal deadlines are ordered by priority, lower numbers first, and equal priorities by id."""
    core = start("fixed:small")
    core.arrive(query(3, 90_000), query(2, 90_000), query(4, 90_000, priority=-1), query(5, 80_000, priority=9))
    (batch,) = dispatched(core.hello())
    assert ids(batch) == [5, 4, 2, 3]


def test_repeated_arrivals_are_ignored(start: Start) -> None:
    """A query that is queued or in flight does not enter again."""
    core = start()
    core.arrive(query(1), query(1))
    core.arrive(query(1))
    assert core.scheduler.queued_rows == 1
    (batch,) = dispatched(core.hello())
    core.arrive(query(1))
    assert core.scheduler.queued_rows == 0
    core.finish(batch, 0, 10_000)
    assert core.scheduler.accepted == core.scheduler.done == 1


def test_unknown_reports_are_ignored(start: Start) -> None:
    """A report of an unknown batch, and anything about an unknown worker, changes nothing."""
    core = start()
    core.hello()
    core.arrive(query(1))
    for event in (BatchDone("w", 99, 0, 1), BatchDone("x", 1, 0, 1), WorkerLost("x"), WorkerDraining("x")):
        assert dispatched(core.send(event, 1_000)) == []
    assert [ids(batch) for batch in core.scheduler.in_flight] == [[1]]
    assert core.scheduler.done == 0


def test_full_queue_rejects_what_does_not_fit(start: Start) -> None:
    """Rows count against `max_queue_rows`; a query that would exceed it is rejected, a smaller one still enters."""
    core = start(max_queue_rows=4)
    assert rejected(core.arrive(query(1, rows=3), query(2, rows=2), query(3))) == [(2, "queue_full")]
    assert core.scheduler.queued_rows == 4


def test_unattainable_accuracy_is_rejected_on_arrival(start: Start) -> None:
    """A query that needs more accuracy than any live worker has is rejected at once, and accepted without workers."""
    core = start()
    core.hello()
    assert rejected(core.arrive(query(1, min_accuracy=80.5), query(2, min_accuracy=80.0))) == [(1, "min_accuracy")]


def test_unattainable_accuracy_is_rejected_when_its_worker_is_lost(start: Start) -> None:
    """A query whose only accurate worker leaves is rejected, although another worker lives."""
    core = start()
    core.hello("accurate")
    core.hello("plain", make_profile(SMALL))
    core.send(WorkerDraining("plain"))
    core.arrive(query(1, min_accuracy=80.0), query(2, min_accuracy=80.0))
    core.hello("other", make_profile(SMALL))
    assert rejected(core.send(WorkerLost("accurate"), 1_000)) == [(1, "min_accuracy"), (2, "min_accuracy")]


def test_hopeless_query_is_dropped_at_once(start: Start) -> None:
    """With `drop`, a query that the cheapest subnet cannot serve in time at the median is rejected when considered."""
    core = start()
    core.hello()
    commands = core.arrive(query(1, 9_999), query(2, 10_000))
    assert rejected(commands) == [(1, "late")]
    assert [ids(batch) for batch in dispatched(commands)] == [[2]]


def test_reply_margin_is_taken_off_the_slack(start: Start) -> None:
    """A query that would finish in time but be answered too late is late."""
    core = start(reply_margin_us=1_000)
    core.hello()
    assert rejected(core.arrive(query(1, 10_999))) == [(1, "late")]
    assert len(dispatched(core.arrive(query(2, 11_000)))) == 1


def test_waiting_query_is_dropped_when_its_last_chance_passes(start: Start) -> None:
    """While its worker overruns, a query is rejected at the moment when the cheapest subnet could no longer make it."""
    core = start(max_in_flight=1)
    core.hello()
    core.arrive(query(1, 20_000))
    assert wake_us(core.arrive(query(2, 45_000))) == 35_001
    assert rejected(core.send(Tick(), 35_000)) == []
    assert rejected(core.send(Tick(), 35_001)) == [(2, "late")]


def test_hopeless_query_is_served_by_the_cheapest(start: Start) -> None:
    """With `serve`, a late head goes with the cheapest subnet it accepts, and a full batch behind it."""
    core = start(late="serve")
    core.hello()
    (batch,) = dispatched(core.arrive(query(1, 1), query(2, 500_000), query(3, 500_000), query(4, 500_000)))
    assert (batch.subnet, ids(batch)) == ("small", [1, 2, 3, 4])
    core.hello("v")
    (batch,) = dispatched(core.arrive(query(5, 1, min_accuracy=75.0)))
    assert (batch.worker, batch.subnet) == ("v", "big")


def test_without_workers_queries_wait_until_their_deadline(start: Start) -> None:
    """Without workers a query is neither late nor lost until its deadline; a worker that comes before serves it."""
    core = start()
    assert wake_us(core.arrive(query(1, 5_000), query(2, 90_000, 100))) == 5_000
    assert rejected(core.send(Tick(), 4_999)) == []
    commands = core.send(Tick(), 5_000)
    assert rejected(commands) == [(1, "no_worker")]
    assert wake_us(commands) == 90_000
    assert [ids(batch) for batch in dispatched(core.hello(now_us=6_000))] == [[2]]


def test_lost_worker_returns_its_queries(start: Start) -> None:
    """In-flight queries return with their old deadlines; only those of the batch that was running are blamed."""
    core = start("fixed:small")
    core.hello()
    core.arrive(*(query(i, 100_000 + i) for i in range(6)))
    core.send(Tick(), 18_000)
    assert [ids(batch) for batch in core.scheduler.in_flight] == [[0, 1, 2, 3], [4, 5]]
    core.send(WorkerLost("w"), 18_000)
    assert core.scheduler.queued_rows == 6
    core.hello("v", now_us=19_000)
    core.send(Tick(), 35_000)
    again = [(item.id, item.attempts, item.deadline_us) for batch in core.scheduler.in_flight for item in batch.queries]
    assert again == [(i, int(i < 4), 100_000 + i) for i in range(6)]


def test_query_that_kills_workers_is_poison(start: Start) -> None:
    """A query that was running on three workers when they died is rejected; one that only waited there is not."""
    core = start("fixed:small", max_attempts=3)
    core.arrive(*(query(i, rows=4) for i in (1, 2)))
    for death in range(3):
        core.hello(f"w{death}", now_us=20_000 * death)
        core.send(Tick(), 20_000 * death + 18_000)
        commands = core.send(WorkerLost(f"w{death}"), 20_000 * death + 18_000)
    assert rejected(commands) == [(1, "poison")]
    assert core.scheduler.queued_rows == 4


def test_draining_worker_takes_nothing_new(start: Start) -> None:
    """A draining worker finishes what it holds; new queries wait for another, even after it says hello again."""
    core = start()
    core.hello()
    (batch,) = dispatched(core.arrive(query(1)))
    core.send(WorkerDraining("w"), 1_000)
    assert dispatched(core.arrive(query(2), now_us=2_000)) == []
    core.finish(batch, 0, 20_000)
    assert dispatched(core.hello(now_us=21_000)) == []
    assert [batch.worker for batch in dispatched(core.hello("v", now_us=22_000))] == ["v"]


def test_next_batch_is_dispatched_ahead_by_the_measured_delay(start: Start) -> None:
    """Once a dispatch took 2 ms to start on an idle worker, the next goes out that much before the predicted finish."""
    core = start("fixed:small,quantile=median")
    core.hello()
    (batch,) = dispatched(core.arrive(query(1)))
    core.finish(batch, 2_000, 12_000)
    assert core.scheduler.delay.us == 4_000  # mean 2 ms plus twice the first deviation, 1 ms
    (batch,) = dispatched(core.arrive(query(2), now_us=20_000))
    assert core.scheduler.workers["w"].free_us == 20_000 + 4_000 + 10_000
    assert wake_us(core.arrive(query(3), now_us=21_000)) == 30_000
    assert [ids(batch) for batch in dispatched(core.send(Tick(), 30_000))] == [[3]]


def test_dispatch_delay_keeps_to_its_bounds(start: Start) -> None:
    """The delay starts at its floor and never exceeds its cap, whatever is observed."""
    core = start(ahead_floor_us=300, ahead_cap_us=5_000)
    assert core.scheduler.delay.us == 300
    core.hello()
    (batch,) = dispatched(core.arrive(query(1)))
    core.finish(batch, 700_000, 710_000)
    assert core.scheduler.delay.us == 5_000


@pytest.mark.parametrize("cap", [1, 2, 3])
def test_batches_in_flight_are_capped(start: Start, cap: int) -> None:
    """When predictions are near zero, a worker still holds at most `max_in_flight` batches."""
    quick = make_profile(*(type(s)(s.id, s.accuracy, (1, 1, 1), (1, 1, 1)) for s in (SMALL, BIG)))
    core = start(max_in_flight=cap, ahead_floor_us=1_000)
    core.hello("w", quick)
    core.arrive(*(query(i) for i in range(100)))
    for now_us in range(1, 10):
        core.send(Tick(), now_us)
    assert len(core.scheduler.in_flight) == cap


def test_only_one_batch_is_ahead_of_a_long_one(start: Start) -> None:
    """The cap allows more, but a third batch waits until the second is predicted to end."""
    core = start("fixed:small,quantile=median", max_in_flight=5)
    core.hello()
    core.arrive(*(query(i) for i in range(20)))
    assert len(core.scheduler.in_flight) == 1
    assert wake_us(core.send(Tick(), 16_000)) == 32_000
    assert len(core.scheduler.in_flight) == 2


def test_queries_are_packed_by_rows_and_never_split(start: Start) -> None:
    """Rows of a batch add up to at most the choice; the first query that does not fit ends it."""
    core = start("fixed:small")
    core.arrive(query(1, 101_000, rows=2), query(2, 102_000), query(3, 103_000, rows=2), query(4, 104_000))
    (batch,) = dispatched(core.hello())
    assert (ids(batch), batch.rows) == ([1, 2], 3)


def test_oversized_query_goes_alone(start: Start) -> None:
    """A query larger than any profiled batch is dispatched whole, and predicted by extrapolation."""
    core = start("fixed:small,quantile=median")
    core.arrive(query(1, rows=7), query(2))
    (batch,) = dispatched(core.hello())
    assert (ids(batch), batch.rows) == ([1], 7)
    assert core.scheduler.workers["w"].free_us == 16_000 + 3 * 2_000


def test_demanding_queries_are_passed_over(start: Start) -> None:
    """A query that needs more accuracy than the batch's subnet keeps its place, and those behind it may go."""
    core = start("fixed:small")
    core.arrive(query(1, 101_000), query(2, 102_000, min_accuracy=75.0), query(3, 103_000))
    (batch,) = dispatched(core.hello())
    assert (batch.subnet, ids(batch)) == ("small", [1, 3])
    (batch,) = dispatched(core.send(Tick(), 50_000))
    assert (batch.subnet, ids(batch)) == ("big", [2])


def test_the_fastest_of_the_idle_is_filled_first(start: Start) -> None:
    """Among idle workers the fastest is filled; among equals the more accurate, then the first by name."""
    core = start()
    core.hello("slow", slower(PROFILE, 2))
    core.hello("c")
    core.hello("b")
    core.hello("a", make_profile(SMALL))
    order = [dispatched(core.arrive(query(i)))[0].worker for i in range(4)]
    assert order == ["b", "c", "a", "slow"]


def test_an_idle_worker_is_filled_before_one_about_to_be_free(start: Start) -> None:
    """A slow idle worker is filled before a fast one whose batch is only predicted to end in time."""
    core = start("fixed:small,quantile=median", ahead_floor_us=10_000)
    core.hello("fast")
    core.arrive(query(1))
    core.hello("slow", slower(PROFILE, 2))
    order = [dispatched(core.arrive(query(i), now_us=15_000))[0].worker for i in (2, 3)]
    assert order == ["slow", "fast"]


def test_head_waits_for_a_worker_that_can_make_it(start: Start) -> None:
    """A query that an idle slow worker cannot serve in time waits for a fast one that can."""
    core = start("fixed:small,quantile=median")
    core.hello("fast")
    core.arrive(query(1))
    core.hello("slow", slower(PROFILE, 3))
    assert wake_us(core.arrive(query(2, 25_000))) == 10_000
    (batch,) = dispatched(core.send(Tick(), 10_000))
    assert batch.worker == "fast"


def test_repeated_hello_updates_the_profile_and_keeps_the_batches(start: Start) -> None:
    """A worker that says hello again keeps what it runs and is predicted by its new profile."""
    core = start("fixed:small,quantile=median")
    core.hello()
    (batch,) = dispatched(core.arrive(query(1)))
    core.hello("w", slower(PROFILE, 2), now_us=1_000)
    assert core.scheduler.in_flight == (batch,)
    core.send(Tick(), 10_000)
    core.arrive(query(2), now_us=10_000)
    assert core.scheduler.workers["w"].free_us == 30_000


def test_running_batches_are_adopted(start: Start) -> None:
    """After a restart, batches named in a hello are in flight, their queries leave the queue, and no id is repeated."""
    core = start("fixed:small,quantile=median")
    core.arrive(query(1), query(2))
    running = Batch(7, "w", "small", (query(1), query(9)))
    assert dispatched(core.send(WorkerHello("w", PROFILE, (running,)), 1_000)) == []
    assert core.scheduler.queued_rows == 1
    core.send(WorkerHello("w", PROFILE, (running,)), 2_000)
    (batch,) = dispatched(core.send(Tick(), 13_000))
    assert (batch.id, ids(batch)) == (8, [2])
    core.finish(running, 1_000, 13_000)
    assert core.outcomes == {1: ["done"], 9: ["done"]}


def test_a_query_is_adopted_once(start: Start) -> None:
    """A query that two workers claim to run belongs to the first; the other's batch still counts as work."""
    core = start()
    first, second = Batch(1, "a", "small", (query(1),)), Batch(1, "b", "small", (query(1),))
    core.send(WorkerHello("a", PROFILE, (first,)))
    core.send(WorkerHello("b", PROFILE, (second,)))
    assert [ids(batch) for batch in core.scheduler.in_flight] == [[1], []]
    assert core.scheduler.workers["b"].free_us > 0


def test_a_hello_that_cannot_be_used_changes_nothing(start: Start) -> None:
    """A profile without the policy's subnet, or a running batch of an unknown subnet, raises and adds no worker."""
    scheduler = Scheduler(start("fixed:big").scheduler.policy)
    with pytest.raises(PolicyError, match=r"no subnet 'big'.* it has small"):
        scheduler.handle(WorkerHello("w", make_profile(SMALL)), 0)
    with pytest.raises(ProfileError, match="no 'huge'"):
        scheduler.handle(WorkerHello("w", PROFILE, (Batch(1, "w", "huge", ()),)), 0)
    assert not scheduler.workers


def test_predictions_follow_what_batches_take(start: Start) -> None:
    """A worker that is always twice as slow as its profile is soon predicted to be so: half way after one batch."""
    core = start("fixed:small,quantile=median")
    core.hello()
    for i in range(100):
        now_us = 100_000 * i
        (batch,) = dispatched(core.arrive(query(i, now_us + 90_000), now_us=now_us))
        core.finish(batch, now_us, now_us + 20_000)
        if i == 0:
            assert core.scheduler.workers["w"].correction == pytest.approx(1.5)
    assert core.scheduler.workers["w"].correction == pytest.approx(2.0, abs=0.01)
    core.arrive(query(1_000, 99_000_000), now_us=20_000_000)
    assert core.scheduler.workers["w"].free_us == pytest.approx(20_020_000, abs=100)


class Spy:
    """A policy that remembers what it was shown, and lets every head go if told to."""

    def __init__(self, choice: Choice | None) -> None:
        self.choice = choice
        self.views: list[View] = []

    def cheapest(self, profile: Profile) -> str:
        return profile.smallest

    def choose(self, view: View) -> Choice | None:
        self.views.append(view)
        return self.choice


def test_slack_allows_for_the_running_batch_to_overrun() -> None:
    """The slack shown for a batch dispatched ahead shrinks by what the running one may take beyond its prediction."""
    spy = Spy(Choice("small", 1))
    scheduler = Scheduler(spy, SchedulerOptions(start_quantile=0.99))
    scheduler.handle(WorkerHello("w", PROFILE), 0)
    scheduler.handle(Arrived((query(1), query(2), query(3))), 0)
    scheduler.handle(Tick(), 10_000)
    assert spy.views[1].start_us == 10_000
    scheduler.handle(BatchDone("w", 1, 0, 15_000), 15_000)  # half as long again as predicted
    free_us = scheduler.workers["w"].free_us
    scheduler.handle(Tick(), free_us)
    assert spy.views[2].start_us == free_us + 5_000
    assert spy.views[2].slack_us == 1_000_000 - free_us - 5_000


@pytest.mark.parametrize(("late", "dispatches", "rejections"), [("drop", 0, 1), ("serve", 1, 0)])
def test_a_policy_may_let_the_head_go(late: str, dispatches: int, rejections: int) -> None:
    """None from a policy makes the head late: rejected under `drop`, served by the cheapest under `serve`."""
    scheduler = Scheduler(Spy(None), SchedulerOptions(late=late))  # type: ignore[arg-type]
    scheduler.handle(WorkerHello("w", PROFILE), 0)
    commands = scheduler.handle(Arrived((query(1),)), 0)
    assert (len(dispatched(commands)), len(rejected(commands))) == (dispatches, rejections)


class Diary(Learner):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def arrived(self, rows: int, now_us: int) -> None:
        self.told.append(("arrived", rows, now_us))

    def finished(self, batch: Batch, done: BatchDone) -> None:
        self.told.append(("finished", ids(batch), done.finished_us))

    def rejected(self, query: Query, reason: Reason, now_us: int) -> None:
        self.told.append((reason, query.id, now_us))


class Learned(Spy):
    def learner(self) -> Diary:
        return Diary()


def test_a_policys_learner_is_told_and_shown() -> None:
    """The core makes one learner, tells it what is admitted, finished and given up, and shows it in each view."""
    policy = Learned(Choice("small", 4))
    scheduler = Scheduler(policy, SchedulerOptions(max_queue_rows=3))
    scheduler.handle(WorkerHello("w", PROFILE), 0)
    scheduler.handle(Arrived((query(1, 100_000), query(2, 100_000, rows=2), query(3, 100_000))), 10)  # 3: queue_full
    scheduler.handle(BatchDone("w", 1, 10, 14_000), 15_000)
    scheduler.handle(BatchDone("w", 9, 10, 14_000), 16_000)  # unknown
    scheduler.handle(Arrived((query(4, 20_000), query(5, 90_000, min_accuracy=99.0))), 17_000)
    policy.choice = None
    scheduler.handle(Arrived((query(6, 90_000),)), 18_000)
    diary = policy.views[0].learned
    assert isinstance(diary, Diary)
    assert all(view.learned is diary for view in policy.views)
    assert diary.told == [
        *(("arrived", 3, 10), ("finished", [1, 2], 14_000)),
        *(("arrived", 1, 17_000), ("late", 4, 17_000), ("arrived", 1, 18_000), ("late", 6, 18_000)),
    ]


def test_without_a_learner_nothing_is_learned() -> None:
    """A policy without `learner` is shown None."""
    policy = Spy(Choice("small", 1))
    scheduler = Scheduler(policy)
    scheduler.handle(WorkerHello("w", PROFILE), 0)
    scheduler.handle(Arrived((query(1),)), 0)
    assert [view.learned for view in policy.views] == [None]


@pytest.mark.parametrize("rows", [0, -5])
def test_a_choice_of_no_rows_is_the_head(rows: int) -> None:
    """A policy that chooses no rows, or fewer than none, gets the head, whole, and nothing behind it."""
    scheduler = Scheduler(Spy(Choice("small", rows)))
    scheduler.handle(Arrived((query(1, rows=2), query(2))), 0)
    (batch,) = dispatched(scheduler.handle(WorkerHello("w", PROFILE), 0))
    assert ids(batch) == [1]


@pytest.mark.parametrize("rows", [5, 1_000_000])
def test_a_choice_is_no_larger_than_a_batch(rows: int) -> None:
    """A policy that chooses more rows than were profiled gets the largest batch; a head of more rows goes alone."""
    scheduler = Scheduler(Spy(Choice("small", rows)))
    scheduler.handle(Arrived(tuple(query(i) for i in range(9))), 0)
    (batch,) = dispatched(scheduler.handle(WorkerHello("w", PROFILE), 0))
    assert ids(batch) == [0, 1, 2, 3]
    scheduler = Scheduler(Spy(Choice("small", rows)))
    scheduler.handle(Arrived((query(1, rows=6), query(2))), 0)
    (batch,) = dispatched(scheduler.handle(WorkerHello("w", PROFILE), 0))
    assert ids(batch) == [1]


@pytest.mark.parametrize(
    ("slack_us", "chosen", "packed"), [(50_000, 4, 4), (50_000, 2, 2), (49_999, 4, 3), (30_000, 4, 2), (20_000, 4, 1)]
)
def test_floors_are_the_cores(slack_us: int, chosen: int, packed: int) -> None:
    """For a subnet below the head's floor the core takes the quickest that reaches it, and rows that end in time."""
    scheduler = Scheduler(Spy(Choice("small", chosen)))
    scheduler.handle(Arrived((query(0, slack_us, min_accuracy=75.0), *(query(i, slack_us) for i in range(1, 9)))), 0)
    (batch,) = dispatched(scheduler.handle(WorkerHello("w", PROFILE), 0))
    assert (batch.subnet, ids(batch)) == ("big", list(range(packed)))


def test_the_quickest_above_a_floor_replaces_what_is_below() -> None:
    """Of a profile in which a more accurate subnet is quicker, that one is taken."""
    slow = replace(BIG, id="slow", accuracy=78.0, median_us=(40_000, 60_000, 90_000), p95_us=(40_000, 60_000, 90_000))
    scheduler = Scheduler(Spy(Choice("small", 4)))
    scheduler.handle(Arrived((query(1, min_accuracy=75.0),)), 0)
    (batch,) = dispatched(scheduler.handle(WorkerHello("w", make_profile(SMALL, slow, BIG)), 0))
    assert batch.subnet == "big"


def test_arrivals_behind_the_head_cost_no_decision() -> None:
    """While the head waits for a moment that is known, arrivals behind it do not call the policy."""
    spy = Spy(Choice("small", 1))
    scheduler = Scheduler(spy)
    scheduler.handle(WorkerHello("w", PROFILE), 0)
    for i in range(10):
        scheduler.handle(Arrived((query(i, 500_000 + i),)), i)
    assert len(spy.views) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("late", "never"),
        ("reply_margin_us", -1),
        ("max_in_flight", 0),
        ("ahead_floor_us", -1),
        ("ahead_cap_us", -1),
        ("start_quantile", 1.0),
        ("max_queue_rows", 0),
        ("max_attempts", 0),
        ("first_batch", -1),
    ],
)
def test_options_name_what_is_wrong(key: str, value: object) -> None:
    """An option out of range is refused by name, with the value given."""
    with pytest.raises(ValueError, match=f"{key}: .*{value}"):
        SchedulerOptions(**{key: value})  # type: ignore[arg-type]
