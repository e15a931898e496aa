"""Drive `common.sched.core` by a simulated clock: a workload in, the records of a run out, as `replay` gives them.

The driver decides nothing. It carries events to the same core that the live scheduler drives, lets each batch take its
profiled median times a random factor plus what the world adds, and notes what became of each query.

Arrivals come one by one, as events of their own, while one of them could change what the core does: while its queue is
empty, or when one is due before the head. All others that come before the next event are handed over as one pack at the
time of the last, as a gateway packs them: the core only queues them. That is most of them under load.
"""

from __future__ import annotations

import gc
import heapq
import math
import random
import traceback
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, count, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.sched.core import NEVER, Scheduler
from common.sched.eventlog import EventLog
from common.sched.policies import PolicyError, spec_of
from common.sched.profile import Profile, ProfileError
from common.sched.types import (
    ID,
    Arrived,
    Batch,
    BatchDone,
    Dispatch,
    Event,
    Query,
    Tick,
    WakeAt,
    WorkerHello,
    WorkerLost,
    make,
)
from loadgen.conditions import P95, Conditions, Costs
from loadgen.errors import InputError
from loadgen.records import Column, Records
from loadgen.report import met_slo
from loadgen.workload import Workload

SIMULATED = "simulated"  # the executor that a simulated answer names
_CHUNK = 8192  # queries made at a time
_TICK = Tick()


class _Served(NamedTuple):
    """A batch that has ended, its rows, and when it was sent, started, ended and answered."""

    batch: Batch
    rows: int
    sent_us: int
    started_us: int
    finished_us: int
    replied_us: int


