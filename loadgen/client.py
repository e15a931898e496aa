"""One keep-alive HTTP/1.1 connection that carries one request at a time."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import httptools

_HEADER_LENGTH = b"inference-header-content-length"


class Owner(Protocol):
    """Whom a connection reports to. Each query sent is reported exactly once, by `replied` or by `lost`."""

    def connected(self, connection: Connection) -> None:
        """The connection is open and idle."""

    def replied(self, connection: Connection, query: int, status: int, header_length: int, body: bytes) -> None:
        """The whole reply to `query` came; the connection is idle again if `connection.open`."""

    def lost(self, connection: Connection, query: int | None, reason: str) -> None:
        """The connection is gone, and with it the reply to `query`, if one was under way."""


class Connection(asyncio.Protocol):
    """A connection of the pool. A reply must tell its length, as HTTP/1.1 servers do, or be chunked."""

    __slots__ = (
        "_body",
        "_complete",
        "_header_length",
        "_keep_alive",
        "_owner",
        "_parser",
        "_reason",
        "_status",
        "_transport",
        "open",
        "query",
    )

    def __init__(self, owner: Owner) -> None:
        self.open = False
        self.query: int | None = None
        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._reason = "connection: closed before the reply"
        self._header_length = 0
        self._body = b""
        self._complete = 0
        self._keep_alive = False
        self._status = 0

    @property
    def peer(self) -> str:
        """The address at the other end."""
        assert self._transport is not None
        return str(self._transport.get_extra_info("peername")[0])

    def send(self, query: int, request: bytes) -> None:
        """Send `request`, the whole of it, for `query`. The connection must be open and idle."""
        assert self._transport is not None
        self.query = query
        self._transport.write(request)

    def abort(self, reason: str) -> None:
        """Close at once; a query under way is reported lost because of `reason`."""
        self._reason = reason
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio when the connection stands."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.open = True
        self._owner.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio once, when the connection is gone."""
        self.open = False
        query, self.query = self.query, None
        del self._parser  # the parser holds this object: break the cycle
        reason = "connection: reset" if isinstance(exc, ConnectionError) else self._reason
        self._owner.lost(self, query, reason)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with the next bytes of a reply."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort("reply: no HTTP")
            return
        if self._complete:
            self._reply_complete()

    def _reply_complete(self) -> None:
        query, body, header_length = self.query, self._body, self._header_length
        if query is None or self._complete > 1:
            self.abort("reply: not asked for")
            return
        self._complete, self._body, self._header_length = 0, b"", 0
        self.query = None
        if not self._keep_alive:
            self.open = False
            assert self._transport is not None
            self._transport.close()
        self._owner.replied(self, query, self._status, header_length, body)

    # What httptools calls while it parses.
    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the one header that matters."""
        if len(name) == len(_HEADER_LENGTH) and name.lower() == _HEADER_LENGTH:
            self._header_length = int(value)

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        """The reply is whole; `data_received` goes on when the parser has returned."""
        self._status = self._parser.get_status_code()
        self._keep_alive = self._parser.should_keep_alive()  # known only within this call
        if self._status >= 200:  # else an interim reply: the real one follows
            self._complete += 1
