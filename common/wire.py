"""Messages on the streams: what each receiver may get, and how it is laid out.

An entry has two fields: ``h``, a small msgpack header that receivers decode, and ``p``, tensor bytes laid end to end in
the order of the header's records, which nobody but worker and gateway looks into. The header is
``[version, tag, *fields of the message]``; an unknown version or tag is refused, never guessed. The version is that of
the message's layout: 1, but for the kinds that have had fields added (``LAYOUTS``). Of these the layouts before are
read too, so that a mesh is upgraded by receivers first: gateways, then workers, then schedulers.

=====================  =========================  =====================================
to the scheduler       to a worker                to a gateway
=====================  =========================  =====================================
Pack (ingress)         WorkBatch, Introduce,      Answers, Rejections,
Hello, Heartbeat,      Dismissed                  Status (a key)
Done, Draining
=====================  =========================  =====================================

SchedulerCounts and GatewayCounts are keys like Status, for those who watch (``common.overview``): no query needs them.

Messages are frozen dataclasses. The records inside them occur once per query, several thousand times a second, so
they are named tuples: msgpack packs and unpacks them as arrays at a third of the cost.
Payloads carry a CRC-32, made by the gateway and checked by the worker, because a bit flipped in a stored entry is
served by Redis as if nothing had happened.
"""

import zlib
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import msgpack

from common.errors import SuperServeError

VERSION = 1  # of a layout as first released


class WireError(SuperServeError):
    """An entry that this version cannot read."""


class QueryRecord(NamedTuple):
    """One query as the gateway stamps it; times in microseconds of the common clock."""

    id: int
    arrival_us: int
    deadline_us: int
    rows: int
    min_accuracy: float
    priority: int
    size: int  # bytes of input tensors
    crc: int  # CRC-32 of those bytes
    stored: bool  # they stand under their own key instead of in the entry


class WorkRecord(NamedTuple):
    """One query of a batch: the gateway to answer, how many workers died of it, and the query."""

    gateway: str
    attempts: int
    query: QueryRecord


class Answer(NamedTuple):
    """One query's result inside ``Answers``; ``error`` is empty for success."""

    id: int
    size: int  # bytes of output tensors
    error: str


class Rejection(NamedTuple):
    """One query that no worker will see."""

    id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Pack:
    """Queries of one gateway, flushed together."""

    gateway: str
    queries: list[QueryRecord]


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker announces itself: how it names itself, what it serves and how fast it is."""

    worker: str
    profile: dict[str, Any]  # common.sched.profile.Profile.to_dict()
    model: dict[str, Any]  # tensors and labels: services.worker.engine.Engine.describe()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A worker lives."""

    worker: str


@dataclass(frozen=True, slots=True)
class Draining:
    """A worker wants no more batches; it leaves once its stream is empty."""

    worker: str


@dataclass(frozen=True, slots=True)
class Done:
    """A batch is finished and its answers are out; ``idle_us``: how long the device waited for it."""

    worker: str
    batch: int
    started_us: int
    finished_us: int
    idle_us: int


@dataclass(frozen=True, slots=True)
class WorkBatch:
    """A batch tagged with the subnet that shall serve it.

    degraded: why that is not the best (``common.sched.types.Degraded``); None from a scheduler that does not tell.
    """

    batch: int
    subnet: str
    policy: str
    degraded: str | None
    dispatched_us: int
    records: list[WorkRecord]


@dataclass(frozen=True, slots=True)
class Introduce:
    """The scheduler does not know this worker and asks for its hello."""

    scheduler: str


@dataclass(frozen=True, slots=True)
class Dismissed:
    """The scheduler has nothing more for a draining worker: it may leave."""

    scheduler: str


@dataclass(frozen=True, slots=True)
class Answers:
    """Results of one batch for one gateway, with what served them; ``degraded`` as in ``WorkBatch``."""

    worker: str
    executor: str
    subnet: str
    policy: str
    accuracy: float
    batch_rows: int
    started_us: int
    finished_us: int
    batch: int
    degraded: str | None
    dispatched_us: int
    answers: list[Answer]


@dataclass(frozen=True, slots=True)
class Rejections:
    """Queries that the scheduler turned away, with a reason each."""

    rejections: list[Rejection]


@dataclass(frozen=True, slots=True)
class Status:
    """What the active scheduler publishes under ``keys.status``; gateways answer metadata and readiness from it.

    ``model`` is the engine's description: ``name``, ``inputs`` and ``outputs`` (``name``, ``datatype`` and ``shape`` of
    one row, in wire order), ``labels``, ``max_batch`` (rows), ``subnets`` (``id``, ``accuracy`` in percent, ascending).
    None until a worker has said hello. ``workers``: ``name``, ``executor``, ``device``, ``draining`` and ``peak_qps``
    (rows per second of the smallest subnet, by its profile), ``idle_us`` (``p50``, ``p99`` of the latest waits between
    batches), ``state`` (``idle``, ``busy`` or ``draining``), ``subnet`` (of its latest batch, or None), ``queries`` and
    ``batches`` (finished since it joined) of each live one. ``problems``: why a worker that said hello is not used.
    """

    scheduler: str
    policy: str
    published_us: int
    queued_rows: int
    model: dict[str, Any] | None
    workers: list[dict[str, Any]]
    problems: list[str]


