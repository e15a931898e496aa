"""A lean, pipelined connection to Redis.

redis-py spends several times what the command itself costs, on retries, metrics and task switches per command;
``scripts/bench-redis`` puts the two side by side. hiredis does the parsing in both. Replies come in the order of
commands, so one connection serves many callers at once; a blocking read wants a connection of its own.

A server that says it is the wrong one (READONLY: a primary that was demoted; MOVED: a node whose slot went elsewhere)
counts as a broken connection: whoever waits is told so, and the next use asks anew where to connect.
"""

from __future__ import annotations

import asyncio
import collections
from typing import TYPE_CHECKING, Any

import hiredis

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence

CONNECT_TIMEOUT_S = 2.0
WRONG_SERVER = ("READONLY ", "MOVED ")

Command = tuple[bytes | str | int, ...]
Place = str | tuple[str, int]  # the path of a unix socket, or host and port


class ConnectionBrokenError(ConnectionError):
    """The connection ended, or could not be made; what was sent may or may not have been carried out."""


class _Protocol(asyncio.Protocol):
    """Bytes to replies, replies to whoever waits for them."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.waiting: collections.deque[tuple[asyncio.Future[list[Any]], int]] = collections.deque()
        self._reader = hiredis.Reader(replyError=self._refused)
        self._replies: list[Any] = []
        self._wrong_server: str | None = None
        self.broken: ConnectionBrokenError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's transports are not of asyncio's classes

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._replies.append(reply)
                if self._wrong_server is not None:
                    self.fail(self._wrong_server)
                    return
                if len(self._replies) == self.waiting[0][1]:
                    future, _ = self.waiting.popleft()
                    if not future.done():
                        future.set_result(self._replies)
                    self._replies = []
        except (hiredis.HiredisError, IndexError) as error:
            self.fail(f"not a Redis reply: {error}")

    def _refused(self, text: str) -> hiredis.ReplyError:
        if text.startswith(WRONG_SERVER):
            self._wrong_server = text
        return hiredis.ReplyError(text)

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
    """Connects when first used, and again after a break.

    ``locate`` says where to, given what ended the connection before ("" at first); OSError if it cannot.
    ``greeting``: what must be said before anything else: who we are, and which database.
    """

    def __init__(
        self,
        locate: Callable[[str], Awaitable[Place]],
        greeting: Sequence[Command] = (),
        tls: ssl.SSLContext | None = None,
        *,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self._locate = locate
        self._greeting = greeting
        self._tls = tls
        self._timeout_s = timeout_s
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
            why = str(self._protocol.broken) if self._protocol is not None else ""
            self._protocol = None
            place = await self._locate(why)
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(self._timeout_s):
                    if isinstance(place, str):
                        _, protocol = await loop.create_unix_connection(_Protocol, place)
                    else:
                        _, protocol = await loop.create_connection(_Protocol, *place, ssl=self._tls)
            except TimeoutError:
                raise ConnectionBrokenError(f"no connection within {self._timeout_s:g} s") from None
            if self._greeting:
                for reply in await self._send(protocol, _packed(self._greeting), len(self._greeting), self._timeout_s):
                    if isinstance(reply, hiredis.ReplyError):
                        protocol.fail("refused")
                        raise reply
            self._protocol = protocol
            return protocol

    def close(self) -> None:
        """End the connection."""
        if self._protocol is not None:
            self._protocol.fail("closed")
            self._protocol = None


def _packed(commands: Sequence[Command]) -> bytes:
    # hiredis types its argument as a tuple of one element, and takes one of any length.
    return b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]
