"""The open loop: every query leaves at its intended time, whatever became of those before it.

1. `run` opens the connections that a server in time needs, then starts the clock.
2. The pacing loop wakes every millisecond or so, and each reply wakes it as well: all queries due are sent.
3. A query takes the connection that has been idle longest, so that load spreads over the processes of a server. Without
   an idle one it waits here, in order, while more are opened up to the bound; the wait is sender lag, never lost.
4. A query ends once: by its reply, by the loss of its connection, or by its timeout. Nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from loadgen.client import Connection
from loadgen.oip import Endpoint, parse_error
from loadgen.records import Recorder

_TICK_S = 0.001  # uvloop's timers count whole milliseconds
_LONGEST_SLEEP_S = 0.02
_PROGRESS_S = 0.1
_MAX_CONNECTING = 64  # at once: a listen queue that overflows costs a second
_CLOSE_S = 1.0
_NUMBER = re.compile(r"\d+(\.\d+)?")  # reasons are counted: one that tells its own milliseconds is no kind of its own


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands; told about ten times a second and once at its end."""

    elapsed_s: float
    queries: int
    sent: int
    answered: int
    errors: int
    met: int  # answered within the SLO


class Sender:
    """Sends the queries of one run to one server; `run` is called once. `request` gives the bytes of a query."""

    def __init__(
        self,
        endpoint: Endpoint,
        request: Callable[[int], bytes],
        recorder: Recorder,
        *,
        connections: int,
        timeout_s: float,
    ) -> None:
        self._endpoint = endpoint
        self._request = request
        self._recorder = recorder
        self._max_connections = connections
        self._timeout_s = timeout_s
        self._start = 0.0
        self._next = 0  # the first query not yet due
        self._sent = 0
        self._waiting: deque[int] = deque()  # due, without a connection
        self._in_flight: deque[tuple[int, Connection]] = deque()  # in order of intended time; ended ones linger
        self._idle: deque[Connection] = deque()  # closed ones linger
        self._connections: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._address = endpoint.host
        self._ssl = ssl.create_default_context() if endpoint.tls else None
        self._all_lost = asyncio.Event()

    async def run(self, warm: int, progress: Callable[[Progress], None] | None = None) -> None:
        """Send every query and wait until each has ended. `warm` connections are opened before the clock starts."""
        try:
            await self._open(min(warm, self._max_connections))
            gc.collect()
            gc.freeze()  # what is there now would be passed over again and again: pauses of tens of milliseconds
            self._start = monotonic()
            await self._pace(progress or (lambda _: None))
        finally:
            gc.unfreeze()
            await self._close()

    async def _pace(self, progress: Callable[[Progress], None]) -> None:
        intended_s, count = self._recorder.intended_s, len(self._recorder.intended_s)
        next_report = _PROGRESS_S
        while self._recorder.ended < count:
            self._send_due()
            now = monotonic() - self._start
            self._expire(now)
            if now >= next_report:
                progress(self._progress(now))
                next_report = now + _PROGRESS_S
            pause = intended_s[self._next] - now if self._next < count else _LONGEST_SLEEP_S
            await asyncio.sleep(min(max(pause, _TICK_S), _LONGEST_SLEEP_S))
        progress(self._progress(monotonic() - self._start))

    def _send_due(self) -> None:
        """Send, or queue for a connection, every query due when this is called: replies are read before the next."""
        intended_s = self._recorder.intended_s
        query, count = self._next, len(intended_s)
        now = monotonic() - self._start
        while query < count and intended_s[query] <= now:
            connection = None if self._waiting else self._take_idle()
            if connection is None:
                self._waiting.append(query)
            else:
                self._send(connection, query)
            query += 1
        self._next = query
        if self._waiting:
            self._connect_for_waiting()

    def _send(self, connection: Connection, query: int) -> None:
        connection.send(query, self._request(query))
        self._recorder.sent_s[query] = monotonic() - self._start
        self._sent += 1
        self._in_flight.append((query, connection))

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.popleft()
            if connection.open:
                return connection
        return None

    def _expire(self, now: float) -> None:
        """End the queries that have no reply `timeout_s` after their intended time."""
        intended_s, too_old = self._recorder.intended_s, now - self._timeout_s
        while self._in_flight:
            query, connection = self._in_flight[0]
            if connection.query == query:
                if intended_s[query] > too_old:
                    break
                connection.abort(f"timeout: no reply within {self._timeout_s:g} s")
            self._in_flight.popleft()
        while self._waiting and intended_s[self._waiting[0]] <= too_old:
            self._recorder.fail(self._waiting.popleft(), f"timeout: no connection within {self._timeout_s:g} s")

    def _progress(self, now: float) -> Progress:
        recorder = self._recorder
        return Progress(
            now, len(recorder.intended_s), self._sent, recorder.answered, len(recorder.errors), recorder.met
        )

    # What the connections report.
    def connected(self, connection: Connection) -> None:
        """Put a new connection to use; its address serves the next ones, so that a name is looked up once."""
        self._address = connection.peer
        self._connections.add(connection)
        self._put_idle(connection)

    def replied(self, connection: Connection, query: int, status: int, header_length: int, body: bytes) -> None:
        """End `query`, and put its connection to use again."""
        now = monotonic() - self._start
        if connection.open:
            self._put_idle(connection)
        if status != 200:
            self._recorder.fail(query, f"{status}: {_NUMBER.sub('N', parse_error(body))}")
        else:
            self._recorder.answer(query, now, body, header_length)
        intended_s = self._recorder.intended_s
        if self._next < len(intended_s) and intended_s[self._next] <= now:
            self._send_due()

    def lost(self, connection: Connection, query: int | None, reason: str) -> None:
        """Forget a connection; the query that it carried has failed."""
        self._connections.discard(connection)
        if not self._connections:
            self._all_lost.set()
        if query is not None:
            self._recorder.fail(query, reason)
        if self._waiting:
            self._connect_for_waiting()

    def _put_idle(self, connection: Connection) -> None:
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    # Opening and closing.
    def _connect_for_waiting(self) -> None:
        room = self._max_connections - len(self._connections)
        wanted = min(len(self._waiting), room, _MAX_CONNECTING)
        for _ in range(wanted - len(self._connecting)):
            task = asyncio.get_running_loop().create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _open(self, count: int) -> None:
        """Open `count` connections before the run; one that fails is left for the run to meet."""
        for first in range(0, count, _MAX_CONNECTING):
            batch = min(_MAX_CONNECTING, count - first)
            await asyncio.gather(*(self._connect() for _ in range(batch)))

    async def _connect(self) -> None:
        """Open one connection. If that fails, the query that has waited longest fails with it."""
        loop = asyncio.get_running_loop()
        name = self._endpoint.host if self._ssl else None
        try:
            async with asyncio.timeout(self._timeout_s):
                await loop.create_connection(
                    lambda: Connection(self), self._address, self._endpoint.port, ssl=self._ssl, server_hostname=name
                )
        except OSError as error:
            if self._waiting:
                self._recorder.fail(self._waiting.popleft(), f"connection: {_why(error)}")
                # This attempt counts as connecting until its task is gone: look again then.
                loop.call_soon(self._connect_for_waiting)

    async def _close(self) -> None:
        """Close what is open, and wait until the event loop has let go of it."""
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        if self._connections:
            self._all_lost.clear()
            for connection in self._connections:
                connection.abort("connection: run ended")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._all_lost.wait()


def _why(error: OSError) -> str:
    """The kind of a failed attempt, without addresses: reasons are counted."""
    if error.errno is None or error.errno <= 0 or isinstance(error, ssl.SSLError):
        return type(error).__name__
    return os.strerror(error.errno)
