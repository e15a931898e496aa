"""What the scheduler has decided and not yet written: batches, rejections, notes to workers; and what to ack then.

Decisions are made at once and written in the background, many in one round trip. Acks of a flush follow its effects.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common import keys, wire
from common.streams import Outgoing, Streams, StreamsError
from services.scheduler.ledger import Held, Ledger, Source

if TYPE_CHECKING:
    from common.sched import Batch


@dataclass(frozen=True, slots=True)
class Sending:
    """One entry on its way; for a batch, with what it takes to put its queries back."""

    outgoing: Outgoing
    batch: Batch | None = None
    held: tuple[Held, ...] = ()


@dataclass(slots=True)
class Outbox:
    """Entries of one model's scheduler, in order."""

    model: str
    ledger: Ledger
    _sending: list[Sending] = field(default_factory=list)
    _rejections: dict[str, list[wire.Rejection]] = field(default_factory=dict)
    _acks: list[Source] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _empty: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._empty.set()

    def batch(self, batch: Batch, held: list[Held], policy: str, now_us: int) -> None:
        """Send a batch to its worker."""
        attempts = {query.id: query.attempts for query in batch.queries}
        records = [wire.WorkRecord(h.gateway, attempts[h.record.id], h.record) for h in held]
        header = wire.encode(wire.WorkBatch(batch.id, batch.subnet, policy, now_us, records))
        payload = b"".join([h.payload for h in held])
        stream = keys.work(self.model, batch.worker)
        self._sending.append(Sending(Outgoing(stream, header, payload), batch, tuple(held)))
        self.wake()

    def reject(self, gateway: str, query_id: int, reason: str) -> None:
        """Tell a gateway that a query will not be served."""
        self._rejections.setdefault(gateway, []).append(wire.Rejection(query_id, reason))
        self.wake()

    def note(self, worker: str, message: wire.Introduce | wire.Dismissed) -> None:
        """Send a worker a message; lost if its stream is gone, and then nobody misses it."""
        self._sending.append(Sending(Outgoing(keys.work(self.model, worker), wire.encode(message))))
        self.wake()

    def ack(self, stream: str, entry: bytes) -> None:
        """Ack an entry with the next flush."""
        self._acks.append(Source(stream, entry))
        self.wake()

    def wake(self) -> None:
        """Have the next flush look at the ledger's due sources too."""
        self._empty.clear()
        self._wake.set()

    async def drained(self) -> None:
        """Wait until all is written and acked."""
        await self._empty.wait()

    async def flush(self, streams: Streams) -> list[Sending]:
        """Wait for something to write, write it, then ack; return the batches whose worker's stream is gone.

        On StreamsError everything unwritten is kept, in order, for the next call.
        """
        await self._wake.wait()
        self._wake.clear()
        sending, acks = self._take()
        try:
            made = await streams.append_all([entry.outgoing for entry in sending]) if sending else []
        except StreamsError:
            self._put_back(sending, acks)
            raise
        orphans = [entry for entry, ok in zip(sending, made, strict=True) if not ok and entry.batch is not None]
        for entry in orphans:
            for held in entry.held:
                self.ledger.hold(held)
        acks = self.ledger.still_due(acks)
        try:
            await self._settle(streams, acks)
        except StreamsError:
            self._put_back([], acks)
            raise
        if not self._wake.is_set():
            self._empty.set()
        return orphans

    def _take(self) -> tuple[list[Sending], list[Source]]:
        for gateway, rejections in self._rejections.items():
            header = wire.encode(wire.Rejections(rejections))
            self._sending.append(Sending(Outgoing(keys.replies(self.model, gateway), header)))
        sending, acks = self._sending, self._acks + self.ledger.take_due()
        self._sending, self._acks, self._rejections = [], [], {}
        return sending, acks

    def _put_back(self, sending: list[Sending], acks: list[Source]) -> None:
        self._sending = sending + self._sending
        self._acks = acks + self._acks
        self.wake()

    async def _settle(self, streams: Streams, acks: list[Source]) -> None:
        await streams.ack(keys.SCHEDULER_GROUP, [(s.stream, s.entry) for s in acks if s.entry is not None])
        prefix = keys.work(self.model, "")
        for source in acks:
            if source.entry is None:
                await streams.forget_worker(self.model, source.stream.removeprefix(prefix))
