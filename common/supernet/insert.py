"""Operator insertion: a trained network becomes a supernet, in place, without retraining or a copy of a weight.

Source: SuperServe appendix A.1, Algorithm 1: every container of a stage's blocks becomes a LayerSelect, every layer
whose channels can be cut a WeightSlice over its own parameters, every BatchNorm a SubnetNorm.

    supernet = insert(model, example=torch.randn(2, 3, 224, 224))
    Actuator(supernet).actuate(supernet.space.largest.id)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeGuard

import torch
from torch import Tensor, nn

from common.supernet.actuate import Elastic, apply
from common.supernet.layout import Group, Layout, default_space
from common.supernet.operators import LayerSelect, SubnetNorm, WeightSliceConv2d, WeightSliceLinear
from common.supernet.spec import Control, Space, SpecError

Example = Tensor | Mapping[str, Tensor]


class InsertError(SpecError):
    """A network cannot be made elastic, or a layout does not fit it; the message names the module and the reason."""


class NotRunnableError(InsertError):
    """Operators are in, but a subnet does not run, or the whole network no longer does what it did."""


def insert(
    model: nn.Module,
    layout: Layout | None = None,
    space: Space | None = None,
    example: Example | None = None,
) -> Elastic:
    """Make a supernet of a trained network, the maximal one, by putting operators into it.

    model: is changed in place; its parameters stay the same objects, and its BatchNorms' running statistics become
    those of the whole network. layout: where it bends; None finds that by the structure (`detect.detect`), for which
    `example` is an input, as a tensor or as keyword arguments, of at least two rows. space: the legal controls; None
    takes every depth, and 25, 50, 75 and 100 percent of each group. With an example the supernet is tried: the smallest
    subnet must run, and the whole network do what it did.

    Returns the supernet, with the whole network actuated; its `layout.left` lists what could not be made elastic, and
    why. Raises: InsertError when the layout does not fit, or when nothing is elastic; the model is then as it was.
    """
    if layout is not None:
        return _insert(model, layout, space, example)
    from common.supernet.detect import detect, without_heads  # imports torch.export, which takes a second

    if example is None:
        raise InsertError("insert needs a layout, or an example of the model's input to find one")
    layout = detect(model, example)
    try:
        return _insert(model, layout, space, example)
    except NotRunnableError as error:
        if not any(group.unit > 1 for group in layout.groups):
            raise
        return _insert(model, without_heads(layout, str(error)), space, example)


def _insert(model: nn.Module, layout: Layout, space: Space | None, example: Example | None) -> Elastic:
    if not layout.stages and not layout.groups:
        raise InsertError("a layout without stages and groups bends nowhere")
    modules = dict(model.named_modules())
    _check(layout, modules)
    training = model.training
    before = None if example is None else _run(model.eval(), example)
    model.train(training)
    replaced = list(_replacements(layout, modules))
    for name, operator in replaced:
        _put(model, name, operator)
    supernet = Elastic(model, layout, space or default_space(layout))
    _keep_running_statistics(supernet, modules)
    try:
        if example is not None:
            _try(supernet, supernet.space.smallest, example)
        _try(supernet, supernet.space.largest, example, before)
    except NotRunnableError:
        for name, _ in reversed(replaced):
            _put(model, name, modules[name])
        for heads in (heads for group in layout.groups for heads in group.heads):
            size = next(group.size for group in layout.groups if heads in group.heads)
            setattr(modules[heads.module], heads.attribute, size // heads.per)
        raise
    return supernet


def _replacements(layout: Layout, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The operators, under the names of the modules whose place they take; containers before what they contain."""
    for container in dict.fromkeys(stage.container for stage in layout.stages):
        plain = modules[container]
        assert isinstance(plain, nn.Sequential | nn.ModuleList)
        yield container, LayerSelect(plain)
    for name in _layers(layout):
        layer = modules[name]
        assert sliceable(layer)
        yield name, WeightSliceConv2d(layer) if isinstance(layer, nn.Conv2d) else WeightSliceLinear(layer)
    fresh = dict(layout.folds)
    for name, module in modules.items():
        if is_norm(module):
            yield name, SubnetNorm(module, overwrite=name in fresh)


def _try(supernet: Elastic, control: Control, example: Example | None, before: Tensor | None = None) -> None:
    """Actuate a subnet and run it on the example; the output must equal `before` if it has the statistics for that."""
    training = supernet.training
    calibrated = all(control.id in norm.statistics for norm in supernet.norms().values())
    supernet.eval()
    for norm in supernet.norms().values():
        norm.train(not calibrated)
    apply(supernet, control)
    try:
        out = None if example is None else _run(supernet, example)
    except Exception as error:  # whatever a network's forward raises when its parts are of another size
        raise NotRunnableError(f"subnet {control.id} does not run: {type(error).__name__}: {error}") from error
    finally:
        supernet.train(training)
    if calibrated and before is not None and out is not None and not torch.allclose(before, out, rtol=1e-3, atol=1e-4):
        raise NotRunnableError(f"with operators, the network's output is off by {(before - out).abs().max():.2g}")


def _run(model: nn.Module, example: Example) -> Tensor:
    """The first tensor that a network answers the example with, in the mode that it is in: training or not."""
    with torch.no_grad():
        out = model(example) if isinstance(example, Tensor) else model(**example)
    while not isinstance(out, Tensor):
        out = next(iter(out.values() if isinstance(out, Mapping) else out))
    return out


def is_norm(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether a SubnetNorm can stand for a module: a BatchNorm over images with scale, shift and statistics."""
    return isinstance(module, nn.BatchNorm2d) and module.affine and module.running_mean is not None


def sliceable(module: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear]:
    """Whether the channels of a module can be cut: a linear layer, or a zero-padded convolution in one group."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear)


def _layers(layout: Layout) -> list[str]:
    """Convolutions and linears to replace: those of the groups, and those that norms are folded into."""
    names = [name for group in layout.groups for name in (*group.outputs, *group.inputs)]
    return list(dict.fromkeys([*names, *(layer for _, layer in layout.folds)]))


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


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
    extents: list[tuple[str, int]] = []
    for name in (*group.outputs, *group.inputs):
        layer = modules[name]
        assert sliceable(layer)
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
