"""One connection against a server that speaks raw bytes: what HTTP allows is understood, what it forbids is counted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from loadgen.oip import Endpoint
from loadgen.records import Recorder, Records
from loadgen.sender import Sender
from loadgen.workload import Tenant, Workload

REPLY = b'{"outputs":[]}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(REPLY), REPLY)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"


@asynccontextmanager
async def raw_server(*pieces: bytes, close: bool = False) -> AsyncIterator[Endpoint]:
    """Write `pieces` for each request, each in its own packet if the network likes, and close if told to."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if close:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Endpoint(tls=False, host="127.0.0.1", port=server.sockets[0].getsockname()[1], prefix="")


async def send(endpoint: Endpoint, count: int = 3) -> Records:
    recorder = Recorder(Workload.of_one(np.zeros(count), Tenant(slo_ms=1000)))
    sender = Sender(endpoint, lambda query: REQUEST, recorder, connections=1, timeout_s=5)
    await sender.run(warm=1)
    return recorder.finish()


@pytest.mark.parametrize(
    "pieces",
    [
        (OK,),
        (OK[:9], OK[9:40], OK[40:]),
        (b"HTTP/1.1 100 Continue\r\n\r\n", OK),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK,),
        (CHUNKED, b"7\r\n", REPLY[:7], b"\r\n7\r\n", REPLY[7:], b"\r\n0\r\n\r\n"),
    ],
    ids=["whole", "in pieces", "after 100", "with 100", "chunked"],
)
async def test_replies_are_understood_however_they_are_cut(pieces: tuple[bytes, ...]) -> None:
    """A reply may come in pieces, in chunks or after an interim reply."""
    async with raw_server(*pieces) as endpoint:
        records = await send(endpoint)
    assert records.errors == {}
    assert not np.isnan(records.done_s).any()


@pytest.mark.parametrize(
    ("pieces", "close", "reason"),
    [
        ((b"SSH-2.0-OpenSSH\r\n",), False, "reply: no HTTP"),
        ((b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: x\r\n\r\n",), False, "reply: no HTTP"),
        ((OK[:-3],), True, "connection: closed before the reply"),
        ((), True, "connection: closed before the reply"),
    ],
    ids=["other protocol", "header is no number", "half a reply", "no reply"],
)
async def test_what_is_no_reply_is_an_error(pieces: tuple[bytes, ...], close: bool, reason: str) -> None:
    """Each query ends once, with the reason; the next one gets a new connection."""
    async with raw_server(*pieces, close=close) as endpoint:
        records = await send(endpoint)
    assert records.errors == {0: reason, 1: reason, 2: reason}


async def test_two_replies_to_one_query_are_no_answer() -> None:
    """Nobody can tell which of them is meant: the query fails, and the connection is closed."""
    async with raw_server(OK + OK) as endpoint:
        records = await send(endpoint)
    assert records.errors == dict.fromkeys(range(3), "reply: not asked for")


async def test_a_host_name_is_looked_up() -> None:
    """`localhost` works whatever addresses it has: those that refuse are passed over."""
    async with raw_server(OK) as endpoint:
        records = await send(Endpoint(tls=False, host="localhost", port=endpoint.port, prefix=""))
    assert records.errors == {}
