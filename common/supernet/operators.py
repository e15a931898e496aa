"""The three operators of SubNetAct: LayerSelect, WeightSlice and SubnetNorm.

Source: SuperServe section 3 and appendix A.1. An operator takes the place of an ordinary module and holds its very
parameters; a mutable attribute, `active`, says what the current subnet uses of them. To actuate a subnet is to assign
`active` on each operator. A value of `active` is a view or a reference, but for SubnetNorm's scale and shift, two
numbers per channel that combine weights and statistics, and for weights that a plan has folded or cast (`actuate`).

While a model trains, actuation is repeated at each step, so that the views are part of the autograd graph and
gradients reach the shared weights. For inference they are made once (`actuate.Actuator`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class MissingStatisticsError(RuntimeError):
    """A subnet without calibrated SubnetNorm statistics was asked to run in inference."""


class Setting(NamedTuple):
    """One assignment of an actuation: `module.attribute = value`."""

    module: nn.Module
    attribute: str
    value: Any


def assign(settings: Iterable[Setting]) -> None:
    """Actuate: make each assignment, past nn.Module's bookkeeping of attributes, which costs several times as much."""
    put = object.__setattr__
    for module, attribute, value in settings:
        put(module, attribute, value)


class Operator(nn.Module):
    """An nn.Module whose work depends on the actuated subnet through `active` alone."""

    active: Any = None


class LayerSelect(Operator):
    """An nn.Sequential or nn.ModuleList that runs some of its modules and skips the others, under the same names.

    Called, it runs the active ones in a row; iterated or indexed, as owners of a ModuleList do, it shows only them.
    """

    active: tuple[nn.Module, ...]

    def __init__(self, container: nn.Sequential | nn.ModuleList) -> None:
        super().__init__()
        for name, block in container.named_children():
            self.add_module(name, block)
        self.kind = type(container)
        self.training = container.training
        self.active = tuple(self.children())

    def setting(self, skipped: frozenset[str]) -> Setting:
        """Run all modules but those of these names."""
        return Setting(self, "active", tuple(m for name, m in self.named_children() if name not in skipped))

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.active)

    def __len__(self) -> int:
        return len(self.active)

    def __getitem__(self, index: int) -> nn.Module:
        return self.active[index]

    def forward(self, x: Tensor) -> Tensor:
        """Run the active modules, one after the other."""
        for block in self.active:
            x = block(x)
        return x


class Weights(NamedTuple):
    """What a convolution or linear layer computes with."""

    weight: Tensor
    bias: Tensor | None


class WeightSlice(Operator):
    """A layer that uses the first output and input channels of one shared weight."""

    active: Weights

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.training = layer.training
        self.active = Weights(self.weight, self.bias)

    def cut(self, inputs: int | None, outputs: int | None) -> Weights:
        """Views of the first `outputs` rows over the first `inputs` columns; None stands for all."""
        weight, bias = self.weight, self.bias
        if outputs is not None:
            weight, bias = weight[:outputs], None if bias is None else bias[:outputs]
        return Weights(weight if inputs is None else weight[:, :inputs], bias)


class WeightSliceConv2d(WeightSlice):
    """A convolution in one group, zero-padded."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W] -> [N, outputs, H', W']."""
        weight, bias = self.active
        if x.dtype is not weight.dtype:  # what comes from outside, when the weights are in half precision
            x = x.to(weight.dtype)
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)


class WeightSliceLinear(WeightSlice):
    """A linear layer; of an attention's, a slice of channels is a slice of heads."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., inputs] -> [..., outputs]."""
        return functional.linear(x, *self.active)


class Moments:
    """Mean and population variance per channel over batches, combined exactly (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros((), dtype=torch.float64)
        self._squares = torch.zeros((), dtype=torch.float64)  # sum of squared deviations from the mean

    def add(self, count: int, mean: Tensor, var: Tensor) -> None:
        """Moments of one more batch. count: values per channel; mean, var: [channels]."""
        total, apart = self.count + count, mean.double() - self._mean
        self._squares = self._squares + var.double() * count + apart**2 * (self.count * count / total)
        self._mean = self._mean + apart * (count / total)
        self.count = total

    def result(self) -> tuple[Tensor, Tensor]:
        """mean, var: [channels] float32 each."""
        return self._mean.float(), (self._squares / self.count).float()


class BatchStatistics(NamedTuple):
    """Normalise by the batch, as in training; shared scale and shift, [channels] each."""

    weight: Tensor
    bias: Tensor


class RunningStatistics(NamedTuple):
    """Normalise by a subnet's own statistics, as in inference: x * scale + shift, [channels, 1, 1] each."""

    scale: Tensor
    shift: Tensor


class SubnetNorm(Operator):
    """A BatchNorm with shared scale and shift, and running statistics of its own for each subnet.

    Training normalises by the statistics of the batch and tracks nothing: what one subnet tracks is wrong for the
    others, and accuracy collapses. `calibrate.calibrate` fills `statistics` afterwards, subnet by subnet.
    """

    active: BatchStatistics | RunningStatistics | None  # None: folded into the convolution before, nothing to do

    def __init__(self, norm: nn.BatchNorm2d, overwrite: bool) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.eps, self.training = norm.eps, norm.training
        self.overwrite = overwrite  # x is a fresh tensor that nothing else reads
        self.dtype = norm.weight.dtype  # of x in inference; weight, bias and statistics stay as they are
        self.statistics: dict[str, tuple[Tensor, Tensor]] = {}  # subnet id -> mean, var; [active channels] each
        self.moments: Moments | None = None  # in calibration: of all batches seen
        self.active = BatchStatistics(self.weight, self.bias)

    def setting(self, subnet_id: str, channels: int | None) -> Setting:
        """Normalise the first `channels` channels: in training by the batch, in inference by the subnet's statistics.

        channels: None stands for all.
        Raises: MissingStatisticsError in inference, when the subnet was not calibrated for just that many channels.
        """
        weight, bias = self.weight[:channels], self.bias[:channels]
        if self.training:
            return Setting(self, "active", BatchStatistics(weight, bias))
        if subnet_id not in self.statistics or self.statistics[subnet_id][0].shape != weight.shape:
            raise MissingStatisticsError(
                f"subnet {subnet_id} has no SubnetNorm statistics for {len(weight)} channels: calibrate it first"
            )
        mean, var = self.statistics[subnet_id]
        scale = weight * torch.rsqrt(var + self.eps)
        shift = bias - mean * scale
        scale, shift = (value.view(-1, 1, 1).to(self.dtype) for value in (scale, shift))
        return Setting(self, "active", RunningStatistics(scale, shift))

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, channels, H, W] -> the same shape, normalised, scaled and shifted per channel.

        In inference x itself is overwritten where nothing else reads it: a copy would cost more than the arithmetic.
        """
        active = self.active
        if active is None:
            return x
        if isinstance(active, RunningStatistics):
            if self.overwrite:
                return torch.addcmul(active.shift, x, active.scale, out=x)
            return torch.addcmul(active.shift, x, active.scale)
        if self.moments is None:
            return functional.batch_norm(x, None, None, active.weight, active.bias, training=True, eps=self.eps)
        # The norm has the batch's moments anyhow: to compute them beside it takes several times as long as the norm.
        out, mean, scale = torch.native_batch_norm(x, active.weight, active.bias, None, None, True, 0.0, self.eps)
        self.moments.add(x.numel() // x.shape[1], mean, (scale.double() ** -2 - self.eps).clamp(min=0))
        return out
