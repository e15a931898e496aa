"""A lean, pipelined connection to Redis for the commands that every query pays for.

redis-py spends several times what the command itself costs, on retries, metrics and task switches per command;
``scripts/bench-redis`` puts the two side by side. So appending, reading and acking go over this, and everything else
over redis-py. hiredis does the parsing in both. Replies come in the order of commands, so one connection serves many
callers at once; a blocking read wants a connection of its own.
"""

from __future__ import annotations

import asyncio
import collections
from typing import TYPE_CHECKING, Any

import hiredis
from redis.asyncio import connection as redis_py

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

CONNECT_TIMEOUT_S = 2.0

Command = tuple[bytes | str | int, ...]


class ConnectionBrokenError(ConnectionError):
    """The connection ended, or could not be made; what was sent may or may not have been carried out."""


class _Protocol(asyncio.Protocol):
    """Bytes to replies, replies to whoever waits for them."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.waiting: collections.deque[tuple[asyncio.Future[list[Any]], int]] = collections.deque()
        self._reader = hiredis.Reader()
        self._replies: list[Any] = []
        self.broken: ConnectionBrokenError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's transports are not of asyncio's classes

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._replies.append(reply)
                if len(self._replies) == self.waiting[0][1]:
                    future, _ = self.waiting.popleft()
                    if not future.done():
                        future.set_result(self._replies)
                    self._replies = []
        except (hiredis.HiredisError, IndexError) as error:
            self.fail(f"not a Redis reply: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self.fail(str(error or "connection closed by the server"))

    def fail(self, why: str) -> None:
        """End the connection; whoever waits gets ConnectionBrokenError."""
        self.broken = self.broken or ConnectionBrokenError(why)
        for future, _ in self.waiting:
            if not future.done():
                future.set_exception(self.broken)
        self.waiting.clear()
        if self.transport is not None:
            self.transport.abort()


class Connection:
    """Connects when first used, and again after a break. ``url`` as redis-py has it; ValueError if it is none."""

    def __init__(self, url: str) -> None:
        self._options: dict[str, Any] = dict(redis_py.parse_url(url))
        self._ssl: ssl.SSLContext | None = None
        if issubclass(self._options.get("connection_class", object), redis_py.SSLConnection):
            options = {key: value for key, value in self._options.items() if key.startswith("ssl_")}
            self._ssl = redis_py.SSLConnection(**options).ssl_context.get()
        self._protocol: _Protocol | None = None
        self._connecting = asyncio.Lock()

    async def call(self, commands: Sequence[Command], timeout_s: float, *, repeat: bool = True) -> list[Any]:
        """Send commands in one write and return their replies; an error reply is a ``hiredis.ReplyError`` in the list.

        One retry, at once, if the connection turns out broken: after a restart of the server the first use says so, and
        repeating is safe, for delivery is at least once everywhere. ``repeat`` False for a read of what is new: a lost
        reply may have held entries, which are pending now and would not come again. Raises ConnectionBrokenError, or
        OSError if the server cannot be reached; no reply within ``timeout_s`` counts as a break. Cancelling ends the
        connection of such a read, so that no late reply is lost unread; others' commands on a shared one go on.
        """
        data = _packed(commands)
        try:
            return await self._exchange(data, len(commands), timeout_s, alone=not repeat)
        except ConnectionBrokenError:
            if not repeat:
                raise
            return await self._exchange(data, len(commands), timeout_s, alone=False)

    async def _exchange(self, data: bytes, replies: int, timeout_s: float, *, alone: bool) -> list[Any]:
        protocol = self._protocol
        if protocol is None or protocol.broken is not None:
            protocol = await self._connect()
        return await self._send(protocol, data, replies, timeout_s, alone=alone)

    async def _send(
        self, protocol: _Protocol, data: bytes, replies: int, timeout_s: float, *, alone: bool = True
    ) -> list[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        protocol.waiting.append((future, replies))
        assert protocol.transport is not None
        protocol.transport.write(data)
        timer = loop.call_later(timeout_s, protocol.fail, f"no reply within {timeout_s:g} s")
        try:
            return await future
        except asyncio.CancelledError:
            if alone:
                protocol.fail("cancelled")
            raise
        finally:
            timer.cancel()

    async def _connect(self) -> _Protocol:
        async with self._connecting:
            if self._protocol is not None and self._protocol.broken is None:
                return self._protocol
            loop, options = asyncio.get_running_loop(), self._options
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    if path := options.get("path"):
                        _, protocol = await loop.create_unix_connection(_Protocol, path)
                    else:
                        host, port = options.get("host", "localhost"), options.get("port", 6379)
                        _, protocol = await loop.create_connection(_Protocol, host, port, ssl=self._ssl)
            except TimeoutError:
                raise ConnectionBrokenError(f"no connection within {CONNECT_TIMEOUT_S:g} s") from None
            if greeting := self._greeting():
                for reply in await self._send(protocol, _packed(greeting), len(greeting), CONNECT_TIMEOUT_S):
                    if isinstance(reply, hiredis.ReplyError):
                        protocol.fail("refused")
                        raise reply
            self._protocol = protocol
            return protocol

    def _greeting(self) -> list[Command]:
        """Return what must be said before anything else: who we are, and which database."""
        options = self._options
        greeting: list[Command] = []
        if options.get("password"):
            user = (options["username"],) if options.get("username") else ()
            greeting.append(("AUTH", *user, options["password"]))
        if options.get("db"):
            greeting.append(("SELECT", options["db"]))
        return greeting

    def close(self) -> None:
        """End the connection."""
        if self._protocol is not None:
            self._protocol.fail("closed")
            self._protocol = None


def _packed(commands: Sequence[Command]) -> bytes:
    # hiredis types its argument as a tuple of one element, and takes one of any length.
    return b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]
