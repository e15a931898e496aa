"""The supernet of once-for-all: OFAResNet50, whose published weights the paper serves.

Source: Once-for-All (Cai et al., 2020) and its ResNet search space: bottleneck blocks with ResNet-D shortcuts, a stem
of three convolutions whose middle one can be skipped; depth {0, 1, 2} added per stage, width {0.65, 0.8, 1}, expansion
{0.2, 0.25, 0.35} of a block's output. The network here is its largest subnet in ordinary modules, 48.1 M weights.

A control tuple is depth (5: does the stem's middle convolution run, then blocks per stage), width in percent (6: stem's
middle, stem's end, four stages) and expand in percent (18: each block); `from_ofa` translates once-for-all's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.supernet.actuate import Elastic, Origin
from common.supernet.data import DataError
from common.supernet.insert import insert
from common.supernet.layout import Group, Layout, Stage, divisible
from common.supernet.spec import Control, Space, SpecError, TensorSpec
from common.supernet.supernet import ModelSpec

FAMILY = "ofa-resnet50"
BASE, ADDED = (2, 2, 4, 2), (0, 1, 2)  # blocks per stage, and those that may be added
CHANNELS = (256, 512, 1024, 2048)
STEM = (32, 64)
WIDTHS, EXPANDS = (65, 80, 100), (20, 25, 35)  # percent
DIVISOR = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for pixels in 0..1


@dataclass(frozen=True, slots=True)
class Architecture:
    """What varies between networks of this family: number of classes, and side of the images in pixels."""

    classes: int
    image: int

    def to_json(self) -> dict[str, Any]:
        """As plain JSON; `from_json` reads it back."""
        return {"classes": self.classes, "image": self.image}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Architecture:
        """Read `to_json` back. Raises SpecError naming a missing or malformed key."""
        for key in ("classes", "image"):
            if type(data.get(key)) is not int or data[key] < 1:
                raise SpecError(f"architecture.{key} must be a positive integer, got {data.get(key)!r}")
        return cls(data["classes"], data["image"])


class ConvNorm(nn.Module):
    """Convolution and norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        out: Tensor = self.norm(self.conv(x))
        return out


class StemBlock(ConvNorm):
    """The stem's middle: a convolution that adds to what it gets."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, H, W] -> the same shape."""
        return x + functional.relu(super().forward(x))


class Shortcut(ConvNorm):
    """ResNet-D shortcut: average pooling where the block halves the image, 1x1 convolution, norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, kernel=1)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W] -> [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        return super().forward(functional.avg_pool2d(x, self.stride, self.stride, ceil_mode=True))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, plus shortcut."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, middle, kernel=1)
        self.conv2 = ConvNorm(middle, middle, kernel=3, stride=stride)
        self.conv3 = ConvNorm(middle, outputs, kernel=1)
        self.shortcut = Shortcut(inputs, outputs, stride) if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        y = functional.relu(self.conv1(x), inplace=True)
        y = functional.relu(self.conv2(y), inplace=True)  # [N, middle, H / stride, W / stride]
        y = self.conv3(y)
        y += x if self.shortcut is None else self.shortcut(x)
        return functional.relu(y, inplace=True)


class OfaResNet50(nn.Module):
    """The largest network of the family, in ordinary modules."""

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        middle, inputs = STEM
        self.stem1 = ConvNorm(3, middle, kernel=3, stride=2)
        self.stem2 = nn.Sequential(StemBlock(middle, middle, kernel=3))
        self.stem3 = ConvNorm(middle, inputs, kernel=3)
        self.stages = nn.ModuleList()
        for stage, (outputs, base) in enumerate(zip(CHANNELS, BASE, strict=True)):
            blocks = []
            for block in range(base + ADDED[-1]):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(Bottleneck(inputs, middle_of(outputs, EXPANDS[-1]), outputs, stride))
                inputs = outputs
            self.stages.append(nn.Sequential(*blocks))
        self.classifier = nn.Linear(inputs, architecture.classes)
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """image: [N, H, W, 3] uint8, red, green, blue -> scores before softmax [N, classes]."""
        return self.scores((image.permute(0, 3, 1, 2) - self.mean) / self.std)

    def scores(self, x: Tensor) -> Tensor:
        """x: [N, 3, H, W] normalised -> scores before softmax [N, classes]."""
        x = functional.relu(self.stem1(x), inplace=True)
        x = self.stem2(x)
        x = functional.relu(self.stem3(x), inplace=True)
        x = functional.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            x = stage(x)
        out: Tensor = self.classifier(x.mean((2, 3)))
        return out


def middle_of(outputs: int, percent: int) -> int:
    """Channels inside a block with that many outputs: once-for-all's rounding."""
    return divisible(round(outputs * percent / 100), DIVISOR)


