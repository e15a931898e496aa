"""The grammar of a trace SPEC: `kind`, `kind:key=value,...` or `kind:FILE[,key=value,...]`.

constant                                          evenly spaced, needs a rate
poisson                                           exponential gaps, needs a rate
bursty:base=B,variant=V,cv2=C                     B q/s evenly spaced, merged with V q/s of gamma gaps, squared CV C
ramp:start=A,end=B,accel=T,cv2=C                  from A to B q/s at T q/s^2, then B; gamma gaps of squared CV C
minutes:FILE[,column=NAME][,within=poisson|even]  per-minute counts, the whole file shrunk to the duration
timestamps:FILE[,column=NAME]                     one line per request, the whole file shrunk to the duration
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loadgen.errors import InputError


@dataclass(frozen=True, slots=True)
class Constant:
    """Evenly spaced arrivals; the rate is the run's."""


@dataclass(frozen=True, slots=True)
class Poisson:
    """Arrivals with exponential gaps; the rate is the run's."""


@dataclass(frozen=True, slots=True)
class Bursty:
    """`base` q/s evenly spaced, merged with gamma arrivals of `variant` q/s and squared CV `cv2`."""

    base: float
    variant: float
    cv2: float


@dataclass(frozen=True, slots=True)
class Ramp:
    """From `start` to `end` q/s at `accel` q/s^2, then `end`; gamma arrivals of squared CV `cv2`."""

    start: float
    end: float
    accel: float
    cv2: float


@dataclass(frozen=True, slots=True)
class Minutes:
    """Counts per minute from a CSV file; `column` empty takes the second, or the only one."""

    file: Path
    column: str
    within: Literal["poisson", "even"]


@dataclass(frozen=True, slots=True)
class Timestamps:
    """One request per line of a CSV file; `column` empty takes the first column."""

    file: Path
    column: str


TraceSpec = Constant | Poisson | Bursty | Ramp | Minutes | Timestamps
KINDS = ("constant", "poisson", "bursty", "ramp", "minutes", "timestamps")


def parse_spec(text: str) -> TraceSpec:
    """Read a SPEC. InputError names the key and the value that cannot be used."""
    kind, _, rest = text.partition(":")
    fields = _Fields(kind, rest)
    spec: TraceSpec
    if kind == "constant":
        spec = Constant()
    elif kind == "poisson":
        spec = Poisson()
    elif kind == "bursty":
        spec = Bursty(fields.number("base"), fields.number("variant", above_zero=True), fields.number("cv2"))
    elif kind == "ramp":
        spec = _ramp(fields)
    elif kind == "minutes":
        within = fields.text("within", "poisson")
        if within not in ("poisson", "even"):
            raise InputError("minutes: within", within, "must be poisson or even")
        spec = Minutes(fields.file(), fields.text("column", ""), "even" if within == "even" else "poisson")
    elif kind == "timestamps":
        spec = Timestamps(fields.file(), fields.text("column", ""))
    else:
        raise InputError("trace", text, f"unknown kind {kind!r}; one of {', '.join(KINDS)}")
    fields.refuse_the_rest()
    return spec


def _ramp(fields: _Fields) -> Ramp:
    """Read the keys of a ramp; the sign of `accel` must lead from `start` to `end`."""
    start, end = fields.number("start"), fields.number("end", above_zero=True)
    accel = fields.number("accel", above_zero=start <= end, negative=start > end)
    return Ramp(start, end, accel, fields.number("cv2"))


class _Fields:
    """The part of a SPEC behind the colon; each field is taken once, what is left over is refused."""

    def __init__(self, kind: str, text: str) -> None:
        self._kind = kind
        self._file = ""
        self._values: dict[str, str] = {}
        for position, item in enumerate(text.split(",") if text else ()):
            key, equals, value = item.partition("=")
            if not equals and position == 0:
                self._file = item
            elif not equals or not value:
                raise InputError(f"{kind}: {key or 'key'}", value or "(none)", "write key=value")
            elif key in self._values:
                raise InputError(f"{kind}: {key}", value, "given twice")
            else:
                self._values[key] = value
        self._known: list[str] = []

    def text(self, key: str, default: str) -> str:
        """Take a word, or `default` when it is not given."""
        self._known.append(key)
        return self._values.pop(key, default)

    def number(self, key: str, *, above_zero: bool = False, negative: bool = False) -> float:
        """Take a finite number >= 0; > 0 with `above_zero`; < 0 with `negative`."""
        text = self.text(key, "")
        name = f"{self._kind}: {key}"
        try:
            value = float(text)
        except ValueError:
            raise InputError(name, text or "(missing)", "needs a number") from None
        if not math.isfinite(value):
            raise InputError(name, text, "must be finite")
        if negative and value >= 0:
            raise InputError(name, text, "must be < 0 for a falling ramp")
        if above_zero and value <= 0:
            raise InputError(name, text, "must be > 0")
        if not negative and value < 0:
            raise InputError(name, text, "must be >= 0")
        return value

    def file(self) -> Path:
        """Take the FILE, which must be there."""
        path = Path(self._file)
        self._file = ""
        if not path.name or not path.is_file():
            raise InputError(f"{self._kind}: FILE", path if path.name else "(missing)", "no such file")
        return path

    def refuse_the_rest(self) -> None:
        """Raise InputError for the first thing that nobody took."""
        if self._file:
            raise InputError(self._kind, self._file, "this kind takes no FILE")
        for key, value in self._values.items():
            known = ", ".join(self._known) or "none"
            raise InputError(f"{self._kind}: {key}", value, f"unknown key; known: {known}")
