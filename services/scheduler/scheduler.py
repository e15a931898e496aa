"""The live driver of the scheduling core: streams to events, commands to streams. It decides nothing.

The loop: read ingress and events -> one event each for the core -> its commands into the outbox -> one background flush
writes them, and then acks what they settle. A timer stands for the core's WakeAt.

What can break, and what then happens:

- The scheduler dies: its successor reads pending entries back, asks every worker that has a stream for its hello, and
  adopts the batches that it finds there. Queries may be served twice and are answered once.
- A worker falls silent: what its stream still holds is put back with the old deadlines, the stream goes.
- Redis dies: everything waits and retries; workers are not blamed for the silence.
- Two schedulers: the lease lets one lead, the other stands by.
"""

from __future__ import annotations

import asyncio
import collections
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from common import keys, log, wire
from common.clock import REFRESH_S, Clock
from common.errors import ConfigError, SuperServeError
from common.runtime import keep_trying, unique_name
from common.sched import (
    Arrived,
    Batch,
    BatchDone,
    Command,
    Dispatch,
    Event,
    Profile,
    ProfileError,
    Reject,
    Scheduler,
    SchedulerOptions,
    Tick,
    WakeAt,
    WorkerDraining,
    WorkerHello,
    WorkerLost,
    parse_policy,
)
from common.sched.eventlog import EventLog
from common.sched.policies import PolicyError
from common.streams import Entry, Streams, StreamsError
from services.scheduler.ledger import Held, Ledger, Source, split, to_query
from services.scheduler.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from common.runtime import Tasks
    from common.settings import SchedulerSettings

_log = log.get(__name__)

READ_COUNT = 256
BLOCK_MS = 200
STATUS_INTERVAL_S = 0.2
WATCH_INTERVAL_S = 0.1
STALE_READ_S = 0.6  # a reader that has not come round for so long hears no heartbeats: nobody is lost by it
RECONCILE_TRIES = 20
# A timer of the event loop is late by up to a millisecond, so batches leave at least this much ahead of a worker's end.
AHEAD_FLOOR_US = 2_000
REMEMBERED_DONE = 1_024
IDLE_WINDOW = 512  # batches


class LeaseLost(SuperServeError):
    """Another scheduler leads this model now."""


