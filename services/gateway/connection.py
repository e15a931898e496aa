"""One HTTP/1.1 connection: bytes to requests by llhttp (httptools), responses to bytes.

Rules that bind this file:

- Requests are served one at a time and in order. What a client pipelines meanwhile waits, and reading pauses.
- All that a client may make us keep is bounded: head, body, and the time to send either or to take an answer.
- A request beyond a bound is refused in words. Then the connection is deaf: what still comes is read and thrown away
  for a moment, because a close with unread bytes resets the connection and loses the answer.
- ``Upgrade`` (Java's client offers h2c with every request) is ignored, as RFC 9110 allows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

import httptools

from common.errors import BadRequest, PayloadTooLarge, SuperServeError
from services.gateway.http import STATUS_LINES, HeadersTooLarge, Request, RequestTimeout, Response, error_response

MAX_HEAD_BYTES = 64 * 1024
REQUEST_TIMEOUT_S = 60.0  # from a request's first byte to its last, and for a client to take its answer
KEEPALIVE_S = 620.0  # longer than load balancers keep idle connections, so that it is they who close
LINGER_S = 1.0

_HOP_BY_HOP = frozenset((b"connection", b"upgrade", b"http2-settings", b"expect"))


class Owner(Protocol):
    """What a connection asks of its server."""

    max_body_bytes: int
    connections: set[Connection]
    draining: bool
    now: float
    date_line: bytes

    def dispatch(self, request: Request) -> None:
        """Hand a request over; its ``respond`` is called once, now or later."""


class Connection(asyncio.Protocol):
    """See the module."""

    __slots__ = (
        "_active", "_deaf", "_head_bytes", "_in_head", "_lingering", "_owner", "_parser", "_paused", "_queue",
        "_request", "_serving", "_since", "_transport", "_writable",
    )  # fmt: skip

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None  # the one being read
        self._queue: deque[Request] = deque()  # read, not served yet
        self._active: Request | None = None  # with the handler
        self._serving = False
        self._in_head = False
        self._head_bytes = 0
        self._writable = True
        self._paused = False
        self._deaf = False
        self._lingering: asyncio.TimerHandle | None = None
        self._since = owner.now  # since when it is in its present state

    # -- asyncio ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._owner.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the handler that nobody waits any more."""
        self._owner.connections.discard(self)
        self._deaf, self._transport = True, None
        self._request = None
        del self._parser  # it holds this object: break the cycle
        self._queue.clear()
        if self._lingering is not None:
            self._lingering.cancel()
        if (active := self._active) is not None:
            self._active = None
            active.left()

    def data_received(self, data: bytes) -> None:
        """Parse, and serve what is whole."""
        if self._deaf:
            return
        if self._in_head:
            self._head_bytes += len(data)
        self._feed(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(HeadersTooLarge(f"request line and headers exceed {MAX_HEAD_BYTES} bytes"))
        self._serve()

    def pause_writing(self) -> None:
        """Serve nothing more until the client has taken what it was sent."""
        self._writable, self._since = False, self._owner.now

    def resume_writing(self) -> None:
        """See ``pause_writing``."""
        self._writable, self._since = True, self._owner.now
        self._serve()

    # -- what the parser calls ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start a request."""
        if not self._deaf:
            self._request = Request(self)
            self._in_head, self._head_bytes = True, 0
            self._since = self._owner.now

    def on_url(self, url: bytes) -> None:
        """Keep the target, or a piece of it."""
        if self._request is not None:
            self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers are ignored."""
        if self._in_head and self._request is not None:
            self._request.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Decide whether the body is wanted."""
        self._in_head = False
        if (request := self._request) is None:
            return
        request.method = self._parser.get_method()
        request.version = self._parser.get_http_version()
        request.path, _, request.query = request.target.partition(b"?")
        headers, limit = request.headers, self._owner.max_body_bytes
        if request.version == "1.1" and b"host" not in headers:
            self._refuse(BadRequest("HTTP/1.1 requires a Host header"))
        elif int(headers.get(b"content-length", 0)) > limit:
            self._refuse_body(f"of {headers[b'content-length'].decode()} bytes")
        elif b"expect" in headers and self._transport is not None and not (self._active or self._queue):
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body, within the limit."""
        if (request := self._request) is not None:
            request.chunks.append(body)
            request.size += len(body)
            if request.size > self._owner.max_body_bytes:
                self._refuse_body("in chunks")

    def on_message_complete(self) -> None:
        """Queue the request."""
        request = self._request
        if request is None or self._parser.should_upgrade():
            return
        chunks = request.chunks
        if chunks:
            request.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            request.chunks = []
        request.keep_alive = self._parser.should_keep_alive()
        self._deaf = not request.keep_alive
        self._queue.append(request)
        self._request = None

    # -- reading ------------------------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if not self._deaf:
                self._refuse(BadRequest(f"malformed HTTP: {error}"))

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parse the head once more without what llhttp takes for an upgrade."""
        if (request := self._request) is None:
            return
        if request.method == b"CONNECT":
            self._refuse(BadRequest("CONNECT: this server is no proxy"))
            return
        lines = [b"%s: %s\r\n" % item for item in request.headers.items() if item[0] not in _HOP_BY_HOP]
        head = b"%s %s HTTP/%s\r\n" % (request.method, request.target, request.version.encode())
        self._parser = httptools.HttpRequestParser(self)
        self._feed(b"".join((head, *lines, b"\r\n", rest)))

    def _refuse_body(self, what: str) -> None:
        limit = self._owner.max_body_bytes
        self._refuse(PayloadTooLarge(f"body {what} exceeds the limit of {limit} bytes (--max-body-bytes)"))

    def _refuse(self, error: SuperServeError) -> None:
        """Put the error in place of the request being read, and read no further one."""
        request = self._request or Request(self)
        request.refusal = error
        self._request, self._in_head, self._deaf = None, False, True
        self._queue.append(request)

    # -- serving ------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        if self._serving:
            return  # answered at once: the loop below goes on
        self._serving = True
        while self._queue and self._active is None and self._writable:
            request = self._active = self._queue.popleft()
            if request.refusal is not None:
                request.respond(error_response(request.refusal))
            else:
                self._owner.dispatch(request)
        self._serving = False
        if self._transport is not None and self._paused != bool(self._queue):
            self._paused = not self._paused
            (self._transport.pause_reading if self._paused else self._transport.resume_reading)()

    def answer(self, request: Request, response: Response) -> None:
        """Send the response of the request being served; called by it."""
        self._active, self._since = None, self._owner.now
        transport = self._transport
        if transport is None:
            return
        keep_alive = request.keep_alive and not self._owner.draining
        if not keep_alive:
            persistence = b"connection: close\r\n"
        else:
            persistence = b"" if request.version == "1.1" else b"connection: keep-alive\r\n"
        transport.write(
            b"%scontent-length: %d\r\n%s%s%s\r\n%s"
            % (
                STATUS_LINES[response.status],
                len(response.body),
                response.headers,
                self._owner.date_line,
                persistence,
                b"" if request.method == b"HEAD" else response.body,
            )
        )
        if keep_alive:
            self._serve()
        else:
            self._finish(transport, unread=request.refusal is not None)

    # -- ending -------------------------------------------------------------------------------------------------------

    def _finish(self, transport: asyncio.Transport, *, unread: bool) -> None:
        self._deaf = True
        self._queue.clear()
        if not unread:
            transport.close()
            return
        if self._paused:
            self._paused = False
            transport.resume_reading()
        transport.write_eof()
        self._lingering = asyncio.get_running_loop().call_later(LINGER_S, transport.close)

    def check_age(self, now: float) -> None:
        """Close if the client is idle too long, or too slow in sending a request or taking an answer."""
        age = now - self._since
        if not self._writable:
            if age > REQUEST_TIMEOUT_S:
                self.abort()
        elif self._request is not None:
            if age > REQUEST_TIMEOUT_S and self._active is None:
                self._refuse(RequestTimeout(f"the request did not arrive within {REQUEST_TIMEOUT_S:g} s"))
                self._serve()
        elif age > KEEPALIVE_S:
            self.close_if_idle()

    def close_if_idle(self) -> None:
        """Close unless a request is under way."""
        if self._transport is not None and not (self._active or self._queue or self._request):
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()
