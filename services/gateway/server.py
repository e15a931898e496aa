"""HTTP by aiohttp's low-level server: the gateway's paths are few, so no router or middleware stands before them.

It knows no model: it hands each ``Request``, body and all, to the handler, which calls ``respond`` once, now or from
any later callback. What the handler raises becomes the answer, so that no request stays without one, and is told to
``refused`` by its reason if it is the client's fault. A client that leaves before its answer cancels the wait, and the
handler hears of it by ``on_left``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from common import log
from common.errors import BadRequest, ClientError, PayloadTooLarge, SuperServeError
from services.gateway.http import Request, RequestTimeout, Response, error_response

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

BODY_TIMEOUT_S = 60.0  # for a body to arrive
LINGER_S = 1.0  # how long the rest of a refused body is read and thrown away, lest a reset loses the answer
CLOSE_TIMEOUT_S = 2.0
REASONS = {400: "malformed", 404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "too_large"}

_log = log.get(__name__)


class _Connection(web.RequestHandler):
    """aiohttp's connection, but for its errors, which are JSON here as everywhere, and told to ``refused``."""

    __slots__ = ("refused",)
    refused: Callable[[str], None]

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what aiohttp could not parse."""
        del request
        if status in REASONS:
            self.refused(REASONS[status])
        words = " ".join((message or str(exc) or "no reason known").split())
        response = web.json_response({"error": f"malformed HTTP: {words}"}, status=status)
        response.force_close()
        return response


class Server:
    """Listens, and hands requests to ``handle``; bodies are limited to ``max_body_bytes``."""

    def __init__(self, handle: Callable[[Request], None], max_body_bytes: int, refused: Callable[[str], None]) -> None:
        self._handle = handle
        self._refused = refused
        self._limit = max_body_bytes
        self._draining = False
        self._http: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Accept connections and return the port; OSError if the address cannot be had."""
        loop = asyncio.get_running_loop()
        server = self._http = web.Server(self._serve, request_factory=self._make_request, handler_cancellation=True)

        def connect() -> _Connection:
            # Bodies are inflated elsewhere, within the limit.
            made = _Connection(server, loop=loop, access_log=None, auto_decompress=False, lingering_time=LINGER_S)  # type: ignore[arg-type]  # None turns the log off
            made.refused = self._refused
            return made

        self._listener = await loop.create_server(connect, host, port, reuse_port=reuse_port or None)
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    def spawn(self, request: Request, work: Coroutine[None, None, None]) -> None:
        """Go on with a request in a task, which ends if the client leaves."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        request.on_left = task.cancel

    def drain(self) -> None:
        """Accept no connection any more, and close those there are after their next answer."""
        self._draining = True
        if self._listener is not None:
            self._listener.close()

    async def close(self) -> None:
        """Let the answers under way out, and close all connections."""
        if self._http is not None:
            self._http.pre_shutdown()
            await self._http.shutdown(CLOSE_TIMEOUT_S)
        if self._listener is not None:
            await self._listener.wait_closed()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _make_request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=self._limit)

    async def _serve(self, arrived: web.BaseRequest) -> web.StreamResponse:
        request = Request(arrived.method, arrived.raw_path, arrived.headers, b"")
        try:
            if arrived.can_read_body:
                request.body = await self._body(arrived)
            self._handle(request)
        except Exception as error:  # here errors become answers
            if isinstance(error, ClientError) and error.status in REASONS:
                self._refused(REASONS[error.status])
            fail(request, error)
        try:
            status, body, headers = await request.response
        except asyncio.CancelledError:
            request.left()
            raise
        response = web.Response(status=status, body=body, headers=headers)
        if self._draining:
            response.force_close()
        return response

    async def _body(self, arrived: web.BaseRequest) -> bytes:
        length = arrived.content_length
        if length is not None and length > self._limit:
            raise PayloadTooLarge(f"body of {length} bytes exceeds the limit of {self._limit} bytes (--max-body-bytes)")
        if "Expect" in arrived.headers:
            await arrived.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            arrived.writer.output_size = 0  # the answer proper has not begun
        try:
            if arrived.content.is_eof():
                return await arrived.read()
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await arrived.read()
        except web.HTTPRequestEntityTooLarge:
            raise PayloadTooLarge(f"body exceeds the limit of {self._limit} bytes (--max-body-bytes)") from None
        except web.RequestPayloadError as error:
            raise BadRequest(f"malformed body: {error}") from None
        except TimeoutError:
            raise RequestTimeout(f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None


def fail(request: Request, error: Exception, headers: Mapping[str, str] | None = None) -> None:
    """Answer with an error, one of ours as it says, any other as 500, and ``headers`` besides."""
    if isinstance(error, SuperServeError):
        response = error_response(error)
    else:
        _log.error("request_failed", method=request.method, path=request.path, exc_info=error)
        message = f"the gateway failed: {type(error).__name__}: {error}"
        response = Response(500, orjson.dumps({"error": message}))
    request.respond(response._replace(headers={**response.headers, **headers}) if headers else response)
