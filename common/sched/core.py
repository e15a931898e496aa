################################################################
# The core: the one place where anything is decided
################################################################
#
# `Scheduler.handle(event, now_us) -> list[Command]` is the only method that changes anything. The live scheduler and
# the simulator are two drivers of this file: they carry events in and commands out and decide nothing. Nothing here
# reads a clock, draws a random number or awaits, so the same events at the same times give the same commands.
#
# Theory of operation
# ===================
#
# A query is in exactly one place: queued, in flight on one worker, done, or rejected. After an event:
#
# 1) Consider the head of the queue, the earliest deadline. It is hopeless if no worker that takes batches can meet
#    its deadline: a worker starts at max(now + dispatch delay, predicted free), needs the median of the cheapest subnet
#    that the policy would use for it, and the reply needs its margin. Under `late=drop` a hopeless head is rejected and
#    the next one considered; under `late=serve` it goes with the cheapest subnet and a full batch, which frees the
#    queue soonest. Without workers the head waits until its deadline.
#
# 2) Pick the worker, among those that can meet the head's deadline and may take a batch. A worker may if it holds fewer
#    than `max_in_flight` and its predicted free time, less the dispatch delay, has come: the next batch arrives as the
#    last one ends, and no worker idles for a round trip. More than one is ahead only while predictions are shorter than
#    the delay; if they are wrong, the cap is what bounds. All of these would start at the same moment: an idle worker
#    surely, one about to be free if its prediction holds. So idle ones go first, then the fastest, the most accurate,
#    and the first by name. Neither this rule nor the one above counts what a change of subnet costs (the profile's
#    `actuation_us`, 0 in place): they would need to know the choice. The predicted free time does count it.
#
# 3) Ask the policy for subnet and rows, and pack: the head, then queries in EDF order while rows fit, passing over
#    those that need more accuracy than the subnet has. Dispatch, and go to 1. The slack that the policy sees allows for
#    the running batch to take longer than predicted, as batches lately did (`start_quantile`). The core holds a choice
#    to its bounds: for a subnet below the head's floor it takes the quickest that reaches it, with no more rows than it
#    runs within the slack, and rows are at least the head's and at most the largest batch.
#    A policy that raises, or chooses what is no choice, changes nothing of this: the head is served by the quickest
#    subnet that its floor allows, in the largest batch within its slack, and the error is there for the driver to see.
#
# 4) Say when to be called again (WakeAt): at the earliest of a worker's dispatch-ahead moment and the head's expiry.
#
# A lost worker's queries return to the queue with their old deadlines. Only its first unfinished batch was running, and
# only that is blamed; a query blamed `max_attempts` times is poison.
#
# Arrivals behind the head change nothing before the WakeAt already known: they cost a push and no decision.

