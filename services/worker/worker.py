"""The worker service: its stream to batches, batches to answers.

A batch's life here: read from the stream -> payloads checked -> executor thread -> answers packed per gateway, and the
report for the scheduler behind them, in one round trip -> and only then the batch is acked. A crash anywhere repeats
the batch, here or elsewhere; the gateway answers each query once.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common import keys, log, metrics, wire
from common.clock import REFRESH_S, Clock
from common.runtime import keep_trying, unique_name
from common.streams import Entry, Outgoing, Streams, StreamsError
from services.worker.executor import Executor, Finished, Job
from services.worker.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from common.monitor import Monitor
    from common.runtime import Tasks
    from common.settings import WorkerSettings
    from services.worker.engine import Engine

_log = log.get(__name__)

READ_COUNT = 8
BLOCK_MS = 1_000
ACK_DELAY_S = 0.005
SILENCE_BEATS = 8  # heartbeats without an answer from Redis, after which the worker is not ready
DISMISSAL_SHARE = 0.8  # of the grace period: how long a draining worker waits for the scheduler's last word


@dataclass(frozen=True, slots=True)
class Names:
    """The streams of one worker."""

    worker: str
    model: str

    @property
    def work(self) -> str:
        """Stream of its batches."""
        return keys.work(self.model, self.worker)

    @property
    def events(self) -> str:
        """Stream to its scheduler."""
        return keys.events(self.model)


class Worker:
    """Serves batches of one model with one engine."""

    def __init__(self, settings: WorkerSettings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._description = engine.describe()
        self._names = Names(settings.name or unique_name("worker"), self._description["name"])
        self._accuracy = {subnet["id"]: subnet["accuracy"] for subnet in self._description["subnets"]}
        self._streams = Streams(settings.redis)
        self._clock = Clock()
        self._finished: asyncio.Queue[Finished] = asyncio.Queue()
        self._in_hand: set[bytes] = set()  # entries read and not yet acked
        self._answered: list[bytes] = []  # entries whose answers are out, to ack
        self._to_ack = asyncio.Event()
        self._empty = asyncio.Event()  # nothing in hand
        self._empty.set()
        self._draining = False
        self._dismissed = asyncio.Event()
        self._beaten_s = -math.inf  # when a heartbeat last reached Redis
        self._metrics = Metrics(self._names.model, self._in_hand.__len__)
        self._executor: Executor | None = None
        self._tasks: Tasks | None = None
        self.monitor: Monitor | None = None  # if a port is asked for

    @property
    def name(self) -> str:
        """The name under which the scheduler knows this worker."""
        return self._names.worker

    async def startup(self, tasks: Tasks) -> None:
        """Announce the worker and start serving; waits for Redis if it is not there yet."""
        self._tasks = tasks
        if self._settings.metrics_port is not None:
            from common.monitor import Monitor

            self.monitor = Monitor(metrics.registry(self._metrics), self._problem)
            await self.monitor.start(self._settings)
        loop = asyncio.get_running_loop()

        def deliver(done: Finished) -> None:
            loop.call_soon_threadsafe(self._finished.put_nowait, done)

        self._executor = Executor(self._engine, self._clock, deliver)
        ready = asyncio.Event()
        tasks.spawn(keep_trying(lambda: self._read(ready), StreamsError, "reading batches"), "read")
        tasks.spawn(keep_trying(self._write, StreamsError, "sending answers"), "write")
        tasks.spawn(keep_trying(self._ack, StreamsError, "acknowledging"), "ack")
        tasks.spawn(keep_trying(self._beat, StreamsError, "heartbeat"), "heartbeat")
        tasks.spawn(keep_trying(self._synchronise, StreamsError, "clock"), "clock")
        await ready.wait()
        _log.info("worker_ready", worker=self.name, model=self._names.model, executor=self._engine.executor)

    async def shutdown(self) -> None:
        """Ask for no more batches, finish those on the stream, and leave once the scheduler says so."""
        self._draining = True
        try:
            await self._report(wire.Draining(self.name))
            async with asyncio.timeout(self._settings.grace_s * DISMISSAL_SHARE):
                await self._dismissed.wait()
        except (StreamsError, TimeoutError) as error:
            _log.warning("left_undismissed", worker=self.name, error=str(error) or "no scheduler answered")
        await self._empty.wait()
        if self._executor:
            self._executor.close()
        if self._tasks is not None:
            await self._tasks.cancel()
        if self.monitor is not None:
            await self.monitor.close()
        await self._streams.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _read(self, ready: asyncio.Event) -> None:
        """One session on the stream: make it, say hello, take up what was pending, then read until an error."""
        names = self._names
        await self._clock.synchronise(self._streams)
        await self._streams.make_group(names.work, keys.WORKER_GROUP, ttl_s=keys.WORKER_STREAM_TTL_S)
        await self._hello()
        ready.set()
        await self._take(await self._streams.pending(names.work, keys.WORKER_GROUP, keys.WORKER_CONSUMER))
        while True:
            await self._take(
                await self._streams.read(
                    [names.work], keys.WORKER_GROUP, keys.WORKER_CONSUMER, count=READ_COUNT, block_ms=BLOCK_MS
                )
            )

    async def _hello(self) -> None:
        await self._report(wire.Hello(self.name, self._engine.profile.to_dict(), self._description))

    async def _take(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.id in self._in_hand:
                continue  # pending, and still with the executor
            try:
                message = wire.decode(entry.header)
            except wire.WireError as error:
                _log.error("entry_refused", stream=entry.stream, entry=entry.id, error=error.message)
                await self._streams.ack(keys.WORKER_GROUP, [(entry.stream, entry.id)])
                continue
            if isinstance(message, wire.WorkBatch):
                payloads = await self._payloads(message, memoryview(entry.payload))
                self._in_hand.add(entry.id)  # only now: if the fetch fails, the entry is pending and read again
                self._empty.clear()
                assert self._executor is not None
                self._executor.submit(Job(entry.id, message, payloads))
                continue
            if isinstance(message, wire.Introduce):
                await self._hello()
            elif isinstance(message, wire.Dismissed):
                self._dismissed.set()
            await self._streams.ack(keys.WORKER_GROUP, [(entry.stream, entry.id)])

    async def _payloads(self, batch: wire.WorkBatch, packed: memoryview) -> list[memoryview | str]:
        """Return each query's input bytes, fetched if stored apart, or what is wrong with them."""
        stored = [record.query.id for record in batch.records if record.query.stored]
        fetched: dict[int, bytes | None] = {}
        if stored:
            names = [keys.payload(self._names.model, query_id) for query_id in stored]
            fetched = dict(zip(stored, await self._streams.get_payloads(names), strict=True))
        payloads: list[memoryview | str] = []
        offset = 0
        for record in batch.records:
            query = record.query
            if query.stored:
                found = fetched[query.id]
                payload = memoryview(found) if found is not None else None
            else:
                payload = packed[offset : offset + query.size]
                offset += query.size
            if payload is None:
                payloads.append(f"payload of {query.size} bytes has expired")
            elif len(payload) != query.size or wire.checksum(payload) != query.crc:
                payloads.append("payload was damaged on the way: its checksum does not match")
            else:
                payloads.append(payload)
        return payloads

    # -- writing ------------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        """Send the results of all batches finished by now; on an error they are sent again."""
        finished = [await self._finished.get()]
        while not self._finished.empty():
            finished.append(self._finished.get_nowait())
        try:
            outgoing = [entry for done in finished for entry in self._outgoing(done)]
            await self._streams.append_all(outgoing)
        except StreamsError:
            for done in finished:
                self._finished.put_nowait(done)
            raise
        for done in finished:
            self._metrics.finished(done)
        self._answered += [done.job.entry_id for done in finished]
        self._to_ack.set()

    async def _ack(self) -> None:
        """Ack batches whose answers are out, several together: a round trip for each would cost more."""
        await self._to_ack.wait()
        await asyncio.sleep(ACK_DELAY_S)
        self._to_ack.clear()
        answered, self._answered = self._answered, []
        try:
            await self._streams.ack(keys.WORKER_GROUP, [(self._names.work, entry_id) for entry_id in answered])
        except StreamsError:
            self._answered += answered
            self._to_ack.set()
            raise
        self._in_hand.difference_update(answered)
        if not self._in_hand:
            self._empty.set()

    def _outgoing(self, done: Finished) -> list[Outgoing]:
        """Pack a batch's answers per gateway, and the report to the scheduler behind them."""
        batch, names = done.job.batch, self._names
        by_gateway: dict[str, tuple[list[wire.Answer], list[bytes]]] = {}
        for record, result in zip(batch.records, done.results, strict=True):
            answers, payloads = by_gateway.setdefault(record.gateway, ([], []))
            if isinstance(result, str):
                answers.append(wire.Answer(record.query.id, 0, result))
            else:
                answers.append(wire.Answer(record.query.id, len(result), ""))
                payloads.append(result)
        entries = [
            Outgoing(
                keys.replies(names.model, gateway),
                wire.encode(
                    wire.Answers(
                        worker=names.worker,
                        executor=self._engine.executor,
                        subnet=batch.subnet,
                        policy=batch.policy,
                        accuracy=self._accuracy.get(batch.subnet, 0.0),
                        batch_rows=done.rows,
                        started_us=done.started_us,
                        finished_us=done.finished_us,
                        batch=batch.batch,
                        degraded=batch.degraded,
                        dispatched_us=batch.dispatched_us,
                        answers=answers,
                    )
                ),
                b"".join(payloads),
            )
            for gateway, (answers, payloads) in by_gateway.items()
        ]
        report = wire.Done(names.worker, batch.batch, done.started_us, done.finished_us, done.idle_us)
        return [*entries, Outgoing(names.events, wire.encode(report), create=True)]

    async def _report(self, message: wire.Message) -> None:
        await self._streams.append(self._names.events, wire.encode(message))

    # -- keeping alive ------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        await self._report(wire.Heartbeat(self.name))
        if not await self._streams.expire(self._names.work, keys.WORKER_STREAM_TTL_S):
            # Redis forgot it, or the scheduler gave this worker up: begin anew.
            await self._streams.make_group(self._names.work, keys.WORKER_GROUP, ttl_s=keys.WORKER_STREAM_TTL_S)
            await self._hello()
        self._beaten_s = time.monotonic()
        await asyncio.sleep(self._settings.heartbeat_ms / 1e3)

    def _problem(self) -> str | None:
        """Why this worker is not ready, or None."""
        if self._draining:
            return "it is draining"
        if time.monotonic() - self._beaten_s > SILENCE_BEATS * self._settings.heartbeat_ms / 1e3:
            return "its heartbeats do not reach Redis"
        return None

    async def _synchronise(self) -> None:
        await asyncio.sleep(REFRESH_S)
        await self._clock.synchronise(self._streams)
