"""The three operators of SubNetAct: LayerSelect, WeightSlice and SubnetNorm.

Source: SuperServe section 3 and appendix A.1. An operator holds the one shared set of weights and a single mutable
attribute, `active`: what the current subnet uses of them. To actuate a subnet is to assign `active` on each operator.
Every value of `active` is a view or a reference, but for SubnetNorm's scale and shift, two numbers per channel that
combine weights and statistics: no convolution or linear weight is ever copied.

While a model trains, actuation is repeated at each step, so that the views are part of the autograd graph and
gradients reach the shared weights. For inference they are made once (`actuate.Actuator`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class MissingStatisticsError(RuntimeError):
    """A subnet without calibrated SubnetNorm statistics was asked to run in inference."""


class Setting(NamedTuple):
    """One assignment of an actuation: `operator.active = value`."""

    operator: Operator
    value: Any


def assign(settings: Iterable[Setting]) -> None:
    """Actuate: make each assignment, past nn.Module's bookkeeping of attributes, which costs several times as much."""
    put = object.__setattr__
    for operator, value in settings:
        put(operator, "active", value)


class Operator(nn.Module):
    """An nn.Module whose work depends on the actuated subnet through `active` alone."""

    active: Any = None


class LayerSelect(Operator):
    """A stage that runs its first `depth` blocks and skips the others."""

    active: tuple[nn.Module, ...]

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        for index, block in enumerate(blocks):
            self.add_module(str(index), block)  # the names an nn.Sequential of these blocks would have
        self.blocks = tuple(blocks)
        self.active = self.blocks

    def setting(self, depth: int) -> Setting:
        """Run the first `depth` blocks."""
        return Setting(self, self.blocks[:depth])

    def forward(self, x: Tensor) -> Tensor:
        """Run the active blocks, one after the other."""
        for block in self.active:
            x = block(x)
        return x


class WeightSliceConv2d(Operator):
    """A convolution without bias that uses the first output and input channels of one shared weight."""

    active: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.stride, self.padding = stride, kernel // 2
        self.active = self.weight.detach()

    def setting(self, inputs: int, outputs: int) -> Setting:
        """Use the first `outputs` filters over the first `inputs` channels."""
        return Setting(self, self.weight[:outputs, :inputs])

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        return functional.conv2d(x, self.active, stride=self.stride, padding=self.padding)


class WeightSliceLinear(Operator):
    """A linear layer that uses the first input features of one shared weight; its outputs are fixed."""

    active: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.normal_(self.weight, std=0.01)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.active = self.weight.detach()

    def setting(self, inputs: int) -> Setting:
        """Use the first `inputs` features."""
        return Setting(self, self.weight[:, :inputs])

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs] -> [N, outputs]."""
        return functional.linear(x, self.active, self.bias)


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

    active: BatchStatistics | RunningStatistics
    eps = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.statistics: dict[str, tuple[Tensor, Tensor]] = {}  # subnet id -> mean, var; [active channels] each
        self.active = BatchStatistics(self.weight.detach(), self.bias.detach())

    def setting(self, subnet_id: str, channels: int) -> Setting:
        """Normalise the first `channels` channels: in training by the batch, in inference by the subnet's statistics.

        Raises: MissingStatisticsError in inference, when the subnet was not calibrated for just that many channels.
        """
        weight, bias = self.weight[:channels], self.bias[:channels]
        if self.training:
            return Setting(self, BatchStatistics(weight, bias))
        if subnet_id not in self.statistics or len(self.statistics[subnet_id][0]) != channels:
            raise MissingStatisticsError(
                f"subnet {subnet_id} has no SubnetNorm statistics for {channels} channels: calibrate it first"
            )
        mean, var = self.statistics[subnet_id]
        scale = weight * torch.rsqrt(var + self.eps)
        shift = bias - mean * scale
        return Setting(self, RunningStatistics(scale.view(-1, 1, 1), shift.view(-1, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, channels, H, W] -> the same shape, normalised, scaled and shifted per channel.

        In inference x itself is overwritten: it is the fresh output of a convolution that nothing else reads, and
        a copy would cost more than the arithmetic.
        """
        if isinstance(self.active, RunningStatistics):
            return torch.addcmul(self.active.shift, x, self.active.scale, out=x)
        weight, bias = self.active
        return functional.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)
