"""Drive `common.sched.core` by a simulated clock: arrivals in, one outcome per query out.

The driver decides nothing. It carries events to the same core that the live scheduler drives, lets each batch take its
profiled median times a random factor plus an overhead, and notes what became of each query.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from common.sched.core import Scheduler
from common.sched.profile import Profile, Subnet
from common.sched.types import (
    Arrived,
    Batch,
    BatchDone,
    Command,
    Dispatch,
    Event,
    Query,
    Reason,
    Reject,
    Tick,
    WakeAt,
    WorkerHello,
    WorkerLost,
)

MEDIAN, P95, P99 = 0.6745, 1.9600, 2.5758  # of |N(0, 1)|


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the world does to a batch. Times in microseconds.

    A batch takes median x (1 + |N(0, jitter)|), doubled with probability `tail`, plus `overhead_us`. `hop_us` is the
    way of one message: a dispatch to its worker, a report or a reply back. `deaths` are (time, worker).
    """

    jitter: float = 0.0
    tail: float = 0.0
    overhead_us: int = 0
    hop_us: int = 0
    deaths: tuple[tuple[int, str], ...] = ()
    seed: int = 0

    def measured(self, profile: Profile, upper: float = P95) -> Profile:
        """Return the profile that a worker would measure in these conditions; `tail` is too rare to show in a p95.

        upper: the quantile of |N(0, 1)| that it announces as its p95.
        """
        return replace(profile, subnets=tuple(self._measured(subnet, upper) for subnet in profile.subnets))

    def _measured(self, subnet: Subnet, upper: float) -> Subnet:
        median, p95 = (1.0 + self.jitter * z for z in (MEDIAN, upper))
        return replace(
            subnet,
            median_us=tuple(round(us * median) + self.overhead_us for us in subnet.median_us),
            p95_us=tuple(round(us * p95) + self.overhead_us for us in subnet.median_us),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a query: served by `subnet` with the reply there at `replied_us`, or rejected for `reason`."""

    query: Query
    replied_us: int
    subnet: str | None = None
    reason: Reason | None = None

    @property
    def met(self) -> bool:
        """Whether the query was served within its deadline."""
        return self.subnet is not None and self.replied_us <= self.query.deadline_us


@dataclass(frozen=True, slots=True)
class Report:
    """Outcomes in the order in which they happened, and the figures by which the paper judges them (section 6)."""

    outcomes: Sequence[Outcome]
    accuracies: Mapping[str, float]

    @property
    def attainment(self) -> float:
        """Share of queries served within their deadline."""
        return sum(outcome.met for outcome in self.outcomes) / len(self.outcomes)

    @property
    def accuracy(self) -> float:
        """Mean profiled accuracy, in percent, over the queries that met their deadline; nan if none did."""
        met = [self.accuracies[outcome.subnet] for outcome in self.outcomes if outcome.subnet and outcome.met]
        return sum(met) / len(met) if met else float("nan")

    @property
    def shares(self) -> dict[str, float]:
        """Share of each subnet among the queries served."""
        counts = Counter(outcome.subnet for outcome in self.outcomes if outcome.subnet)
        return {subnet: count / counts.total() for subnet, count in sorted(counts.items())}

    def latency_us(self, quantile: float) -> int:
        """Quantile of the time from arrival to reply, over the queries served. Raises IndexError if none was."""
        times = sorted(o.replied_us - o.query.arrival_us for o in self.outcomes if o.subnet)
        return times[min(len(times) - 1, int(quantile * len(times)))]


class Simulation:
    """One run: a heap of what happens when, the scheduler, and the workers that live.

    `workers` are the profiles that batches obey, `announced` what the workers say of themselves: by default the same.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        workers: Mapping[str, Profile],
        conditions: Conditions,
        announced: Mapping[str, Profile] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self._conditions = conditions
        self._random = random.Random(conditions.seed)
        self._workers = dict(workers)
        self._free_us = dict.fromkeys(workers, 0)
        self._running: dict[tuple[str, int], Batch] = {}
        self._heap: list[tuple[int, int, Event]] = []
        self._count = itertools.count()
        self._wake_us = -1
        self._outcomes: list[Outcome] = []
        for name, profile in (announced or workers).items():
            self._at(0, WorkerHello(name, profile))
        for time_us, name in conditions.deaths:
            self._at(time_us, WorkerLost(name))

    def run(self, arrivals: Iterable[Query]) -> Report:
        """Play arrivals, sorted by time, until every query has its outcome."""
        coming = iter(arrivals)
        self._next_arrival(coming)
        accuracies = {s.id: s.accuracy for profile in self._workers.values() for s in profile.subnets}
        while self._heap:
            now_us, _, event = heapq.heappop(self._heap)
            match event:
                case Tick() if now_us != self._wake_us:
                    continue
                case BatchDone(worker, batch):
                    if worker not in self._workers:
                        continue
                    served = self._running.pop((worker, batch))
                    self._outcomes.extend(Outcome(query, now_us, subnet=served.subnet) for query in served.queries)
                case WorkerLost(worker):
                    self._workers.pop(worker, None)
                case Arrived():
                    self._next_arrival(coming)
                case _:
                    pass
            self._obey(self.scheduler.handle(event, now_us), now_us)
        return Report(self._outcomes, accuracies)

    def _obey(self, commands: Sequence[Command], now_us: int) -> None:
        self._wake_us = -1
        for command in commands:
            match command:
                case Dispatch(batch):
                    self._start(batch, now_us)
                case Reject(query, reason):
                    self._outcomes.append(Outcome(query, now_us + self._conditions.hop_us, reason=reason))
                case WakeAt(at_us):
                    self._wake_us = at_us
                    self._at(at_us, Tick())

    def _start(self, batch: Batch, now_us: int) -> None:
        world, worker = self._conditions, batch.worker
        factor = 1.0 + abs(self._random.gauss(0.0, world.jitter)) if world.jitter else 1.0
        if world.tail and self._random.random() < world.tail:
            factor *= 2.0
        median_us = self._workers[worker].latency_us(batch.subnet, batch.rows)
        started_us = max(now_us + world.hop_us, self._free_us[worker])
        finished_us = started_us + round(median_us * factor) + world.overhead_us
        self._free_us[worker] = finished_us
        self._running[worker, batch.id] = batch
        self._at(finished_us + world.hop_us, BatchDone(worker, batch.id, started_us, finished_us))

    def _next_arrival(self, coming: Iterator[Query]) -> None:
        query = next(coming, None)
        if query is not None:
            self._at(query.arrival_us, Arrived((query,)))

    def _at(self, time_us: int, event: Event) -> None:
        heapq.heappush(self._heap, (time_us, next(self._count), event))
