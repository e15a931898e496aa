"""An HTTP/1.1 server of the size that a gateway needs.

Why none of the frameworks: the gateway is most of what a query costs, and HTTP most of the gateway. One POST of 784
bytes and its reply took, in microseconds of CPU, 81-105 in an aiohttp application, 63-76 in aiohttp's low-level server,
and 9-12 over httptools as here, where a request makes neither a task nor a future (docs/http.md has the method).

It knows HTTP and no model: it hands each ``Request`` to the handler, which calls ``respond`` once, now or from any
later callback. What the handler raises becomes the answer, so that no request stays without one.
"""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from typing import TYPE_CHECKING

import orjson

from common import log
from common.errors import SuperServeError
from services.gateway.connection import Connection
from services.gateway.http import Request, Response, error_response

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

SWEEP_S = 1.0
_log = log.get(__name__)


class Server:
    """Listens, and hands requests to ``handle``; bodies are limited to ``max_body_bytes``."""

    def __init__(self, handle: Callable[[Request], None], max_body_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self.connections: set[Connection] = set()
        self.draining = False
        self.now = 0.0  # the loop's time as of the last sweep: exact enough for time limits, and free
        self.date_line = b""
        self._handle = handle
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Accept connections and return the port; OSError if the address cannot be had."""
        self.sweep()
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: Connection(self), host, port, reuse_port=reuse_port or None)
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    def dispatch(self, request: Request) -> None:
        """Hand over a request; whatever the handler raises is the answer."""
        try:
            self._handle(request)
        except Exception as error:  # here errors become answers
            fail(request, error)

    def spawn(self, request: Request, work: Coroutine[None, None, None]) -> None:
        """Go on with a request in a task, which ends if the client leaves."""
        task = asyncio.get_running_loop().create_task(self._run(request, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        request.on_left = task.cancel

    async def _run(self, request: Request, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:
            fail(request, error)

    async def sweep_for_ever(self) -> None:
        """Keep date and time, and close connections that are past their limits."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        """See ``sweep_for_ever``."""
        self.now = asyncio.get_running_loop().time()
        self.date_line = f"date: {formatdate(usegmt=True)}\r\n".encode()
        for connection in list(self.connections):
            connection.check_age(self.now)

    def drain(self) -> None:
        """Accept no connection any more, close the idle ones, and the others after their answer."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            connection.close_if_idle()

    async def close(self) -> None:
        """End what is left."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self.connections):
            connection.abort()
        if self._listener is not None:
            self._listener.close()
            await self._listener.wait_closed()


def fail(request: Request, error: Exception) -> None:
    """Answer with an error: one of ours as it says, any other as 500."""
    if isinstance(error, SuperServeError):
        request.respond(error_response(error))
        return
    _log.error("request_failed", method=request.method.decode(), path=request.path.decode(), exc_info=error)
    request.respond(Response(500, orjson.dumps({"error": f"the gateway failed: {type(error).__name__}: {error}"})))