def layout() -> Layout:
    """Where it bends."""
    blocks = [[f"stages.{s}.{b}" for b in range(base + ADDED[-1])] for s, base in enumerate(BASE)]
    stages = [Stage("stem2", ("0",), least=0)]
    widths = [
        Group(STEM[0], ("stem1.conv", "stem2.0.conv"), ("stem2.0.conv", "stem3.conv"), ("stem1.norm", "stem2.0.norm")),
        Group(STEM[1], ("stem3.conv",), ("stages.0.0.conv1.conv", "stages.0.0.shortcut.conv"), ("stem3.norm",)),
    ]
    expands = []
    for index, (here, size) in enumerate(zip(blocks, CHANNELS, strict=True)):
        first = f"{here[0]}.shortcut"
        after = [f"stages.{index + 1}.0.conv1.conv", f"stages.{index + 1}.0.shortcut.conv"]
        outputs = (first, *(f"{block}.conv3" for block in here))
        readers = (*(f"{block}.conv1.conv" for block in here[1:]), *(after if index < 3 else ["classifier"]))
        stages.append(Stage(f"stages.{index}", tuple(map(str, range(len(here)))), least=BASE[index]))
        widths.append(Group(size, _of(outputs, "conv"), readers, _of(outputs, "norm")))
        for block in here:
            inner = (f"{block}.conv1", f"{block}.conv2")
            group = (_of(inner, "conv"), (f"{block}.conv2.conv", f"{block}.conv3.conv"), _of(inner, "norm"))
            full = middle_of(size, EXPANDS[-1])
            expands.append(Group(full, *group, divisor=DIVISOR, of=index + 2))
    widths = [_divided(group) for group in widths]
    pairs = [name for group in (*widths, *expands) for name in group.outputs]
    folds = tuple((name.removesuffix("conv") + "norm", name) for name in pairs)
    return Layout(tuple(stages), tuple(widths), tuple(expands), folds)


def space() -> Space:
    """The published search space."""
    depth = ((0, 1), *(tuple(base + added for added in ADDED) for base in BASE))
    return Space(depth=depth, width=(WIDTHS,) * 6, expand=(EXPANDS,) * sum(base + ADDED[-1] for base in BASE))


def model_spec(name: str, classes: int, side: int, labels: Sequence[str]) -> ModelSpec:
    """What a model of this family takes and gives."""
    outputs = (TensorSpec("label", "INT64", ()), TensorSpec("scores", "FP32", (classes,)))
    return ModelSpec(name, (TensorSpec("image", "UINT8", (side, side, 3)),), outputs, tuple(labels))


def build(architecture: Architecture, of: Space | None = None) -> Elastic:
    """The untrained supernet. Raises: SpecError when the space is of another shape."""
    legal = of or space()
    if legal.lengths != space().lengths:
        raise SpecError(f"space has {legal.lengths} depths, widths, expands; this family {space().lengths}")
    supernet = insert(OfaResNet50(architecture), layout(), legal)
    supernet.origin = Origin(FAMILY, architecture.to_json())
    return supernet


