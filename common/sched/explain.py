"""What became of one query, and why: from an event log, by replay.

The log is applied to a scheduler that notes what it knew whenever it decided while the query waited. So a story tells
the state in which the decision was taken, not one like it. The log is read once, up to the query's end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from common.sched.core import Scheduler, bounded
from common.sched.eventlog import EventLogError, apply, events, read_header
from common.sched.options import SchedulerOptions
from common.sched.policies import Policy, View, spec_of
from common.sched.policies.base import Learner, learner_of, shrunk
from common.sched.profile import Profile
from common.sched.queue import EdfQueue
from common.sched.story import (
    Adopted,
    Candidate,
    Decision,
    Dispatched,
    Finished,
    Option,
    PutBack,
    Read,
    Rejected,
    Step,
    Story,
    why_rejected,
    why_taken,
)
from common.sched.types import (
    Arrived,
    Batch,
    BatchDone,
    Choice,
    Command,
    Degraded,
    Dispatch,
    Event,
    Query,
    Reason,
    Reject,
    WorkerHello,
    WorkerLost,
)

_GATEWAY_BITS = 32  # ids of one gateway have the bits above these in common


class UnknownQueryError(ValueError):
    """The log does not have the query; the message names what it has."""


def explain(lines: Iterable[str], query_id: int) -> Story:
    """Return the story of a query. Raises UnknownQueryError, or EventLogError for a line that is not of the format."""
    lines = iter(lines)
    header = next(lines, None)
    if header is None:
        raise EventLogError("line 1: the log is empty")
    witness = _Witness(*read_header(header), query_id)
    census = _Census(query_id)
    for now_us, event in events(lines):
        if isinstance(event, Arrived):
            census.add(event.queries)
        witness.witness(event, now_us)
        if witness.steps and isinstance(witness.steps[-1], Finished | Rejected):
            break
    if witness.query is None:
        raise UnknownQueryError(census.missing())
    return Story(witness.query, witness.spec, tuple(witness.steps))


class _Witness:
    """Beside a scheduler: notes what that knew when it decided about one query."""

    def __init__(self, policy: Policy, options: SchedulerOptions, query_id: int) -> None:
        self.spec = spec_of(policy)
        self.scheduler = Scheduler(_Watched(policy, self), options)
        self.query: Query | None = None
        self.steps: list[Step] = []
        self._id = query_id
        self._waiting = False
        self._left_before = 0  # batches, while it waited
        self._decision: Decision | None = None  # the latest of this event by which it could have left
        self._facts: tuple[Candidate, ...] = ()  # when it was rejected

    def witness(self, event: Event, now_us: int) -> None:
        """Handle an event, and note what it means to the query."""
        self._decision, self._facts = None, ()
        if (step := self._meant(event, now_us)) is not None:
            self.steps.append(step)
        for command in apply(self.scheduler, event, now_us):
            if self._waiting and self.query is not None:
                self._note(command, self.query, now_us)

    # ---- what an event means, to be seen before it is handled ----

    def _meant(self, event: Event, now_us: int) -> Step | None:
        match event:
            case Arrived(queries) if not self.scheduler.knows(self._id):
                if (query := self._among(queries)) is not None:
                    return self._read(query, queries, now_us)
            case WorkerHello(worker, _, running) if self._waiting or not self.scheduler.knows(self._id):
                for batch in running:
                    if (query := self._among(batch.queries)) is not None:
                        self.query, self._waiting = query, False
                        return Adopted(now_us, worker, batch.id, batch.subnet)
            case BatchDone(worker, batch_id, started_us, finished_us):
                for batch in self._batches(worker):
                    if batch.id == batch_id and (query := self._among(batch.queries)) is not None:
                        spare_us = query.deadline_us - finished_us
                        return Finished(now_us, worker, batch_id, started_us, finished_us, spare_us)
            case WorkerLost(worker):
                for place, batch in enumerate(self._batches(worker)):
                    if (query := self._among(batch.queries)) is not None:
                        blamed = place == 0
                        self.query, self._waiting = query._replace(attempts=query.attempts + blamed), True
                        return PutBack(now_us, worker, blamed, self.query.attempts)
        return None

    def _read(self, query: Query, queries: Iterable[Query], now_us: int) -> Read:
        self.query, self._waiting = query, True
        order = EdfQueue()
        order.push([*self.scheduler.queue, *(other for other in queries if not self.scheduler.knows(other.id))])
        urgent = []
        for other in order:
            if other.id == self._id:
                break
            urgent.append(other.rows)
        ready = sum(not worker.draining for worker in self.scheduler.workers.values())
        return Read(now_us, len(urgent), sum(urgent), ready, query.attempts)

    def _among(self, queries: Iterable[Query]) -> Query | None:
        return next((query for query in queries if query.id == self._id), None)

    def _batches(self, worker: str) -> list[Batch]:
        """A worker's batches, the running one first."""
        known = self.scheduler.workers.get(worker)
        return [item.batch for item in known.batches.values()] if known is not None else []

    # ---- what was decided ----

    def _note(self, command: Command, query: Query, now_us: int) -> None:
        match command:
            case Dispatch(batch, degraded) if self._among(batch.queries) is None:
                self._left_before += 1
            case Dispatch(batch, degraded):
                self._waiting = False
                self.steps.append(self._dispatched(batch, degraded, now_us))
            case Reject(rejected, reason) if rejected.id == self._id:
                self._waiting = False
                decision = self._decision
                if decision is not None and (decision.head != self._id or decision.choice is not None):
                    decision = None
                core = self.scheduler
                why = why_rejected(
                    query, reason, core.options, core.queued_rows, core.best_accuracy, self._facts, decision
                )
                self.steps.append(Rejected(now_us, reason, why, self._facts, decision))

    def _dispatched(self, batch: Batch, degraded: Degraded, now_us: int) -> Dispatched:
        place = [query.id for query in batch.queries].index(self._id) + 1
        decision = self._decision
        if decision is not None and decision.head != batch.queries[0].id:
            decision = None  # of another batch: for this one the policy was not asked
        return Dispatched(
            at_us=now_us,
            worker=batch.worker,
            batch=batch.id,
            subnet=batch.subnet,
            accuracy=self.scheduler.workers[batch.worker].profile.accuracy(batch.subnet),
            best_accuracy=self.scheduler.best_accuracy,
            degraded=degraded,
            rows=batch.rows,
            queries=len(batch.queries),
            place=place,
            batches_before=self._left_before,
            why=why_taken(degraded, decision, place),
            decision=decision,
        )

    # ---- what is known while it is decided ----

    def gives_up(self, query: Query, now_us: int) -> None:
        """Note the workers as they stand when the query is rejected."""
        if query.id == self._id:
            self._facts = self._candidates(query, now_us, "")

    def chose(self, view: View, choice: Choice | None, error: str = "") -> None:
        """Note a decision by which the query may leave. error: what the policy raised in place of one."""
        if not self._waiting:
            return
        ahead = next((place for place, query in enumerate(view.queue) if query.id == self._id), None)
        if ahead is not None:
            margin = view.residuals.quantile(self.scheduler.options.start_quantile, prior=1.0)
            self._decision = Decision(
                worker=view.worker.name,
                head=view.head.id,
                ahead=ahead,
                queued_rows=view.queue.rows,
                slack_us=view.slack_us,
                correction=view.worker.correction,
                margin=margin,
                choice=choice,
                error=error,
                options=tuple(_options(view, choice, margin)),
                candidates=self._candidates(view.head, view.now_us, view.worker.name),
            )

    def _candidates(self, query: Query, now_us: int, taken: str) -> tuple[Candidate, ...]:
        """Each worker, and whether it could take this query from the head of the queue: the core's own rules."""
        options = self.scheduler.options
        soonest_us = now_us + self.scheduler.delay.us
        found = []
        for worker in self.scheduler.workers.values():
            needs_us, spare_us = worker.floor_us(query), None
            if needs_us is not None:
                due_us = query.deadline_us - options.reply_margin_us
                spare_us = due_us - max(worker.free_us, soonest_us) - needs_us
            if worker.draining:
                state = "draining"
            elif spare_us is None:
                state = "not accurate enough"
            elif spare_us < 0:
                state = "too late"
            elif len(worker.batches) >= options.max_in_flight:
                state = "full"
            elif worker.free_us > soonest_us:
                state = "busy"
            else:
                state = "taken" if worker.name == taken else "free"
            free_in_us, batches = max(0, worker.free_us - now_us), len(worker.batches)
            found.append(Candidate(worker.name, state, free_in_us, needs_us, spare_us, batches, worker.correction))
        return tuple(found)


