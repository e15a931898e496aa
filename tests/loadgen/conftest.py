"""Fixtures of the load generator's suite."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from loadgen.replay import ReplayOptions
from tests.loadgen.oip_server import OipServer

MakeOptions = Callable[..., ReplayOptions]


@pytest.fixture
async def server() -> AsyncIterator[OipServer]:
    async with OipServer().running() as server:
        yield server


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Ten images of 2 x 2, labelled 0 to 9."""
    path = tmp_path / "samples.npz"
    labels = np.arange(10)
    np.savez(path, images=np.repeat(labels.astype(np.uint8), 4).reshape(10, 2, 2), labels=labels)
    return path


@pytest.fixture
def options(server: OipServer, samples: Path) -> MakeOptions:
    """Options of a short run against `server`: 100 queries in 0.1 s unless a test says otherwise."""

    def make(**changes: object) -> ReplayOptions:
        values: dict[str, object] = {
            "url": server.url,
            "model": "digits",
            "trace": "constant",
            "rate": 1000.0,
            "duration_s": 0.1,
            "slo_ms": 2000.0,
            "data": samples,
        }
        return ReplayOptions(**(values | changes))  # type: ignore[arg-type]  # a test's own values

    return make
