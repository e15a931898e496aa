"""Latency and accuracy of every subnet on one device: what the scheduler knows of a worker.

A profile is measured by the worker on its own device, or shipped as JSON:

    {"format": 1, "device": "...", "executor": "torch", "model": "...", "precision": "fp32", "threads": 1,
     "versions": {...}, "runs": 50, "actuation_us": 0, "batch_sizes": [1, 2, 4, 8, 16],
     "subnets": [{"id": "73.82", "accuracy": 73.82, "median_us": [...], "p95_us": [...]}, ...]}

Between batch sizes latency is interpolated linearly; beyond the largest, which only a single oversized query reaches,
it is extrapolated along the last segment. Latency grows with batch (property P1 of the paper, section 4). Noise in a
measurement can break that, and can put a p95 below its median: then the running maximum is taken, and
`Profile.repairs` says where.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeAlias, cast

Quantile: TypeAlias = Literal["median", "p95"]
Executor: TypeAlias = Literal["torch", "emulated"]

FORMAT = 1


class ProfileError(ValueError):
    """A profile is unusable; the message names the key and the value."""


@dataclass(frozen=True, slots=True)
class Subnet:
    """One subnet: accuracy in percent, and latency in microseconds for each of the profile's batch sizes."""

    id: str
    accuracy: float
    median_us: tuple[int, ...]
    p95_us: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """Subnets by ascending accuracy, with latencies for ascending batch sizes, on one device.

    Raises ProfileError on construction if batch sizes or subnets are missing, repeated, not positive or of unequal
    length. Two profiles are equal if their measurements are. model: "" where it was not written down. actuation_us:
    what a change of subnet costs before a batch: 0 for SubNetAct, whose microseconds are noise, and large for systems
    that load models.
    """

    device: str
    executor: Executor
    batch_sizes: tuple[int, ...]
    subnets: tuple[Subnet, ...]
    threads: int = 1
    runs: int = 0
    versions: tuple[tuple[str, str], ...] = ()
    model: str = ""
    precision: str = "fp32"
    actuation_us: int = 0
    repairs: tuple[str, ...] = field(init=False, compare=False)
    _accuracies: tuple[float, ...] = field(init=False, repr=False, compare=False)
    _index: dict[str, int] = field(init=False, repr=False, compare=False)
    _median: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    _p95: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    _floor: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self.batch_sizes, self.subnets)
        if self.actuation_us < 0:
            raise ProfileError(f"actuation_us: expected at least 0, got {self.actuation_us}")
        repairs: list[str] = []
        subnets = sorted((_repair(subnet, self.batch_sizes, repairs) for subnet in self.subnets), key=_by_accuracy)
        derived = {
            "subnets": tuple(subnets),
            "repairs": tuple(repairs),
            "_accuracies": tuple(subnet.accuracy for subnet in subnets),
            "_index": {subnet.id: index for index, subnet in enumerate(subnets)},
            "_median": tuple(_every_row(self.batch_sizes, subnet.median_us) for subnet in subnets),
            "_p95": tuple(_every_row(self.batch_sizes, subnet.p95_us) for subnet in subnets),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        # _floor[i][rows]: the least median latency among the subnets from index i on. Property P2 (latency grows with
        # accuracy) makes that subnet i itself; a measured profile need not obey it.
        floor = [self._median[-1]]
        for row in reversed(self._median[:-1]):
            floor.append(tuple(map(min, row, floor[-1])))
        object.__setattr__(self, "_floor", tuple(reversed(floor)))
        # Policies cache tables per profile: hashing every latency on each lookup would cost more than the decision.
        measured = (self.device, self.executor, self.batch_sizes, self.subnets, self.actuation_us)
        object.__setattr__(self, "_hash", hash(measured))

    def __hash__(self) -> int:
        return self._hash

    @property
    def smallest(self) -> str:
        """Id of the least accurate subnet."""
        return self.subnets[0].id

    @property
    def largest(self) -> str:
        """Id of the most accurate subnet."""
        return self.subnets[-1].id

    @property
    def max_batch(self) -> int:
        """Rows of the largest profiled batch."""
        return self.batch_sizes[-1]

    def index(self, subnet: str) -> int:
        """Position of a subnet by ascending accuracy. Raises ProfileError for an unknown id."""
        try:
            return self._index[subnet]
        except KeyError:
            raise ProfileError(
                f"subnet: no {subnet!r} on {self.device!r}, which has {', '.join(self._index)}"
            ) from None

    def accuracy(self, subnet: str) -> float:
        """Accuracy of a subnet in percent."""
        return self._accuracies[self.index(subnet)]

    def first_at_least(self, min_accuracy: float) -> int:
        """Index of the least accurate subnet that reaches `min_accuracy`; `len(subnets)` if none does."""
        return bisect_left(self._accuracies, min_accuracy)

    def latency_us(self, subnet: str, rows: int, quantile: Quantile = "median") -> int:
        """Latency of a batch of `rows` rows. O(1)."""
        row = (self._median if quantile == "median" else self._p95)[self.index(subnet)]
        return row[rows] if rows < len(row) else _extend(row, rows)[rows]

    def latencies(self, quantile: Quantile, rows: int = 0) -> tuple[tuple[int, ...], ...]:
        """Table [subnet index][rows] of latencies, reaching at least to `max_batch` and to `rows`."""
        table = self._median if quantile == "median" else self._p95
        if rows < len(table[0]):
            return table
        return tuple(_extend(row, rows) for row in table)

    def floor_us(self, index: int, rows: int) -> int:
        """Least median latency of `rows` rows among the subnets from `index` on: no eligible subnet is faster. O(1)."""
        row = self._floor[index]
        return row[rows] if rows < len(row) else _extend(row, rows)[rows]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Profile:
        """Read the JSON form, unknown keys ignored. Raises ProfileError naming the key and the value that is wrong."""
        if _get(data, "format", int) != FORMAT:
            raise ProfileError(f"format: expected {FORMAT}, got {data['format']!r}")
        executor = _get(data, "executor", str)
        if executor not in ("torch", "emulated"):
            raise ProfileError(f"executor: expected torch or emulated, got {executor!r}")
        return cls(
            device=_get(data, "device", str),
            executor=cast(Executor, executor),
            batch_sizes=_integers(data, "batch_sizes", "batch_sizes"),
            subnets=tuple(_subnet(entry, f"subnets[{i}]") for i, entry in enumerate(_get(data, "subnets", list))),
            threads=_get(data, "threads", int, 1),
            runs=_get(data, "runs", int, 0),
            versions=tuple(sorted((str(k), str(v)) for k, v in _get(data, "versions", dict, {}).items())),
            model=_get(data, "model", str, ""),
            precision=_get(data, "precision", str, "fp32"),
            actuation_us=_get(data, "actuation_us", int, 0),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, which `from_dict` reads back to an equal profile."""
        return {
            "format": FORMAT,
            "device": self.device,
            "executor": self.executor,
            "model": self.model,
            "precision": self.precision,
            "threads": self.threads,
            "versions": dict(self.versions),
            "runs": self.runs,
            "actuation_us": self.actuation_us,
            "batch_sizes": list(self.batch_sizes),
            "subnets": [
                {"id": s.id, "accuracy": s.accuracy, "median_us": list(s.median_us), "p95_us": list(s.p95_us)}
                for s in self.subnets
            ],
        }


def _by_accuracy(subnet: Subnet) -> tuple[float, int]:
    return subnet.accuracy, subnet.median_us[-1]


def _check(batch_sizes: tuple[int, ...], subnets: tuple[Subnet, ...]) -> None:
    if not batch_sizes or batch_sizes[0] < 1 or any(a >= b for a, b in pairwise(batch_sizes)):
        raise ProfileError(f"batch_sizes: expected ascending positive integers, got {list(batch_sizes)}")
    if not subnets:
        raise ProfileError("subnets: expected at least one, got []")
    ids = [subnet.id for subnet in subnets]
    if len(set(ids)) < len(ids):
        raise ProfileError(f"subnets: expected distinct ids, got {ids}")
    for i, subnet in enumerate(subnets):
        if not 0.0 <= subnet.accuracy <= 100.0:
            raise ProfileError(f"subnets[{i}].accuracy: expected percent between 0 and 100, got {subnet.accuracy!r}")
        for key, latencies in (("median_us", subnet.median_us), ("p95_us", subnet.p95_us)):
            if len(latencies) != len(batch_sizes) or any(us < 1 for us in latencies):
                expected = f"{len(batch_sizes)} positive integers, one per batch size"
                raise ProfileError(f"subnets[{i}].{key}: expected {expected}, got {list(latencies)}")


def _repair(subnet: Subnet, batch_sizes: tuple[int, ...], repairs: list[str]) -> Subnet:
    """Make latency grow with batch, and p95 at least the median, by running maxima; note every value changed."""
    median: list[int] = []
    p95: list[int] = []
    for size, raw_median, raw_p95 in zip(batch_sizes, subnet.median_us, subnet.p95_us, strict=True):
        median.append(max([raw_median, *median[-1:]]))
        p95.append(max([raw_p95, median[-1], *p95[-1:]]))
        for key, raw, used in (("median_us", raw_median, median[-1]), ("p95_us", raw_p95, p95[-1])):
            if used != raw:
                repairs.append(f"{subnet.id} {key} at batch {size}: raised from {raw} to {used}")
    return Subnet(subnet.id, subnet.accuracy, tuple(median), tuple(p95))


def _every_row(batch_sizes: tuple[int, ...], latencies: tuple[int, ...]) -> tuple[int, ...]:
    """Latency for 0, 1, ... max_batch rows. Below the smallest profiled batch a worker has nothing faster to run."""
    table = [latencies[0]] * (batch_sizes[0] + 1)
    for (low, low_us), (high, high_us) in pairwise(zip(batch_sizes, latencies, strict=True)):
        table.extend(low_us + (high_us - low_us) * (rows - low) // (high - low) for rows in range(low + 1, high + 1))
    return tuple(table)


def _extend(row: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """Continue a table of latencies up to `rows` along its last segment; where that is flat, in proportion to rows."""
    last = len(row) - 1
    step = row[last] - row[last - 1] or -(-row[last] // last)
    return row + tuple(row[last] + step * (n - last) for n in range(last + 1, rows + 1))


def _get(data: Mapping[str, Any], key: str, kind: type, default: Any = None, at: str = "") -> Any:
    value = data.get(key, default)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ProfileError(f"{at}{key}: expected {kind.__name__}, got {value!r}")
    return value


def _integers(data: Mapping[str, Any], key: str, name: str) -> tuple[int, ...]:
    values = data.get(key)
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise ProfileError(f"{name}: expected a list of integers, got {values!r}")
    return tuple(values)


def _subnet(entry: Any, name: str) -> Subnet:
    if not isinstance(entry, Mapping):
        raise ProfileError(f"{name}: expected an object, got {entry!r}")
    accuracy = entry.get("accuracy")
    if type(accuracy) not in (int, float):
        raise ProfileError(f"{name}.accuracy: expected a number, got {accuracy!r}")
    return Subnet(
        id=_get(entry, "id", str, at=f"{name}."),
        accuracy=float(cast(float, accuracy)),
        median_us=_integers(entry, "median_us", f"{name}.median_us"),
        p95_us=_integers(entry, "p95_us", f"{name}.p95_us"),
    )
