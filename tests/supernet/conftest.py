"""Fixtures of the supernet tests: a small supernet with random weights, and the one that ships."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import services.worker
from common.supernet import artifact
from common.supernet.actuate import Elastic
from common.supernet.calibrate import calibrate
from common.supernet.data import Images
from common.supernet.resnet import Architecture
from common.supernet.resnet import build as build_resnet
from common.supernet.spec import Control, Space
from common.supernet.supernet import Supernet

Build = Callable[..., Elastic]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def space() -> Space:
    return Space(
        depth=((1, 2), (1, 2, 3), (1, 2)),
        width=((25, 50, 100),) * 3,
        expand=((25, 50, 100), (50, 100), (25, 100)),
    )


@pytest.fixture(scope="session")
def build(space: Space) -> Build:
    """Build a small supernet with random weights, each of `controls` with random statistics: `build(control, ...)`."""

    def factory(*controls: Control, seed: int = 0) -> Elastic:
        torch.manual_seed(seed)
        architecture = Architecture((8, 16, 24), classes=5, image=(14, 14), mean=100.0, std=70.0)
        model = build_resnet(architecture, space).channels_last()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("weight") and parameter.ndim == 1:
                    parameter.uniform_(0.5, 1.5)
                if name.endswith("bias"):
                    parameter.uniform_(-0.5, 0.5)
        for control in controls:
            calibrate(model, control, [pictures(8, seed).inputs])
            for norm in model.norms().values():
                if control.id in norm.statistics:
                    mean, var = norm.statistics[control.id]
                    norm.statistics[control.id] = (
                        mean + torch.randn_like(mean) / 10,
                        var * (0.5 + torch.rand_like(var)),
                    )
        return model

    return factory


def pictures(count: int, seed: int = 0, side: int = 14) -> Images:
    """Noise whose brightness tells the label, moved, mirrored or not: easy to learn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=generator)
    noise = torch.randint(0, 50, (count, side, side), generator=generator)
    return Images((noise + 50 * labels.view(-1, 1, 1)).to(torch.uint8), labels)


@pytest.fixture(scope="session")
def shipped_folder() -> Path:
    return Path(services.worker.__file__).parent / "models" / "fashion-resnet"


@pytest.fixture(scope="session")
def shipped(shipped_folder: Path) -> Supernet:
    return artifact.load(shipped_folder)
