"""A port for those who watch a service: metrics for Prometheus, and whether it lives and is ready for Kubernetes.

It runs in the service's own event loop, so an answer says that the loop turns. Import it only where ``--metrics-port``
is given: a scheduler or worker that nobody watches loads no HTTP server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from common import log, metrics
from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client.registry import CollectorRegistry

    from common.settings import ServiceSettings

_log = log.get(__name__)
SHUTDOWN_S = 1.0  # for answers under way


class Monitor:
    """Serves a registry; ``problem`` says why the service is not ready, or None. ``url`` is set by ``start``."""

    def __init__(self, registry: CollectorRegistry, problem: Callable[[], str | None]) -> None:
        self.url = ""
        self._registry = registry
        self._problem = problem
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health/live", self._live)
        app.router.add_get("/health/ready", self._ready)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)

    async def start(self, settings: ServiceSettings) -> None:
        """Listen; ConfigError if the port cannot be had."""
        host, port = settings.metrics_host, settings.metrics_port
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(f"cannot listen on --metrics-host {host} --metrics-port {port}: {error}") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._runner.addresses[0][1]}"
        _log.info("metrics_listening", url=f"{self.url}/metrics")

    async def close(self) -> None:
        """Listen no more."""
        await self._runner.cleanup()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _live(self, _request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, _request: web.Request) -> web.Response:
        if (problem := self._problem()) is None:
            return web.json_response({"ready": True})
        return web.json_response({"ready": False, "reason": problem}, status=503)
