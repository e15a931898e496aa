"""A mesh of processes, each service under a user of its own, and what its clients see."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.common.processes import Program, program
from tests.mesh.peer import until

TIMEOUT_S = 20.0  # of a client: beyond it a query counts as left hanging
SLO_MS = 2_000
BODY = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * 784}]}

Urls = Callable[[str], str]  # service to the URL of its Redis
MeshOf = Callable[..., AbstractAsyncContextManager["Mesh"]]


@dataclass
class Mesh:
    """Processes of a mesh, started against ``urls``."""

    urls: Urls
    stack: ExitStack
    profile: Path
    services: dict[str, list[Program]] = field(default_factory=dict)
    url: str = ""

    def start(self, kind: str, *flags: str) -> Program:
        started = self.stack.enter_context(program("services.cli", kind, "--redis", self.urls(kind), *flags))
        self.services.setdefault(kind, []).append(started)
        return started

    def serve(self, folder: Path) -> None:
        """Start scheduler and worker of a model."""
        self.start("scheduler", "--model", folder.name)
        self.start_worker(folder)

    def start_worker(self, folder: Path) -> Program:
        return self.start("worker", "--model", str(folder), "--executor", "emulated", "--profile", str(self.profile))

    async def post(self, model: str, slo_ms: int = SLO_MS) -> tuple[int, str]:
        """Infer; return status and body, whatever they are, within ``TIMEOUT_S``."""
        timeout = aiohttp.ClientTimeout(TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(f"{self.url}/v2/models/{model}/infer", params={"slo_ms": slo_ms}, json=BODY) as response,
        ):
            return response.status, await response.text()

    async def answers(self, model: str) -> bool:
        status, _ = await self.post(model)
        return status == 200

    async def until_answers(self, model: str) -> None:
        await until(lambda: self.answers(model), 30)

    def end(self) -> None:
        """End all services as queries flow; each must have drained."""
        for kind in ("gateway", "worker", "scheduler"):
            for service in self.services.get(kind, []):
                if service.process.poll() is None:
                    code, _, log = service.end(signal.SIGTERM)
                    assert code == 0, log


@pytest.fixture
def mesh_of(profile_file: Callable[..., Path]) -> MeshOf:
    """``async with mesh_of(urls, folder) as mesh``: gateway, scheduler and worker of each folder's model, serving."""

    @contextlib.asynccontextmanager
    async def mesh_of(urls: Urls, *folders: Path, gateway: tuple[str, ...] = ()) -> AsyncIterator[Mesh]:
        with ExitStack() as stack:
            mesh = Mesh(urls, stack, profile_file())
            for folder in folders:
                mesh.serve(folder)
            started = mesh.start("gateway", "--port", "0", *gateway)
            line = await asyncio.to_thread(started.line)
            assert line.startswith("ready "), started.end()
            mesh.url = line.split()[1]
            for folder in folders:
                await mesh.until_answers(folder.name)
            yield mesh
            await asyncio.to_thread(mesh.end)

    return mesh_of


@contextlib.asynccontextmanager
async def storm(mesh: Mesh, model: str, clients: int = 8) -> AsyncIterator[list[tuple[int, str]]]:
    """Clients that post one query after the other while the block runs; what each was answered, in order of time."""
    seen: list[tuple[int, str]] = []
    ended = asyncio.Event()

    async def client() -> None:
        while not ended.is_set():
            seen.append(await mesh.post(model))
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
        try:
            yield seen
        finally:
            ended.set()
