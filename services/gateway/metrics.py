"""What the gateway counts, as Prometheus and as Triton's statistics have it.

The counters of prometheus_client cost microseconds each, several times a query; here they are plain integers that a
collector reads when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from services.gateway.model import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.metrics_core import Metric

    from services.gateway.pending import Query, Result

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
OUTCOMES = {429: "overloaded", 500: "failed", 503: "unavailable", 504: "expired"}  # other statuses: "invalid"
ANSWERED, LATE, LEFT = "answered", "answered_late", "client_left"


class ModelMetrics:
    """Counts of one model's queries."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter(dict.fromkeys((ANSWERED, LATE, LEFT, "invalid", *OUTCOMES.values()), 0))
        self.subnets: Counter[str] = Counter()
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.rows = 0
        self.total_us = self.queue_us = self.inference_us = 0
        self.last_us = 0

    def answered(self, query: Query, result: Result) -> None:
        """Count a result."""
        batch, record = result.batch, query.record
        total_us = result.now_us - record.arrival_us
        self.outcomes[ANSWERED if result.now_us <= record.deadline_us else LATE] += 1
        self.subnets[batch.subnet] += 1
        self.buckets[bisect_left(BUCKETS_S, total_us / 1e6)] += 1
        self.rows += record.rows
        self.total_us += total_us
        self.queue_us += batch.started_us - record.arrival_us
        self.inference_us += batch.finished_us - batch.started_us
        self.last_us = result.now_us

    def refused(self, status: int) -> None:
        """Count a query that was answered with an error."""
        self.outcomes[OUTCOMES.get(status, "invalid")] += 1

    def left(self) -> None:
        """Count a query whose client left before its answer."""
        self.outcomes[LEFT] += 1

    def statistics(self, name: str) -> dict[str, Any]:
        """Return Triton's statistics of the model; durations in nanoseconds. A batch counts once per query in it."""
        count = self.outcomes[ANSWERED] + self.outcomes[LATE]
        failures = sum(self.outcomes[outcome] for outcome in OUTCOMES.values()) + self.outcomes["invalid"]
        zero = {"count": count, "ns": 0}
        return {
            "name": name,
            "version": VERSION,
            "last_inference": self.last_us // 1_000,
            "inference_count": self.rows,
            "execution_count": count,
            "inference_stats": {
                "success": {"count": count, "ns": self.total_us * 1_000},
                "fail": {"count": failures, "ns": 0},
                "queue": {"count": count, "ns": self.queue_us * 1_000},
                "compute_input": zero,
                "compute_infer": {"count": count, "ns": self.inference_us * 1_000},
                "compute_output": zero,
                "cache_hit": {"count": 0, "ns": 0},
                "cache_miss": {"count": 0, "ns": 0},
            },
            "batch_stats": [],
        }


class Metrics(Collector):
    """All models' counts; ``pending`` tells how many queries are in the mesh."""

    def __init__(self, pending: Callable[[], int]) -> None:
        self._models: dict[str, ModelMetrics] = {}
        self._pending = pending
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def of(self, model: str) -> ModelMetrics:
        """Return the counts of a model, from zero if it is new."""
        counts = self._models.get(model)
        if counts is None:
            counts = self._models[model] = ModelMetrics()
        return counts

    def exposition(self) -> bytes:
        """Return Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client."""
        yield GaugeMetricFamily(
            "superserve_gateway_pending_queries", "Queries of this gateway in the mesh", value=self._pending()
        )
        queries = CounterMetricFamily(
            "superserve_gateway_queries", "Queries by what became of them", labels=["model", "outcome"]
        )
        subnets = CounterMetricFamily(
            "superserve_gateway_subnet_queries", "Queries answered, by subnet", labels=["model", "subnet"]
        )
        latency = HistogramMetricFamily(
            "superserve_gateway_latency_seconds", "From a query's arrival to its result", labels=["model"]
        )
        for name, counts in self._models.items():
            for outcome, count in counts.outcomes.items():
                queries.add_metric([name, outcome], count)
            for subnet, count in counts.subnets.items():
                subnets.add_metric([name, subnet], count)
            cumulated, buckets = 0, []
            for bound, count in zip([*map(str, BUCKETS_S), "+Inf"], counts.buckets, strict=True):
                cumulated += count
                buckets.append((bound, float(cumulated)))
            latency.add_metric([name], buckets, counts.total_us / 1e6)
        yield from (queries, subnets, latency)
