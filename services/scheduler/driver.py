"""Events into the core, its commands into the outbox: the live counterpart of ``loadgen.simulate``. It decides nothing.

A timer stands for the core's WakeAt. Every event may be logged with the time at which it was applied; replaying the log
through a fresh core gives the same commands.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

from common import log, wire
from common.errors import ConfigError
from common.sched import (
    Arrived,
    Command,
    Dispatch,
    Event,
    Query,
    Reject,
    Scheduler,
    SchedulerOptions,
    Tick,
    WakeAt,
    parse_policy,
)
from common.sched.eventlog import EventLog
from common.sched.policies import PolicyError
from services.scheduler.ledger import Held, Ledger, Source, split, to_query
from services.scheduler.metrics import Counts
from services.scheduler.outbox import Outbox

if TYPE_CHECKING:
    from typing import TextIO

    from common.clock import Clock
    from common.settings import SchedulerSettings
    from common.streams import Entry

_log = log.get(__name__)

# A timer of the event loop is late by up to a millisecond, so batches leave at least this much ahead of a worker's end.
AHEAD_FLOOR_US = 2_000

FAILURE_TOLD_S = 10.0  # a policy that fails does so for each batch: its errors are logged this far apart


def make_core(settings: SchedulerSettings) -> Scheduler:
    """Return a fresh core, whose batches have ids of now on; ConfigError for a policy or option that there is not."""
    options = SchedulerOptions(
        late=settings.late,
        reply_margin_us=round(settings.reply_margin_ms * 1e3),
        max_in_flight=settings.max_in_flight,
        ahead_floor_us=AHEAD_FLOOR_US,
        max_queue_rows=settings.max_queue_rows,
        first_batch=time.time_ns() // 1_000,  # ids that no scheduler that led before has given
    )
    try:
        return Scheduler(parse_policy(settings.policy), options)
    except PolicyError as error:
        raise ConfigError(f"--policy={settings.policy!r}: {error}") from error


class Driver:
    """Drives one core. ``ledger`` and ``outbox`` are shared with whoever reads and writes the streams."""

    def __init__(self, settings: SchedulerSettings, clock: Clock) -> None:
        self.core = make_core(settings)
        self.counts = Counts()
        self.ledger = Ledger()
        self.outbox = Outbox(settings.model, self.ledger)
        self._settings = settings
        self._clock = clock
        self._event_log: EventLog | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._failures = 0
        self._failure_told_s = -math.inf

    def begin(self) -> None:
        """Start afresh on taking the lease: a core made before may repeat batch ids that its leader has given since."""
        self.core = make_core(self._settings)

    def log_to(self, file: TextIO) -> None:
        """Write every event from here on; nothing has been applied yet."""
        self._event_log = EventLog(file.write, self.core)

    def close(self) -> None:
        """Wake up no more."""
        self._closed = True
        self._wake_at(None)

    def hold(self, entry: Entry, pack: wire.Pack) -> list[Query]:
        """Hold a pack's queries and return those that are new: delivery is at least once."""
        source = Source(entry.stream, entry.id)
        queries = []
        for record, payload in split(iter(pack.queries), memoryview(entry.payload)):
            if record.id not in self.ledger and not self.core.knows(record.id):
                self.ledger.hold(Held(pack.gateway, record, payload, source))
                queries.append(to_query(record))
        if queries:
            self.counts.ingest_lag.add(max(0, self._clock.now_us() - queries[0].arrival_us) / 1e6)
        else:
            self.ledger.settle(source)
            self.outbox.wake()
        return queries

    def arrive(self, queries: list[Query]) -> None:
        """Apply the arrival of queries held before; one that the core knows already is let go."""
        if queries:
            self.apply(Arrived(tuple(queries)))

    def apply(self, event: Event) -> None:
        """Apply an event now and carry out what the core decides."""
        now_us = self._clock.now_us()
        if self._event_log is not None:
            self._event_log.append(event, now_us)
        self._execute(self.core.handle(event, now_us), now_us)
        if self.core.failures > self._failures:
            self._policy_failed()

    def _policy_failed(self) -> None:
        """Log the latest error of the policy, with its traceback, unless one was logged a moment ago."""
        self._failures, now_s = self.core.failures, time.monotonic()
        if now_s - self._failure_told_s >= FAILURE_TOLD_S:
            self._failure_told_s = now_s
            _log.error(
                "policy_failed", policy=self._settings.policy, failures=self._failures, exc_info=self.core.failure
            )

    def _execute(self, commands: list[Command], now_us: int) -> None:
        wake_us = None
        for command in commands:
            match command:
                case Dispatch(batch, degraded):
                    self.counts.dispatched(batch, now_us, degraded)
                    self._dispatch(command, now_us)
                case Reject(query, reason):
                    self.counts.outcomes[reason] += 1
                    if held := self.ledger.release(query.id):
                        self.outbox.reject(held.gateway, query.id, reason)
                case WakeAt(at_us):
                    wake_us = at_us
        self._wake_at(wake_us)

    def _dispatch(self, dispatch: Dispatch, now_us: int) -> None:
        batch = dispatch.batch
        held = [one for query in batch.queries if (one := self.ledger.release(query.id)) is not None]
        if len(held) < len(batch.queries):
            # Redis lost a stream that we had acked into; the gateway answers these by its own timeout.
            _log.error("payload_lost", batch=batch.id, queries=len(batch.queries) - len(held))
        self.outbox.batch(dispatch, held, self._settings.policy, now_us)

    def _wake_at(self, at_us: int | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at_us is not None and not self._closed:
            delay_ms = max(1, math.ceil((at_us - self._clock.now_us()) / 1e3))
            self._timer = asyncio.get_running_loop().call_later(delay_ms / 1e3, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.apply(Tick())
