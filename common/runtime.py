"""Run a service: uvloop, signals, background tasks, grace, hard deadline.

A service's life is three calls: ``startup`` makes its connections and spawns its tasks, then it runs until SIGINT,
SIGTERM or a failed task, then ``shutdown`` drains within the grace period. A second signal, or the end of the grace
period, ends it at once. Exit codes: 0 drained, 1 a task failed or draining took too long, 2 bad settings (see
``services.cli``).
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
import socket
from typing import TYPE_CHECKING, Any, Protocol

import uvloop

from common import log
from common.errors import SuperServeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine


_log = log.get(__name__)
RETRY_MIN_S, RETRY_MAX_S = 0.05, 1.0
HARD_S = 1.0  # after the grace period, for cancellation


class Service(Protocol):
    """What ``run`` runs."""

    async def startup(self, tasks: Tasks) -> None:
        """Connect, spawn background tasks, and return once serving."""

    async def shutdown(self) -> None:
        """Take no more work, finish what is under way, and close connections."""


class Tasks:
    """Background tasks of one service; the first that fails ends the service."""

    def __init__(self) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run ``coroutine`` until it ends or the service does."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def cancel(self) -> None:
        """Cancel all tasks and wait for them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, SuperServeError):
                _log.error("service_failed", task=task.get_name(), error=error.message)
            else:
                _log.error("task_failed", task=task.get_name(), exc_info=error)
            if not self.failed.done():
                self.failed.set_exception(error)


def run(service: Service, grace_s: float) -> int:
    """Run ``service`` to its end and return the process's exit code."""
    return uvloop.run(_run(service, grace_s))


async def _run(service: Service, grace_s: float) -> int:
    loop = asyncio.get_running_loop()
    tasks = Tasks()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            _log.warning("second_signal", action="ends at once")
            os._exit(1)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    stopping = loop.create_task(stop.wait(), name="signals")
    code = 0
    try:
        starting = loop.create_task(service.startup(tasks), name="startup")
        await asyncio.wait((starting, stopping, tasks.failed), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            _freeze()
            await asyncio.wait((stopping, tasks.failed), return_when=asyncio.FIRST_COMPLETED)
        else:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
    finally:
        if tasks.failed.done():
            tasks.failed.exception()  # logged where it happened
            code = 1
        # For what will not be cancelled; when all goes well the loop is closed before this comes due.
        loop.call_later(grace_s + HARD_S, os._exit, 1)
        try:
            async with asyncio.timeout(grace_s):
                await service.shutdown()
        except TimeoutError:
            _log.error("drain_timeout", grace_s=grace_s)
            code = 1
        stopping.cancel()
        await tasks.cancel()
    return code


def _freeze() -> None:
    """Have the garbage collector pass over what is there after start: modules above all, some 70,000 objects.

    A full collection, which comes every few thousand queries, stopped the process for 25 to 35 ms of CPU: an SLO.
    """
    gc.collect()
    gc.freeze()


async def keep_trying(step: Callable[[], Awaitable[None]], errors: type[Exception], what: str) -> None:
    """Call ``step`` for ever; while it raises ``errors``, back off and log the first failure and the recovery."""
    delay_s = 0.0
    while True:
        try:
            await step()
        except errors as error:
            if not delay_s:
                _log.warning("interrupted", what=what, error=str(error))
            delay_s = min(max(delay_s * 2, RETRY_MIN_S), RETRY_MAX_S)
            await asyncio.sleep(delay_s)
        else:
            if delay_s:
                _log.info("recovered", what=what)
                delay_s = 0.0


def unique_name(kind: str) -> str:
    """Return a name for this process that no other run of it ever had."""
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40]
    return f"{kind}-{host}-{os.getpid()}-{secrets.token_hex(3)}"