class _Watched:
    """A policy that shows a witness each decision, and by its learner each query that is given up."""

    def __init__(self, policy: Policy, witness: _Witness) -> None:
        self._policy = policy
        self._witness = witness
        self._learned = learner_of(policy)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)  # `best`, of a policy that has it

    def cheapest(self, profile: Profile) -> str:
        """As the policy."""
        return self._policy.cheapest(profile)

    def choose(self, view: View) -> Choice | None:
        """As the policy."""
        view = view._replace(learned=self._learned)
        try:
            choice = bounded(self._policy.choose(view), view)
        except Exception as error:  # the core does the same with it
            self._witness.chose(view, shrunk(view), f"{type(error).__name__}: {error}")
            raise
        self._witness.chose(view, choice)
        return choice

    def learner(self) -> Learner:
        """As the policy, and listening."""
        return _Listener(self._learned or Learner(), self._witness)


class _Listener(Learner):
    """A policy's learner, beside which a witness hears of queries given up."""

    def __init__(self, learner: Learner, witness: _Witness) -> None:
        self._learner = learner
        self._witness = witness

    def arrived(self, rows: int, now_us: int) -> None:
        """As the learner."""
        self._learner.arrived(rows, now_us)

    def finished(self, batch: Batch, done: BatchDone) -> None:
        """As the learner."""
        self._learner.finished(batch, done)

    def rejected(self, query: Query, reason: Reason, now_us: int) -> None:
        """As the learner, and heard."""
        self._witness.gives_up(query, now_us)
        self._learner.rejected(query, reason, now_us)


