"""The whole mesh on one machine: Redis, gateways, scheduler and workers as processes of their own.

It starts them, says when they serve, and ends them in the order in which queries flow, so that each drains into the
next. It restarts nothing: a process that dies is reported, and when the last of its kind has died the mesh ends with
code 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common import embedded, log, wire
from common.errors import ConfigError, SuperServeError
from common.streams import Streams, StreamsError
from services.worker import library

if TYPE_CHECKING:
    from common.runtime import Tasks
    from common.settings import UpSettings

_log = log.get(__name__)

POLL_S = 0.05
READY = b"ready "  # first word of the line that a gateway prints once it listens
ORDER = ("gateway", "worker", "scheduler")  # as queries flow: each kind drains into the next


class MeshEnded(SuperServeError):
    """The last process of some kind has died."""


@dataclass(frozen=True, slots=True)
class Child:
    """One process of the mesh."""

    kind: str
    number: int
    process: asyncio.subprocess.Process

    def __str__(self) -> str:
        return f"{self.kind}-{self.number}"


class Up:
    """Runs a mesh as a service (see ``common.runtime``). Raises ConfigError for a model that is not there."""

    def __init__(self, settings: UpSettings) -> None:
        self._settings = settings
        self._model = library.model_name(library.find_model(settings.model))
        self._children: list[Child] = []
        self._stack = contextlib.ExitStack()
        self._redis = settings.redis
        self._stopping = False

    async def startup(self, tasks: Tasks) -> None:
        """Start everything and print ``ready URL`` once a query would be served."""
        settings = self._settings
        if self._redis is None:
            # In this thread, blocking or not: the server is to end with its parent, which to the kernel is a thread.
            self._redis = self._stack.enter_context(embedded.server())
            _log.info("redis_started", url=self._redis)
        try:
            async with asyncio.timeout(settings.start_timeout_s):
                await self._start("scheduler", 1, self._scheduler_flags(), tasks)
                for number in range(settings.workers):
                    await self._start("worker", number + 1, self._worker_flags(), tasks)
                url = await self._start_gateways(tasks)
                await self._wait_until_ready()
        except TimeoutError:
            raise ConfigError(f"the mesh was not ready within --start-timeout-s={settings.start_timeout_s}") from None
        print(f"ready {url}", flush=True)  # noqa: T201 - the one line that scripts wait for

    async def shutdown(self) -> None:
        """End gateways, then workers, then the scheduler, each after it has drained; Redis last."""
        self._stopping = True
        try:
            for kind in ORDER:
                await asyncio.gather(*(self._end(child) for child in self._children if child.kind == kind))
        finally:
            for child in self._children:
                if child.process.returncode is None:
                    child.process.kill()
            self._stack.close()
        if failed := [f"{child} ({child.process.returncode})" for child in self._children if child.process.returncode]:
            _log.warning("ended_uncleanly", processes=failed)

    # -- starting -----------------------------------------------------------------------------------------------------

    def _common_flags(self) -> list[str]:
        assert self._redis is not None
        flags = ["--redis", self._redis, "--log-level", self._settings.log_level]
        return [*flags, "--grace-s", str(self._settings.grace_s * 0.3)]

    def _scheduler_flags(self) -> list[str]:
        return ["--model", self._model, "--policy", self._settings.policy, "--late", self._settings.late]

    def _worker_flags(self) -> list[str]:
        flags = ["--model", self._settings.model, "--executor", self._settings.executor]
        flags += ["--device", self._settings.device]
        return [*flags, "--profile", self._settings.profile] if self._settings.profile is not None else flags

    async def _start_gateways(self, tasks: Tasks) -> str:
        """Start the gateways; the first finds the port that all of them share."""
        settings = self._settings
        shared = ["--reuse-port"] if settings.gateways > 1 else []
        flags = ["--host", settings.host, "--port", str(settings.port), *shared]
        first = await self._start("gateway", 1, flags, tasks)
        url = await self._ready_line(first)
        port = url.rpartition(":")[2]
        for number in range(1, settings.gateways):
            flags = ["--host", settings.host, "--port", port, *shared]
            await self._ready_line(await self._start("gateway", number + 1, flags, tasks))
        return url

    async def _start(self, kind: str, number: int, flags: list[str], tasks: Tasks) -> Child:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "services.cli", kind, *self._common_flags(), *flags),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C reaches us alone, and we end them in order
            preexec_fn=embedded.die_with_parent,
        )
        child = Child(kind, number, process)
        self._children.append(child)
        tasks.spawn(self._mourn(child), f"mourn {child}")
        return child

    async def _ready_line(self, child: Child) -> str:
        assert child.process.stdout is not None
        line = await child.process.stdout.readline()
        if not line.startswith(READY):
            code = await child.process.wait()
            raise ConfigError(f"{child} ended with code {code} before it was ready; its log says why")
        return line.removeprefix(READY).decode().strip()

    async def _wait_until_ready(self) -> None:
        """Wait until the scheduler counts every worker; a worker that it refuses ends the start."""
        assert self._redis is not None
        streams = Streams(self._redis)
        try:
            while True:
                with contextlib.suppress(StreamsError):
                    document = (await streams.read_statuses()).get(self._model)
                    status = wire.decode(document) if document else None
                    if isinstance(status, wire.Status):
                        if status.problems:
                            raise ConfigError("; ".join(status.problems))
                        if len(status.workers) >= self._settings.workers:
                            return
                await asyncio.sleep(POLL_S)
        finally:
            await streams.close()

    # -- ending -------------------------------------------------------------------------------------------------------

    async def _mourn(self, child: Child) -> None:
        """Report a process that ends by itself; the last of its kind takes the mesh along."""
        code = await child.process.wait()
        if self._stopping:
            return
        left = [c for c in self._children if c.kind == child.kind and c.process.returncode is None]
        _log.error("process_died", process=str(child), code=code, left=len(left), note="it is not restarted")
        if not left:
            raise MeshEnded(f"{child} ended with code {code} and was the last {child.kind}")

    async def _end(self, child: Child) -> None:
        if child.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)
        await child.process.wait()
