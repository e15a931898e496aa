"""What goes into the scheduling core and what comes out of it.

Every time is an integer count of microseconds of one clock common to all processes; every event is applied at a
`now_us` of that clock, given beside it. Events state facts, commands state decisions; both are values, so that a log
of events replays to the same commands.

What occurs once per query or batch is a named tuple: a frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, cast

from common.sched.profile import Profile

Reason: TypeAlias = Literal["late", "min_accuracy", "poison", "queue_full", "no_worker"]
"""Why a query is rejected:

- `late`: no subnet that the policy may use can meet the deadline any more, or the policy lets the query go;
- `min_accuracy`: no live worker has a subnet that accurate;
- `poison`: the query was running on `max_attempts` workers when they died;
- `queue_full`: admitting it would exceed `max_queue_rows`;
- `no_worker`: its deadline passed while no worker was there.
"""

Degraded: TypeAlias = Literal["", "cap", "slack", "floor", "policy"]
"""Why a batch's subnet is less accurate than the best that the model's live workers have; "" if it is not.

`common.sched.degraded` decides it and says what each means.
"""

REASONS_DEGRADED: tuple[Degraded, ...] = ("cap", "slack", "floor", "policy")


Kind = TypeVar("Kind")


class Make(Protocol):
    """What `make` is."""

    def __call__(self, kind: type[Kind], fields: Iterable[Any], /) -> Kind:
        """Return a named tuple of that kind."""
        ...


make = cast(Make, tuple.__new__)
"""`make(WakeAt, (at_us,))` is `WakeAt(at_us)`, every field given in order, in half the time: it runs no Python."""


class Query(NamedTuple):
    """One request of `rows` inputs, answered as a whole and never split.

    `min_accuracy` is in percent, like a profile's. `priority` breaks ties between equal deadlines, lower numbers first,
    and does nothing else. `attempts` counts the workers that died while running the query.
    """

    id: int
    arrival_us: int
    deadline_us: int
    rows: int = 1
    min_accuracy: float = 0.0
    priority: int = 0
    attempts: int = 0


# To go over many queries at once: map(ROWS, queries) runs no code of ours per query. By place is quicker than by name.
_place = Query._fields.index
ID, ROWS, MIN_ACCURACY = map(itemgetter, map(_place, ("id", "rows", "min_accuracy")))
ARRIVAL_US, DEADLINE_US = map(itemgetter, map(_place, ("arrival_us", "deadline_us")))
EDF = itemgetter(*map(_place, ("deadline_us", "priority", "id")))
"""The order of the queue: earliest deadline first, then the lower priority number, then who came first."""


class Batch(NamedTuple):
    """Queries that one worker runs together through one subnet. `id` is unique per worker."""

    id: int
    worker: str
    subnet: str
    queries: tuple[Query, ...]

    @property
    def rows(self) -> int:
        """Inputs in the batch: a query of n rows counts n."""
        return sum(map(ROWS, self.queries))


class Choice(NamedTuple):
    """A policy's answer: run `subnet` on up to `rows` inputs."""

    subnet: str
    rows: int


class Arrived(NamedTuple):
    """Queries were read from the ingress. An id that is queued or in flight is ignored: delivery is at least once."""

    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class WorkerHello:
    """A worker is ready. `running` are the batches outstanding on its stream, oldest first, after a scheduler restart.

    A repeated hello updates the profile, keeps the batches known, and adopts those it names that are not.
    """

    worker: str
    profile: Profile
    running: tuple[Batch, ...] = ()


class BatchDone(NamedTuple):
    """A worker finished a batch that it ran from `started_us` to `finished_us`. An unknown batch is ignored."""

    worker: str
    batch: int
    started_us: int
    finished_us: int


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker is gone: its queries return to the queue, and the batch it was running is blamed."""

    worker: str


@dataclass(frozen=True, slots=True)
class WorkerDraining:
    """A worker takes no new batches; those in flight still finish. Only WorkerLost ends it."""

    worker: str


@dataclass(frozen=True, slots=True)
class Tick:
    """The moment of the latest WakeAt has come. A tick too early, or too often, does no harm."""


class Dispatch(NamedTuple):
    """Send the batch to its worker now. `degraded` tells its queries why the subnet is not the best, if it is not."""

    batch: Batch
    degraded: Degraded = ""


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer the query now: it will not be served."""

    query: Query
    reason: Reason


class WakeAt(NamedTuple):
    """Send a Tick at `at_us`, unless another event comes first. It replaces every earlier WakeAt."""

    at_us: int


Event: TypeAlias = Arrived | WorkerHello | BatchDone | WorkerLost | WorkerDraining | Tick
Command: TypeAlias = Dispatch | Reject | WakeAt
