"""A real mesh of one torch worker, whose services expose their metrics."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from common import embedded
from common.monitor import Monitor
from common.runtime import Service, Tasks
from common.settings import GatewaySettings, SchedulerSettings, Settings, WorkerSettings
from common.supernet import artifact
from services.gateway import Gateway
from services.scheduler.scheduler import SchedulerService
from services.worker.engine import Engine
from services.worker.start import build
from services.worker.worker import Worker
from tests.mesh.peer import until
from tests.worker.conftest import MODEL, brief_profile

Running = Callable[[Service], AbstractAsyncContextManager[Tasks]]
IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * 784}
POLICY = "tests.monitoring.alternating:Alternating"  # so that every batch actuates
KINDS = ("gateway", "scheduler", "worker")


def settings_of(kind: type[Settings], **values: object) -> Settings:
    """The settings of a service whose flags say this."""
    return kind(**values)  # type: ignore[arg-type]


@dataclass
class Watched:
    """A mesh, where each service is watched, and a client of it."""

    gateway: Gateway
    scheduler: SchedulerService
    worker: Worker
    session: aiohttp.ClientSession
    statuses: list[int] = field(default_factory=list)

    def url(self, kind: str) -> str:
        monitor: Monitor | None = getattr(self, kind).monitor
        assert monitor is not None
        return monitor.url

    async def get(self, url: str) -> tuple[int, str]:
        async with self.session.get(url) as response:
            return response.status, await response.text()

    async def ask(self, slo_ms: float = 5_000.0) -> None:
        """Send one query and wait for its answer."""
        url = f"http://127.0.0.1:{self.gateway.port}/v2/models/{MODEL}/infer"
        async with self.session.post(url, json={"inputs": [IMAGE], "parameters": {"slo_ms": slo_ms}}) as response:
            self.statuses.append(response.status)
            await response.read()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The shipped model, loaded once and measured briefly."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(artifact, "profile", brief_profile)
        cache = str(tmp_path_factory.mktemp("cache"))
        return build(settings_of(WorkerSettings, model=MODEL, device="cpu", cache_dir=cache))


@pytest.fixture
async def watched(running: Running, engine: Engine) -> AsyncIterator[Watched]:
    """A mesh that serves, each service with a metrics port of its own."""
    async with contextlib.AsyncExitStack() as stack:
        url = stack.enter_context(embedded.server())
        common: dict[str, Any] = {"redis": url, "metrics_port": 0}
        scheduler = SchedulerService(settings_of(SchedulerSettings, **common, model=MODEL, policy=POLICY))
        gateway = Gateway(settings_of(GatewaySettings, **common, port=0))
        worker = Worker(settings_of(WorkerSettings, **common, model=MODEL), engine)
        for service in (scheduler, worker, gateway):
            await stack.enter_async_context(running(service))
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)))
        mesh = Watched(gateway, scheduler, worker, session)

        async def ready() -> bool:
            return all([(await mesh.get(f"{mesh.url(kind)}/health/ready"))[0] == 200 for kind in KINDS])

        await until(ready)
        yield mesh
