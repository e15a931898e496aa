"""Fixtures of the gateway's suite: a Redis per test, a mesh of one function, a gateway and a client."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
import orjson
import pytest

from common import embedded
from common.runtime import Service, Tasks
from common.settings import GatewaySettings, load
from services.gateway import Gateway
from tests.gateway.mesh import DESCRIPTION, MODEL, FakeMesh

# Read when grpc is loaded: its handlers of fork() abort children that are started beside a live client of its own.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

Running = Callable[[Service], AbstractAsyncContextManager[Tasks]]


@dataclass
class Reply:
    """A response, read: ``document`` is its JSON part, ``raw`` the bytes after it."""

    status: int
    headers: Any
    body: bytes

    @property
    def document(self) -> Any:
        length = self.headers.get("Inference-Header-Content-Length")
        return orjson.loads(self.body if length is None else self.body[: int(length)])

    @property
    def raw(self) -> bytes:
        return self.body[int(self.headers["Inference-Header-Content-Length"]) :]

    @property
    def error(self) -> str:
        assert set(self.document) == {"error"}
        return str(self.document["error"])


class Client:
    """Speaks to one gateway."""

    def __init__(self, session: aiohttp.ClientSession, gateway: Gateway) -> None:
        self.session = session
        self.gateway = gateway
        self.url = f"http://127.0.0.1:{gateway.port}"

    async def request(self, method: str, path: str, **options: Any) -> Reply:
        async with self.session.request(method, self.url + path, **options) as response:
            return Reply(response.status, response.headers, await response.read())

    async def get(self, path: str) -> Reply:
        return await self.request("GET", path)

    async def infer(self, body: Any, *, model: str = MODEL, query: str = "", **options: Any) -> Reply:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        return await self.request("POST", f"/v2/models/{model}/infer{query}", data=data, **options)

    async def infer_binary(self, header: Any, raw: bytes, **options: Any) -> Reply:
        part = header if isinstance(header, bytes) else orjson.dumps(header)
        headers = {"Inference-Header-Content-Length": str(len(part)), **options.pop("headers", {})}
        return await self.infer(part + raw, headers=headers, **options)


def image(rows: int = 1, first: int = 7) -> bytes:
    """Rows whose first pixel is ``first``, so that the mesh answers the label ``first`` modulo 10."""
    pixels = np.zeros((rows, 28, 28), np.uint8)
    pixels[:, 0, 0] = first
    return pixels.tobytes()


def binary_header(rows: int = 1, **more: Any) -> dict[str, Any]:
    """The JSON part for ``image(rows)``; outputs as JSON, an SLO that no slow machine misses."""
    size = rows * 784
    tensor = {"name": "image", "shape": [rows, 28, 28], "datatype": "UINT8", "parameters": {"binary_data_size": size}}
    return {"inputs": [tensor], "parameters": {"slo_ms": 10_000}, **more}


def json_request(rows: int = 1, **changes: Any) -> dict[str, Any]:
    """A whole JSON request, with ``changes`` to its input."""
    tensor = {"name": "image", "shape": [rows, 28, 28], "datatype": "UINT8", "data": list(image(rows)), **changes}
    return {"inputs": [tensor], "parameters": {"slo_ms": 10_000}}


@pytest.fixture
def url() -> Iterator[str]:
    with embedded.server() as url:
        yield url


@pytest.fixture
async def mesh(url: str) -> AsyncIterator[FakeMesh]:
    mesh = FakeMesh(url, DESCRIPTION)
    await mesh.start()
    yield mesh
    await mesh.stop()


@pytest.fixture
async def connect(url: str, running: Running) -> AsyncIterator[Callable[..., Any]]:
    """``await connect(max_queue=3)``: start a gateway with these settings and return a client of it."""
    async with AsyncExitStack() as stack:

        async def connect(redis: str = url, **settings: Any) -> Client:
            flags = [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", str(value))]
            gateway = Gateway(load(GatewaySettings, ["--redis", redis, "--port", "0", *flags], program="gateway"))
            await stack.enter_async_context(running(gateway))
            session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)))
            return Client(session, gateway)

        yield connect


@pytest.fixture
async def client(mesh: FakeMesh, connect: Callable[..., Any]) -> Client:
    """A client of a gateway with a mesh behind it."""
    del mesh
    made: Client = await connect()
    return made


@contextlib.asynccontextmanager
async def gateway_process(url: str, *flags: str) -> AsyncIterator[str]:
    """``host:port`` of a gateway that is a process of its own, under uvloop; it must drain and end with 0."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "gateway", "--redis", url, "--port", "0", *flags),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        line = (await process.stdout.readline()).decode()
    assert line.startswith("ready http://")
    yield line.removeprefix("ready http://").strip()
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    async with asyncio.timeout(20):
        assert await process.wait() == 0


@pytest.fixture
async def address(url: str, mesh: FakeMesh) -> AsyncIterator[str]:
    """``host:port`` of a gateway process with a mesh behind it."""
    del mesh
    async with gateway_process(url) as address:
        yield address