@dataclass(frozen=True, slots=True)
class SchedulerCounts:
    """What the active scheduler publishes beside its status, under ``keys.scheduler_counts``.

    ``queries`` wait; ``head_slack_us`` is left to the most urgent of them, None without one. ``lost``: workers that
    died lately, as in ``Status.workers``. Since it started: queries by the subnet that they were ``dispatched`` to,
    ``batches`` and their ``rows``, and the slack of ``slack_count`` batches at dispatch, added up in ``slack_us``.
    """

    queries: int
    head_slack_us: int | None
    lost: list[dict[str, Any]]
    dispatched: dict[str, int]
    batches: int
    rows: int
    slack_us: int
    slack_count: int


@dataclass(frozen=True, slots=True)
class GatewayCounts:
    """What became of one model's queries at one gateway since it started, published under ``keys.gateway_counts``.

    ``answered`` in time or ``late``; ``failed`` by reason; those neither wait still. ``slo``: how many count for
    attainment. ``accuracy``: percent, added up over those answered in time.
    """

    gateway: str
    arrived: int
    answered: int
    late: int
    failed: dict[str, int]
    slo: int
    accuracy: float


Message = (
    Pack
    | Hello
    | Heartbeat
    | Draining
    | Done
    | WorkBatch
    | Introduce
    | Answers
    | Rejections
    | Status
    | Dismissed
    | SchedulerCounts
    | GatewayCounts
)

# A tag is for ever: never renumber, only add.
TAGS: dict[type[Any], int] = {
    Pack: 1,
    Hello: 2,
    Heartbeat: 3,
    Draining: 4,
    Done: 5,
    WorkBatch: 6,
    Introduce: 7,
    Answers: 8,
    Rejections: 9,
    Status: 10,
    Dismissed: 11,
    SchedulerCounts: 12,
    GatewayCounts: 13,
}
# Kinds whose layout has changed: the version that it has now.
LAYOUTS: dict[type[Any], int] = {WorkBatch: 2, Answers: 2}
# What layout 1 lacks: where, and what is put there.
_ADDED: dict[type[Any], tuple[int, tuple[Any, ...]]] = {WorkBatch: (3, (None, 0)), Answers: (8, (0, None, 0))}
_TYPES = {tag: kind for kind, tag in TAGS.items()}
_NAMES = {kind: tuple(f.name for f in fields(kind)) for kind in TAGS}


def encode(message: Message) -> bytes:
    """Return the header of ``message``."""
    kind = type(message)
    version = LAYOUTS.get(kind, VERSION)
    packed: bytes = msgpack.packb([version, TAGS[kind], *(getattr(message, name) for name in _NAMES[kind])])
    return packed


def decode(header: bytes) -> Message:
    """Return the message of a header; raises WireError when it is not one of ours, or of another version."""
    try:
        version, tag, *values = msgpack.unpackb(header)
    except Exception as error:  # msgpack raises half a dozen kinds, ValueError among them
        raise WireError(f"not a message: {error}: {bytes(header[:40])!r}") from error
    kind = _TYPES.get(tag) if isinstance(tag, int) else None  # a list or map cannot even be looked up
    if kind is None:
        raise WireError(f"unknown message tag {tag!r}")
    layout = LAYOUTS.get(kind, VERSION)
    if version != layout:
        if version != VERSION:
            raise WireError(f"{kind.__name__} of wire version {version!r}; this process reads up to {layout}")
        place, missing = _ADDED[kind]
        values[place:place] = missing
    try:
        if kind is Pack:
            gateway, rows = values
            return Pack(gateway, [QueryRecord._make(row) for row in rows])
        if kind is WorkBatch:
            values[5] = [WorkRecord(gateway, tried, QueryRecord._make(row)) for gateway, tried, row in values[5]]
        if kind is Answers:
            values[11] = [Answer._make(row) for row in values[11]]
        if kind is Rejections:
            (rows,) = values
            return Rejections([Rejection._make(row) for row in rows])
        message: Message = kind(*values)
    except (TypeError, ValueError, IndexError) as error:
        raise WireError(f"malformed {kind.__name__}: {error}") from error
    return message


def checksum(payload: bytes | memoryview) -> int:
    """Return the CRC-32 that travels beside ``payload``."""
    return zlib.crc32(payload)
