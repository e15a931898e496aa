"""The convolutional family: an elastic residual network of basic blocks with ResNet-D shortcuts.

Source: He et al., 2016 (basic block); He et al., 2019 (ResNet-D shortcut: average pooling before a 1x1 convolution);
once-for-all's OFAResNets for what bends: depth per stage, width of each stage, expansion inside blocks. The network is
ordinary; what makes it elastic is the operators that `insert` puts into it by `layout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.supernet.actuate import Elastic, Origin
from common.supernet.insert import insert
from common.supernet.layout import Group, Layout, Stage
from common.supernet.spec import Space, SpecError

FAMILY = "resnet"


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
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W] -> [N, outputs, ceil(H / 2), ceil(W / 2)]."""
        x = functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        out: Tensor = self.norm(self.conv(x))
        return out


class Block(nn.Module):
    """Basic block: 3x3, norm, ReLU, 3x3, norm, plus shortcut, ReLU."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, middle, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.norm2.weight)  # a block starts as its shortcut
        self.shortcut = Shortcut(inputs, outputs) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)  # [N, middle, H / stride, W / stride]
        y = self.norm2(self.conv2(y))  # [N, outputs, H / stride, W / stride]
        y += x if self.shortcut is None else self.shortcut(x)
        return functional.relu(y, inplace=True)


class ResNet(nn.Module):
    """A residual network, in ordinary modules.

    widths, middles, depths: per stage, channels of its stream, channels inside its blocks, and number of blocks.
    """

    def __init__(
        self, architecture: Architecture, widths: Sequence[int], middles: Sequence[int], depths: Sequence[int]
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.ModuleList()
        inputs = widths[0]
        for stage, (outputs, middle, depth) in enumerate(zip(widths, middles, depths, strict=True)):
            blocks = [Block(inputs, middle, outputs, stride=1 if stage == 0 else 2)]
            blocks += [Block(outputs, middle, outputs, stride=1) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
            inputs = outputs
        self.head = nn.Linear(inputs, architecture.classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor) -> Tensor:
        """image: [N, H, W] uint8 -> scores before softmax [N, classes]."""
        x = (
            image.unsqueeze(1).to(torch.float32).sub_(self.architecture.mean).div_(self.architecture.std)
        )  # [N, 1, H, W]
        x = functional.relu(self.norm(self.stem(x)), inplace=True)  # [N, c0, H, W]
        for stage in self.stages:
            x = stage(x)  # [N, cs, H / 2^s, W / 2^s]
        scores: Tensor = self.head(x.mean((2, 3)))  # [N, classes]
        return scores


def build(architecture: Architecture, space: Space) -> Elastic:
    """The untrained supernet. Raises: SpecError when the space has other stages than the architecture."""
    stages = len(architecture.channels)
    if space.lengths != (stages,) * 3:
        raise SpecError(f"space has {space.lengths} depths, widths, expands; the architecture has {stages} stages")
    channels, depths = architecture.channels, [values[-1] for values in space.depth]
    supernet = insert(ResNet(architecture, channels, channels, depths), layout(architecture, depths), space)
    supernet.origin = Origin(FAMILY, architecture.to_json())
    return supernet


def layout(architecture: Architecture, depths: Sequence[int]) -> Layout:
    """Where it bends: per stage its depth, its channels, and the channels inside its blocks as a share of those."""
    stages, widths, expands, folds = [], [], [], [("norm", "stem")]
    for stage, (size, depth) in enumerate(zip(architecture.channels, depths, strict=True)):
        here = [f"stages.{stage}.{block}" for block in range(depth)]
        shortcuts = [f"{here[0]}.shortcut"] if stage > 0 else []
        after = [f"stages.{stage + 1}.0.conv1", f"stages.{stage + 1}.0.shortcut.conv"]
        stages.append(Stage(f"stages.{stage}", tuple(map(str, range(depth)))))
        widths.append(
            Group(
                size,
                outputs=(*(f"{b}.conv2" for b in here), *([f"{s}.conv" for s in shortcuts] or ["stem"])),
                inputs=(
                    *(f"{b}.conv1" for b in here[stage > 0 :]),
                    *(after if stage + 1 < len(depths) else ["head"]),
                ),
                norms=(*(f"{b}.norm2" for b in here), *([f"{s}.norm" for s in shortcuts] or ["norm"])),
                divisor=architecture.divisor,
            )
        )
        inner = [tuple(f"{b}.{name}" for b in here) for name in ("conv1", "conv2", "norm1")]
        expands.append(Group(size, inner[0], inner[1], inner[2], divisor=architecture.divisor, of=stage))
        folds += [(f"{b}.norm{i}", f"{b}.conv{i}") for b in here for i in (1, 2)]
        folds += [(f"{s}.norm", f"{s}.conv") for s in shortcuts]
    return Layout(tuple(stages), tuple(widths), tuple(expands), tuple(folds))


def from_json(architecture: Mapping[str, Any], space: Space) -> Elastic:
    """The untrained supernet of an `Architecture.to_json()` and a space. Raises SpecError naming what is wrong."""
    return build(Architecture.from_json(architecture), space)
