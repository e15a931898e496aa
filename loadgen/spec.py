"""The grammar of a trace SPEC: `kind`, `kind:key=value,...` or `kind:FILE[,key=value,...]`, or several joined by `+`.

constant                                          evenly spaced, needs a rate
poisson                                           exponential gaps, needs a rate
bursty:base=B,variant=V,cv2=C                     B q/s evenly spaced, merged with V q/s of gamma gaps, squared CV C
ramp:start=A,end=B,accel=T,cv2=C                  from A to B q/s at T q/s^2, then B; gamma gaps of squared CV C
minutes:FILE[,column=NAME][,within=poisson|even]  per-minute counts, the whole file shrunk to the duration
timestamps:FILE[,column=NAME]                     one line per request, the whole file shrunk to the duration

Every kind also takes:
rate=R                                            its mean in q/s while it sends; its own rates scaled to that
from=S,to=S                                       sends from S to S seconds of the run, not all of it
tenant=NAME[,slo_ms=MS][,min_accuracy=PERCENT][,priority=N][,rows=N]
                                                  who sends; what is not given is the run's, a floor and priority of 0

FILE may be synthetic-day, which is shipped: 1,440 counts per minute, invented to look like a day of the MAF trace.
"""

from __future__ import annotations

import importlib.resources
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loadgen.errors import InputError


@dataclass(frozen=True, slots=True)
class Constant:
    """Evenly spaced arrivals; the rate is the component's or the run's."""


@dataclass(frozen=True, slots=True)
class Poisson:
    """Arrivals with exponential gaps; the rate is the component's or the run's."""


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


Process = Constant | Poisson | Bursty | Ramp | Minutes | Timestamps
KINDS = ("constant", "poisson", "bursty", "ramp", "minutes", "timestamps")
_JOINT = re.compile(rf"\+(?=(?:{'|'.join(KINDS)})(?:[:+]|$))")  # a file's name may hold a plus
_TENANT = re.compile(r"[A-Za-z0-9._-]+")
MOST_SLO_MS = 1e9  # eleven days: what is added to it in microseconds stays an integer of 64 bits
MOST_CV2 = 10_000.0


@dataclass(frozen=True, slots=True)
class Component:
    """One process of a SPEC: who sends how, from when to when.

    `rate` None leaves the process its own; `to_s` None is the end of the run. `settings` are the tenant's that are
    given: slo_ms, min_accuracy, priority, rows.
    """

    kind: str
    process: Process
    rate: float | None
    from_s: float
    to_s: float | None
    tenant: str
    settings: Mapping[str, float]


def parse_spec(text: str) -> tuple[Component, ...]:
    """Read a SPEC. InputError names the key and the value that cannot be used."""
    return tuple(_component(part) for part in split_spec(text))


def split_spec(text: str) -> list[str]:
    """The components of a SPEC, as they are written: cut at each `+` before a known kind."""
    return _JOINT.split(text)


def _component(text: str) -> Component:
    kind, _, rest = text.partition(":")
    fields = _Fields(kind, rest)
    process = _process(text, kind, fields)
    rate = fields.optional("rate", above_zero=True)
    from_s, to_s = fields.optional("from") or 0.0, fields.optional("to", above_zero=True)
    if to_s is not None and to_s <= from_s:
        raise InputError(f"{kind}: to", f"{to_s:g}", f"must be after from={from_s:g}")
    tenant, settings = _tenant(kind, fields)
    fields.refuse_the_rest()
    return Component(kind, process, rate, from_s, to_s, tenant, settings)


def _tenant(kind: str, fields: _Fields) -> tuple[str, dict[str, float]]:
    """Read the name of a tenant, and those of its keys that are given."""
    tenant = fields.text("tenant", "")
    if tenant and not _TENANT.fullmatch(tenant):
        raise InputError(f"{kind}: tenant", tenant, "may have letters, digits, dots, dashes and underscores")
    settings = {
        "slo_ms": fields.optional("slo_ms", above_zero=True, most=MOST_SLO_MS),
        "min_accuracy": fields.optional("min_accuracy", most=100),
        "priority": fields.optional("priority", whole=True),
        "rows": fields.optional("rows", above_zero=True, whole=True),
    }
    given = {key: value for key, value in settings.items() if value is not None}
    if given and not tenant:
        key, value = next(iter(given.items()))
        raise InputError(f"{kind}: {key}", f"{value:g}", "belongs to a tenant: give tenant=NAME")
    return tenant, given


def _process(text: str, kind: str, fields: _Fields) -> Process:
    spec: Process
    if kind == "constant":
        spec = Constant()
    elif kind == "poisson":
        spec = Poisson()
    elif kind == "bursty":
        spec = Bursty(fields.number("base"), fields.number("variant", above_zero=True), _cv2(fields))
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
    return spec


def _ramp(fields: _Fields) -> Ramp:
    """Read the keys of a ramp; the sign of `accel` must lead from `start` to `end`."""
    start, end = fields.number("start"), fields.number("end", above_zero=True)
    accel = fields.number("accel", above_zero=start <= end, negative=start > end)
    return Ramp(start, end, accel, _cv2(fields))


def _cv2(fields: _Fields) -> float:
    """Take the squared CV; far beyond `MOST_CV2` nearly all gaps are 0 and no number of them passes any time."""
    return fields.number("cv2", most=MOST_CV2)


def shipped_trace(name: str) -> Path:
    """Where a shipped trace of that name would be: `synthetic-day` is data/synthetic_day.csv of this package."""
    return Path(str(importlib.resources.files("loadgen") / "data" / f"{name.replace('-', '_')}.csv"))


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

    def optional(
        self, key: str, *, above_zero: bool = False, whole: bool = False, most: float = math.inf
    ) -> float | None:
        """Take a finite number >= 0, or None when it is not given; `most` is its bound, `whole` has no fraction."""
        if key not in self._values:
            self._known.append(key)
            return None
        value = self.number(key, above_zero=above_zero, most=most)
        if whole and not value.is_integer():
            raise InputError(f"{self._kind}: {key}", f"{value:g}", "must be a whole number")
        return value

    def number(self, key: str, *, above_zero: bool = False, negative: bool = False, most: float = math.inf) -> float:
        """Take a finite number >= 0, at most `most`; > 0 with `above_zero`; < 0 with `negative`."""
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
        if value > most:
            raise InputError(name, f"{value:g}", f"must be <= {most:g}")
        return value

    def file(self) -> Path:
        """Take the FILE, which must be there or bear the name of a trace that is shipped."""
        path = Path(self._file)
        self._file = ""
        if not path.name:
            raise InputError(f"{self._kind}: FILE", "(missing)", "no such file")
        if path.is_file():
            return path
        if path.name == str(path) and (shipped := shipped_trace(path.name)).is_file():
            return shipped
        raise InputError(f"{self._kind}: FILE", path, "no such file")

    def refuse_the_rest(self) -> None:
        """Raise InputError for the first thing that nobody took."""
        if self._file:
            raise InputError(self._kind, self._file, "this kind takes no FILE")
        for key, value in self._values.items():
            known = ", ".join(self._known) or "none"
            raise InputError(f"{self._kind}: {key}", value, f"unknown key; known: {known}")
