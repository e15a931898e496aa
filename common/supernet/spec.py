"""What a subnet is called, and what a supernet takes and gives.

Source: SuperServe section 3. A subnet is its control tuple phi = (D, W): depth per stage and width per block; as in
OFAResNet the width of a block has two parts, the channels of its stage and the expansion inside it.
Widths are whole percents, so that equal controls are equal objects and the id can be read back exactly.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_ID = re.compile(r"d(?P<depth>\d+(?:\.\d+)*)-w(?P<width>\d+(?:\.\d+)*)-e(?P<expand>\d+(?:\.\d+)*)")

_ITEM_SIZES = {"BOOL": 1, "UINT8": 1, "INT32": 4, "INT64": 8, "FP32": 4}


class SpecError(ValueError):
    """A control tuple, subnet id, space or tensor description that is not legal; the message names the culprit."""


@dataclass(frozen=True, slots=True)
class Control:
    """The control tuple phi of one subnet: one entry per stage.

    depth: blocks that run; width: channels in percent of the stage's; expand: middle channels in percent of the
    block's output channels.
    """

    depth: tuple[int, ...]
    width: tuple[int, ...]
    expand: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.depth) == len(self.width) == len(self.expand) > 0:
            raise SpecError(f"control needs one depth, width and expand per stage, got {self}")

    @property
    def id(self) -> str:
        """Canonical compact name: `d1-w25-e25` when equal over the stages, `d2.1.3-w50-e100` where not."""
        return f"d{_join(self.depth)}-w{_join(self.width)}-e{_join(self.expand)}"

    @classmethod
    def parse(cls, subnet_id: str, stages: int) -> Control:
        """Read a subnet id back, for a supernet of that many stages.

        Raises: SpecError when the text is no subnet id, or no canonical one for this number of stages.
        """
        match = _ID.fullmatch(subnet_id)
        if match is None:
            raise SpecError(f"no subnet id: {subnet_id!r}; one looks like d1-w25-e25 or d2.1.3-w50-e100")
        control = cls(*(_split(match[part], stages, subnet_id) for part in ("depth", "width", "expand")))
        if control.id != subnet_id:
            raise SpecError(f"subnet id {subnet_id!r} is not canonical: write {control.id!r}")
        return control


@dataclass(frozen=True, slots=True)
class Space:
    """The legal values of each entry of the control tuple, ascending, per stage."""

    depth: tuple[tuple[int, ...], ...]
    width: tuple[tuple[int, ...], ...]
    expand: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not len(self.depth) == len(self.width) == len(self.expand) > 0:
            raise SpecError(f"space needs depths, widths and expands for every stage, got {self}")
        for part in ("depth", "width", "expand"):
            for stage, values in enumerate(getattr(self, part)):
                if not values or list(values) != sorted(set(values)) or values[0] < 1:
                    raise SpecError(f"space.{part}[{stage}] must ascend from 1 or more, got {values}")
                if part != "depth" and values[-1] > 100:
                    raise SpecError(f"space.{part}[{stage}] is in percent, got {values}")

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.depth)

    @property
    def size(self) -> int:
        """Number of subnets, |Phi| in the paper."""
        size = 1
        for values in (*self.depth, *self.width, *self.expand):
            size *= len(values)
        return size

    @property
    def smallest(self) -> Control:
        """The subnet with the least of everything."""
        return Control(*(tuple(v[0] for v in part) for part in (self.depth, self.width, self.expand)))

    @property
    def largest(self) -> Control:
        """The subnet with the most of everything: the whole supernet where the space goes up to 100 percent."""
        return Control(*(tuple(v[-1] for v in part) for part in (self.depth, self.width, self.expand)))

    def sample(self, rng: random.Random) -> Control:
        """A subnet whose entries are drawn uniformly and independently."""
        return Control(*(tuple(rng.choice(v) for v in part) for part in (self.depth, self.width, self.expand)))

    def validate(self, control: Control) -> None:
        """Raise SpecError, naming the entry, unless the control is in this space."""
        if len(control.depth) != self.stages:
            raise SpecError(f"subnet {control.id} has {len(control.depth)} stages, the supernet has {self.stages}")
        for part in ("depth", "width", "expand"):
            for stage, (value, legal) in enumerate(zip(getattr(control, part), getattr(self, part), strict=True)):
                if value not in legal:
                    raise SpecError(f"subnet {control.id}: {part} of stage {stage} is {value}, legal are {legal}")

    def parse(self, subnet_id: str) -> Control:
        """The control of a subnet id. Raises SpecError unless it is canonical and in this space."""
        control = Control.parse(subnet_id, self.stages)
        self.validate(control)
        return control

    def to_json(self) -> dict[str, list[list[int]]]:
        """As plain JSON; `from_json` reads it back."""
        return {
            "depth": [list(v) for v in self.depth],
            "width": [list(v) for v in self.width],
            "expand": [list(v) for v in self.expand],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[Sequence[int]]]) -> Space:
        """Read `to_json` back. Raises SpecError naming a missing or malformed key."""
        parts = []
        for part in ("depth", "width", "expand"):
            try:
                parts.append(tuple(tuple(int(value) for value in values) for values in data[part]))
            except (KeyError, TypeError, ValueError) as error:
                raise SpecError(f"space.{part} is missing or no list of lists of integers") from error
        return cls(*parts)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a supernet, per row: the batch dimension is not in `shape`.

    datatype is the Open Inference Protocol's name: UINT8, INT64, FP32 and so on.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.datatype not in _ITEM_SIZES:
            raise SpecError(f"tensor {self.name!r}: datatype {self.datatype!r} is none of {sorted(_ITEM_SIZES)}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, dense and little-endian."""
        size = _ITEM_SIZES[self.datatype]
        for extent in self.shape:
            size *= extent
        return size

    def to_json(self) -> dict[str, Any]:
        """As plain JSON; `from_json` reads it back."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorSpec:
        """Read `to_json` back. Raises SpecError naming a missing or malformed key."""
        try:
            return cls(str(data["name"]), str(data["datatype"]), tuple(int(extent) for extent in data["shape"]))
        except (KeyError, TypeError) as error:
            raise SpecError(f"a tensor needs name, datatype and shape, got {data!r}") from error


def _join(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else ".".join(map(str, values))


def _split(text: str, stages: int, subnet_id: str) -> tuple[int, ...]:
    values = tuple(map(int, text.split(".")))
    if len(values) == 1:
        return values * stages
    if len(values) != stages:
        raise SpecError(f"subnet id {subnet_id!r} names {len(values)} stages, the supernet has {stages}")
    return values
