"""Where a network can bend: its stages of blocks that may be skipped, and its groups of channels that may be cut.

Source: SuperServe section 3 and appendix A.1: LayerSelect works on the blocks of a stage, WeightSlice on the channels
of a convolution, the heads of an attention or the neurons of a feed-forward layer. A layout names modules by their
place in the plain network, as `named_modules` does. `detect` finds one by the structure; families write theirs by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from common.supernet.spec import Control, Space

Rule = Literal["first", "every_other"]


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks in a row, of which a subnet runs `depth` and skips the others.

    container: name of the nn.Sequential or nn.ModuleList that holds them; blocks: their names in it, in order.
    rule: `first` runs the first ones (OFAResNet); `every_other` spreads those that run evenly (DynaBERT).
    least: the smallest legal depth: a first block that changes the shape cannot be skipped.
    """

    container: str
    blocks: tuple[str, ...]
    rule: Rule = "first"
    least: int = 1

    def active(self, depth: int) -> tuple[str, ...]:
        """Names of the blocks that run at this depth."""
        if self.rule == "first":
            return self.blocks[:depth]
        return tuple(self.blocks[i * len(self.blocks) // depth] for i in range(depth))


@dataclass(frozen=True, slots=True)
class Heads:
    """An attribute of a module that counts heads, or their features, and must follow the slice.

    Such attributes are read in a module's `forward` to shape its tensors. per: features of the group per count: the
    head size where the attribute counts heads, 1 where it counts features.
    """

    module: str
    attribute: str
    per: int


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that are cut together: all tensors that are added to one another share one group.

    size: channels of the whole network; unit: channels that are one thing, a head's; an active number is a multiple of
    unit and divisor.
    outputs, inputs: convolutions and linears whose output or input channels are of it; norms: its BatchNorms.
    of: where not None, the share is not of `size`, but of the active channels of that width group: OFAResNet's
    expansion ratio.
    """

    size: int
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    norms: tuple[str, ...] = ()
    heads: tuple[Heads, ...] = ()
    divisor: int = 1
    unit: int = 1
    of: int | None = None

    def active(self, percent: int, widths: Sequence[int] = ()) -> int:
        """Channels that a share in percent means, given the active channels of the width groups."""
        whole = self.size if self.of is None else widths[self.of]
        return min(self.size, divisible(whole * percent / 100, max(self.divisor, self.unit)))


@dataclass(frozen=True, slots=True)
class Left:
    """A module that stays as it is, and why."""

    module: str
    reason: str


@dataclass(frozen=True, slots=True)
class Layout:
    """One stage per depth, one group per width and one per expand of the control tuple.

    folds: for each BatchNorm that follows a convolution directly, that convolution; the norm can be folded into it and
    may overwrite what it gets. left: what could have been elastic and is not.
    """

    stages: tuple[Stage, ...]
    widths: tuple[Group, ...] = ()
    expands: tuple[Group, ...] = ()
    folds: tuple[tuple[str, str], ...] = ()
    left: tuple[Left, ...] = ()

    @property
    def groups(self) -> tuple[Group, ...]:
        """Width groups, then expand groups."""
        return self.widths + self.expands

    def active(self, control: Control) -> list[int]:
        """Active channels of each of `groups` in a subnet."""
        widths = [group.active(percent) for group, percent in zip(self.widths, control.width, strict=True)]
        expands = zip(self.expands, control.expand, strict=True)
        return widths + [group.active(percent, widths) for group, percent in expands]


def default_space(layout: Layout, percents: Sequence[int] = (25, 50, 75, 100)) -> Space:
    """Every legal depth of every stage, and those shares of every group that differ in channels."""

    def shares(group: Group) -> tuple[int, ...]:
        return tuple({group.active(p, [g.size for g in layout.widths]): p for p in percents}.values())

    return Space(
        depth=tuple(tuple(range(stage.least, len(stage.blocks) + 1)) for stage in layout.stages),
        width=tuple(map(shares, layout.widths)),
        expand=tuple(map(shares, layout.expands)),
    )


def divisible(channels: float, divisor: int) -> int:
    """The multiple of `divisor` next to `channels`, at least one divisor, at least 90 percent of `channels`.

    Source: the rounding of MobileNets' channel counts, which OFAResNet's follow.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