"""The scheduler core. See the theory of operation above, and `docs/scheduling.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from operator import index
from types import MappingProxyType
from typing import Any, assert_never, cast

from common.sched.degraded import why_degraded
from common.sched.estimators import ArrivalRate, DispatchDelay, Residuals
from common.sched.options import SchedulerOptions
from common.sched.policies.base import Policy, PolicyError, View, bounds_of, learner_of, shrunk
from common.sched.profile import Profile
from common.sched.queue import EdfQueue
from common.sched.types import (
    ID,
    MIN_ACCURACY,
    ROWS,
    Arrived,
    Batch,
    BatchDone,
    Choice,
    Command,
    Dispatch,
    Event,
    Query,
    Reason,
    Reject,
    Tick,
    WakeAt,
    WorkerDraining,
    WorkerHello,
    WorkerLost,
    make,
)
from common.sched.worker import Worker

NEVER = 1 << 62
"""Later than every time in microseconds."""


class Scheduler:
    """Queue, workers and estimators of one model. `handle` is the only method that changes anything.

    `best_accuracy` is that of the best subnet of any worker that takes batches, in percent; infinite without workers.
    `failures` counts how often the policy or its learner failed, `failure` is the latest error. Raises PolicyError if
    the policy's `learner` makes none.
    """

    def __init__(self, policy: Policy, options: SchedulerOptions | None = None) -> None:
        self.policy = policy
        self._policy: Any = policy  # a user's may choose what is no Choice
        self.options = options or SchedulerOptions()
        self.rate = ArrivalRate()
        self.residuals = Residuals()
        self.delay = DispatchDelay(self.options.ahead_floor_us, self.options.ahead_cap_us)
        self._learner = learner_of(policy)
        self._queue = EdfQueue()
        self._workers: dict[str, Worker] = {}
        self._ready: tuple[Worker, ...] = ()
        self._alike: list[list[Worker]] = []  # the same, those together that take as long for any head
        self.best_accuracy = inf
        self._live: set[int] = set()
        self._next_batch = self.options.first_batch
        self._wake_us = NEVER
        self.accepted = 0
        self.done = 0
        self.rejected = 0
        self.failures = 0
        self.failure: Exception | None = None

    # ---- the one way in ----

    def handle(self, event: Event, now_us: int) -> list[Command]:
        """Apply an event at `now_us` and return what to do, in order.

        The last command may be a WakeAt, later than `now_us`: the earliest moment that matters if no event comes
        before. It replaces every earlier one; if there is none, no moment matters. Raises PolicyError or ProfileError,
        and changes nothing, for a WorkerHello whose profile the policy cannot work with or whose batches it lacks.
        """
        out: list[Command] = []
        match event:
            case Arrived(queries):
                head = self._queue.head if self._queue else None
                self._arrived(queries, now_us, out)
                if head is None or head is not self._queue.head or now_us >= self._wake_us:
                    self._fill(now_us, out)
            case BatchDone():
                self._finished(event)
                self._fill(now_us, out)
            case Tick():
                self._fill(now_us, out)
            case WorkerHello():
                self._hello(event, now_us)
                self._fill(now_us, out)
            case WorkerLost(worker):
                self._lost(worker, now_us, out)
                self._fill(now_us, out)
            case WorkerDraining(worker):
                self._drain(worker)
                self._fill(now_us, out)
            case _:
                assert_never(event)
        if self._wake_us < NEVER:
            out.append(make(WakeAt, (self._wake_us,)))
        return out

    # ---- read-only, for drivers and tests ----

    @property
    def queued_rows(self) -> int:
        """Rows that wait."""
        return self._queue.rows

    @property
    def queue(self) -> EdfQueue:
        """The queries that wait. To read only."""
        return self._queue

    @property
    def head(self) -> Query | None:
        """The query that is considered next, None with an empty queue."""
        return self._queue.head if self._queue else None

    @property
    def workers(self) -> Mapping[str, Worker]:
        """Workers by name, draining ones included. To read only."""
        return MappingProxyType(self._workers)

    @property
    def in_flight(self) -> tuple[Batch, ...]:
        """Batches dispatched and not yet done."""
        return tuple(item.batch for worker in self._workers.values() for item in worker.batches.values())

    def knows(self, query_id: int) -> bool:
        """Whether a query is queued or in flight here: its arrival again would be ignored."""
        return query_id in self._live

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken. Costs a pass over everything: for tests."""
        self._queue.check()
        queued = [query.id for query in self._queue]
        flying = [query.id for batch in self.in_flight for query in batch.queries]
        assert len(set(queued + flying)) == len(queued) + len(flying), "a query is in two places"
        assert set(queued + flying) == self._live, "a query is lost, or remembered for nothing"
        assert self.accepted == len(self._live) + self.done + self.rejected, "accepted queries do not add up"
        for worker in self._workers.values():
            if self._queue and self._wake_us == NEVER and not worker.draining and not worker.batches:
                assert worker.floor_us(self._queue.head) is None, "a worker idles beside a query that it could serve"
            assert all(item.batch.worker == worker.name for item in worker.batches.values()), "a batch is misplaced"
        assert set(self._ready) == {w for w in self._workers.values() if not w.draining}, "ready workers miscounted"

    # ---- events ----

    def _arrived(self, queries: Sequence[Query], now_us: int, out: list[Command]) -> None:
        live, room = self._live, self.options.max_queue_rows - self._queue.rows
        ids, rows = set(map(ID, queries)), sum(map(ROWS, queries))
        min_accuracy = max(map(MIN_ACCURACY, queries), default=0.0)
        accepted = queries
        if (
            len(ids) == len(queries) and rows <= room and min_accuracy <= self.best_accuracy and live.isdisjoint(ids)
        ):  # nearly always: all are new and all may enter
            live |= ids
        else:
            accepted, rows = self._admit(queries, room, out)
        self._queue.extend(accepted, rows, min_accuracy)
        self.accepted += len(accepted)
        self.rate.add(rows, now_us)
        if self._learner is not None:
            try:
                self._learner.arrived(rows, now_us)
            except Exception as error:
                self._failed(error)

    def _admit(self, queries: Sequence[Query], room: int, out: list[Command]) -> tuple[list[Query], int]:
        """Take those of some queries that are new, that can be served and that fit; return them and their rows."""
        accepted: list[Query] = []
        rows = 0
        for query in queries:
            if query.id in self._live:
                continue
            if query.min_accuracy > self.best_accuracy:
                out.append(Reject(query, "min_accuracy"))
            elif rows + query.rows > room:
                out.append(Reject(query, "queue_full"))
            else:
                self._live.add(query.id)
                accepted.append(query)
                rows += query.rows
        return accepted, rows

    def _finished(self, event: BatchDone) -> None:
        worker = self._workers.get(event.worker)
        item = worker.finish(event) if worker else None
        if item is None:
            return
        if item.found_idle:
            self.delay.add(event.started_us - item.dispatched_us)
        self.residuals.add((event.finished_us - event.started_us) / item.expected_us)
        self._live.difference_update(map(ID, item.batch.queries))
        self.done += len(item.batch.queries)
        if self._learner is not None:
            try:
                self._learner.finished(item.batch, event)
            except Exception as error:
                self._failed(error)

    def _hello(self, event: WorkerHello, now_us: int) -> None:
        cheapest, best = bounds_of(self.policy, event.profile)
        for batch in event.running:
            event.profile.index(batch.subnet)
        worker = self._workers.get(event.worker)
        if worker is None:
            worker = self._workers[event.worker] = Worker(event.worker, event.profile, cheapest)
        worker.update(event.profile, cheapest, best)
        for batch in event.running:
            if batch.id not in worker.batches:
                self._adopt(worker, batch, now_us)
        self._recount()

    def _adopt(self, worker: Worker, batch: Batch, now_us: int) -> None:
        """Take over a batch found running after a restart: its queries are in flight, and no longer queued."""
        elsewhere = {query.id for other in self.in_flight for query in other.queries}
        queries = tuple(query for query in batch.queries if query.id not in elsewhere)
        ids = {query.id for query in queries}
        self._queue.discard(ids)
        self.accepted += len(ids - self._live)
        self._live |= ids
        self._next_batch = max(self._next_batch, batch.id + 1)
        batch = batch._replace(worker=worker.name, queries=queries)
        worker.assign(batch, batch.rows, now_us, 0)

    def _lost(self, name: str, now_us: int, out: list[Command]) -> None:
        worker = self._workers.pop(name, None)
        if worker is None:
            return
        self._recount()
        for position, item in enumerate(worker.batches.values()):
            for query in item.batch.queries:
                blamed = query._replace(attempts=query.attempts + 1) if position == 0 else query
                if blamed.attempts >= self.options.max_attempts:
                    self._reject(blamed, "poison", now_us, out)
                else:
                    self._queue.push((blamed,))

    def _drain(self, name: str) -> None:
        if name in self._workers:
            self._workers[name].draining = True
            self._recount()

    def _recount(self) -> None:
        ready = [worker for worker in self._workers.values() if not worker.draining]
        self._ready = tuple(sorted(ready, key=lambda worker: worker.rank))
        groups: dict[tuple[Profile, int], list[Worker]] = {}
        for worker in self._ready:
            groups.setdefault((worker.profile, worker.cheapest), []).append(worker)
        self._alike = list(groups.values())
        # Without workers nothing is out of reach: one may come.
        self.best_accuracy = max((worker.profile.subnets[-1].accuracy for worker in self._ready), default=inf)

    # ---- decisions ----

    def _fill(self, now_us: int, out: list[Command]) -> None:
        """Reject and dispatch until nothing more can be done now; remember when something can."""
        self._wake_us = NEVER
        while self._queue:
            head = self._queue.head
            due_us = head.deadline_us - self.options.reply_margin_us
            place = self._place(head, due_us, now_us)
            late = place == "late" and self.options.late == "serve"
            if late:
                place = self._place(head, 2 * NEVER, now_us)
            if isinstance(place, Worker):
                self._dispatch(head, place, late, now_us, out)
            elif isinstance(place, int):
                self._wake_us = place
                return
            else:
                self._reject(self._queue.pop(), place, now_us, out)

    def _place(self, head: Query, due_us: int, now_us: int) -> Worker | Reason | int:
        """Find the worker for a head due at `due_us`, or the reason why there is none, or the moment to look again."""
        if not self._ready:
            return "no_worker" if now_us >= head.deadline_us else head.deadline_us
        delay_us, max_in_flight = self.delay.us, self.options.max_in_flight
        soonest_us = now_us + delay_us
        place: Worker | None = None
        reason: Reason | None = "min_accuracy"  # None as soon as one can
        wake_us, last_us, fewest = NEVER, 0, max_in_flight
        for alike in self._alike:
            floor_us = alike[0].floor_us(head)
            if floor_us is None:
                continue
            reason, latest_us = reason and "late", due_us - floor_us
            if soonest_us > latest_us:
                continue
            for worker in alike:
                free_us = worker.free_us
                if free_us > latest_us:
                    continue
                reason = None
                if latest_us > last_us:
                    last_us = latest_us
                if free_us > soonest_us:
                    if free_us - delay_us < wake_us and len(worker.batches) < max_in_flight:
                        wake_us = free_us - delay_us
                elif (batches := len(worker.batches)) < fewest or (
                    place is not None and batches == fewest and worker.rank < place.rank
                ):
                    place, fewest = worker, batches
                    if not batches:
                        break
        if place is not None:
            return place
        if reason is not None:
            return reason
        # At this wake the last start that makes the deadline has passed, unless a worker can be filled before.
        return min(wake_us, last_us - delay_us + 1)

    def _dispatch(self, head: Query, worker: Worker, late: bool, now_us: int, out: list[Command]) -> None:
        """Fill a worker with the head and what the policy packs with it, or let the head go if the policy says so."""
        profile = worker.profile
        choice: Choice | None = None
        slack_us = -1
        if not late:
            start_us = worker.start_us(now_us + self.delay.us, self.residuals, self.options.start_quantile)
            slack_us = head.deadline_us - self.options.reply_margin_us - start_us
            queue, ready, rate, residuals = self._queue, self._ready, self.rate, self.residuals
            view = make(View, (now_us, start_us, slack_us, queue, worker, ready, rate, residuals, self._learner))
            try:
                choice = bounded(self._policy.choose(view), view)
            except Exception as error:  # a user's policy can fail in any way
                self._failed(error)
                choice = shrunk(view)
            if choice is None and self.options.late == "drop":
                self._reject(self._queue.pop(), "late", now_us, out)
                return
        if choice is None:
            choice = Choice(worker.cheapest_for(head.min_accuracy, head.rows), profile.max_batch)
        queued = self._queue.rows
        queries = self._queue.take(choice.rows, profile.accuracy(choice.subnet))
        rows = queued - self._queue.rows
        batch = make(Batch, (self._next_batch, worker.name, choice.subnet, queries))
        self._next_batch += 1
        quantile = self.options.start_quantile
        degraded = why_degraded(worker, head, choice.subnet, self.best_accuracy, slack_us, self.residuals, quantile)
        worker.assign(batch, rows, now_us, self.delay.us)
        out.append(make(Dispatch, (batch, degraded)))

    def _reject(self, query: Query, reason: Reason, now_us: int, out: list[Command]) -> None:
        self._live.discard(query.id)
        self.rejected += 1
        if self._learner is not None:
            try:
                self._learner.rejected(query, reason, now_us)
            except Exception as error:
                self._failed(error)
        out.append(Reject(query, reason))

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self.failure = error


def bounded(chosen: object, view: View) -> Choice | None:
    """Hold what a policy chose to the head's floor and rows, and to the largest batch; None lets the head go.

    Raises PolicyError for what is no Choice of an integer, and ProfileError for a subnet that is not there.
    """
    if chosen is None:
        return None
    if not isinstance(chosen, Choice):
        raise PolicyError(f"choose: expected a Choice or None, got {type(chosen).__name__}")
    subnet, asked = cast("tuple[Any, Any]", chosen)
    try:
        rows: int = index(asked)
    except TypeError:
        raise PolicyError(f"choose: rows: expected an integer, got {asked!r}") from None
    head, profile = view.queue.head, view.worker.profile
    if profile.accuracy(subnet) < head.min_accuracy:
        reaching = shrunk(view)
        subnet, rows = reaching.subnet, min(rows, reaching.rows)
    return Choice(subnet, max(head.rows, min(rows, profile.max_batch)))