class _Census:
    """Which queries a log has, so far as it helps who asked for one that it has not."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._count = 0
        self._nearest: int | None = None
        self._of_gateway: list[int] = []  # the first and the last of the gateway that the wanted one would be of

    def add(self, queries: Iterable[Query]) -> None:
        """Count queries."""
        for query in queries:
            self._count += 1
            if self._nearest is None or abs(query.id - self._wanted) < abs(self._nearest - self._wanted):
                self._nearest = query.id
            if query.id >> _GATEWAY_BITS == self._wanted >> _GATEWAY_BITS:
                self._of_gateway = [*self._of_gateway[:1], query.id]

    def missing(self) -> str:
        """Return what to tell."""
        message = f"no query {self._wanted:016x} among the {self._count:,} that arrive in this log"
        if self._nearest is None:
            return message
        message += f"; the nearest is {self._nearest:016x}"
        if not self._of_gateway:
            return f"{message}, of another gateway: is it the log of the scheduler that served it?"
        return f"{message}; of its gateway there are {self._of_gateway[0]:016x} to {self._of_gateway[-1]:016x}"


def _options(view: View, choice: Choice | None, margin: float) -> Iterator[Option]:
    """Every subnet with the head alone, the profiled batches that the queue fills, all of it, and what was chosen."""
    profile, queued, least = view.profile, view.queue.rows, view.head.rows
    most = max(least, min(queued, profile.max_batch))
    taken = (choice.subnet, max(least, min(choice.rows, queued))) if choice is not None else None
    sizes = {least, *(size for size in profile.batch_sizes if least < size < most), most, *(taken[1:] if taken else ())}
    table = profile.latencies("median", max(sizes))
    for subnet, row in zip(profile.subnets, table, strict=True):
        for rows in sorted(sizes):
            latency_us = round(row[rows] * view.worker.correction * margin)
            yield Option(
                subnet=subnet.id,
                accuracy=subnet.accuracy,
                rows=rows,
                latency_us=latency_us,
                meets_slack=latency_us <= view.slack_us,
                queue_share=min(1.0, rows / queued),
                taken=(subnet.id, rows) == taken,
            )
