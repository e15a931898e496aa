"""Fixtures for every suite: a real Redis, a model folder of one's own, services that run and end with the test."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from common import embedded, log
from common.runtime import Service, Tasks

pytest_plugins = ["tests.lanes"]
# What Hypothesis finds must not depend on how busy the machine is.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

GRACE_S = 15.0
TENSORS = {
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [28, 28]}],
    "outputs": [
        {"name": "label", "datatype": "INT64", "shape": []},
        {"name": "scores", "datatype": "FP32", "shape": [10]},
    ],
    "labels": [f"label-{i}" for i in range(10)],
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """A policy of one's own is held to the contract by ``tests/sched/test_contract.py``."""
    parser.addoption("--policy", action="append", default=[], metavar="SPEC", help="module:Class, for test_contract.py")


@pytest.fixture(scope="session", autouse=True)
def logging() -> None:
    """Log as a service would, so that a failed test shows what its services said."""
    log.configure("tests", "info", json=False)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for the session, so that the profile is measured once, by the first worker."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERSERVE_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real server for the whole session; tests keep apart by the names of their models."""
    with embedded.server() as url:
        yield url


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A model of a name that no other test has; without weights, so only emulated workers can serve it."""
    folder = tmp_path / f"model-{secrets.token_hex(4)}"
    folder.mkdir()
    (folder / "supernet.json").write_text(json.dumps({"name": folder.name, **TENSORS}))
    return folder


@pytest.fixture
def profile_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a profile of two subnets, ``small`` and ``large``, whose batches take as long as the caller says."""

    def write(small_us: int = 1_000, large_us: int = 4_000, batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)) -> Path:
        def subnet(name: str, accuracy: float, latency_us: int) -> dict[str, Any]:
            latencies = [latency_us + latency_us * size // 8 for size in batch_sizes]
            return {"id": name, "accuracy": accuracy, "median_us": latencies, "p95_us": latencies}

        path = tmp_path / f"profile-{secrets.token_hex(4)}.json"
        path.write_text(
            json.dumps(
                {
                    "format": 1,
                    "device": "test",
                    "executor": "emulated",
                    "batch_sizes": list(batch_sizes),
                    "subnets": [subnet("small", 80.0, small_us), subnet("large", 90.0, large_us)],
                }
            )
        )
        return path

    return write


@contextlib.asynccontextmanager
async def run_service(service: Service) -> AsyncIterator[Tasks]:
    """Run a service in this event loop as ``common.runtime.run`` would, and fail if one of its tasks does."""
    tasks = Tasks()
    try:
        await service.startup(tasks)
        yield tasks
        if tasks.failed.done():
            tasks.failed.result()
    finally:
        if tasks.failed.done():
            tasks.failed.exception()
        async with asyncio.timeout(GRACE_S):
            await service.shutdown()
        await tasks.cancel()


@pytest.fixture
def running() -> Callable[[Service], AbstractAsyncContextManager[Tasks]]:
    """``async with running(service):`` runs it in this event loop."""
    return run_service
