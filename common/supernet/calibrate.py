"""SubnetNorm statistics: the mean and variance that each norm of a subnet sees on training images.

Source: SuperServe section 3 (SubnetNorm: statistics precomputed by forward passes over training data). The supernet
runs without gradients and its norms in training mode, so that every norm normalises by its batch, as it did when the
weights were learned; what enters a norm is added up over all batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from common.supernet.actuate import Elastic, apply
from common.supernet.operators import SubnetNorm
from common.supernet.spec import Control


class Moments:
    """Mean and population variance per channel of all that was added, combined exactly (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())  # sum of squared deviations from the mean

    def add(self, x: Tensor) -> None:
        """x: [N, channels, ...]."""
        others = [dim for dim in range(x.ndim) if dim != 1]
        var, mean = (moment.double() for moment in torch.var_mean(x.detach(), dim=others, correction=0))
        count = x.numel() // x.shape[1]
        total = self.count + count
        apart = mean - self._mean
        self._squares = self._squares + var * count + apart**2 * (self.count * count / total)
        self._mean = self._mean + apart * (count / total)
        self.count = total

    def result(self) -> tuple[Tensor, Tensor]:
        """mean, var: [channels] float32 each."""
        return self._mean.float(), (self._squares / self.count).float()


def calibrate(model: Elastic, control: Control, batches: Iterable[Tensor]) -> None:
    """Set the SubnetNorm statistics of one subnet from batches of training images.

    batches: each as the model takes it. A few thousand images do: 256 come within half a point of accuracy of 4,096.
    A model without norms needs none. The model is back in the mode it was in; an Actuator must `forget` the subnet if
    it had a plan.

    Raises: SpecError when the subnet is not in the space; ValueError when there is no batch.
    """
    if not model.norms():
        return
    moments: dict[str, Moments] = {}

    def watch(name: str, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        moments.setdefault(name, Moments()).add(inputs[0])

    norms, training = model.norms(), model.training
    hooks = [norm.register_forward_pre_hook(partial(watch, name)) for name, norm in norms.items()]
    try:
        model.eval()
        for norm in norms.values():
            norm.train()
        with torch.no_grad():
            apply(model, control)
            for batch in batches:
                model(batch)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if not moments:
        raise ValueError(f"no images to calibrate subnet {control.id} with")
    for name, seen in moments.items():
        norms[name].statistics[control.id] = seen.result()


def statistics_bytes(norms: Iterable[SubnetNorm], subnet_id: str) -> int:
    """Bytes of one subnet's statistics."""
    kept = (norm.statistics.get(subnet_id, ()) for norm in norms)
    return sum(tensor.numel() * tensor.element_size() for pair in kept for tensor in pair)
