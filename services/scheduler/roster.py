"""Who works: workers that say hello, report, fall silent, or leave.

Nobody is configured. A worker announces itself; one that the scheduler hears of and does not know is asked to. What a
lost worker's stream still holds is put back with the old deadlines, from the stream itself, so that it does not matter
which scheduler had sent it.
"""

from __future__ import annotations

import asyncio
import collections
import time
from typing import TYPE_CHECKING, Any

from common import keys, log, wire
from common.sched import Batch, BatchDone, Profile, ProfileError, WorkerDraining, WorkerHello, WorkerLost
from common.sched.policies import PolicyError
from services.scheduler.ledger import Held, Source, split, to_query
from services.scheduler.metrics import state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from common.sched.worker import Worker
    from common.streams import Entry, Streams
    from services.scheduler.driver import Driver

_log = log.get(__name__)

WATCH_INTERVAL_S = 0.1
RECONCILE_TRIES = 20
REMEMBERED_DONE = 1_024
IDLE_WINDOW = 512  # batches
LOST_SHOWN_S = 30.0  # how long a worker that died is still told of


class Record:
    """What one worker has done since it joined."""

    __slots__ = ("batches", "idle_us", "queries")

    def __init__(self) -> None:
        self.queries = 0
        self.batches = 0
        self.idle_us: collections.deque[int] = collections.deque(maxlen=IDLE_WINDOW)  # waits between the latest batches


