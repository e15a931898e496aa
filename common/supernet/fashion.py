"""The supernet that ships: an elastic ResNet for Fashion-MNIST, 28 x 28 grey images of ten kinds of clothing."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from common.supernet.actuate import Elastic
from common.supernet.data import FASHION_LABELS, Images, read_fashion, split
from common.supernet.explore import Data
from common.supernet.resnet import Architecture, build
from common.supernet.spec import Space, TensorSpec
from common.supernet.supernet import ModelSpec

NAME = "fashion-resnet"
HELD_OUT = 5_000  # training images that choose subnets and never train
SPLIT_SEED = 7
SAMPLES = 1_000  # test images that ship with the model

PREPROCESSING = (
    "none by the client: rows are the grey values 0..255; the model normalises them by architecture.mean, std"
)

SPEC = ModelSpec(
    name=NAME,
    inputs=(TensorSpec("image", "UINT8", (28, 28)),),
    outputs=(TensorSpec("label", "INT64", ()), TensorSpec("scores", "FP32", (10,))),
    labels=FASHION_LABELS,
)


def fashion_resnet() -> Elastic:
    """The untrained supernet: 32, 64 and 128 channels at 28 x 28, 14 x 14 and 7 x 7; up to 8 blocks."""
    architecture = Architecture(channels=(32, 64, 128), classes=10, image=(28, 28), mean=73.0, std=90.0)
    space = Space(depth=((1, 2), (1, 2, 3), (1, 2, 3)), width=((12, 25, 50, 75, 100),) * 3, expand=((25, 50, 100),) * 3)
    return build(architecture, space)


def data(folder: Path, *, test: bool = True) -> Data:
    """Fashion-MNIST as the searches use it; `test` False leaves the test images out. Raises: DataError."""
    train, tested = read_fashion(folder)
    train, held_out = split(train, HELD_OUT, SPLIT_SEED)
    return Data(train, held_out, tested if test else None)


def samples(test: Images) -> dict[str, Tensor]:
    """The test images that ship with the model, by name."""
    return {"images": test.inputs[:SAMPLES].contiguous(), "labels": test.labels[:SAMPLES].contiguous()}
