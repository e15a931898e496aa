"""The order of channels: the most important heads and neurons first, so that a slice keeps the ones that matter.

Source: DynaBERT (Hou et al., 2020), which rewires a network by importance before its widths are trained; importance of
a head or neuron as the first-order change of the loss without it, |sum of output x gradient| (Molchanov et al., 2017;
Michel et al., 2019). Reordering the outputs of one layer and the inputs of the next alike leaves the function as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from common.supernet.actuate import Elastic, apply
from common.supernet.layout import Group
from common.supernet.operators import WeightSlice


def order_by_importance(model: Elastic, batches: Iterable[Any], loss: Callable[[Elastic, Any], Tensor]) -> None:
    """Reorder the channels of each group, in place, by falling importance in the whole network.

    batches: a few hundred rows of training data; loss: (model, batch) -> the scalar whose change counts. BatchNorms of
    a group are reordered with it, and the whole network's statistics; those of other subnets are dropped. Heads move
    whole. The whole network's output stays the same up to the order of additions. The model is left in inference mode.
    """
    model.eval().requires_grad_(True)
    for norm in model.norms().values():
        norm.train()
    apply(model, model.space.largest)
    groups = [group for group in model.layout.groups if group.inputs and group.outputs]
    scores = _importance(model, groups, batches, loss)
    with torch.no_grad():
        for group, of_channels in zip(groups, scores, strict=True):
            _reorder(model, group, _order(group, of_channels))
    model.eval()


def _importance(
    model: Elastic, groups: list[Group], batches: Iterable[Any], loss: Callable[[Elastic, Any], Tensor]
) -> list[Tensor]:
    """Per group, the importance of each channel: read where the first reader of the group takes it in."""
    scores = [torch.zeros(group.size) for group in groups]
    taken: dict[int, Tensor] = {}

    def keep(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            inputs[0].retain_grad()
            taken[index] = inputs[0]

        return hook

    readers = [model.net.get_submodule(group.inputs[0]) for group in groups]
    hooks = [reader.register_forward_pre_hook(keep(index)) for index, reader in enumerate(readers)]
    try:
        with torch.enable_grad():
            for batch in batches:
                loss(model, batch).backward()  # type: ignore[no-untyped-call]
                for index, x in taken.items():
                    assert x.grad is not None
                    change = (x * x.grad).detach()
                    dim = 1 if change.ndim == 4 else change.ndim - 1
                    rows = change.movedim(dim, -1).flatten(1, -2).sum(1) if change.ndim > 2 else change
                    scores[index] += rows.abs().sum(0)
                taken.clear()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad()
    return scores


def _order(group: Group, scores: Tensor) -> Tensor:
    """Channels of a group by falling importance; heads stay whole, and their channels in order."""
    ranks = scores.view(-1, group.unit).sum(1).argsort(descending=True, stable=True)
    return (ranks.unsqueeze(1) * group.unit + torch.arange(group.unit)).flatten()


def _reorder(model: Elastic, group: Group, order: Tensor) -> None:
    for name in group.outputs:
        layer = model.net.get_submodule(name)
        assert isinstance(layer, WeightSlice)
        layer.weight.copy_(layer.weight[order])
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[order])
    for name in group.inputs:
        layer = model.net.get_submodule(name)
        assert isinstance(layer, WeightSlice)
        layer.weight.copy_(layer.weight[:, order])
    for name in group.norms:
        norm = model.norms()[name]
        norm.weight.copy_(norm.weight[order])
        norm.bias.copy_(norm.bias[order])
        whole = norm.statistics.get(model.space.largest.id)
        norm.statistics = {} if whole is None else {model.space.largest.id: (whole[0][order], whole[1][order])}
