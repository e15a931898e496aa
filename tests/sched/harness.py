"""A scheduler under test: checks its invariants after every event, and that its log replays when the test ends."""

from collections.abc import Sequence
from typing import TypeVar

from common.sched.core import Scheduler
from common.sched.estimators import ArrivalRate, Residuals
from common.sched.eventlog import EventLog, replay
from common.sched.options import SchedulerOptions
from common.sched.policies import View, parse_policy
from common.sched.policies.base import Learner
from common.sched.profile import Profile, Subnet
from common.sched.queue import EdfQueue
from common.sched.types import Arrived, Batch, BatchDone, Command, Dispatch, Event, Query, Reject, WakeAt, WorkerHello
from common.sched.worker import Worker

# Latencies that can be added up by hand: 10, 12, 16 ms and 20, 30, 50 ms for 1, 2, 4 rows.
SMALL = Subnet("small", 70.0, (10_000, 12_000, 16_000), (11_000, 13_000, 18_000))
BIG = Subnet("big", 80.0, (20_000, 30_000, 50_000), (22_000, 33_000, 55_000))
PROFILE = Profile("test", "emulated", (1, 2, 4), (SMALL, BIG))

C = TypeVar("C", Dispatch, Reject, WakeAt)


def make_profile(*subnets: Subnet, batch_sizes: tuple[int, ...] = (1, 2, 4)) -> Profile:
    return Profile("test", "emulated", batch_sizes, subnets)


def slower(profile: Profile, factor: int) -> Profile:
    def scaled(us: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(factor * x for x in us)

    subnets = (Subnet(s.id, s.accuracy, scaled(s.median_us), scaled(s.p95_us)) for s in profile.subnets)
    return make_profile(*subnets, batch_sizes=profile.batch_sizes)


def query(number: int, deadline_us: int = 1_000_000, arrival_us: int = 0, **rest: float) -> Query:
    return Query(number, arrival_us, deadline_us, **rest)  # type: ignore[arg-type]


class Harness:
    """Sends events, and holds every answer against the rules that bind each of them."""

    def __init__(self, spec: str, options: SchedulerOptions | None = None) -> None:
        self.scheduler = Scheduler(parse_policy(spec), options)
        self.history: list[list[Command]] = []
        self.outcomes: dict[int, list[str]] = {}
        self._lines: list[str] = []
        self._log = EventLog(self._lines.append, self.scheduler)

    def send(self, event: Event, now_us: int = 0) -> list[Command]:
        """Apply an event and return the commands, the WakeAt included."""
        done = self._batch(event) if isinstance(event, BatchDone) else None
        self._log.append(event, now_us)
        try:
            commands = self.scheduler.handle(event, now_us)
        except ValueError:
            self.history.append([])
            raise
        self.history.append(commands)
        self.scheduler.check()
        wakes = only(commands, WakeAt)
        assert len(wakes) <= 1, "more than one WakeAt"
        assert all(wake.at_us > now_us for wake in wakes), "WakeAt is not in the future"
        assert not wakes or commands[-1] is wakes[0], "WakeAt is not last"
        for reject in only(commands, Reject):
            self.outcomes.setdefault(reject.query.id, []).append(reject.reason)
        for item in done.queries if done else ():
            self.outcomes.setdefault(item.id, []).append("done")
        return commands

    def arrive(self, *queries: Query, now_us: int = 0) -> list[Command]:
        return self.send(Arrived(queries), now_us)

    def hello(self, worker: str = "w", profile: Profile = PROFILE, now_us: int = 0) -> list[Command]:
        return self.send(WorkerHello(worker, profile), now_us)

    def finish(self, batch: Batch, started_us: int, finished_us: int, now_us: int | None = None) -> list[Command]:
        return self.send(BatchDone(batch.worker, batch.id, started_us, finished_us), now_us or finished_us)

    def close(self) -> None:
        """Replay the log of the test: the same commands must come out."""
        assert [commands for _, _, commands in replay(self._lines)] == self.history

    def _batch(self, event: BatchDone) -> Batch | None:
        worker = self.scheduler.workers.get(event.worker)
        item = worker.batches.get(event.batch) if worker else None
        return item.batch if item else None


def only(commands: Sequence[Command], kind: type[C]) -> list[C]:
    return [command for command in commands if isinstance(command, kind)]


def dispatched(commands: Sequence[Command]) -> list[Batch]:
    return [command.batch for command in only(commands, Dispatch)]


def rejected(commands: Sequence[Command]) -> list[tuple[int, str]]:
    return [(command.query.id, command.reason) for command in only(commands, Reject)]


def wake_us(commands: Sequence[Command]) -> int | None:
    wakes = only(commands, WakeAt)
    return wakes[0].at_us if wakes else None


def ids(batch: Batch) -> list[int]:
    return [item.id for item in batch.queries]


def make_view(
    profile: Profile, queries: Sequence[Query], slack_us: int, cheapest: int = 0, learned: Learner | None = None
) -> View:
    """Show a policy one idle worker, these queries, and a head with that much slack."""
    queue = EdfQueue()
    queue.push(queries)
    worker = Worker("w", profile, cheapest)
    return View(0, 0, slack_us, queue, worker, (worker,), ArrivalRate(), Residuals(), learned)
