"""The gateway's side of one model's streams: packs of queries out, answers in, and what its scheduler says of itself.

A query's way through this file:

1. ``admit`` lets it in or says why not; ``submit`` stamps it and lays it among the unsent.
2. The writer takes what has gathered as one pack: while it appends, the next pack gathers, so that load makes packs
   larger by itself. Tensors above the threshold are stored under their own key before the pack that names them.
3. The reader takes its answer from the reply stream and calls its ``done``, once per id. Acks follow, off that path.

Errors of Redis: what a pack was to carry is answered at once with 503, and reader and writer go on by themselves. A
Redis that has lost its streams has lost what waited in them too, so those queries are answered 503 as well.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from common import keys, log, overview, wire
from common.errors import BadRequest, DeadlineExceeded, Overloaded, SuperServeError, Unavailable
from common.runtime import Tasks, keep_trying
from common.streams import Entry, NoGroupError, StreamsError
from services.gateway.model import Model
from services.gateway.pending import Query, Result
from services.gateway.protocol import Planner

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from common.clock import Clock
    from common.settings import GatewaySettings
    from common.streams import Streams
    from services.gateway.pending import Pending

    Done = Callable[[Query, Result | SuperServeError], None]

PACK_QUERIES = 256
PACK_BYTES = 1 << 20
READ_ENTRIES = 64
READ_BLOCK_MS = 1_000
ACK_S = 0.02  # acks only keep the stream short: many at once cost as much as one
REFRESH_S = keys.REPLIES_TTL_S / 4

_log = log.get(__name__)


class Mesh:
    """What all links of a gateway share. ``problem``: why no query can be taken, or None."""

    def __init__(self, settings: GatewaySettings, streams: Streams, clock: Clock, pending: Pending) -> None:
        self.settings = settings
        self.streams = streams
        self.clock = clock
        self.pending = pending
        self.grace_us = int(settings.reply_grace_ms * 1_000)
        self.draining = False
        self.redis_problem: str | None = "Redis has not been reached yet"

    @property
    def problem(self) -> str | None:
        """Why no query of any model can be taken, or None."""
        return "this gateway is shutting down" if self.draining else self.redis_problem


class ModelLink:
    """See the module. ``name`` is the gateway's; ``model`` None: no worker has introduced one yet.

    ``replies`` is the gateway's stream of answers.
    """

    def __init__(self, model: str, name: str, mesh: Mesh) -> None:
        self.name = model
        self.model: Model | None = None
        self.planner: Planner | None = None
        self.status: wire.Status | None = None
        self.problem: str | None = "its scheduler has not been heard of yet"
        self._gateway = name
        self._mesh = mesh
        self.replies = keys.replies(model, name)
        self._unsent: list[Query] = []
        self._broken = False  # the last read ended in an error
        self._unacked: list[tuple[str, bytes]] = []
        self._to_send, self._to_ack = asyncio.Event(), asyncio.Event()
        self._description: dict[str, Any] | None = None

    async def open(self, tasks: Tasks) -> None:
        """Make the reply stream, empty, and start reading and writing."""
        await self._mesh.streams.delete(self.replies)  # of a gateway that bore this name before
        await self._make_replies()
        what = f"model {self.name}: "
        tasks.spawn(self._write(), f"{what}writer")
        tasks.spawn(keep_trying(self._read, StreamsError, f"{what}replies"), f"{what}reader")
        tasks.spawn(keep_trying(self._ack, StreamsError, f"{what}acks"), f"{what}acks")
        tasks.spawn(keep_trying(self._refresh, StreamsError, f"{what}expiry of replies"), f"{what}refresh")

    async def close(self) -> None:
        """Remove the reply stream; nobody will read it again."""
        await self._mesh.streams.delete(self.replies)

    # -- what the scheduler says --------------------------------------------------------------------------------------

    def update(self, document: bytes | None) -> None:
        """Take note of the scheduler's status; None: it has none, so no scheduler lives."""
        self.status = None
        try:
            status = overview.read(wire.Status, document)
            if status is not None and status.model is not None and status.model != self._description:
                self.model = Model.from_dict(self.name, status.model)
                self.planner, self._description = Planner(self.model), status.model
        except (wire.WireError, KeyError, TypeError, ValueError) as error:
            problem = f"model {self.name!r}: its scheduler's status cannot be read: {type(error).__name__}: {error}"
            if problem != self.problem:
                _log.warning("bad_status", model=self.name, error=problem)
            self.problem = problem
            return
        self.status = status
        self.problem = overview.unavailable(self.name, status)

    # -- queries ------------------------------------------------------------------------------------------------------

    def now_us(self) -> int:
        """Return the common time."""
        return self._mesh.clock.now_us()

    @property
    def unavailable(self) -> str | None:
        """Why no query of this model can be taken, or None."""
        return self._mesh.problem or self.problem

    def admit(self) -> Model:
        """Return the model if a query can be taken now; Unavailable or Overloaded if not."""
        mesh = self._mesh
        if (problem := self.unavailable) is not None:
            raise Unavailable(problem)
        if len(mesh.pending) >= mesh.settings.max_queue:
            raise Overloaded(f"{len(mesh.pending)} queries of this gateway are in the mesh, its limit (--max-queue)")
        assert self.model is not None
        return self.model

    def submit(self, tensors: bytes, rows: int, slo_ms: float, min_accuracy: float, priority: int, done: Done) -> Query:
        """Stamp an admitted query and send it on its way."""
        mesh = self._mesh
        arrival_us = mesh.clock.now_us()
        deadline_us = arrival_us + int(slo_ms * 1_000)
        size = len(tensors)
        stored = size > mesh.settings.payload_threshold_bytes
        crc = wire.checksum(tensors)
        record = wire.QueryRecord(
            mesh.pending.new_id(), arrival_us, deadline_us, rows, min_accuracy, priority, size, crc, stored
        )
        query = Query(self.name, record, tensors, deadline_us + mesh.grace_us, done)
        mesh.pending.add(query)
        self._unsent.append(query)
        self._to_send.set()
        return query

    def withdraw(self, query: Query) -> None:
        """Forget a query: nobody waits for it. What has left cannot be called back; its answer will be ignored."""
        self._mesh.pending.take(query.record.id)

    # -- writing ------------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            while pack := self._next_pack():
                try:
                    await self._send(pack)
                except StreamsError as error:
                    self._mesh.pending.fail(pack, Unavailable(f"the query was not passed on: {error.message}"))

    def _next_pack(self) -> list[Query]:
        """Take what has gathered, up to the caps, without what nobody waits for any more."""
        pack: list[Query] = []
        size = taken = 0
        for query in self._unsent:
            if taken and (len(pack) >= PACK_QUERIES or size >= PACK_BYTES):
                break
            taken += 1
            if query in self._mesh.pending:
                pack.append(query)
                size += len(query.tensors)
        del self._unsent[:taken]
        return pack or (self._next_pack() if self._unsent else pack)

    async def _send(self, pack: list[Query]) -> None:
        streams = self._mesh.streams
        stored = {keys.payload(self.name, query.record.id): query.tensors for query in pack if query.record.stored}
        if stored:
            await streams.put_payloads(stored)
        header = wire.encode(wire.Pack(self._gateway, [query.record for query in pack]))
        payload = b"".join([query.tensors for query in pack if not query.record.stored])
        await streams.append(keys.ingress(self.name), header, payload)
        for query in pack:
            query.tensors = b""  # it is in Redis now

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _make_replies(self) -> None:
        await self._mesh.streams.make_group(self.replies, keys.GATEWAY_GROUP, ttl_s=keys.REPLIES_TTL_S)

    async def _read(self) -> None:
        try:
            entries = await self._next_entries()
        except NoGroupError:
            await self._make_replies()
            lost = self._mesh.pending.of(self.name)
            _log.warning("replies_lost", model=self.name, queries=len(lost))
            self._mesh.pending.fail(lost, Unavailable("Redis has lost its streams, and with them the query"))
            return
        for entry in entries:
            self._resolve(entry)
            self._unacked.append((entry.stream, entry.id))
        if entries:
            self._to_ack.set()

    async def _next_entries(self) -> list[Entry]:
        """Read what is new; after a break first what was delivered then, and perhaps never arrived."""
        streams = self._mesh.streams
        if self._broken:
            entries = await streams.pending(self.replies, keys.GATEWAY_GROUP, keys.GATEWAY_CONSUMER)
            self._broken = False
            return entries
        try:
            return await streams.read(
                [self.replies], keys.GATEWAY_GROUP, keys.GATEWAY_CONSUMER, count=READ_ENTRIES, block_ms=READ_BLOCK_MS
            )
        except StreamsError:
            self._broken = True
            raise

    def _resolve(self, entry: Entry) -> None:
        """Answer the queries of one entry that still wait."""
        try:
            message = wire.decode(entry.header)
        except wire.WireError as error:
            _log.error("bad_reply", model=self.name, error=error.message)
            return
        if isinstance(message, wire.Answers):
            self._answered(message, entry.payload)
        elif isinstance(message, wire.Rejections):
            for rejection in message.rejections:
                if (query := self._mesh.pending.take(rejection.id)) is not None:
                    query.done(query, self._rejection(rejection.reason, query.record))
        else:
            _log.error("bad_reply", model=self.name, error=f"{type(message).__name__} on a reply stream")

    def _answered(self, message: wire.Answers, payload: bytes) -> None:
        now_us = self._mesh.clock.now_us()
        offset = 0
        for query_id, size, error in message.answers:
            query = self._mesh.pending.take(query_id)
            if query is not None:
                if error:
                    query.done(query, SuperServeError(f"worker {message.worker} failed: {error}"))
                else:
                    query.done(query, Result(message, payload[offset : offset + size], now_us))
            offset += size

    def _rejection(self, reason: str, record: wire.QueryRecord) -> SuperServeError:
        """Return what a scheduler's reason means to the client."""
        slo_ms = (record.deadline_us - record.arrival_us) / 1_000
        waited_ms = (self._mesh.clock.now_us() - record.arrival_us) / 1_000
        if reason == "late":
            return DeadlineExceeded(f"after {waited_ms:.1f} ms in the queue the SLO of {slo_ms:g} ms was out of reach")
        if reason == "queue_full":
            return Overloaded(f"the scheduler's queue of model {self.name!r} is full")
        if reason == "min_accuracy":
            best = f"{self.model.best_accuracy:g}" if self.model else "unknown"
            return BadRequest(
                f"parameter min_accuracy: no live worker has a subnet that reaches {record.min_accuracy:g}; "
                f"the model's best is {best}"
            )
        if reason == "no_worker":
            return Unavailable(f"no worker was there within the SLO of {slo_ms:g} ms")
        if reason == "poison":
            return Unavailable("the query was given up because every worker that ran it died")
        return Unavailable(f"the scheduler rejected the query: {reason}")

    async def _ack(self) -> None:
        await self._to_ack.wait()
        await asyncio.sleep(ACK_S)
        self._to_ack.clear()
        ids = self._unacked[:]
        try:
            await self._mesh.streams.ack(keys.GATEWAY_GROUP, ids)
        except StreamsError:
            self._to_ack.set()
            raise
        del self._unacked[: len(ids)]

    async def _refresh(self) -> None:
        await asyncio.sleep(REFRESH_S)
        await self._mesh.streams.expire(self.replies, keys.REPLIES_TTL_S)
