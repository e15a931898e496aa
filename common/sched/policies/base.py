"""What a policy is, and what it may look at."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol, TypeAlias

from common.sched.estimators import ArrivalRate, Residuals
from common.sched.profile import Profile, ProfileError, Quantile
from common.sched.queue import EdfQueue
from common.sched.types import Batch, BatchDone, Choice, Query, Reason
from common.sched.worker import Worker

LateChoice: TypeAlias = Literal["shed", "drain", "shrink"]
"""What a policy chooses for a head that it sees no safe way to serve."""


class PolicyError(ValueError):
    """A policy's spec is wrong, or the policy cannot work with a worker's profile; the message says what is legal."""


class Learner:
    """A policy's estimator of its own. The core holds it and tells it what happens; the policy reads it in its view.

    It may change only by what it is told and by views that it is shown, so that a log replays exactly. A subclass
    overrides what it needs.
    """

    def arrived(self, rows: int, now_us: int) -> None:
        """Rows were admitted to the queue."""

    def finished(self, batch: Batch, done: BatchDone) -> None:
        """A batch came back, between the times that `done` tells."""

    def rejected(self, query: Query, reason: Reason, now_us: int) -> None:
        """A query that had been admitted was given up."""


class View(NamedTuple):
    """The state of the system when one worker is about to be filled. The queue is not empty.

    `start_us` is when that worker can start the batch; `slack_us` the time it then has until the head's deadline,
    less the margin for the reply (the paper's theta). `workers` are all that take batches, with their profiles and
    `free_us`. `learned` is what the policy's `learner()` made, None for a policy without.
    """

    now_us: int
    start_us: int
    slack_us: int
    queue: EdfQueue
    worker: Worker
    workers: Collection[Worker]
    rate: ArrivalRate
    residuals: Residuals
    learned: Learner | None = None

    @property
    def head(self) -> Query:
        """The query with the earliest deadline: it will be in the batch."""
        return self.queue.head

    @property
    def profile(self) -> Profile:
        """The profile of the worker to fill."""
        return self.worker.profile


class Policy(Protocol):
    """Decides subnet and batch size. A frozen dataclass without state of its own, so that a view alone tests it.

    One that needs an estimator of its own has a method `learner() -> Learner` besides, which the core calls once. One
    that never uses the most accurate subnets, whatever the slack, has `best(profile) -> str`, the best that it uses but
    for queries that demand more: their answers say `cap`.
    """

    def cheapest(self, profile: Profile) -> str:
        """Return the cheapest subnet the policy ever uses: a query that cannot make it there is late.

        Raises PolicyError if the policy cannot work with the profile.
        """
        ...

    def choose(self, view: View) -> Choice | None:
        """Return subnet and rows for the batch that starts with the head, None to let the head go: it is then late.

        The core holds it to bounds: the head's minimum accuracy, its rows, the largest batch. What this raises it takes
        for the quickest subnet that the head allows.
        """
        ...


@dataclass(frozen=True, slots=True)
class Fitting:
    """What policies share that fit a batch of any subnet into the slack, as the profile tells latencies."""

    quantile: Quantile = field(default="p95", metadata={"doc": "which latency of the profile must fit the slack"})
    late: LateChoice = field(
        default="shed",
        metadata={"doc": "no batch fits: let the head go, run the largest batch, or what the median allows"},
    )

    def cheapest(self, profile: Profile) -> str:
        """Return the smallest subnet."""
        return profile.smallest

    def serve(self, view: View, index: int) -> Choice | None:
        """Return the largest batch that fits of a subnet, or of the cheapest that reaches what the head demands."""
        index = max(index, view.worker.eligible(view.head.min_accuracy))
        return largest_batch(view, index, self.quantile) or late_choice(view, self.late)


def learner_of(policy: Policy) -> Learner | None:
    """Return a fresh learner for a policy, None for one without. Raises PolicyError if it makes something else."""
    make = getattr(policy, "learner", None)
    if make is None:
        return None
    try:
        learner = make()
    except Exception as error:  # a user's policy can fail in any way
        raise PolicyError(f"learner: {type(error).__name__}: {error}") from error
    if learner is not None and not isinstance(learner, Learner):
        raise PolicyError(f"learner: expected a Learner of common.sched.policies.base, got {type(learner).__name__}")
    return learner


def best_of(policy: Policy, profile: Profile) -> int:
    """Return the index of the most accurate subnet that a policy uses of itself; the profile's last if all are."""
    find = getattr(policy, "best", None)
    return profile.index(find(profile)) if find else len(profile.subnets) - 1


def bounds_of(policy: Policy, profile: Profile) -> tuple[int, int]:
    """Return the indices of the cheapest subnet that a policy ever uses and of the best that it uses of itself.

    Raises PolicyError if it cannot work with the profile, whatever it raises itself; ProfileError for a subnet that is
    not there.
    """
    try:
        return profile.index(policy.cheapest(profile)), best_of(policy, profile)
    except (PolicyError, ProfileError):
        raise
    except Exception as error:  # a user's policy can fail in any way
        raise PolicyError(f"cheapest: {type(error).__name__}: {error}") from error


def fitting_rows(profile: Profile, subnet: int, budget_us: float, quantile: Quantile) -> int:
    """Return the largest batch, at most `max_batch`, that the subnet runs within the budget; 0 if none."""
    latencies = profile.latencies(quantile)[subnet]
    return bisect_right(latencies, budget_us, lo=1) - 1


def largest_batch(view: View, index: int, quantile: Quantile) -> Choice | None:
    """Return a subnet with the largest batch that fits the head's slack; None if the head does not."""
    profile, head = view.profile, view.head
    rows = fitting_rows(profile, index, view.slack_us, quantile)
    if rows < min(head.rows, profile.max_batch):
        return None
    return Choice(profile.subnets[index].id, max(rows, head.rows))


def most_accurate(profile: Profile, rows: int, budget_us: float, quantile: Quantile) -> int:
    """Return the index of the most accurate subnet that runs `rows` rows within the budget; -1 if none."""
    latencies, best = _by_latency(profile, rows, quantile)
    place = bisect_right(latencies, budget_us)
    return best[place - 1] if place else -1


def late_choice(view: View, late: LateChoice) -> Choice | None:
    """Return the choice for a head that the policy sees no safe way to serve.

    `shed` lets it go, so that those behind it keep what slack they have. The others use the cheapest eligible subnet:
    `drain` runs the largest batch: the head may miss, those behind it are served soonest. `shrink` runs the largest
    batch that still makes it at the median: the head may be saved, at a price to all behind it.
    """
    if late == "shed":
        return None
    if late == "shrink":
        return shrunk(view)
    head = view.head
    return Choice(view.worker.cheapest_for(head.min_accuracy, head.rows), max(head.rows, view.profile.max_batch))


def shrunk(view: View) -> Choice:
    """Return the cheapest eligible subnet with the largest batch that it runs within the head's slack at the median."""
    profile, head = view.profile, view.head
    subnet = view.worker.cheapest_for(head.min_accuracy, head.rows)
    return Choice(subnet, max(head.rows, fitting_rows(profile, profile.index(subnet), view.slack_us, "median")))


@lru_cache(maxsize=1024)
def _by_latency(profile: Profile, rows: int, quantile: Quantile) -> tuple[list[int], list[int]]:
    """Latencies of `rows` rows in ascending order, and beside each the most accurate subnet up to there."""
    table = profile.latencies(quantile, rows)
    order = sorted((row[rows], index) for index, row in enumerate(table))
    best: list[int] = []
    for _, index in order:
        best.append(max([index, *best[-1:]]))
    return [us for us, _ in order], best
