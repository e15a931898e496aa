"""What a subnet is called, and what a supernet takes and gives.

Source: SuperServe section 3. A subnet is its control tuple phi = (D, W): depth per stage and width per block; as in
OFAResNet the width has two parts, the channels of the residual streams and the expansion inside each block.
Widths are whole percents, so that equal controls are equal objects and the id can be read back exactly.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PARTS = ("depth", "width", "expand")

_ID = re.compile(r"(?:d(?P<depth>\d+(?:\.\d+)*))?(?:-?w(?P<width>\d+(?:\.\d+)*))?(?:-?e(?P<expand>\d+(?:\.\d+)*))?")

_DATATYPES = ("BOOL", "BYTES", "FP32", "INT32", "INT64", "UINT8")

Lengths = tuple[int, int, int]


class SpecError(ValueError):
    """A control tuple, subnet id, space or tensor description that is not legal; the message names the culprit."""


@dataclass(frozen=True, slots=True)
class Control:
    """The control tuple phi = (D, W) of one subnet; what each entry bends is told by the supernet's layout.

    depth: blocks that run, per stage; width: channels of the residual streams, or heads of attentions, in percent;
    expand: channels inside blocks, or neurons, in percent. The three may differ in length, and be empty.
    """

    depth: tuple[int, ...]
    width: tuple[int, ...]
    expand: tuple[int, ...]

    def __post_init__(self) -> None:
        if not (self.depth or self.width or self.expand):
            raise SpecError("control needs at least one depth, width or expand")

    @property
    def id(self) -> str:
        """Canonical compact name: `d1-w25-e25` where the entries are equal, `d2.1.3-w50-e100` where not."""
        parts = zip("dwe", (self.depth, self.width, self.expand), strict=True)
        return "-".join(letter + _join(values) for letter, values in parts if values)

    @classmethod
    def parse(cls, subnet_id: str, lengths: Lengths) -> Control:
        """Read a subnet id back, for a supernet with that many depths, widths and expands.

        Raises: SpecError when the text is no subnet id, or no canonical one for these lengths.
        """
        match = _ID.fullmatch(subnet_id)
        if match is None or not subnet_id:
            raise SpecError(f"no subnet id: {subnet_id!r}; one looks like d1-w25-e25 or d2.1.3-w50-e100")
        parts = zip(PARTS, lengths, strict=True)
        control = cls(*(_split(match[part], length, part, subnet_id) for part, length in parts))
        if control.id != subnet_id:
            raise SpecError(f"subnet id {subnet_id!r} is not canonical: write {control.id!r}")
        return control

    def parts(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The three parts with their names."""
        return zip(PARTS, (self.depth, self.width, self.expand), strict=True)


@dataclass(frozen=True, slots=True)
class Space:
    """The legal values of each entry of the control tuple, ascending."""

    depth: tuple[tuple[int, ...], ...]
    width: tuple[tuple[int, ...], ...]
    expand: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not any(self.lengths):
            raise SpecError("space needs at least one depth, width or expand")
        for part, entries in self._parts():
            least = 0 if part == "depth" else 1
            for index, values in enumerate(entries):
                if not values or list(values) != sorted(set(values)) or values[0] < least:
                    raise SpecError(f"space.{part}[{index}] must ascend from {least} or more, got {values}")
                if part != "depth" and values[-1] > 100:
                    raise SpecError(f"space.{part}[{index}] is in percent, got {values}")

    @property
    def lengths(self) -> Lengths:
        """Number of depths, widths and expands."""
        return len(self.depth), len(self.width), len(self.expand)

    @property
    def size(self) -> int:
        """Number of subnets, |Phi| in the paper."""
        return math.prod(len(values) for _, entries in self._parts() for values in entries)

    @property
    def smallest(self) -> Control:
        """The subnet with the least of everything."""
        return Control(*(tuple(values[0] for values in entries) for _, entries in self._parts()))

    @property
    def largest(self) -> Control:
        """The subnet with the most of everything: the whole supernet where the space goes up to all of it."""
        return Control(*(tuple(values[-1] for values in entries) for _, entries in self._parts()))

    def sample(self, rng: random.Random) -> Control:
        """A subnet whose entries are drawn uniformly and independently."""
        return Control(*(tuple(rng.choice(values) for values in entries) for _, entries in self._parts()))

    def validate(self, control: Control) -> None:
        """Raise SpecError, naming the entry, unless the control is in this space."""
        for (part, values), (_, entries) in zip(control.parts(), self._parts(), strict=True):
            if len(values) != len(entries):
                raise SpecError(f"subnet {control.id}: {len(values)} {part}s, the supernet has {len(entries)}")
            for index, (value, legal) in enumerate(zip(values, entries, strict=True)):
                if value not in legal:
                    raise SpecError(f"subnet {control.id}: {part}[{index}] is {value}, legal are {legal}")

    def parse(self, subnet_id: str) -> Control:
        """The control of a subnet id. Raises SpecError unless it is canonical and in this space."""
        control = Control.parse(subnet_id, self.lengths)
        self.validate(control)
        return control

    def to_json(self) -> dict[str, list[list[int]]]:
        """As plain JSON; `from_json` reads it back."""
        return {part: [list(values) for values in entries] for part, entries in self._parts()}

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[Sequence[int]]]) -> Space:
        """Read `to_json` back. Raises SpecError naming a missing or malformed key."""
        parts = []
        for part in PARTS:
            try:
                parts.append(tuple(tuple(int(value) for value in values) for values in data[part]))
            except (KeyError, TypeError, ValueError) as error:
                raise SpecError(f"space.{part} is missing or no list of lists of integers") from error
        return cls(*parts)

    def _parts(self) -> Iterator[tuple[str, tuple[tuple[int, ...], ...]]]:
        return zip(PARTS, (self.depth, self.width, self.expand), strict=True)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a supernet, per row: the batch dimension is not in `shape`.

    datatype is the Open Inference Protocol's name: UINT8, INT64, FP32 and so on; BYTES is text.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.datatype not in _DATATYPES:
            raise SpecError(f"tensor {self.name!r}: datatype {self.datatype!r} is none of {', '.join(_DATATYPES)}")

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


def _split(text: str | None, length: int, part: str, subnet_id: str) -> tuple[int, ...]:
    values = tuple(map(int, text.split("."))) if text else ()
    if len(values) == 1:
        return values * length
    if len(values) != length:
        raise SpecError(f"subnet id {subnet_id!r} has {len(values)} {part}s, the supernet has {length}")
    return values
