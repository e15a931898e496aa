"""What the scheduler has decided and not yet written: batches, rejections, notes to workers; and what to ack then.

Decisions are made at once and written in the background, many in one round trip. Acks of a flush follow its effects.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common import keys, wire
from common.streams import Outgoing, Streams, StreamsError
from services.scheduler.ledger import Held, Ledger, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.sched import Batch, Dispatch


# Acks wait so long for company: a round trip for each costs more than a decision. A crash meanwhile repeats work.
ACK_DELAY_S = 0.005


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
    _read: list[Source] = field(default_factory=list)  # entries whose effects are in _sending, or already out
    _settled: list[Source] = field(default_factory=list)  # their effects are in Redis: to ack
    _to_send: asyncio.Event = field(default_factory=asyncio.Event)
    _to_ack: asyncio.Event = field(default_factory=asyncio.Event)
    _busy: int = 0  # flushes and settlements under way
    _empty: asyncio.Event = field(default_factory=asyncio.Event)

    def batch(self, dispatch: Dispatch, held: list[Held], policy: str, now_us: int) -> None:
        """Send a batch to its worker."""
        batch = dispatch.batch
        attempts = {query.id: query.attempts for query in batch.queries}
        records = [wire.WorkRecord(h.gateway, attempts[h.record.id], h.record) for h in held]
        header = wire.encode(wire.WorkBatch(batch.id, batch.subnet, policy, dispatch.degraded, now_us, records))
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
        """Ack an entry once what it caused is out."""
        self._read.append(Source(stream, entry))
        self.wake()

    def wake(self) -> None:
        """Have the next flush look at the ledger's due sources too."""
        self._empty.clear()
        self._to_send.set()

    async def drained(self) -> None:
        """Wait until all is written and acked."""
        if self._to_send.is_set() or self._to_ack.is_set() or self._busy:
            await self._empty.wait()

    async def flush(self, streams: Streams) -> list[Sending]:
        """Wait for something to write and write it; return the batches whose worker's stream is gone.

        On StreamsError everything unwritten is kept, in order, for the next call.
        """
        await self._to_send.wait()
        self._to_send.clear()
        sending, read = self._take()
        with self._counted():
            try:
                made = await streams.append_all([entry.outgoing for entry in sending]) if sending else []
            except StreamsError:
                self._sending, self._read = sending + self._sending, read + self._read
                self.wake()
                raise
            orphans = [entry for entry, ok in zip(sending, made, strict=True) if not ok and entry.batch is not None]
            for entry in orphans:
                for held in entry.held:
                    self.ledger.hold(held)
            self._settled += read
            self._to_ack.set()
        return orphans

    async def settle(self, streams: Streams) -> None:
        """Wait a moment for entries to ack and ack them together; on StreamsError they are kept for the next call."""
        await self._to_ack.wait()
        with self._counted():
            await asyncio.sleep(ACK_DELAY_S)
            self._to_ack.clear()
            settled, self._settled = self.ledger.still_due(self._settled), []
            try:
                await streams.ack(keys.SCHEDULER_GROUP, [(s.stream, s.entry) for s in settled if s.entry is not None])
                for source in settled:
                    if source.entry is None:
                        await streams.forget_worker(self.model, source.stream.removeprefix(keys.work(self.model, "")))
            except StreamsError:
                self._settled += settled
                self._to_ack.set()
                raise

    def _take(self) -> tuple[list[Sending], list[Source]]:
        for gateway, rejections in self._rejections.items():
            header = wire.encode(wire.Rejections(rejections))
            self._sending.append(Sending(Outgoing(keys.replies(self.model, gateway), header)))
        sending, read = self._sending, self._read + self.ledger.take_due()
        self._sending, self._read, self._rejections = [], [], {}
        return sending, read

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if not (self._busy or self._to_send.is_set() or self._to_ack.is_set()):
                self._empty.set()
