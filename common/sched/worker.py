"""What the core knows of one worker: its profile, the batches it holds, and when it will be free."""

from __future__ import annotations

from dataclasses import dataclass

from common.sched.estimators import Residuals
from common.sched.profile import Profile
from common.sched.types import Batch, BatchDone, Query

_CORRECTION_GAIN = 1 / 16


@dataclass(slots=True)
class Outstanding:
    """A batch on a worker. `ready_us` is when it can start at the earliest; `expected_us` how long it should take."""

    batch: Batch
    dispatched_us: int
    ready_us: int
    expected_us: int
    found_idle: bool


class Worker:
    """One worker as the core sees it. Policies may read it, only the core changes it.

    `cheapest` is the index of the cheapest subnet that the policy ever uses here, `best` that of the most accurate, and
    `floors_us[rows]` the least median latency from the cheapest on, up to the largest batch. `rank` orders workers as
    they are filled: the fastest, the most accurate, the first by name. `correction` is the smoothed ratio of observed
    latency to the median, with which every prediction is multiplied. `subnet` is that of the batch dispatched last, ""
    before the first.
    """

    __slots__ = (
        *("_finished", "batches", "best", "cheapest", "correction", "draining", "floors_us"),
        *("free_us", "name", "profile", "rank", "subnet"),
    )

    def __init__(self, name: str, profile: Profile, cheapest: int, best: int | None = None) -> None:
        self.name = name
        self.batches: dict[int, Outstanding] = {}
        self.free_us = 0
        self.correction = 1.0
        self.subnet = ""
        self._finished = 0
        self.draining = False
        self.update(profile, cheapest, best)

    def update(self, profile: Profile, cheapest: int, best: int | None = None) -> None:
        """Take a profile, and the indices of the cheapest and the best subnet that the policy uses with it.

        best: None for a policy that uses the most accurate there is.
        """
        self.profile = profile
        self.cheapest = cheapest
        self.best = len(profile.subnets) - 1 if best is None else best
        self.floors_us = tuple(profile.floor_us(cheapest, rows) for rows in range(profile.max_batch + 1))
        self.rank = (self.floors_us[-1], -profile.subnets[-1].accuracy, self.name)

    def as_if_free_at(self, free_us: int) -> Worker:
        """Return a worker like this one but free at another moment, for a policy to think with."""
        other = Worker(self.name, self.profile, self.cheapest, self.best)
        other.batches, other.correction, other.subnet = self.batches, self.correction, self.subnet
        other.draining, other.free_us = self.draining, free_us
        return other

    def eligible(self, min_accuracy: float) -> int:
        """Index of the first subnet, by accuracy, that may serve `min_accuracy`; `len(subnets)` if none can."""
        if min_accuracy <= 0.0:
            return self.cheapest
        return max(self.cheapest, self.profile.first_at_least(min_accuracy))

    def floor_us(self, query: Query) -> int | None:
        """Least median latency at which this worker can serve the query; None if it lacks the accuracy."""
        if query.min_accuracy <= 0.0 and query.rows < len(self.floors_us):
            return self.floors_us[query.rows]
        first = self.eligible(query.min_accuracy)
        return self.profile.floor_us(first, query.rows) if first < len(self.profile.subnets) else None

    def cheapest_for(self, min_accuracy: float, rows: int) -> str:
        """Id of the subnet that serves `rows` rows fastest, at the median, among those eligible."""
        first = self.eligible(min_accuracy)
        table = self.profile.latencies("median", rows)
        return self.profile.subnets[min(range(first, len(table)), key=lambda i: table[i][rows])].id

    def start_us(self, ready_us: int, residuals: Residuals, quantile: float) -> int:
        """When a batch that is here at `ready_us` can start, if the running one takes that quantile of `residuals`."""
        if not self.batches:
            return ready_us if ready_us > self.free_us else self.free_us
        running = next(iter(self.batches.values()))
        overrun = residuals.quantile(quantile, prior=1.0) - 1.0
        return max(ready_us, self.free_us + round(running.expected_us * overrun))

    def assign(self, batch: Batch, rows: int, now_us: int, delay_us: int) -> None:
        """Add a batch of so many rows dispatched now, and move the moment when the worker is predicted to be free.

        A batch of another subnet than the one before, as the first one is, costs the profile's actuation as well.
        """
        median_us = self.profile.latency_us(batch.subnet, max(1, rows))
        expected_us = max(1, round(median_us * self.correction))
        if batch.subnet != self.subnet:
            expected_us += self.profile.actuation_us
            self.subnet = batch.subnet
        found_idle = not self.batches and self.free_us <= now_us
        ready_us = now_us + delay_us
        self.free_us = (ready_us if ready_us > self.free_us else self.free_us) + expected_us
        self.batches[batch.id] = Outstanding(batch, now_us, ready_us, expected_us, found_idle)

    def finish(self, done: BatchDone) -> Outstanding | None:
        """Remove a finished batch, correct predictions by what it took, and return it; None if it is not here.

        The ratio of the whole is taken for that of the inference. Where a change of subnet is part of both, that is
        right once the prediction is; until then it moves the less the more of the time the change makes up, so that
        loading which takes a tenth longer once does not double the inference.
        """
        outstanding = self.batches.pop(done.batch, None)
        if outstanding is None:
            return None
        took_us = max(1, done.finished_us - done.started_us)
        ratio = took_us / outstanding.expected_us * self.correction
        self._finished += 1
        self.correction += (ratio - self.correction) * max(_CORRECTION_GAIN, 1 / (self._finished + 1))
        self.free_us = done.finished_us
        for waiting in self.batches.values():
            self.free_us = max(self.free_us, waiting.ready_us) + waiting.expected_us
        return outstanding
