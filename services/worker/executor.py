"""The executor thread: takes batches in order and runs them back to back, off the event loop.

The thread takes its next batch from its own queue, without a round trip through the event loop, so that between two
batches that were both there the device idles for microseconds.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common import log, wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.clock import Clock
    from services.worker.engine import Engine

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """A batch with its payloads: bytes, or why there are none (a string)."""

    entry_id: bytes
    batch: wire.WorkBatch
    payloads: list[memoryview | str]


@dataclass(frozen=True, slots=True)
class Finished:
    """A job's results in the order of its records: output bytes, or an error (a string)."""

    job: Job
    results: list[bytes | str]
    rows: int
    started_us: int
    finished_us: int
    idle_us: int  # since the batch before it ended
    actuation_s: float | None  # what its change of subnet took; None if it needed none, or failed


class Executor:
    """One daemon thread around one engine. ``deliver`` is called in that thread for each batch."""

    def __init__(self, engine: Engine, clock: Clock, deliver: Callable[[Finished], None]) -> None:
        self._engine = engine
        self._clock = clock
        self._deliver = deliver
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="executor", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a batch."""
        self._jobs.put(job)

    def close(self) -> None:
        """End the thread once the batches before are done."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        last_us = self._clock.now_us()
        while (job := self._jobs.get()) is not None:
            finished = self._execute(job, last_us)
            last_us = finished.finished_us
            self._deliver(finished)

    def _execute(self, job: Job, last_us: int) -> Finished:
        started_us = self._clock.now_us()
        results: list[bytes | str] = [why if isinstance(why, str) else "" for why in job.payloads]
        actuation_s = None
        healthy = [i for i, payload in enumerate(job.payloads) if not isinstance(payload, str)]
        rows = [job.batch.records[i].query.rows for i in healthy]
        if healthy:
            try:
                payloads = [payload for payload in job.payloads if not isinstance(payload, str)]
                for i, output in zip(healthy, self._engine.execute(job.batch.subnet, payloads, rows), strict=True):
                    results[i] = output
                actuation_s = self._engine.actuation_s
            except Exception as error:  # whatever a model raises fails its batch, not the worker
                _log.exception("batch_failed", batch=job.batch.batch, subnet=job.batch.subnet, rows=sum(rows))
                for i in healthy:
                    results[i] = f"inference failed: {type(error).__name__}: {error}"
        idle_us = max(0, started_us - last_us)
        return Finished(job, results, sum(rows), started_us, self._clock.now_us(), idle_us, actuation_s)
