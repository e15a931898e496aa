"""Counting for Prometheus at the price of an integer: services count plainly, a collector reads when somebody asks.

The counters of prometheus_client take a lock and cost microseconds each, which at several per query would be felt.
Everything here is used from one event loop, so nothing is locked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from prometheus_client.registry import Collector

    from common.streams import Depth

RECENT_S = 10.0
SNAPSHOT_S = 1.0  # how often a service takes a snapshot for ``Recent`` and looks at its streams
BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
RATIOS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)

Key = TypeVar("Key", bound="Hashable")
Labelled: TypeAlias = dict[tuple[str, ...], float]
"""Values by those of their labels."""


class Histogram:
    """Counts of values up to each of ``bounds``, ascending, and beyond the last; and their sum."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Return upper bounds and cumulated counts, as Prometheus has them."""
        found, cumulated = [], 0
        for bound, count in zip([*map(str, map(float, self._bounds)), "+Inf"], self._counts, strict=True):
            cumulated += count
            found.append((bound, float(cumulated)))
        return found


class Recent(Generic[Key]):
    """What counters have gained lately, by snapshots of the last ``RECENT_S`` seconds: counting itself costs nothing.

    The first snapshot is taken at construction, of counters that are all 0.
    """

    def __init__(self, now_s: float) -> None:
        self._snapshots: deque[tuple[float, dict[Key, float]]] = deque([(now_s, {})])

    def snapshot(self, now_s: float, counts: Mapping[Key, float]) -> None:
        """Remember counters as they are now, and forget what no window reaches any more."""
        self._snapshots.append((now_s, dict(counts)))
        while self._snapshots[1][0] <= now_s - RECENT_S:
            self._snapshots.popleft()

    def gained(self, now_s: float, counts: Mapping[Key, float]) -> tuple[float, dict[Key, float]]:
        """Return the length of the window in seconds and what each counter, as it is now, has gained in it."""
        began_s, before = self._snapshots[0]
        return max(now_s - began_s, SNAPSHOT_S), {key: count - before.get(key, 0.0) for key, count in counts.items()}


def registry(collector: Collector) -> CollectorRegistry:
    """Return a registry of a service's own metrics and of its process (CPU seconds, memory, open files)."""
    made = CollectorRegistry(auto_describe=False)
    made.register(collector)
    ProcessCollector(registry=made)
    return made


def exposition(of: CollectorRegistry) -> bytes:
    """Return Prometheus' text format."""
    return generate_latest(of)


def gauge(name: str, text: str, values: Labelled, labels: Sequence[str]) -> GaugeMetricFamily:
    """Return a gauge of these values by their labels."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def counter(name: str, text: str, values: Labelled, labels: Sequence[str]) -> CounterMetricFamily:
    """Return a counter of these values by their labels; Prometheus shows it as ``name`` and ``_total``."""
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def histogram(name: str, text: str, values: Mapping[str, Histogram]) -> HistogramMetricFamily:
    """Return a histogram for each model."""
    family = HistogramMetricFamily(name, text, labels=["model"])
    for model, value in values.items():
        family.add_metric([model], value.buckets(), value.total)
    return family


def depths(found: Iterable[tuple[tuple[str, str, str], Depth]]) -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
    """Return the gauges of streams, each under its labels: model, kind of stream, the worker that reads it or ""."""
    labels = ["model", "stream", "worker"]
    entries = GaugeMetricFamily("superserve_stream_entries", "Entries of a stream: not yet acked", labels=labels)
    pending = GaugeMetricFamily("superserve_stream_pending_entries", "Entries read and not yet acked", labels=labels)
    for key, depth in found:
        entries.add_metric(key, depth.entries)
        pending.add_metric(key, depth.pending)
    return entries, pending
