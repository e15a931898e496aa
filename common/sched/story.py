"""The story of one query, as `common.sched.explain` finds it: steps, the decisions in them, and why in a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from common.sched.options import SchedulerOptions
from common.sched.types import Choice, Degraded, Query, Reason


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker as the decision saw it. state: `taken`, `free`, or why it could not take the query. Times count on."""

    worker: str
    state: str
    free_in_us: int
    needs_us: int | None  # least median latency for the query; None: it lacks the accuracy
    spare_us: int | None  # until the query's deadline, if it ran that; below 0 it is late
    batches: int
    correction: float


@dataclass(frozen=True, slots=True)
class Option:
    """A subnet with a batch: what it takes by prediction and margin, if that meets the slack, what it would serve."""

    subnet: str
    accuracy: float
    rows: int
    latency_us: int
    meets_slack: bool
    queue_share: float  # of the rows queued
    taken: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy was asked, and what came of its answer: None lets the head go. `head` is the most urgent query.

    `error` is what the policy raised, "" if it did not: the choice is the core's then.
    """

    worker: str
    head: int
    ahead: int  # queries before ours
    queued_rows: int
    slack_us: int
    correction: float
    margin: float
    choice: Choice | None
    error: str
    options: tuple[Option, ...]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """The scheduler read the query: so many were more urgent."""

    at_us: int
    ahead: int
    ahead_rows: int
    workers: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Dispatched:
    """The query left in a batch. `decision` None: the policy was not asked, since its head was late already."""

    at_us: int
    worker: str
    batch: int
    subnet: str
    accuracy: float
    best_accuracy: float
    degraded: Degraded
    rows: int
    queries: int
    place: int  # in the batch, from 1
    batches_before: int  # that left while it waited
    why: str
    decision: Decision | None


@dataclass(frozen=True, slots=True)
class Adopted:
    """A scheduler that had just started found the query in a batch on a worker."""

    at_us: int
    worker: str
    batch: int
    subnet: str


@dataclass(frozen=True, slots=True)
class PutBack:
    """The worker was lost, and the query returned to the queue. `blamed`: its batch was the one running."""

    at_us: int
    worker: str
    blamed: bool
    attempts: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The worker's report. `spare_us`: from the batch's end to the deadline; the way of the answer is not in it."""

    at_us: int
    worker: str
    batch: int
    started_us: int
    finished_us: int
    spare_us: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """The query was turned away."""

    at_us: int
    reason: Reason
    why: str
    candidates: tuple[Candidate, ...]
    decision: Decision | None


Step: TypeAlias = Read | Dispatched | Adopted | PutBack | Finished | Rejected


@dataclass(frozen=True, slots=True)
class Story:
    """A query's steps in order. Without Finished or Rejected at the end, the log ends before the query does."""

    query: Query
    policy: str
    steps: tuple[Step, ...]

    @property
    def ended(self) -> bool:
        """Whether the log tells the query's end."""
        return isinstance(self.steps[-1], Finished | Rejected)


def why_taken(degraded: Degraded, decision: Decision | None, place: int) -> str:
    """Say in a sentence why a batch, in which our query has that place, ran what it ran."""
    head = "it" if place == 1 else "the most urgent query of its batch"
    if decision is None:
        return f"No subnet could meet the deadline of {head} any more: the quickest was taken (late=serve)."
    if decision.choice is None:
        return f"The policy let {head} go: the quickest subnet was taken (late=serve)."
    if decision.error:
        return f"The policy failed ({decision.error}): the quickest subnet was taken."
    whose = "Its own" if place == 1 else "The most urgent query's"
    taken = decision.choice.subnet
    accuracy = next(option.accuracy for option in decision.options if option.subnet == taken)
    better = [option for option in decision.options if option.accuracy > accuracy]
    match degraded:
        case "":
            return "No live worker has a more accurate subnet."
        case "cap" if not better:
            return f"{taken} is the best that {decision.worker} has; another worker has a better one."
        case "cap":
            return f"The policy uses nothing better than {taken} of itself, whatever the slack."
        case "slack":
            quickest = min(better, key=lambda option: option.latency_us)
            return (
                f"No better subnet would have met the slack of {ms(decision.slack_us)} that {head} had: the quickest, "
                f"{quickest.subnet}, takes {ms(quickest.latency_us)} for {count(quickest.rows, 'row')}."
            )
        case "floor":
            return f"{whose} min_accuracy set it: {taken} is the least that it allows, and a better one would fit."
        case "policy":
            fitting = [option for option in better if option.meets_slack]
            packed = next(option.rows for option in decision.options if option.taken)
            within = f"within the slack of {ms(decision.slack_us)} that {head} had"
            if same := [option.subnet for option in fitting if option.rows == packed]:
                return (
                    f"{same[-1]} would have run the same batch {within}; the policy chose less, for others or caution."
                )
            most = max(fitting, key=lambda option: (option.accuracy, option.rows))
            return (
                f"{most.subnet} would have run up to {count(most.rows, 'row')} {within}, but no better one the whole "
                f"batch: the policy ran {packed} on {taken}, of {decision.queued_rows} that were queued."
            )


def why_rejected(
    query: Query,
    reason: Reason,
    options: SchedulerOptions,
    queued_rows: int,
    best_accuracy: float,
    candidates: tuple[Candidate, ...],
    decision: Decision | None,
) -> str:
    """Say in a sentence why a query was turned away. decision: of the policy that let it go, if it was that."""
    match reason:
        case "queue_full":
            return f"{queued_rows} rows were queued, and at most {options.max_queue_rows} may be (max_queue_rows)."
        case "min_accuracy":
            return f"It demands {query.min_accuracy:g} %; the best subnet of a live worker has {best_accuracy:g} %."
        case "poison":
            return f"{query.attempts} workers died while they ran it, which is the limit (max_attempts)."
        case "no_worker":
            return "Its deadline passed while no worker was there."
        case "late" if decision is not None:
            return (
                f"The policy let it go, with a slack of {ms(decision.slack_us)}: no batch was worth what it would cost."
            )
        case "late":
            spares = [(c.spare_us, c.worker) for c in candidates if c.spare_us is not None]
            spare_us, worker = max(spares, default=(0, ""))
            if not worker:
                return "No worker that takes batches could serve it."
            return (
                f"Even {worker}, the first that could end it, would be {ms(-spare_us)} late with its quickest subnet."
            )


def ms(us: float) -> str:
    """Microseconds as a person reads them."""
    return f"{us / 1_000:.1f} ms"


def count(number: int, what: str) -> str:
    """A number of something, in the plural unless it is one."""
    plural = what[:-1] + "ies" if what.endswith("y") else what + ("es" if what.endswith("ch") else "s")
    return f"{number:,} {what if number == 1 else plural}"