class Simulation:
    """One run: a heap of what happens when, the scheduler, and the workers that live. `run` is called once.

    `workers` are the profiles that batches obey, `announced` what the workers say of themselves: by default the same.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        workers: Mapping[str, Profile],
        conditions: Conditions,
        announced: Mapping[str, Profile] | None = None,
        log: EventLog | None = None,
    ) -> None:
        self.scheduler = scheduler
        self._log = log
        self._jitter, self._tail, self._slow = conditions.jitter, conditions.tail, conditions.slow
        self._overhead_us, self._actuation_us = conditions.overhead_us, conditions.actuation_us
        self._hop_us, self._costs = conditions.hop_us, conditions.costs
        self._random = random.Random(conditions.seed)
        self._profiles = dict(workers)
        self._alive: set[str] = set()
        self._loaded: dict[str, str] = {}
        self._free_us = dict.fromkeys(workers, 0)
        self._running: dict[tuple[str, int], _Served] = {}
        self._heap: list[tuple[int, int, Event]] = []
        self._count = count()
        self._wake_us = NEVER
        self._served: list[_Served] = []
        self._rejected: dict[int, str] = {}
        joins = {name: time_us for time_us, name in conditions.joins}
        for name, profile in (announced or workers).items():
            self._at(joins.get(name, 0), WorkerHello(name, profile))
        for time_us, name in conditions.deaths:
            self._at(time_us, WorkerLost(name))

    def run(self, workload: Workload, progress: Callable[[int], None] | None = None) -> Records:
        """Play a workload until every query has its outcome. A rejected query is an error with its reason."""
        with _uncollected():
            self._play(workload, progress)
        return self._records(workload)

    def _play(self, workload: Workload, progress: Callable[[int], None] | None) -> None:
        scheduler, heap = self.scheduler, self._heap
        alike = len({tenant.slo_ms for tenant in workload.tenants}) == 1
        for queries, times_us in _chunks(workload, self._costs):
            at, end = 0, len(queries)
            while at < end:
                arrival_us = times_us[at]
                next_us = min(heap[0][0], self._wake_us) if heap else self._wake_us
                if next_us < arrival_us:
                    self._step()
                    continue
                until, head = at + 1, scheduler.head
                if head is not None:
                    until = max(until, bisect_right(times_us, next_us - 1, lo=at))
                    if not alike:
                        until = next((i for i in range(at, until) if queries[i].deadline_us < head.deadline_us), until)
                        until = max(until, at + 1)
                now_us = times_us[until - 1]
                self._happen(make(Arrived, (queries[at:until],)), now_us)
                at = until
            if progress is not None:
                progress(queries[-1].id + 1)
        while heap or self._wake_us < NEVER:
            self._step()

    def _step(self) -> None:
        """Let the next event but an arrival happen; a worker's before the core's wish to be woken at that time."""
        heap = self._heap
        event: Event = _TICK
        if not heap or self._wake_us < heap[0][0]:
            now_us = self._wake_us
        else:
            now_us, _, event = heapq.heappop(heap)
            if isinstance(event, BatchDone):
                if event.worker not in self._alive:
                    return
                self._served.append(self._running.pop((event.worker, event.batch)))
            elif isinstance(event, WorkerLost):
                self._alive.discard(event.worker)
            elif isinstance(event, WorkerHello):
                self._alive.add(event.worker)
        self._happen(event, now_us)

    def _happen(self, event: Event, now_us: int) -> None:
        """Tell the core of an event, and do as it says."""
        if self._log is not None:
            self._log.append(event, now_us)
        self._wake_us, costs = NEVER, self._costs
        commands = self.scheduler.handle(event, now_us)
        if (error := self.scheduler.failure) is not None:
            raise InputError("policy", spec_of(self.scheduler.policy), _failure(error, now_us)) from error
        for command in commands:
            if isinstance(command, WakeAt):
                self._wake_us = command.at_us
                if costs is not None:
                    self._wake_us += costs.wakes.near(now_us, self._random)
            elif isinstance(command, Dispatch):
                self._start(command.batch, now_us)
            else:
                self._rejected[command.query.id] = command.reason

    def _start(self, batch: Batch, now_us: int) -> None:
        batch_id, worker, subnet, _ = batch
        costs, rows, factor = self._costs, batch.rows, 1.0
        if self._jitter:
            factor += abs(self._random.gauss(0.0, self._jitter))
        if self._tail and self._random.random() < self._tail:
            factor *= 2.0
        dispatch_us = report_us = reply_us = self._hop_us
        overhead_us = self._overhead_us
        if costs is not None:
            dispatch_us += costs.dispatches.near(now_us, self._random)
            overhead_us += costs.overheads.near(now_us, self._random)
        started_us = max(now_us + dispatch_us, self._free_us[worker])
        for since_us, name, slower in self._slow:
            if name == worker and started_us >= since_us:
                factor *= slower
        finished_us = started_us + round(self._profiles[worker].latency_us(subnet, rows) * factor) + overhead_us
        if self._actuation_us and self._loaded.get(worker) != subnet:
            self._loaded[worker] = subnet
            finished_us += self._actuation_us
        self._free_us[worker] = finished_us
        if costs is not None:
            report_us += costs.reports.near(finished_us, self._random)
            reply_us += costs.replies.near(finished_us, self._random)
        served = (batch, rows, now_us, started_us, finished_us, finished_us + reply_us)
        self._running[worker, batch_id] = make(_Served, served)
        self._at(finished_us + report_us, make(BatchDone, (worker, batch_id, started_us, finished_us)))

    def _at(self, time_us: int, event: Event) -> None:
        heapq.heappush(self._heap, (time_us, next(self._count), event))

    def _records(self, workload: Workload) -> Records:
        served = self._served
        sizes = [len(one.batch.queries) for one in served]
        queries = chain.from_iterable([one.batch.queries for one in served])
        ids = np.fromiter(map(ID, queries), np.int64, sum(sizes))
        subnets: dict[str, int] = {"": 0}  # code 0 is a name not told
        workers: dict[str, int] = {"": 0}
        for one in served:
            subnets.setdefault(one.batch.subnet, len(subnets))
            workers.setdefault(one.batch.worker, len(workers))
        accuracies = {s.id: s.accuracy for profile in self._profiles.values() for s in profile.subnets}

        def column(per_batch: Sequence[float], unknown: float = math.nan) -> Column:
            values = np.full(len(workload.intended_s), unknown)
            values[ids] = np.repeat(np.array(per_batch, np.float64), sizes)
            return values

        workload = replace(workload, intended_s=workload.arrival_us / 1e6)  # as the core was told
        done_s = column([one.replied_us / 1e6 for one in served])
        started_s = column([one.started_us / 1e6 for one in served])
        records = Records(
            workload=workload,
            sent_s=workload.intended_s,
            done_s=done_s,
            accuracy=column([accuracies[one.batch.subnet] for one in served]),
            batch_size=column([one.rows for one in served]),
            queue_ms=(started_s - workload.intended_s) * 1e3,
            inference_ms=column([(one.finished_us - one.started_us) / 1e3 for one in served]),
            deadline_met=np.full(len(done_s), math.nan),
            correct_rows=np.full(len(done_s), math.nan),
            subnet=column([subnets[one.batch.subnet] for one in served], 0).astype(np.int32),
            worker=column([workers[one.batch.worker] for one in served], 0).astype(np.int32),
            subnets=list(subnets),
            workers=list(workers),
            policies=[spec_of(self.scheduler.policy)],
            executors=[SIMULATED],
            errors=self._rejected,
        )
        return replace(records, deadline_met=np.where(np.isnan(done_s), math.nan, met_slo(records)))


def simulate(
    scheduler: Scheduler,
    workload: Workload,
    profile: Profile,
    workers: int,
    conditions: Conditions | None = None,
    *,
    upper: float = P95,
    progress: Callable[[int], None] | None = None,
    log: EventLog | None = None,
) -> Records:
    """Play a workload with `workers` like workers, which announce what they would measure in these conditions.

    They are named `worker-0` and so on. upper: see `Conditions.measured`. progress: told how many queries have arrived.
    InputError as soon as the policy fails.
    """
    conditions = conditions or Conditions()
    alike = dict.fromkeys((f"worker-{i}" for i in range(workers)), profile)
    announced = dict.fromkeys(alike, conditions.measured(profile, upper))
    return Simulation(scheduler, alike, conditions, announced, log).run(workload, progress)


def _failure(error: Exception, now_us: int) -> str:
    """Say in a line what a policy raised, where, and when."""
    what, at = " ".join(str(error).split()), f"at {now_us / 1e6:.6f} s"
    if isinstance(error, PolicyError | ProfileError):  # they say what is wrong
        return f"{what} ({at})"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {what} ({Path(frames[-1].filename).name}, line {frames[-1].lineno}, {at})"


@contextmanager
def _uncollected() -> Iterator[None]:
    """Collect no garbage meanwhile: a run makes no cycles, and its queries would be walked over and over."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _chunks(workload: Workload, costs: Costs | None) -> Iterator[tuple[tuple[Query, ...], list[int]]]:
    """The queries of a workload, some thousands at a time, and when the core hears of each.

    A query's id is its position.
    """
    arrivals_us = heard_us = workload.arrival_us
    if costs is not None:  # in the order in which they were sent
        heard_us = np.maximum.accumulate(arrivals_us + costs.ingress.last(arrivals_us))
    slo_us = np.array([round(tenant.slo_ms * 1e3) for tenant in workload.tenants], np.int64)
    kinds = [(tenant.rows, tenant.min_accuracy, tenant.priority, 0) for tenant in workload.tenants]
    for first in range(0, len(arrivals_us), _CHUNK):
        times = arrivals_us[first : first + _CHUNK]
        tenants = workload.tenant[first : first + _CHUNK]
        times_us, deadlines_us = times.tolist(), (times + slo_us[tenants]).tolist()
        if len(kinds) == 1:
            rest: list[Iterable[float]] = [repeat(value) for value in kinds[0]]
        else:
            rest = list(zip(*(kinds[code] for code in tenants.tolist()), strict=True))
        ids = range(first, first + len(times_us))
        columns = zip(ids, times_us, deadlines_us, *rest)  # noqa: B905 - `rest` may repeat for ever
        queries = tuple(map(make, repeat(Query), columns))
        yield queries, heard_us[first : first + _CHUNK].tolist()
