"""The supernet that ships: an elastic ResNet for Fashion-MNIST, 28 x 28 grey images of ten kinds of clothing."""

from __future__ import annotations

from common.supernet.resnet import Architecture, ElasticResNet
from common.supernet.spec import Space

HELD_OUT = 5_000  # training images that choose subnets and never train
SPLIT_SEED = 7


def fashion_resnet() -> ElasticResNet:
    """The untrained supernet: 32, 64 and 128 channels at 28 x 28, 14 x 14 and 7 x 7; up to 8 blocks."""
    architecture = Architecture(channels=(32, 64, 128), classes=10, image=(28, 28), mean=73.0, std=90.0)
    space = Space(depth=((1, 2), (1, 2, 3), (1, 2, 3)), width=((12, 25, 50, 75, 100),) * 3, expand=((25, 50, 100),) * 3)
    return ElasticResNet(architecture, space)
