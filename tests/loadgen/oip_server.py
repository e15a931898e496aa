"""A small Open Inference Protocol server whose answers a test decides. An image's first pixel is its label."""

import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import orjson
from aiohttp import web

PARAMETERS = {
    "subnet": "small",
    "accuracy": 80.0,
    "batch_size": 2,
    "queue_ms": 1.5,
    "inference_ms": 2.5,
    "deadline_met": True,
    "executor": "torch",
    "policy": "slackfit",
    "worker": "w-1",
}
METADATA = {
    "name": "digits",
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 2, 2]}],
    "outputs": [{"name": "label", "datatype": "INT64", "shape": [-1]}],
}
Behaviour = Callable[[int, list[int]], Awaitable[web.StreamResponse]]


def answer(labels: list[int], **parameters: object) -> web.Response:
    raw = struct.pack(f"<{len(labels)}q", *labels)
    output = {
        "name": "label",
        "datatype": "INT64",
        "shape": [len(labels)],
        "parameters": {"binary_data_size": len(raw)},
    }
    header = orjson.dumps({"model_name": "digits", "outputs": [output], "parameters": PARAMETERS | parameters})
    return web.Response(body=header + raw, headers={"Inference-Header-Content-Length": str(len(header))})


async def right(number: int, labels: list[int]) -> web.StreamResponse:
    return answer(labels)


class OipServer:
    """`behave(number, labels)` answers the query of that number, counted from 0 as they come."""

    def __init__(self) -> None:
        self.behave: Behaviour = right
        self.ready = True
        self.url = ""
        self.headers: list[dict[str, Any]] = []
        self.images: list[bytes] = []
        self.came_s: list[float] = []
        self.peers: set[object] = set()
        self._transports: set[Any] = set()
        self._last: Any = None
        self._site: web.TCPSite | None = None

    async def stop_listening(self) -> None:
        """Refuse new connections and reset those that stand."""
        assert self._site is not None
        await self._site.stop()
        for transport in self._transports:
            transport.abort()

    def reset_last(self) -> None:
        """Reset the connection of the query that came last."""
        self._last.abort()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["OipServer"]:
        app = web.Application()
        app.router.add_get("/v2/health/ready", self._ready)
        app.router.add_get("/v2/models/stats", self._stats)
        app.router.add_get("/v2/models/digits", self._metadata)
        app.router.add_get("/v2/models/digits/ready", self._ready)
        app.router.add_post("/v2/models/digits/infer", self._infer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01, access_log=None)
        await runner.setup()
        self._site = web.TCPSite(runner, "127.0.0.1", 0)
        await self._site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _ready(self, _: web.Request) -> web.Response:
        return web.json_response({"ready": self.ready}, status=200 if self.ready else 503)

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response({"model_stats": [{"name": "digits", "version": "1"}]})

    async def _metadata(self, _: web.Request) -> web.Response:
        return web.json_response(METADATA)

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        assert request.transport is not None
        self._transports.add(request.transport)
        self._last = request.transport
        self.peers.add(request.transport.get_extra_info("peername"))
        number = len(self.came_s)
        self.came_s.append(time.monotonic())
        length = int(request.headers["Inference-Header-Content-Length"])
        self.headers.append(orjson.loads(body[:length]))
        self.images.append(body[length:])
        images = np.frombuffer(body[length:], np.uint8).reshape(-1, 4)
        return await self.behave(number, images[:, 0].tolist())
