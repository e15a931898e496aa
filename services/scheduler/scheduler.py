"""The scheduler service: reads ingress and events, drives the core, writes what it decides, and leads one model.

What can break, and what then happens:

- The scheduler dies: its successor reads pending entries back, asks every worker that has a stream for its hello, and
  adopts the batches that it finds there. Queries may be served twice and are answered once.
- A worker falls silent: what its stream still holds is put back with the old deadlines, the stream goes.
- Redis dies: everything waits and retries; workers are not blamed for the silence.
- Two schedulers: the lease lets one lead, the other stands by, and touches no event log until it leads.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any

from common import keys, log, metrics, wire
from common.clock import REFRESH_S, Clock
from common.errors import SuperServeError
from common.metrics import SNAPSHOT_S
from common.runtime import keep_trying, unique_name
from common.streams import Depth, Entry, Streams, StreamsError
from services.scheduler import logfile
from services.scheduler.driver import Driver
from services.scheduler.metrics import Metrics
from services.scheduler.roster import WATCH_INTERVAL_S, Roster

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from common.monitor import Monitor
    from common.runtime import Tasks
    from common.settings import SchedulerSettings

_log = log.get(__name__)

READ_COUNT = 256
BLOCK_MS = 200
STATUS_INTERVAL_S = 0.2
STALE_READ_S = 0.6  # a reader that has not come round for so long hears no heartbeats: nobody is lost by it


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
        self._event_log: TextIO | None = None  # who stands by has none: it may be its leader's file
        if settings.event_log is not None:
            logfile.check_writable(settings.event_log)
        self._driver = Driver(settings, self._clock)
        timeout_s = settings.worker_timeout_ms / 1e3
        self._roster = Roster(settings.model, self._name, self._streams, self._driver, timeout_s)
        self._ingress, self._events = keys.ingress(settings.model), keys.events(settings.model)
        self._metrics = Metrics(
            settings.model, self._driver.counts, lambda: self._driver.core, self._driver.ledger.__len__,
            lambda: len(self._roster.problems),
        )  # fmt: skip
        self.monitor: Monitor | None = None  # if a port is asked for
        self._tasks: Tasks | None = None
        self._reader: asyncio.Task[Any] | None = None
        self._last_read_s = 0.0
        self._last_lease_s = -math.inf  # when Redis last said who leads
        self._leading = False

    # -- life ---------------------------------------------------------------------------------------------------------

    async def startup(self, tasks: Tasks) -> None:
        """Begin as a standby; the background tasks lead as soon as the lease is free."""
        self._tasks = tasks
        if self._settings.metrics_port is not None:
            from common.monitor import Monitor

            self.monitor = Monitor(metrics.registry(self._metrics), self._problem)
            await self.monitor.start(self._settings)
            tasks.spawn(keep_trying(self._snapshot, StreamsError, "metrics"), "metrics")
        tasks.spawn(self._lead(tasks), "lead")

    async def shutdown(self) -> None:
        """Read no more, write what is decided, and give the lease back. What is queued stays pending, not lost."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._driver.close()
        try:
            if self._leading:
                self._leading = False
                await self._driver.outbox.drained()
                model = self._settings.model
                await self._streams.delete(keys.status(model), keys.scheduler_counts(model))
                await self._streams.drop_lease(keys.leader(self._settings.model), self._name)
        except StreamsError as error:
            _log.warning("left_without_redis", error=error.message)
        if self._tasks is not None:
            await self._tasks.cancel()
        if self.monitor is not None:
            await self.monitor.close()
        await self._streams.close()
        if self._event_log is not None:
            self._event_log.close()

    async def _lead(self, tasks: Tasks) -> None:
        """Stand by for the lease, then lead and keep it."""
        interval_s = keys.LEADER_TTL_MS / 4e3
        standing_by = False
        while not await self._lease():
            if not standing_by:
                _log.info("standing_by", model=self._settings.model)
                standing_by = True
            await asyncio.sleep(interval_s)
        self._leading = self._metrics.leading = True
        self._driver.begin()
        if self._settings.event_log is not None:
            self._event_log = logfile.begin(self._settings.event_log)
            self._driver.log_to(self._event_log)
        _log.info("leading", model=self._settings.model, policy=self._settings.policy, scheduler=self._name)
        self._reader = tasks.spawn(keep_trying(self._read, StreamsError, "reading"), "read")
        tasks.spawn(keep_trying(self._write, StreamsError, "writing"), "write")
        tasks.spawn(keep_trying(self._settle, StreamsError, "acknowledging"), "settle")
        tasks.spawn(keep_trying(self._watch, StreamsError, "watching workers"), "watch")
        tasks.spawn(keep_trying(self._publish, StreamsError, "status"), "status")
        tasks.spawn(keep_trying(self._synchronise, StreamsError, "clock"), "clock")
        while self._leading:
            await asyncio.sleep(interval_s)
            if self._leading and not await self._lease(unreachable=True):
                raise LeaseLost(f"model {self._settings.model!r} has another scheduler now")

    async def _lease(self, *, unreachable: bool = False) -> bool:
        try:
            ours = await self._streams.take_lease(keys.leader(self._settings.model), self._name, keys.LEADER_TTL_MS)
        except StreamsError:
            return unreachable
        self._last_lease_s = time.monotonic()
        return ours

    # -- streams ------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """One session: make the groups, take up what is pending, then read until an error."""
        await self._clock.synchronise(self._streams)
        for stream in (self._ingress, self._events):
            await self._streams.make_group(stream, keys.SCHEDULER_GROUP)
        self._last_read_s = time.monotonic()
        await self._roster.begin()
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
                self._driver.outbox.ack(entry.stream, entry.id)
                continue
            if isinstance(message, wire.Pack):
                arrived += self._driver.hold(entry, message)
                continue
            if await self._roster.report(message):
                await self._publish_once()
            self._driver.outbox.ack(entry.stream, entry.id)
        self._driver.arrive(arrived)

    async def _write(self) -> None:
        for worker in {entry.batch.worker for entry in await self._driver.outbox.flush(self._streams) if entry.batch}:
            self._roster.lost(worker)

    async def _settle(self) -> None:
        await self._driver.outbox.settle(self._streams)

    # -- beside the streams -------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        await asyncio.sleep(WATCH_INTERVAL_S)
        if time.monotonic() - self._last_read_s < STALE_READ_S:
            await self._roster.watch()

    async def _publish(self) -> None:
        await self._publish_once()
        await asyncio.sleep(STATUS_INTERVAL_S)

    async def _publish_once(self) -> None:
        driver, now_us = self._driver, self._clock.now_us()
        head = driver.core.head
        head_slack_us = None if head is None else head.deadline_us - now_us
        status = wire.Status(
            scheduler=self._name,
            policy=self._settings.policy,
            published_us=now_us,
            queued_rows=driver.core.queued_rows,
            model=self._roster.description,
            workers=self._roster.status(),
            problems=[f"{worker}: {problem}" for worker, problem in self._roster.problems.items()],
        )
        counts = driver.counts.message(len(driver.ledger), head_slack_us, self._roster.lately_lost())
        await self._streams.publish_status(self._settings.model, wire.encode(status), wire.encode(counts))

    async def _snapshot(self) -> None:
        """Tell the metrics how full the streams are; a standby's are its leader's."""
        await asyncio.sleep(SNAPSHOT_S)
        depths: dict[tuple[str, str, str], Depth] = {}
        if self._leading:
            model, workers = self._settings.model, list(self._driver.core.workers)
            labels = [(model, "ingress", ""), (model, "events", ""), *((model, "work", worker) for worker in workers)]
            streams = [(stream, keys.SCHEDULER_GROUP) for stream in (self._ingress, self._events)]
            streams += [(keys.work(model, worker), keys.WORKER_GROUP) for worker in workers]
            depths = dict(zip(labels, await self._streams.depths(streams), strict=True))
        self._metrics.snapshot(depths)

    def _problem(self) -> str | None:
        """Why this scheduler is not ready, to lead or to stand by, or None."""
        if time.monotonic() - self._last_lease_s > keys.LEADER_TTL_MS / 1e3:
            return "Redis does not answer"
        return None

    async def _synchronise(self) -> None:
        await asyncio.sleep(REFRESH_S)
        await self._clock.synchronise(self._streams)
