"""The elastic ResNet family: a residual network for small images whose depth, width and expansion bend.

Source: ResNet (He et al., 2016) with basic blocks; ResNet-D shortcuts (He et al., 2019): average pooling, then a 1x1
convolution; elastic depth, width and expansion as in OFAResNet (Cai et al., 2020) and SuperServe section 3.

    image [N, H, W] uint8 -> stem 3x3 -> stages of basic blocks, all but the first halve H and W -> pool -> linear head

`StaticResNet` is the same network for one subnet in ordinary torch modules: its parameter names are those of the
supernet, and each of its parameters is the leading slice of the supernet's parameter of that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.supernet.actuate import Elastic
from common.supernet.operators import LayerSelect, Setting, SubnetNorm, WeightSliceConv2d, WeightSliceLinear
from common.supernet.spec import Control, Space, SpecError


@dataclass(frozen=True, slots=True)
class Architecture:
    """What an elastic ResNet is built from, but for the space.

    channels: full width of each stage; classes: outputs of the head; image: height and width of the input;
    mean, std: normalisation of pixels in 0..255, part of the model; divisor: channel counts are multiples of it.
    """

    channels: tuple[int, ...]
    classes: int
    image: tuple[int, int]
    mean: float
    std: float
    divisor: int = 4

    def active(self, channels: int, percent: int) -> int:
        """Channels that a share of `channels` means: rounded to the divisor, at least one divisor."""
        return max(self.divisor, round(channels * percent / 100 / self.divisor) * self.divisor)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON; `from_json` reads it back."""
        return {
            "channels": list(self.channels),
            "classes": self.classes,
            "image": list(self.image),
            "mean": self.mean,
            "std": self.std,
            "divisor": self.divisor,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Architecture:
        """Read `to_json` back. Raises SpecError naming a missing or malformed key."""
        try:
            height, width = data["image"]
            return cls(
                channels=tuple(int(c) for c in data["channels"]),
                classes=int(data["classes"]),
                image=(int(height), int(width)),
                mean=float(data["mean"]),
                std=float(data["std"]),
                divisor=int(data["divisor"]),
            )
        except KeyError as error:
            raise SpecError(f"architecture.{error.args[0]} is missing") from error
        except (TypeError, ValueError) as error:
            raise SpecError(f"architecture is malformed: {error}") from error


class Shortcut(nn.Module):
    """ResNet-D shortcut of a block that halves the image: average pooling, 1x1 convolution, norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = WeightSliceConv2d(inputs, outputs, kernel=1)
        self.norm = SubnetNorm(outputs)

    def settings(self, subnet_id: str, inputs: int, outputs: int) -> Iterator[Setting]:
        """Settings for these numbers of channels."""
        yield self.conv.setting(inputs, outputs)
        yield self.norm.setting(subnet_id, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W] -> [N, outputs, ceil(H / 2), ceil(W / 2)]."""
        x = functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        out: Tensor = self.norm(self.conv(x))
        return out


class Block(nn.Module):
    """Basic block with elastic middle channels: 3x3, norm, ReLU, 3x3, norm, plus shortcut, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = WeightSliceConv2d(inputs, outputs, kernel=3, stride=stride)
        self.norm1 = SubnetNorm(outputs)
        self.conv2 = WeightSliceConv2d(outputs, outputs, kernel=3)
        self.norm2 = SubnetNorm(outputs)
        nn.init.zeros_(self.norm2.weight)  # a block starts as its shortcut
        self.shortcut = Shortcut(inputs, outputs) if stride > 1 else None

    def settings(self, subnet_id: str, inputs: int, middle: int, outputs: int) -> Iterator[Setting]:
        """Settings for these numbers of channels."""
        yield self.conv1.setting(inputs, middle)
        yield self.norm1.setting(subnet_id, middle)
        yield self.conv2.setting(middle, outputs)
        yield self.norm2.setting(subnet_id, outputs)
        if self.shortcut is not None:
            yield from self.shortcut.settings(subnet_id, inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)  # [N, middle, H / stride, W / stride]
        y = self.norm2(self.conv2(y))  # [N, outputs, H / stride, W / stride]
        y = y + (x if self.shortcut is None else self.shortcut(x))
        return functional.relu(y, inplace=True)


class ElasticResNet(Elastic):
    """The supernet: holds the full weights, runs the actuated subnet."""

    family = "resnet"
    architecture: Architecture

    def __init__(self, architecture: Architecture, space: Space) -> None:
        super().__init__()
        if space.stages != len(architecture.channels):
            raise SpecError(f"space has {space.stages} stages, channels has {len(architecture.channels)}")
        self.architecture, self.space = architecture, space
        widths = architecture.channels
        self.stem = WeightSliceConv2d(1, widths[0], kernel=3)
        self.norm = SubnetNorm(widths[0])
        self.stages = nn.ModuleList()
        inputs = widths[0]
        for stage, (outputs, depths) in enumerate(zip(widths, space.depth, strict=True)):
            first = Block(inputs, outputs, stride=1 if stage == 0 else 2)
            rest = [Block(outputs, outputs, stride=1) for _ in range(depths[-1] - 1)]
            self.stages.append(LayerSelect([first, *rest]))
            inputs = outputs
        self.head = WeightSliceLinear(widths[-1], architecture.classes)

    @classmethod
    def from_json(cls, architecture: Mapping[str, Any], space: Space) -> ElasticResNet:
        """See Elastic."""
        return cls(Architecture.from_json(architecture), space)

    def settings(self, control: Control) -> Iterator[Setting]:
        """The settings that actuate a subnet, of the operators that it uses.

        Raises: SpecError when the control is not in the space; MissingStatisticsError, see SubnetNorm.
        """
        self.space.validate(control)
        name, active = control.id, self.architecture.active
        inputs = active(self.architecture.channels[0], control.width[0])
        yield self.stem.setting(1, inputs)
        yield self.norm.setting(name, inputs)
        for stage, layers in enumerate(self.stages):
            assert isinstance(layers, LayerSelect)
            outputs = active(self.architecture.channels[stage], control.width[stage])
            middle = active(outputs, control.expand[stage])
            yield layers.setting(control.depth[stage])
            for block in layers.blocks[: control.depth[stage]]:
                assert isinstance(block, Block)
                yield from block.settings(name, inputs, middle, outputs)
                inputs = outputs
        yield self.head.setting(inputs)

    def static(self, control: Control) -> nn.Module:
        """The same network for one subnet, in ordinary modules and with fresh weights."""
        return StaticResNet(self.architecture, control)

    def forward(self, image: Tensor) -> Tensor:
        """image: [N, H, W] uint8 -> scores before softmax [N, classes]."""
        x = normalise(image, self.architecture)  # [N, 1, H, W]
        x = functional.relu(self.norm(self.stem(x)), inplace=True)  # [N, c0, H, W]
        for stage in self.stages:
            x = stage(x)  # [N, cs, H / 2^s, W / 2^s]
        x = x.mean((2, 3))  # [N, c]
        scores: Tensor = self.head(x)  # [N, classes]
        return scores


def normalise(image: Tensor, architecture: Architecture) -> Tensor:
    """image: [N, H, W] uint8 -> [N, 1, H, W] float32 of about zero mean and unit variance."""
    return image.unsqueeze(1).to(torch.float32).sub_(architecture.mean).div_(architecture.std)


class StaticBlock(nn.Module):
    """A basic block in ordinary modules; attribute names as in `Block`."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, middle, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = StaticShortcut(inputs, outputs) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        out: Tensor = (y + self.shortcut(x)).relu()
        return out


class StaticShortcut(nn.Module):
    """A ResNet-D shortcut in ordinary modules; attribute names as in `Shortcut`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W] -> [N, outputs, ceil(H / 2), ceil(W / 2)]."""
        out: Tensor = self.norm(self.conv(self.pool(x)))
        return out


class StaticResNet(nn.Module):
    """One subnet in ordinary modules, with room for its own weights only: what `actuate.extract` fills."""

    def __init__(self, architecture: Architecture, control: Control) -> None:
        super().__init__()
        self.architecture = architecture
        widths = [architecture.active(c, w) for c, w in zip(architecture.channels, control.width, strict=True)]
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.ModuleList()
        inputs = widths[0]
        for stage, outputs in enumerate(widths):
            middle = architecture.active(outputs, control.expand[stage])
            blocks = [StaticBlock(inputs, middle, outputs, stride=1 if stage == 0 else 2)]
            blocks += [StaticBlock(outputs, middle, outputs, stride=1) for _ in range(control.depth[stage] - 1)]
            self.stages.append(nn.Sequential(*blocks))
            inputs = outputs
        self.head = nn.Linear(inputs, architecture.classes)

    def forward(self, image: Tensor) -> Tensor:
        """image: [N, H, W] uint8 -> scores before softmax [N, classes]."""
        x = self.norm(self.stem(normalise(image, self.architecture))).relu()
        for stage in self.stages:
            x = stage(x)
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores
