"""Fixtures of the worker's suite: the shipped model, loaded once and measured briefly."""

import functools
from pathlib import Path

import pytest

from common.settings import WorkerSettings
from common.supernet import artifact, measure
from services.worker import library, start
from services.worker.engine import TorchEngine

MODEL = "fashion-resnet"
# Real measurements of every subnet, but few: what a test needs of a profile is that it was measured.
brief_profile = functools.partial(measure.profile, batch_sizes=(1, 4), runs=1)


def worker_settings(**values: object) -> WorkerSettings:
    """The settings of a worker whose flags say this."""
    return WorkerSettings(**values)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The folder of the model that ships."""
    return library.find_model(MODEL)


@pytest.fixture(scope="session")
def torch_engine(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    """The engine of the shipped model, built as a worker builds it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(artifact, "profile", brief_profile)
        settings = worker_settings(model=MODEL, device="cpu", cache_dir=str(tmp_path_factory.mktemp("cache")))
        engine = start.build(settings)
    assert isinstance(engine, TorchEngine)
    return engine
