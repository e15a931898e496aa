"""Random events against a model that knows only where each query may be."""

from dataclasses import replace
from typing import Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from common.sched.options import SchedulerOptions
from common.sched.profile import Profile
from common.sched.types import (
    Batch,
    Command,
    Dispatch,
    Query,
    Reject,
    Tick,
    WakeAt,
    WorkerDraining,
    WorkerHello,
    WorkerLost,
)
from tests.sched.harness import PROFILE, SMALL, Harness, make_profile, slower

PROFILES = (PROFILE, slower(PROFILE, 3), make_profile(SMALL), replace(PROFILE, actuation_us=15_000))
SPECS = (
    *("slackfit", "maxbatch", "fixed:smallest", "slackfit:buckets=2,edge=upper,quantile=p95"),
    *("infaas:70", "coarse:maxbatch", "proteus:period_s=0.1", "brownout:window_ms=20"),
)
LATE: tuple[Literal["drop", "serve"], ...] = ("drop", "serve")
WORKERS = ("a", "b", "c")


class Machine(RuleBasedStateMachine):
    """A query goes from queued to in flight and back, and ends exactly once, done or rejected."""

    @initialize(spec=st.sampled_from(SPECS), late=st.sampled_from(LATE), cap=st.integers(1, 3))
    def start(self, spec: str, late: Literal["drop", "serve"], cap: int) -> None:
        self.begin(spec, late, cap)

    def begin(self, spec: str, late: Literal["drop", "serve"], cap: int) -> None:
        options = SchedulerOptions(late=late, max_in_flight=cap, max_queue_rows=60, ahead_floor_us=500)
        self.harness = Harness(spec, options)
        self.now_us = 0
        self.wake_us: int | None = None
        self.where: dict[int, str] = {}
        self.running: dict[tuple[str, int], Batch] = {}
        self.draining: set[str] = set()

    def apply(self, commands: list[Command]) -> None:
        """Move queries as the commands say, each from the only place where it may be."""
        self.wake_us = None
        for command in commands:
            match command:
                case Dispatch(batch):
                    assert batch.worker not in self.draining
                    assert [self.where[item.id] for item in batch.queries] == ["queued"] * len(batch.queries)
                    assert batch.rows <= 4 or len(batch.queries) == 1
                    accuracy = self.harness.scheduler.workers[batch.worker].profile.accuracy(batch.subnet)
                    assert all(item.min_accuracy <= accuracy for item in batch.queries)
                    self.where.update(dict.fromkeys((item.id for item in batch.queries), "flying"))
                    self.running[batch.worker, batch.id] = batch
                case Reject(item):
                    assert self.where.get(item.id, "queued") == "queued"
                    self.where[item.id] = "rejected"
                case WakeAt(at_us):
                    self.wake_us = at_us
        scheduler = self.harness.scheduler
        queued = {number for number, place in self.where.items() if place == "queued"}
        flying = {number for number, place in self.where.items() if place == "flying"}
        assert flying == {item.id for batch in scheduler.in_flight for item in batch.queries}
        assert len(queued) == scheduler.accepted - scheduler.done - scheduler.rejected - len(flying)
        for worker in scheduler.workers.values():
            assert len(worker.batches) <= scheduler.options.max_in_flight

    @rule(
        rows=st.lists(st.integers(1, 6), min_size=1, max_size=6),
        slack_us=st.integers(-1_000, 120_000),
        min_accuracy=st.sampled_from([0.0, 0.0, 75.0, 90.0]),
        again=st.booleans(),
    )
    def arrive(self, rows: list[int], slack_us: int, min_accuracy: float, again: bool) -> None:
        first = len(self.where)
        queries = [Query(first + i, self.now_us, self.now_us + slack_us, n, min_accuracy) for i, n in enumerate(rows)]
        alive = [number for number, place in self.where.items() if place in ("queued", "flying")]
        repeated = [Query(alive[0], self.now_us, self.now_us)] if again and alive else []
        self.where.update(dict.fromkeys((item.id for item in queries), "queued"))
        self.apply(self.harness.arrive(*queries, *repeated, now_us=self.now_us))

    @rule(worker=st.sampled_from(WORKERS), profile=st.sampled_from(PROFILES))
    def hello(self, worker: str, profile: Profile) -> None:
        self.apply(self.harness.send(WorkerHello(worker, profile), self.now_us))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), took_us=st.integers(0, 60_000))
    def finish(self, data: st.DataObject, took_us: int) -> None:
        worker, number = data.draw(st.sampled_from(sorted(self.running)))
        batch = self.running.pop((worker, number))
        self.where.update(dict.fromkeys((item.id for item in batch.queries), "done"))
        self.now_us += took_us
        self.apply(self.harness.finish(batch, self.now_us - took_us, self.now_us, max(self.now_us, 1)))

    @rule(worker=st.sampled_from(WORKERS))
    def lose(self, worker: str) -> None:
        for key in [key for key in self.running if key[0] == worker]:
            batch = self.running.pop(key)
            self.where.update(dict.fromkeys((item.id for item in batch.queries), "queued"))
        self.draining.discard(worker)
        self.apply(self.harness.send(WorkerLost(worker), self.now_us))

    @rule(worker=st.sampled_from(WORKERS))
    def drain(self, worker: str) -> None:
        if worker in self.harness.scheduler.workers:
            self.draining.add(worker)
        self.apply(self.harness.send(WorkerDraining(worker), self.now_us))

    @rule(wait_us=st.integers(0, 50_000), early=st.booleans())
    def tick(self, wait_us: int, early: bool) -> None:
        self.now_us = self.now_us + wait_us if early or self.wake_us is None else self.wake_us
        self.apply(self.harness.send(Tick(), self.now_us))

    def teardown(self) -> None:
        """Without workers, waking as asked rejects every query that is left; and the whole log replays."""
        for worker in WORKERS:
            self.lose(worker)
        for _ in range(len(self.where) + 1):
            if self.wake_us is not None:
                self.now_us = max(self.now_us, self.wake_us)
                self.apply(self.harness.send(Tick(), self.now_us))
        assert set(self.where.values()) <= {"done", "rejected"}
        self.harness.close()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
