"""The gateway service: HTTP in front, one link per model behind, and the clock between them.

Models are not configured: a scheduler publishes its status, and the gateway opens a link to every model it finds. A
model whose scheduler is gone stays known, and answers 503 until one is back.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from functools import partial
from typing import TYPE_CHECKING

from common import clock, keys, log, wire
from common.errors import ConfigError
from common.metrics import SNAPSHOT_S
from common.monitor import Monitor
from common.overview import Published, overview
from common.runtime import keep_trying, unique_name
from common.streams import Streams, StreamsError
from services.gateway.history import SECOND_US, History
from services.gateway.inference import Inference
from services.gateway.link import Mesh, ModelLink
from services.gateway.metrics import Metrics
from services.gateway.pending import Pending
from services.gateway.routes import Routes
from services.gateway.server import Server
from services.gateway.watch import watch_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.overview import Document
    from common.runtime import Tasks
    from common.settings import GatewaySettings
    from services.gateway.http import Request
    from services.gateway.rpc import RpcServer

POLL_S = 0.2
EXCHANGE_S = 0.5  # of what only people look at: at 0.2 it cost a gateway 9 ms of CPU a second
SWEEP_S = 0.025

_log = log.get(__name__)


class Gateway:
    """Implements ``common.runtime.Service``. ``announce`` is told the URL once the gateway listens."""

    def __init__(self, settings: GatewaySettings, announce: Callable[[str], None] | None = None) -> None:
        self.name = settings.name or unique_name("gateway")
        self.port = 0  # set by startup
        self._settings = settings
        self._announce = announce
        self._streams = Streams(settings.redis)
        self._pending = Pending()
        self._mesh = Mesh(settings, self._streams, clock.Clock(), self._pending)
        self._links: dict[str, ModelLink] = {}
        self._metrics = Metrics(self._pending.__len__)
        version = importlib.metadata.version("superserve-mesh")
        self._published: dict[str, Published] = {}
        self._history = History()
        self._routes = Routes(self._links, self._metrics, version, settings.max_slo_ms, self._overview, self._history)
        self._server = Server(self._handle, settings.max_body_bytes, partial(self._metrics.refused, "http"))
        self._watch = watch_for(settings, self.name)
        self._inference = Inference(settings, self._server, self._metrics, self._watch)
        self._rpc: RpcServer | None = None
        self._infer_paths: dict[str, ModelLink] = {}  # the usual spellings, found without parsing the path
        self._tasks: Tasks | None = None
        self.monitor: Monitor | None = None  # if a port is asked for beside the main one
        self._synchronise_at = 0.0

    async def startup(self, tasks: Tasks) -> None:
        """Look for models, listen, and keep both up. Redis may come later: until then the answer is 503."""
        self._tasks = tasks
        settings = self._settings
        if settings.metrics_port is not None:
            self.monitor = Monitor(self._metrics.registry, self._problem)
            await self.monitor.start(settings)
        try:
            await self._poll()
        except StreamsError as error:
            _log.warning("redis_unreachable", error=error.message)
        try:
            self.port = await self._server.listen(settings.host, settings.port, reuse_port=settings.reuse_port)
        except OSError as error:
            raise ConfigError(f"cannot listen on --host {settings.host} --port {settings.port}: {error}") from error
        if settings.grpc_port:
            refused = partial(self._metrics.refused, "grpc")
            self._rpc = _rpc_server()(settings, self._routes, self._inference, refused)
            await self._rpc.listen()
        tasks.spawn(keep_trying(self._poll_after_a_while, StreamsError, "model statuses"), "statuses")
        tasks.spawn(keep_trying(self._exchange, StreamsError, "counts"), "counts")
        tasks.spawn(self._sample(), "history")
        tasks.spawn(keep_trying(self._snapshot, StreamsError, "metrics"), "metrics")
        tasks.spawn(keep_trying(self._sweep, StreamsError, "removal of payloads"), "overdue queries")
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"http://{host}:{self.port}"
        _log.info("listening", url=url, grpc_port=settings.grpc_port, gateway=self.name, models=sorted(self._links))
        if self._announce is not None:
            self._announce(url)

    async def shutdown(self) -> None:
        """Take no new query, answer those in the mesh, and leave nothing behind in Redis."""
        self._mesh.draining = True
        self._server.drain()
        await self._pending.until_empty()
        if self._rpc is not None:
            await self._rpc.close()
        await self._server.close()
        if self._watch is not None:
            await self._watch.close()
        if self._tasks is not None:
            await self._tasks.cancel()
        if self.monitor is not None:
            await self.monitor.close()
        try:
            await self._streams.withdraw_counts(self.name, self._links)
            for link in self._links.values():
                await link.close()
        except StreamsError as error:
            _log.warning("replies_left_behind", error=error.message, note="they expire by themselves")
        await self._streams.close()

    # -- requests -----------------------------------------------------------------------------------------------------

    def _handle(self, request: Request) -> None:
        link = self._infer_paths.get(request.path) if request.method == "POST" else None
        if link is None:
            link = self._routes.inferring(request)
        if link is None:
            request.respond(self._routes.answer(request))
        else:
            self._inference.start(request, link)

    # -- what goes on meanwhile ---------------------------------------------------------------------------------------

    async def _poll_after_a_while(self) -> None:
        await asyncio.sleep(POLL_S)
        await self._poll()

    async def _poll(self) -> None:
        """Read what the schedulers say, and the common time now and then."""
        mesh = self._mesh
        now = asyncio.get_running_loop().time()
        try:
            if now >= self._synchronise_at:
                await mesh.clock.synchronise(self._streams)
                self._synchronise_at = now + clock.REFRESH_S
            statuses = await self._streams.read_statuses()
            for name in statuses.keys() - self._links.keys():
                await self._add(name)
        except StreamsError as error:
            mesh.redis_problem = f"Redis cannot be used: {error.message}"
            self._synchronise_at = 0.0  # it may come back with another clock
            raise
        for name, link in self._links.items():
            link.update(statuses.get(name))
        mesh.redis_problem = None

    async def _add(self, name: str) -> None:
        assert self._tasks is not None
        link = ModelLink(name, self.name, self._mesh)
        await link.open(self._tasks)
        self._links[name] = link
        for path in (f"/v2/models/{name}/infer", f"/v2/models/{name}/versions/1/infer"):
            self._infer_paths[path] = link

    async def _exchange(self) -> None:
        """Publish what this gateway counts, and keep what the others and the schedulers publish, for who watches."""
        await self._streams.publish_counts(self.name, {name: self._counts(name) for name in self._links})
        self._published = await self._streams.read_published()
        for model, found in self._published.items():
            for gone in [name for name, document in found.gateways.items() if document is None]:
                await self._streams.withdraw_counts(gone, [model])
        await asyncio.sleep(EXCHANGE_S)

    def _counts(self, model: str) -> bytes:
        return wire.encode(self._metrics.of(model).message(self.name, len(self._pending.of(model))))

    def _overview(self) -> Document:
        """Return the overview; its own counts are those of now, and all there is while Redis does not answer."""
        problem = self._mesh.problem
        published = {}
        for name in self._links:
            found = self._published.get(name)
            status, counts, gateways = found if found and problem is None else (None, None, {})
            published[name] = Published(status, counts, {**gateways, self.name: self._counts(name)})
        return overview(self._mesh.clock.now_us(), published, problem)

    async def _sample(self) -> None:
        """Keep an overview of every whole second of the common clock."""
        while True:
            await asyncio.sleep((SECOND_US - self._mesh.clock.now_us() % SECOND_US) / SECOND_US)
            self._history.add(self._overview())

    async def _snapshot(self) -> None:
        """Tell the metrics how full the reply streams are."""
        await asyncio.sleep(SNAPSHOT_S)
        links = list(self._links.values())
        depths = await self._streams.depths((link.replies, keys.GATEWAY_GROUP) for link in links) if links else []
        self._metrics.snapshot({link.name: depth for link, depth in zip(links, depths, strict=True)})

    def _problem(self) -> str | None:
        """Why no query of any model can be taken, or None; as ``/v2/health/ready``."""
        if not self._links:
            return self._mesh.problem or "no scheduler has been heard of yet"
        problems = [link.unavailable for link in self._links.values()]
        return None if None in problems else problems[0]

    async def _sweep(self) -> None:
        """Give up overdue queries, and remove payloads that nobody needs."""
        await asyncio.sleep(SWEEP_S)
        self._pending.sweep(self._mesh.clock.now_us())
        if self._pending.spent:
            names, self._pending.spent = self._pending.spent, []
            await self._streams.delete(*names)


def _rpc_server() -> type[RpcServer]:
    """Return the gRPC server, which only a gateway that is asked for it loads; ConfigError without its packages."""
    try:
        from services.gateway.rpc import RpcServer
    except ModuleNotFoundError as error:
        raise ConfigError(f"--grpc-port: {error.msg}; install the extra: superserve-mesh[grpc]") from error
    return RpcServer
