"""Operator insertion: a trained network becomes a supernet, in place, without retraining or a copy of a weight.

Source: SuperServe appendix A.1, Algorithm 1: every container of a stage's blocks becomes a LayerSelect, every layer
whose channels can be cut a WeightSlice over its own parameters, every BatchNorm a SubnetNorm.

    supernet = insert(model, example=torch.randn(2, 3, 224, 224))
    Actuator(supernet).actuate(supernet.space.largest.id)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from common.supernet.actuate import Elastic
from common.supernet.layout import Group, Layout, default_space
from common.supernet.operators import LayerSelect, SubnetNorm, WeightSliceConv2d, WeightSliceLinear
from common.supernet.spec import Space, SpecError


class InsertError(SpecError):
    """A network cannot be made elastic, or a layout does not fit it; the message names the module and the reason."""


def insert(
    model: nn.Module,
    layout: Layout | None = None,
    space: Space | None = None,
    example: Tensor | Mapping[str, Tensor] | None = None,
) -> Elastic:
    """Make a supernet of a trained network, the maximal one, by putting operators into it.

    model: is changed in place; its parameters stay the same objects, and its BatchNorms' running statistics become
    those of the whole network. layout: where it bends; None finds that by the structure (`detect.detect`), for which
    `example` is an input, as a tensor or as keyword arguments, of at least two rows. space: the legal controls; None
    takes every depth, and 25, 50, 75 and 100 percent of each group.

    Returns the supernet; its `layout.left` lists what could not be made elastic, and why.
    Raises: InsertError when the layout does not fit, or when nothing is elastic.
    """
    if layout is None:
        from common.supernet.detect import detect  # imports torch.export, which takes a second

        if example is None:
            raise InsertError("insert needs a layout, or an example of the model's input to find one")
        layout = detect(model, example)
    if not layout.stages and not layout.groups:
        raise InsertError("a layout without stages and groups bends nowhere")
    modules = dict(model.named_modules())
    _check(layout, modules)
    for stage in layout.stages:
        container = modules[stage.container]
        if not isinstance(container, LayerSelect):
            assert isinstance(container, nn.Sequential | nn.ModuleList)
            modules[stage.container] = _put(model, stage.container, LayerSelect(container))
    fresh = dict(layout.folds)
    for name in _layers(layout):
        layer = modules[name]
        _put(model, name, WeightSliceConv2d(layer) if isinstance(layer, nn.Conv2d) else WeightSliceLinear(layer))
    for name, module in modules.items():
        if is_norm(module):
            _put(model, name, SubnetNorm(module, overwrite=name in fresh))
    supernet = Elastic(model, layout, space or default_space(layout))
    _keep_running_statistics(supernet, modules)
    return supernet


def is_norm(module: nn.Module) -> bool:
    """Whether a SubnetNorm can stand for a module: a BatchNorm over images with scale, shift and statistics."""
    return isinstance(module, nn.BatchNorm2d) and module.affine and module.running_mean is not None


def sliceable(module: nn.Module) -> bool:
    """Whether the channels of a module can be cut: a linear layer, or a zero-padded convolution in one group."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear)


def _layers(layout: Layout) -> list[str]:
    """Convolutions and linears to replace: those of the groups, and those that norms are folded into."""
    names = [name for group in layout.groups for name in (*group.outputs, *group.inputs)]
    return list(dict.fromkeys([*names, *(layer for _, layer in layout.folds)]))


def _put(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    return module


def _check(layout: Layout, modules: Mapping[str, nn.Module]) -> None:
    """Raise InsertError unless each module that the layout names is there and of the kind and size that it says."""
    for stage in layout.stages:
        container = modules.get(stage.container)
        if not isinstance(container, nn.Sequential | nn.ModuleList):
            raise InsertError(f"stage {stage.container!r} is no nn.Sequential or nn.ModuleList of this model")
        missing = [name for name in stage.blocks if name not in dict(container.named_children())]
        if missing:
            raise InsertError(f"stage {stage.container!r} has no block {missing[0]!r}")
    for name in _layers(layout):
        if not sliceable(modules.get(name, nn.Identity())):
            raise InsertError(f"{name!r} is no linear layer or zero-padded convolution in one group of this model")
    for norm, _ in layout.folds:
        if not is_norm(modules.get(norm, nn.Identity())):
            raise InsertError(f"{norm!r} is no BatchNorm2d with scale, shift and statistics of this model")
    for group in layout.groups:
        _check_group(group, modules)


def _check_group(group: Group, modules: Mapping[str, nn.Module]) -> None:
    extents: list[tuple[str, Any]] = []
    for name in (*group.outputs, *group.inputs):
        layer = modules[name]
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        outputs, inputs = layer.weight.shape[:2]
        extents.append((name, outputs if name in group.outputs else inputs))
    for name in group.norms:
        norm = modules.get(name, nn.Identity())
        if not is_norm(norm):
            raise InsertError(f"{name!r} is no BatchNorm2d with scale, shift and statistics of this model")
        extents.append((name, norm.num_features))
    for name, extent in extents:
        if extent != group.size:
            raise InsertError(f"{name!r} has {extent} channels, its group in the layout {group.size}")
    for heads in group.heads:
        found = getattr(modules.get(heads.module), heads.attribute, None)
        if found != group.size // heads.per:
            raise InsertError(f"{heads.module!r}: {heads.attribute} is {found!r}, expected {group.size // heads.per}")


def _keep_running_statistics(supernet: Elastic, modules: Mapping[str, nn.Module]) -> None:
    """Give the whole network the statistics that it tracked in training, if it was trained and the space has it."""
    largest, layout = supernet.space.largest, supernet.layout
    whole = layout.active(largest) == [group.size for group in layout.groups]
    if whole and largest.depth == tuple(len(stage.blocks) for stage in layout.stages):
        for name, norm in supernet.norms().items():
            plain = modules[name]
            assert isinstance(plain, nn.BatchNorm2d)
            if plain.running_mean is not None and plain.running_var is not None and plain.num_batches_tracked:
                norm.statistics[largest.id] = (plain.running_mean, plain.running_var)