def from_json(architecture: Mapping[str, Any], of: Space) -> Elastic:
    """The untrained supernet of an `Architecture.to_json()` and a space. Raises SpecError naming what is wrong."""
    return build(Architecture.from_json(architecture), of)


def from_ofa(d: Sequence[int], e: Sequence[float], w: Sequence[int]) -> Control:
    """The control tuple of once-for-all's `set_active_subnet(d, e, w)`.

    d: 5 values of {0, 1, 2}: the stem's middle runs at 2, and blocks are added per stage; e: 18 expansion ratios; w: 6
    indices into the widths: stem's middle, stem's end, four stages.
    """
    depth = (int(d[0] == ADDED[-1]), *(base + added for base, added in zip(BASE, d[1:], strict=True)))
    return Control(depth, tuple(WIDTHS[index] for index in w), tuple(round(100 * ratio) for ratio in e))


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Weights and statistics of a published checkpoint, under our names.

    Nothing in it is unpickled into objects. Raises: DataError naming the file and the first key that is wrong.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except Exception as error:  # torch documents no type for a damaged or foreign file
        raise DataError(f"{path} is no checkpoint of tensors: {error}") from error
    state = data.get("state_dict", data) if isinstance(data, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise DataError(f"{path} holds no state_dict of tensors")
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = _our_name(str(key))
        if name is None:
            raise DataError(f"{path}: {key} is no tensor of an OFAResNet50")
        if not name.endswith("num_batches_tracked"):
            found[name] = tensor
    return found


def load(supernet: Elastic, path: Path) -> None:
    """Fill a supernet with a published checkpoint; its running statistics become those of the whole network.

    Raises: DataError naming the file, and the first tensor that is missing, unknown or of another shape.
    """
    found = read_checkpoint(path)
    largest = supernet.space.largest.id
    norms = supernet.norms()
    wanted = {name: parameter.shape for name, parameter in supernet.net.named_parameters()}
    for name, norm in norms.items():
        wanted |= {f"{name}.running_{moment}": norm.weight.shape for moment in ("mean", "var")}
    for name in sorted(found.keys() ^ wanted.keys()):
        raise DataError(f"{path}: {name} is {'missing' if name in wanted else 'unknown'}")
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise DataError(f"{path}: {name} has shape {list(found[name].shape)}, expected {list(shape)}")
    with torch.no_grad():
        for name, parameter in supernet.net.named_parameters():
            parameter.copy_(found[name])
    for name, norm in norms.items():
        norm.statistics[largest] = (found[f"{name}.running_mean"].float(), found[f"{name}.running_var"].float())


def _our_name(key: str) -> str | None:
    """Our name of a tensor of a published checkpoint; layers are wrapped once or twice there, by version."""
    *path, kind = key.removeprefix("module.").split(".")
    match path:
        case ["input_stem", "1", "conv", *inner]:
            place = "stem2.0"
        case ["input_stem", ("0" | "2") as index, *inner]:
            place = f"stem{int(index) + 1}"
        case ["blocks", index, ("conv1" | "conv2" | "conv3" | "downsample") as layer, *inner] if index.isdigit():
            if int(index) >= len(_blocks()):
                return None
            place = f"{_blocks()[int(index)]}.{'shortcut' if layer == 'downsample' else layer}"
        case ["classifier", "linear"] | ["classifier", "linear", "linear"]:
            return f"classifier.{kind}"
        case _:
            return None
    part = {"conv": "conv", "bn": "norm"}.get("".join(dict.fromkeys(inner)))
    return None if part is None else f"{place}.{part}.{kind}"


def _blocks() -> list[str]:
    """Our names of once-for-all's blocks, which it counts through all stages."""
    return [f"stages.{stage}.{block}" for stage, base in enumerate(BASE) for block in range(base + ADDED[-1])]


def _of(modules: Sequence[str], part: str) -> tuple[str, ...]:
    return tuple(f"{module}.{part}" for module in modules)


def _divided(group: Group) -> Group:
    return Group(group.size, group.outputs, group.inputs, group.norms, divisor=DIVISOR)
