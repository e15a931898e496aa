"""What the gateway counts, as Prometheus and as Triton's statistics have it.

A query answered in time has met its SLO, and only these count for accuracy, as in the reports of ``loadgen``.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from prometheus_client.core import SummaryMetricFamily
from prometheus_client.registry import Collector

from common import metrics, wire
from common.metrics import SECONDS, Histogram, Recent
from services.gateway.model import VERSION
from services.gateway.server import REASONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client.metrics_core import Metric

    from common.metrics import Labelled
    from common.streams import Depth
    from services.gateway.pending import Query, Result

REFUSALS = {  # reasons, by protocol
    "http": tuple(REASONS.values()),
    "grpc": ("malformed", "not_found", "unimplemented", "unread"),
}
OUTCOMES = {429: "overloaded", 500: "failed", 503: "unavailable", 504: "expired"}  # other statuses: "invalid"
ANSWERED, LATE, LEFT = "answered", "answered_late", "client_left"


class ModelMetrics:
    """Counts of one model's queries."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter(dict.fromkeys((ANSWERED, LATE, LEFT, "invalid", *OUTCOMES.values()), 0))
        self.subnets: Counter[str] = Counter()
        self.latency = Histogram(SECONDS)
        self.reply_lag = Histogram(SECONDS)
        self.accuracy = 0.0  # percent, added up over the queries answered in time
        self.recent: Recent[str] = Recent(time.monotonic())
        self.rows = 0
        self.total_us = self.queue_us = self.inference_us = 0
        self.last_us = 0

    def answered(self, query: Query, result: Result) -> None:
        """Count a result."""
        batch, record = result.batch, query.record
        total_us = result.now_us - record.arrival_us
        if result.now_us <= record.deadline_us:
            self.outcomes[ANSWERED] += 1
            self.accuracy += batch.accuracy
        else:
            self.outcomes[LATE] += 1
        self.subnets[batch.subnet] += 1
        self.latency.add(total_us / 1e6)
        self.reply_lag.add(max(0, result.now_us - batch.finished_us) / 1e6)
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

    def counting(self) -> int:
        """Queries whose SLO was ours to meet: all but those that were invalid, and those whose client left."""
        return self.outcomes.total() - self.outcomes["invalid"] - self.outcomes[LEFT]

    def message(self, gateway: str, waiting: int) -> wire.GatewayCounts:
        """Return the counters for who watches; ``waiting`` queries are in the mesh."""
        outcomes = self.outcomes
        return wire.GatewayCounts(
            gateway=gateway,
            arrived=outcomes.total() + waiting,
            answered=outcomes[ANSWERED],
            late=outcomes[LATE],
            failed={reason: count for reason, count in outcomes.items() if reason not in (ANSWERED, LATE)},
            slo=self.counting(),
            accuracy=self.accuracy,
        )

    def headline(self) -> dict[str, float]:
        """Return what attainment and accuracy are computed from."""
        return {"met": self.outcomes[ANSWERED], "slo": self.counting(), "accuracy": self.accuracy}

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
        self._depths: dict[str, Depth] = {}
        self._refusals = Counter({(protocol, reason): 0 for protocol, some in REFUSALS.items() for reason in some})
        self.registry = metrics.registry(self)

    def of(self, model: str) -> ModelMetrics:
        """Return the counts of a model, from zero if it is new."""
        counts = self._models.get(model)
        if counts is None:
            counts = self._models[model] = ModelMetrics()
        return counts

    def refused(self, protocol: str, reason: str) -> None:
        """Count a request that never became a query of a model, for one of the ``REFUSALS``."""
        self._refusals[protocol, reason] += 1

    def snapshot(self, depths: Mapping[str, Depth]) -> None:
        """Take note of how full each model's reply stream is, and of the counters for the window."""
        self._depths = dict(depths)
        for counts in self._models.values():
            counts.recent.snapshot(time.monotonic(), counts.headline())

    def exposition(self) -> bytes:
        """Return Prometheus' text format."""
        return metrics.exposition(self.registry)

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client."""
        models, name = self._models, "superserve_gateway_"

        def by(label: str, values: Mapping[str, Mapping[str, float]]) -> tuple[Labelled, list[str]]:
            pairs: Labelled = {(model, key): count for model, counts in values.items() for key, count in counts.items()}
            return pairs, ["model", label]

        def each(value: Callable[[ModelMetrics], float]) -> tuple[Labelled, list[str]]:
            return {(model,): value(counts) for model, counts in models.items()}, ["model"]

        outcomes = by("outcome", {model: counts.outcomes for model, counts in models.items()})
        subnets = by("subnet", {model: counts.subnets for model, counts in models.items()})
        yield metrics.gauge(f"{name}pending_queries", "Queries of this gateway in the mesh", {(): self._pending()}, [])
        yield metrics.counter(f"{name}queries", "Queries by what became of them", *outcomes)
        yield metrics.counter(f"{name}subnet_queries", "Queries answered, by subnet", *subnets)
        refusals: Labelled = {(protocol, reason): count for (protocol, reason), count in self._refusals.items()}
        help_text = "Requests refused before they were a query of a model"
        yield metrics.counter(f"{name}refused_requests", help_text, refusals, ["protocol", "reason"])
        yield metrics.counter(f"{name}slo", "Queries that count for attainment", *each(ModelMetrics.counting))
        met = each(lambda counts: counts.outcomes[ANSWERED])
        yield metrics.counter(f"{name}slo_met", "Queries answered in time", *met)
        accuracy = SummaryMetricFamily(f"{name}accuracy_ratio", "Accuracy of answers in time", labels=["model"])
        for model, counts in models.items():
            accuracy.add_metric([model], counts.outcomes[ANSWERED], counts.accuracy / 100)
        yield accuracy
        yield from self._windows()
        latencies = {model: counts.latency for model, counts in models.items()}
        lags = {model: counts.reply_lag for model, counts in models.items()}
        yield metrics.histogram(f"{name}latency_seconds", "From a query's arrival to its result", latencies)
        yield metrics.histogram(f"{name}reply_lag_seconds", "From a batch's end to a query's result", lags)
        yield from metrics.depths(((model, "replies", ""), depth) for model, depth in self._depths.items())

    def _windows(self) -> Iterable[Metric]:
        """Yield what is computed over the latest seconds, for models that had queries in them."""
        attainment: Labelled = {}
        accuracy: Labelled = {}
        for model, counts in self._models.items():
            _, gained = counts.recent.gained(time.monotonic(), counts.headline())
            if gained["slo"]:
                attainment[model,] = gained["met"] / gained["slo"]
            if gained["met"]:
                accuracy[model,] = gained["accuracy"] / gained["met"] / 100
        name = "superserve_gateway_recent_"
        yield metrics.gauge(f"{name}attainment_ratio", "SLO attainment of the last 10 s", attainment, ["model"])
        yield metrics.gauge(f"{name}accuracy_ratio", "Accuracy of answers in time, last 10 s", accuracy, ["model"])
