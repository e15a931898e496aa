"""What the scheduler counts, a few integers per batch, and how Prometheus sees it.

The accuracy debt is what more workers would pay off: points of accuracy below the best subnet, times queries a second.
A query that is turned away for load was answered with no accuracy at all and owes the best subnet's.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from prometheus_client.registry import Collector

from common import metrics, wire
from common.metrics import BATCH_ROWS, RATIOS, SECONDS, Histogram, Recent
from common.sched.types import REASONS_DEGRADED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client.metrics_core import Metric

    from common.sched import Batch, Scheduler
    from common.sched.worker import Worker
    from common.streams import Depth

DISPATCHED = "dispatched"
FOR_LOAD = ("late", "queue_full", "no_worker")  # reasons that more workers would have removed
REASONS = (*FOR_LOAD, "min_accuracy", "poison")
STATES = ("idle", "busy", "draining", "refused")


class Counts:
    """Counters of one model's scheduler."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter(dict.fromkeys((DISPATCHED, *REASONS), 0))
        self.subnets: Counter[str] = Counter()  # queries dispatched
        self.degraded: Counter[str] = Counter(dict.fromkeys(REASONS_DEGRADED, 0))  # queries, by why
        self.batches: Counter[str] = Counter()
        self.batch_rows = Histogram(BATCH_ROWS)
        self.slack = Histogram(SECONDS)
        self.latency_ratio = Histogram(RATIOS)
        self.ingest_lag = Histogram(SECONDS)

    def message(self, queries: int, head_slack_us: int | None, lost: list[dict[str, Any]]) -> wire.SchedulerCounts:
        """Return the counters for who watches, with how many queries wait and which workers died lately."""
        return wire.SchedulerCounts(
            queries=queries,
            head_slack_us=head_slack_us,
            lost=lost,
            dispatched=dict(self.subnets),
            batches=self.batches.total(),
            rows=round(self.batch_rows.total),
            slack_us=round(self.slack.total * 1e6),
            slack_count=self.slack.count,
        )

    def dispatched(self, batch: Batch, now_us: int, degraded: str = "") -> None:
        """Count a batch. Its slack is that of its first query, whose deadline is the earliest; a late one has 0."""
        queries = batch.queries
        if degraded:
            self.degraded[degraded] += len(queries)
        self.outcomes[DISPATCHED] += len(queries)
        self.subnets[batch.subnet] += len(queries)
        self.batches[batch.subnet] += 1
        self.batch_rows.add(batch.rows)
        self.slack.add(max(0, queries[0].deadline_us - now_us) / 1e6)


def state(worker: Worker) -> str:
    """Return what a live worker is doing, one of ``STATES``."""
    return "draining" if worker.draining else "busy" if worker.batches else "idle"


def debt(best: float, accuracy: Mapping[str, float], gained: Mapping[str | None, float], seconds: float) -> float:
    """Return points times queries per second.

    best, accuracy: of the best subnet and of each, in percent. gained: queries in so many seconds, by the subnet that
    they were dispatched to; under None, those turned away for load.
    """
    below = {subnet: best - (0.0 if subnet is None else accuracy.get(subnet, best)) for subnet in gained}
    return sum(max(0.0, below[subnet]) * count for subnet, count in gained.items()) / seconds


class Metrics(Collector):
    """One scheduler's metrics. ``core`` gives the one that decides now, ``queries`` how many wait, ``refused`` how many
    workers cannot be used."""

    def __init__(
        self,
        model: str,
        counts: Counts,
        core: Callable[[], Scheduler],
        queries: Callable[[], int],
        refused: Callable[[], int],
    ) -> None:
        self.leading = False
        self._model = model
        self._counts = counts
        self._core = core
        self._queries = queries
        self._refused = refused
        self._recent: Recent[str | None] = Recent(time.monotonic())
        self._depths: dict[tuple[str, str, str], Depth] = {}
        self._accuracy: dict[str, float] = {}  # of every subnet seen so far
        self._best = 0.0  # of the latest workers

    def snapshot(self, depths: Mapping[tuple[str, str, str], Depth]) -> None:
        """Take note of how full the streams are, and of the counters for the window."""
        self._depths = dict(depths)
        self._recent.snapshot(time.monotonic(), self._owing())

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client."""
        counts, core, model = self._counts, self._core(), self._model
        one = (model,)

        def by(label: str, values: Mapping[str, float]) -> tuple[dict[tuple[str, ...], float], list[str]]:
            return {(model, key): value for key, value in values.items()}, ["model", label]

        name = "superserve_scheduler_"
        yield metrics.gauge(
            f"{name}leading", "1 while this scheduler leads, 0 on standby", {one: self.leading}, ["model"]
        )
        yield metrics.counter(f"{name}queries", "Queries by what was decided", *by("outcome", counts.outcomes))
        yield metrics.counter(f"{name}subnet_queries", "Queries dispatched, by subnet", *by("subnet", counts.subnets))
        yield metrics.counter(
            f"{name}degraded_queries", "Queries dispatched below the best subnet", *by("reason", counts.degraded)
        )
        yield metrics.counter(f"{name}batches", "Batches dispatched, by subnet", *by("subnet", counts.batches))
        yield metrics.counter(f"{name}policy_failures", "Errors of the policy", {one: core.failures}, ["model"])
        yield metrics.gauge(f"{name}queue_queries", "Queries that wait", {one: self._queries()}, ["model"])
        yield metrics.gauge(f"{name}queue_rows", "Rows that wait", {one: core.queued_rows}, ["model"])
        yield metrics.histogram(f"{name}batch_rows", "Rows of a batch", {model: counts.batch_rows})
        yield metrics.histogram(
            f"{name}slack_seconds", "From a batch's dispatch to its earliest deadline", {model: counts.slack}
        )
        yield metrics.histogram(
            f"{name}latency_ratio", "A batch's latency, observed by predicted", {model: counts.latency_ratio}
        )
        yield metrics.histogram(
            f"{name}ingest_lag_seconds", "From a pack's first arrival to its reading", {model: counts.ingest_lag}
        )
        yield metrics.gauge(f"{name}workers", "Workers by state", *by("state", self._workers()))
        yield metrics.gauge(
            f"{name}accuracy_debt",
            "Points below the best subnet times queries per second",
            {one: self._debt()},
            ["model"],
        )
        yield from metrics.depths(self._depths.items())

    def _workers(self) -> dict[str, float]:
        states = Counter(dict.fromkeys(STATES, 0))
        states.update(state(worker) for worker in self._core().workers.values())
        states["refused"] = self._refused()
        return dict(states)

    def _owing(self) -> dict[str | None, float]:
        owing: dict[str | None, float] = {None: sum(self._counts.outcomes[reason] for reason in FOR_LOAD)}
        owing.update(self._counts.subnets)
        return owing

    def _debt(self) -> float:
        subnets = [subnet for worker in self._core().workers.values() for subnet in worker.profile.subnets]
        if subnets:
            self._accuracy |= {subnet.id: subnet.accuracy for subnet in subnets}
            self._best = max(subnet.accuracy for subnet in subnets)
        seconds, gained = self._recent.gained(time.monotonic(), self._owing())
        return debt(self._best, self._accuracy, gained, seconds)
