"""``superserve up``: the whole mesh on one machine, as a service of its own.

It restarts nothing: a process that dies is reported, and when the last of its kind has died the mesh ends with code 1.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from common import embedded, log
from common.errors import ConfigError, SuperServeError
from services.mesh import Child, Mesh
from services.worker import library

if TYPE_CHECKING:
    from common.runtime import Tasks
    from common.settings import UpSettings

_log = log.get(__name__)

CHILD_GRACE_SHARE = 0.3  # of our grace period: three kinds of process end one after the other


class MeshEnded(SuperServeError):
    """The last process of some kind has died."""


class Up:
    """Runs a mesh (see ``common.runtime``). Raises ConfigError for a model that is not there."""

    def __init__(self, settings: UpSettings) -> None:
        self._settings = settings
        self._model = library.model_name(library.find_model(settings.model))
        self._stack = contextlib.ExitStack()
        self._mesh: Mesh | None = None
        self._stopping = False

    async def startup(self, tasks: Tasks) -> None:
        """Start everything and print ``ready URL`` once a query would be served."""
        settings = self._settings
        url = settings.redis
        if url is None:
            # In this thread, blocking or not: the server is to end with its parent, which to the kernel is a thread.
            url = self._stack.enter_context(embedded.server())
            _log.info("redis_started", url=url)
        self._mesh = Mesh(url, self._flags())
        try:
            async with asyncio.timeout(settings.start_timeout_s):
                await self._mesh.start("scheduler", *self._scheduler_flags(), *self._metrics_flags(0))
                for number in range(settings.workers):
                    await self._mesh.start("worker", *self._worker_flags(), *self._metrics_flags(1 + number))
                address = await self._start_gateways(self._mesh)
                await self._mesh.wait_for_workers(self._model, settings.workers)
                await self._mesh.wait_until_ready(address)
        except TimeoutError:
            raise ConfigError(f"the mesh was not ready within --start-timeout-s={settings.start_timeout_s:g}") from None
        for child in self._mesh.children:
            tasks.spawn(self._mourn(self._mesh, child), f"mourn {child}")
        print(f"ready {address}", flush=True)  # noqa: T201 - the one line that scripts wait for

    async def shutdown(self) -> None:
        """End gateways, then workers, then the scheduler, each after it has drained; Redis last."""
        self._stopping = True
        try:
            if self._mesh is not None:
                await self._mesh.stop_all()
                codes = {str(child): child.process.returncode for child in self._mesh.children}
                if failed := {name: code for name, code in codes.items() if code}:
                    _log.warning("ended_uncleanly", codes=failed)
        finally:
            self._stack.close()

    def _flags(self) -> list[str]:
        settings = self._settings
        flags = ["--log-level", settings.log_level, "--grace-s", f"{settings.grace_s * CHILD_GRACE_SHARE:g}"]
        if settings.log_json is not None:
            flags.append("--log-json" if settings.log_json else "--no-log-json")
        return flags

    def _scheduler_flags(self) -> list[str]:
        settings = self._settings
        flags = ["--model", self._model, "--policy", settings.policy, "--late", settings.late]
        return [*flags, "--event-log", settings.event_log] if settings.event_log is not None else flags

    def _worker_flags(self) -> list[str]:
        flags = ["--model", self._settings.model, "--executor", self._settings.executor]
        flags += ["--device", self._settings.device, "--precision", self._settings.precision]
        return [*flags, "--profile", self._settings.profile] if self._settings.profile is not None else flags

    async def _start_gateways(self, mesh: Mesh) -> str:
        """Start the gateways; the first finds the port that all of them share."""
        flags = ["--host", self._settings.host, *(["--reuse-port"] if self._settings.gateways > 1 else [])]
        first = 1 + self._settings.workers
        address = await mesh.start_gateway(*flags, *self._metrics_flags(first), "--port", str(self._settings.port))
        for number in range(1, self._settings.gateways):
            port = address.rpartition(":")[2]
            await mesh.start_gateway(*flags, *self._metrics_flags(first + number), "--port", port)
        return address

    def _metrics_flags(self, number: int) -> list[str]:
        """Return the flags of the process that takes the ``number``-th metrics port; with port 0 each takes any."""
        port = self._settings.metrics_port
        if port is None:
            return []
        return ["--metrics-host", self._settings.metrics_host, "--metrics-port", str(port + number if port else 0)]

    async def _mourn(self, mesh: Mesh, child: Child) -> None:
        """Report a process that ends by itself; the last of its kind takes the mesh along."""
        code = await child.process.wait()
        if self._stopping:
            return
        left = sum(other.kind == child.kind and other.alive for other in mesh.children)
        _log.error("process_died", process=str(child), code=code, left=left, note="it is not restarted")
        if not left:
            raise MeshEnded(f"{child} ended with code {code} and was the last {child.kind}")
