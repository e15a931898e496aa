"""Once-for-all's own networks, from the package `ofa`, with stand-ins for what it imports to load data."""

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

STAND_INS = ("torchvision", "torch._six")


class _Anything(types.ModuleType):
    """A module of which anything can be imported, and which does nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the stand-ins, and only them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if any(fullname == name or fullname.startswith(f"{name}.") for name in STAND_INS):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        del module


def ofa_resnet(classes: int) -> Any:
    """Once-for-all's elastic ResNet50 with random weights, scales, shifts and statistics."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        from ofa.imagenet_classification.elastic_nn.networks import OFAResNets
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision" or n == "torch._six"]:
            del sys.modules[name]
    net = OFAResNets(
        n_classes=classes,
        depth_list=[0, 1, 2],
        expand_ratio_list=[0.2, 0.25, 0.35],
        width_mult_list=[0.65, 0.8, 1.0],
    )
    enliven(net)
    return net.eval()


def enliven(net: nn.Module) -> None:
    """Draw the norms' scales, shifts and statistics, so that every channel counts and differs."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
                assert module.num_batches_tracked is not None
                module.num_batches_tracked.fill_(1)