class Roster:
    """The workers of one model. ``timeout_s``: silence after which one is lost."""

    def __init__(self, model: str, scheduler: str, streams: Streams, driver: Driver, timeout_s: float) -> None:
        self.description: dict[str, Any] | None = None  # of the model, from the latest hello
        self.problems: dict[str, str] = {}  # why a worker is not used
        self._model = model
        self._scheduler = scheduler
        self._streams = streams
        self._driver = driver
        self._timeout_s = timeout_s
        self._seen_s: dict[str, float] = {}  # workers that have a stream, and when they were last heard
        self._records: dict[str, Record] = {}  # of live workers that have finished a batch
        self._lost: dict[str, tuple[float, dict[str, Any]]] = {}  # those that died lately: when, and their last state
        # Reports of batches that the core did not know: adopting such a batch later would be for ever.
        self._unknown_done: collections.deque[tuple[str, int]] = collections.deque(maxlen=REMEMBERED_DONE)

    async def begin(self) -> None:
        """Take up, after a start or a break, every worker that has a stream; nobody is blamed for silence meanwhile."""
        known = await self._streams.known_workers(self._model)
        self._seen_s = dict.fromkeys([*self._seen_s, *known], time.monotonic())
        for name in self._seen_s:
            if name not in self._driver.core.workers:
                self._driver.outbox.note(name, wire.Introduce(self._scheduler))

    async def report(self, message: wire.Message) -> bool:
        """Apply one report of a worker; True if the roster has changed by it."""
        match message:
            case wire.Done():
                return self._done(message)
            case wire.Heartbeat(worker):
                if worker not in self._driver.core.workers and worker not in self._seen_s:
                    self._driver.outbox.note(worker, wire.Introduce(self._scheduler))
                self._seen_s[worker] = time.monotonic()
                return False
            case wire.Hello():
                return await self._hello(message)
            case wire.Draining(worker):
                self._seen_s[worker] = time.monotonic()
                self._driver.apply(WorkerDraining(worker))
                self._dismiss_drained(worker)
                return True
        _log.error("message_misplaced", kind=type(message).__name__)
        return False

    def lost(self, worker: str) -> None:
        """A worker's stream is gone: what we had just sent it goes back into the queue."""
        _log.warning("worker_stream_gone", worker=worker)
        self._mourn(worker)
        self._forget(worker)
        self._driver.apply(WorkerLost(worker))

    async def watch(self) -> None:
        """Put back what workers hold that have been silent for too long."""
        now_s = time.monotonic()
        for worker in [name for name, seen_s in self._seen_s.items() if now_s - seen_s > self._timeout_s]:
            await self._lose(worker)

    def status(self) -> list[dict[str, Any]]:
        """Return the workers as ``wire.Status`` has them."""
        return [self._described(worker) for worker in self._driver.core.workers.values()]

    def lately_lost(self) -> list[dict[str, Any]]:
        """Return the workers that died within ``LOST_SHOWN_S``, as they were."""
        since_s = time.monotonic() - LOST_SHOWN_S
        self._lost = {name: found for name, found in self._lost.items() if found[0] > since_s}
        return [described for _, described in self._lost.values()]

    def _described(self, worker: Worker) -> dict[str, Any]:
        record = self._records.get(worker.name) or Record()
        return {
            "name": worker.name,
            "executor": worker.profile.executor,
            "device": worker.profile.device,
            "draining": worker.draining,
            "state": state(worker),
            "subnet": worker.subnet or None,
            "peak_qps": _peak_qps(worker.profile),
            "queries": record.queries,
            "batches": record.batches,
            "idle_us": _quantiles(record.idle_us),
        }

    # -- reports ------------------------------------------------------------------------------------------------------

    def _done(self, message: wire.Done) -> bool:
        name = message.worker
        worker = self._driver.core.workers.get(name)
        if worker is None or message.batch not in worker.batches:
            self._unknown_done.append((name, message.batch))
            return False
        self._seen_s[name] = time.monotonic()
        outstanding = worker.batches[message.batch]
        record = self._records.setdefault(name, Record())
        record.batches += 1
        record.queries += len(outstanding.batch.queries)
        record.idle_us.append(message.idle_us)
        took_us = message.finished_us - message.started_us
        self._driver.counts.latency_ratio.add(took_us / outstanding.expected_us)
        self._driver.apply(BatchDone(name, message.batch, message.started_us, message.finished_us))
        return self._dismiss_drained(name)

    async def _hello(self, message: wire.Hello) -> bool:
        name = message.worker
        self._seen_s[name] = time.monotonic()
        known = name in self._driver.core.workers
        running: list[Batch] = []
        if not known:
            entries = await self._streams.outstanding(keys.work(self._model, name))
            batches = [batch for batch, _ in _batches(name, entries)]
            running = [batch for batch in batches if (name, batch.id) not in self._unknown_done]
        try:
            profile = Profile.from_dict(message.profile)
            self._driver.apply(WorkerHello(name, profile, tuple(running)))
        except (ProfileError, PolicyError) as error:
            self.problems[name] = str(error)
            _log.error("worker_refused", worker=name, error=str(error))
            return True
        for batch in running:
            for query in batch.queries:
                self._driver.ledger.release(query.id)
        self.problems.pop(name, None)
        self._lost.pop(name, None)
        self.description = message.model
        await self._streams.remember_worker(self._model, name)
        if not known:
            _log.info("worker_joined", worker=name, device=profile.device, adopted=len(running))
        return True

    # -- leaving ------------------------------------------------------------------------------------------------------

    def _dismiss_drained(self, name: str) -> bool:
        worker = self._driver.core.workers.get(name)
        if worker is not None and (worker.batches or not worker.draining):
            return False
        self._driver.outbox.note(name, wire.Dismissed(self._scheduler))
        self._forget(name)
        if worker is not None:
            _log.info("worker_left", worker=name)
            self._driver.apply(WorkerLost(name))
        return True

    async def _lose(self, name: str) -> None:
        """Put back what a silent worker's stream holds.

        A batch that the core believes in flight and the stream no longer has was answered, and its report is on the way
        to us; one that the stream does not have yet is in the outbox. Both settle within a moment.
        """
        core, ledger, stream = self._driver.core, self._driver.ledger, keys.work(self._model, name)
        found: list[tuple[Batch, list[Held]]] = []
        for _ in range(RECONCILE_TRIES):
            found = _batches(name, await self._streams.outstanding(stream))
            worker = core.workers.get(name)
            if worker is None or set(worker.batches) <= {batch.id for batch, _ in found}:
                break
            await asyncio.sleep(WATCH_INTERVAL_S / 2)
        for _, held in found:
            for one in held:
                ledger.hold(one)
        self._mourn(name)
        self._forget(name)
        queries = [query for batch, _ in found for query in batch.queries]
        _log.warning("worker_lost", worker=name, batches=len(found), queries_put_back=len(queries))
        if name in core.workers:
            self._driver.apply(WorkerLost(name))
        else:
            self._driver.arrive([query for query in queries if not core.knows(query.id)])
        for query in queries:
            if not core.knows(query.id):
                ledger.release(query.id)  # answered before: only the ack was missing
        ledger.settle(Source(stream, None))
        self._driver.outbox.wake()

    def _mourn(self, name: str) -> None:
        if (worker := self._driver.core.workers.get(name)) is not None:
            self._lost[name] = (time.monotonic(), self._described(worker))

    def _forget(self, name: str) -> None:
        for known in (self._seen_s, self.problems, self._records):
            known.pop(name, None)


def _batches(worker: str, entries: Sequence[Entry]) -> list[tuple[Batch, list[Held]]]:
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


def _peak_qps(profile: Profile) -> float:
    """Return the rows per second that the smallest subnet serves in full batches, by the profile's medians."""
    return profile.max_batch / profile.latency_us(profile.smallest, profile.max_batch) * 1e6


def _quantiles(values: Sequence[int]) -> dict[str, int]:
    ordered = sorted(values) or [0]
    return {"p50": ordered[len(ordered) // 2], "p99": ordered[len(ordered) * 99 // 100]}
