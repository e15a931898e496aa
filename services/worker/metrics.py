"""What the worker counts, a few integers per batch, and how Prometheus sees it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client.registry import Collector

from common import metrics
from common.metrics import BATCH_ROWS, SECONDS, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.metrics_core import Metric

    from services.worker.executor import Finished

ANSWERED, FAILED = "answered", "failed"
# Actuation in place takes microseconds; a subnet that is folded or loaded first takes longer.
ACTUATION = (1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 0.01, 0.1, 1.0)
IDLE = (1e-5, 2.5e-5, 5e-5, 1e-4, *SECONDS)


class Metrics(Collector):
    """One worker's metrics. ``in_hand`` tells how many batches it has read and not yet acked."""

    def __init__(self, model: str, in_hand: Callable[[], int]) -> None:
        self._model = model
        self._in_hand = in_hand
        self._outcomes: Counter[str] = Counter({ANSWERED: 0, FAILED: 0})
        self._subnets: Counter[str] = Counter()  # batches
        self._rows = Histogram(BATCH_ROWS)
        self._inference = Histogram(SECONDS)
        self._actuation = Histogram(ACTUATION)
        self._idle = Histogram(IDLE)

    def finished(self, done: Finished) -> None:
        """Count a batch whose answers are out."""
        failed = sum([isinstance(result, str) for result in done.results])
        self._outcomes[FAILED] += failed
        self._outcomes[ANSWERED] += len(done.results) - failed
        self._subnets[done.job.batch.subnet] += 1
        self._rows.add(done.rows)
        self._inference.add((done.finished_us - done.started_us) / 1e6)
        self._idle.add(done.idle_us / 1e6)
        if done.actuation_s is not None:
            self._actuation.add(done.actuation_s)

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client."""
        model, name = self._model, "superserve_worker_"
        outcomes: metrics.Labelled = {(model, outcome): count for outcome, count in self._outcomes.items()}
        subnets: metrics.Labelled = {(model, subnet): count for subnet, count in self._subnets.items()}
        yield metrics.counter(f"{name}queries", "Queries by what became of them", outcomes, ["model", "outcome"])
        yield metrics.counter(f"{name}batches", "Batches finished, by subnet", subnets, ["model", "subnet"])
        yield metrics.gauge(
            f"{name}batches_in_hand", "Batches read and not acked", {(model,): self._in_hand()}, ["model"]
        )
        yield metrics.histogram(f"{name}batch_rows", "Rows of a batch that were sound", {model: self._rows})
        yield metrics.histogram(
            f"{name}inference_seconds", "A batch from start to end, actuation included", {model: self._inference}
        )
        yield metrics.histogram(f"{name}actuation_seconds", "A change of subnet", {model: self._actuation})
        yield metrics.histogram(
            f"{name}idle_seconds", "From a batch's end to the next one's start", {model: self._idle}
        )