class SchedulerService:
    """Serves one model's streams while it holds the lease, and stands by while another does.

    Raises ConfigError for an unknown policy or option, or an event log that cannot be written.
    """

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._name = unique_name("scheduler")
        self._streams = Streams(settings.redis)
        self._clock = Clock()
        self._core = self._make_core()
        self._log_file = self._open_log()
        self._log = EventLog(self._log_file.write, self._core) if self._log_file else None
        self._ledger = Ledger()
        self._outbox = Outbox(settings.model, self._ledger)
        self._ingress, self._events = keys.ingress(settings.model), keys.events(settings.model)
        self._tasks: Tasks | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reader: asyncio.Task[Any] | None = None
        self._last_read_s = 0.0
        self._seen_s: dict[str, float] = {}  # workers that have a stream, and when they were last heard
        self._model: dict[str, Any] | None = None
        self._problems: dict[str, str] = {}
        self._leading = False
        self._idle_us: dict[str, collections.deque[int]] = {}  # what each worker last waited between batches
        # Done reports of batches that the core did not know: adopting such a batch later would be for ever.
        self._unknown_done: collections.deque[tuple[str, int]] = collections.deque(maxlen=REMEMBERED_DONE)

    def _make_core(self) -> Scheduler:
        try:
            policy = parse_policy(self._settings.policy)
        except PolicyError as error:
            raise ConfigError(f"--policy={self._settings.policy!r}: {error}") from error
        options = SchedulerOptions(
            late=self._settings.late,
            reply_margin_us=round(self._settings.reply_margin_ms * 1e3),
            max_in_flight=self._settings.max_in_flight,
            ahead_floor_us=AHEAD_FLOOR_US,
            max_queue_rows=self._settings.max_queue_rows,
            first_batch=time.time_ns() // 1_000,  # ids that no scheduler before this one has given
        )
        return Scheduler(policy, options)

    def _open_log(self) -> TextIO | None:
        if self._settings.event_log is None:
            return None
        try:
            # Line-buffered, so that a crash loses no event that it had applied; closed by shutdown.
            return Path(self._settings.event_log).open("w", buffering=1, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--event-log={self._settings.event_log!r}: {error}") from error

    # -- life ---------------------------------------------------------------------------------------------------------

    async def startup(self, tasks: Tasks) -> None:
        """Begin as a standby; the background tasks lead as soon as the lease is free."""
        self._tasks = tasks
        tasks.spawn(self._lead(tasks), "lead")

    async def shutdown(self) -> None:
        """Read no more, write what is decided, and give the lease back. What is queued stays pending, not lost."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._wake_at(None)
        try:
            if self._leading:
                self._leading = False
                await self._outbox.drained()
                await self._streams.delete(keys.status(self._settings.model))
                await self._streams.drop_lease(keys.leader(self._settings.model), self._name)
        except StreamsError as error:
            _log.warning("left_without_redis", error=error.message)
        if self._tasks is not None:
            await self._tasks.cancel()
        await self._streams.close()
        if self._log_file is not None:
            self._log_file.close()

    async def _lead(self, tasks: Tasks) -> None:
        """Stand by for the lease, then lead and keep it."""
        interval_s = keys.LEADER_TTL_MS / 4e3
        standing_by = False
        while not await self._lease():
            if not standing_by:
                _log.info("standing_by", model=self._settings.model)
                standing_by = True
            await asyncio.sleep(interval_s)
        self._leading = True
        _log.info("leading", model=self._settings.model, policy=self._settings.policy, scheduler=self._name)
        self._reader = tasks.spawn(keep_trying(self._read, StreamsError, "reading"), "read")
        tasks.spawn(keep_trying(self._write, StreamsError, "writing"), "write")
        tasks.spawn(keep_trying(self._watch, StreamsError, "watching workers"), "watch")
        tasks.spawn(keep_trying(self._publish, StreamsError, "status"), "status")
        tasks.spawn(keep_trying(self._synchronise, StreamsError, "clock"), "clock")
        while self._leading:
            await asyncio.sleep(interval_s)
            if self._leading and not await self._lease(unreachable=True):
                raise LeaseLost(f"model {self._settings.model!r} has another scheduler now")

    async def _lease(self, *, unreachable: bool = False) -> bool:
        try:
            return await self._streams.take_lease(keys.leader(self._settings.model), self._name, keys.LEADER_TTL_MS)
        except StreamsError:
            return unreachable

    # -- streams to events --------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """One session: make the groups, take up what is pending, then read until an error."""
        await self._clock.synchronise(self._streams)
        for stream in (self._ingress, self._events):
            await self._streams.make_group(stream, keys.SCHEDULER_GROUP)
        now_s = time.monotonic()
        self._last_read_s = now_s
        self._seen_s = dict.fromkeys([*self._seen_s, *await self._streams.known_workers(self._settings.model)], now_s)
        for name in self._seen_s:
            if name not in self._core.workers:
                self._outbox.note(name, wire.Introduce(self._name))
        for stream in (self._events, self._ingress):
            await self._take(await self._streams.pending(stream, keys.SCHEDULER_GROUP, keys.SCHEDULER_CONSUMER))
        while True:
            entries = await self._streams.read(
                [self._ingress, self._events],
                keys.SCHEDULER_GROUP,
                keys.SCHEDULER_CONSUMER,
                count=READ_COUNT,
                block_ms=BLOCK_MS,
            )
            self._last_read_s = time.monotonic()
            await self._take(entries)

    async def _take(self, entries: Sequence[Entry]) -> None:
        """Apply what was read: first what workers report, since it frees them, then the arrivals as one event."""
        arrived = []
        for entry in entries:
            try:
                message = wire.decode(entry.header)
            except wire.WireError as error:
                _log.error("entry_refused", stream=entry.stream, entry=entry.id, error=error.message)
                self._outbox.ack(entry.stream, entry.id)
                continue
            if isinstance(message, wire.Pack):
                arrived.extend(self._hold_pack(entry, message))
            else:
                await self._report(message)
                self._outbox.ack(entry.stream, entry.id)
        if arrived:
            self._apply(Arrived(tuple(arrived)))

    def _hold_pack(self, entry: Entry, pack: wire.Pack) -> list[Any]:
        source = Source(entry.stream, entry.id)
        queries = []
        for record, payload in split(iter(pack.queries), memoryview(entry.payload)):
            if record.id in self._ledger or self._core.knows(record.id):
                continue  # read before: delivery is at least once
            self._ledger.hold(Held(pack.gateway, record, payload, source))
            queries.append(to_query(record))
        if not queries:
            self._ledger.settle(source)
            self._outbox.wake()
        return queries

    async def _report(self, message: wire.Message) -> None:
        """Apply one report of a worker."""
        if isinstance(message, wire.Done):
            self._done(message)
        elif isinstance(message, wire.Heartbeat):
            self._heard(message.worker)
        elif isinstance(message, wire.Hello):
            await self._hello(message)
        elif isinstance(message, wire.Draining):
            self._seen_s[message.worker] = time.monotonic()
            self._apply(WorkerDraining(message.worker))
            self._dismiss_drained(message.worker)
        else:
            _log.error("message_misplaced", kind=type(message).__name__)

    def _heard(self, worker: str) -> None:
        if worker not in self._core.workers and worker not in self._seen_s:
            self._outbox.note(worker, wire.Introduce(self._name))
        self._seen_s[worker] = time.monotonic()

    def _done(self, message: wire.Done) -> None:
        worker = self._core.workers.get(message.worker)
        if worker is None or message.batch not in worker.batches:
            self._unknown_done.append((message.worker, message.batch))
            return
        self._seen_s[message.worker] = time.monotonic()
        self._idle_us.setdefault(message.worker, collections.deque(maxlen=IDLE_WINDOW)).append(message.idle_us)
        self._apply(BatchDone(message.worker, message.batch, message.started_us, message.finished_us))
        self._dismiss_drained(message.worker)

    async def _hello(self, message: wire.Hello) -> None:
        self._seen_s[message.worker] = time.monotonic()
        running: list[Batch] = []
        known = message.worker in self._core.workers
        if not known:
            entries = await self._streams.outstanding(keys.work(self._settings.model, message.worker))
            running = [batch for batch, _ in self._batches(message.worker, entries)]
            running = [batch for batch in running if (message.worker, batch.id) not in self._unknown_done]
        try:
            profile = Profile.from_dict(message.profile)
            self._apply(WorkerHello(message.worker, profile, tuple(running)))
        except (ProfileError, PolicyError) as error:
            self._problems[message.worker] = str(error)
            _log.error("worker_refused", worker=message.worker, error=str(error))
            return
        for batch in running:
            for query in batch.queries:
                self._ledger.release(query.id)
        self._problems.pop(message.worker, None)
        self._model = message.model
        await self._streams.remember_worker(self._settings.model, message.worker)
        await self._publish_once()
        if not known:
            _log.info("worker_joined", worker=message.worker, device=profile.device, adopted=len(running))

    def _batches(self, worker: str, entries: Sequence[Entry]) -> list[tuple[Batch, list[Held]]]:
        """Decode the batches that a worker's stream holds, oldest first, with what it takes to send them elsewhere."""
        found = []
        for entry in entries:
            message = wire.decode(entry.header)
            if not isinstance(message, wire.WorkBatch):
                continue
            queries = tuple(to_query(record.query, record.attempts) for record in message.records)
            payloads = split((record.query for record in message.records), memoryview(entry.payload))
            held = [
                Held(record.gateway, record.query, payload, Source(entry.stream, None))
                for record, (_, payload) in zip(message.records, payloads, strict=True)
            ]
            found.append((Batch(message.batch, worker, message.subnet, queries), held))
        return found

    # -- lost and leaving workers -------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        await asyncio.sleep(WATCH_INTERVAL_S)
        now_s = time.monotonic()
        if now_s - self._last_read_s > STALE_READ_S:
            return
        timeout_s = self._settings.worker_timeout_ms / 1e3
        for worker in [name for name, seen_s in self._seen_s.items() if now_s - seen_s > timeout_s]:
            await self._lose(worker)

    async def _lose(self, worker: str) -> None:
        """Put back what a silent worker's stream holds.

        A batch that the core believes in flight and the stream no longer has was answered, and its report is on the way
        to us; one that the stream does not have yet is in the outbox. Both settle within a moment.
        """
        stream = keys.work(self._settings.model, worker)
        found: list[tuple[Batch, list[Held]]] = []
        for _ in range(RECONCILE_TRIES):
            found = self._batches(worker, await self._streams.outstanding(stream))
            known = self._core.workers.get(worker)
            if known is None or set(known.batches) <= {batch.id for batch, _ in found}:
                break
            await asyncio.sleep(WATCH_INTERVAL_S / 2)
        for _, held in found:
            for one in held:
                self._ledger.hold(one)
        self._forget(worker)
        queries = [query for batch, _ in found for query in batch.queries]
        _log.warning("worker_lost", worker=worker, batches=len(found), queries_put_back=len(queries))
        if worker in self._core.workers:
            self._apply(WorkerLost(worker))
        elif queries:
            self._apply(Arrived(tuple(query for query in queries if not self._core.knows(query.id))))
        for query in queries:
            if not self._core.knows(query.id):
                self._ledger.release(query.id)
        self._ledger.settle(Source(stream, None))
        self._outbox.wake()

    def _forget(self, worker: str) -> None:
        for known in (self._seen_s, self._problems, self._idle_us):
            known.pop(worker, None)

    def _dismiss_drained(self, name: str) -> None:
        worker = self._core.workers.get(name)
        if worker is not None and (worker.batches or not worker.draining):
            return
        self._outbox.note(name, wire.Dismissed(self._name))
        self._forget(name)
        if worker is not None:
            _log.info("worker_left", worker=name)
            self._apply(WorkerLost(name))

    # -- commands to streams ------------------------------------------------------------------------------------------

    def _apply(self, event: Event) -> None:
        now_us = self._clock.now_us()
        if self._log is not None:
            self._log.append(event, now_us)
        self._execute(self._core.handle(event, now_us), now_us)

    def _execute(self, commands: list[Command], now_us: int) -> None:
        wake_us = None
        for command in commands:
            match command:
                case Dispatch(batch):
                    self._dispatch(batch, now_us)
                case Reject(query, reason):
                    if held := self._ledger.release(query.id):
                        self._outbox.reject(held.gateway, query.id, reason)
                case WakeAt(at_us):
                    wake_us = at_us
        self._wake_at(wake_us)

    def _dispatch(self, batch: Batch, now_us: int) -> None:
        held = [one for query in batch.queries if (one := self._ledger.release(query.id)) is not None]
        if len(held) < len(batch.queries):
            # Redis lost a stream that we had acked into; the gateway answers these by its own timeout.
            _log.error("payload_lost", batch=batch.id, queries=len(batch.queries) - len(held))
        self._outbox.batch(batch, held, self._settings.policy, now_us)

    def _wake_at(self, at_us: int | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at_us is not None and self._leading:
            delay_ms = max(1, math.ceil((at_us - self._clock.now_us()) / 1e3))
            self._timer = asyncio.get_running_loop().call_later(delay_ms / 1e3, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._apply(Tick())

    async def _write(self) -> None:
        for orphan in await self._outbox.flush(self._streams):
            assert orphan.batch is not None
            _log.warning("worker_stream_gone", worker=orphan.batch.worker, batch=orphan.batch.id)
            self._seen_s.pop(orphan.batch.worker, None)
            self._apply(WorkerLost(orphan.batch.worker))

    # -- beside the streams -------------------------------------------------------------------------------------------

    async def _publish(self) -> None:
        await self._publish_once()
        await asyncio.sleep(STATUS_INTERVAL_S)

    async def _publish_once(self) -> None:
        workers = [
            {
                "name": worker.name,
                "executor": worker.profile.executor,
                "device": worker.profile.device,
                "draining": worker.draining,
                "peak_qps": _peak_qps(worker.profile),
                "idle_us": _quantiles(tuple(self._idle_us.get(worker.name, ()))),
            }
            for worker in self._core.workers.values()
        ]
        status = wire.Status(
            scheduler=self._name,
            policy=self._settings.policy,
            published_us=self._clock.now_us(),
            queued_rows=self._core.queued_rows,
            model=self._model,
            workers=workers,
            problems=[f"{worker}: {problem}" for worker, problem in self._problems.items()],
        )
        await self._streams.publish_status(self._settings.model, wire.encode(status))

    async def _synchronise(self) -> None:
        await asyncio.sleep(REFRESH_S)
        await self._clock.synchronise(self._streams)


def _peak_qps(profile: Profile) -> float:
    """Return the rows per second that the smallest subnet serves in full batches, by the profile's medians."""
    return profile.max_batch / profile.latency_us(profile.smallest, profile.max_batch) * 1e6


def _quantiles(values: Sequence[int]) -> dict[str, int]:
    ordered = sorted(values) or [0]
    return {"p50": ordered[len(ordered) // 2], "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]}
