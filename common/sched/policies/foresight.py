"""Foresight: accuracy as far as everybody behind can still be saved. Ours; it goes past the paper's SlackFit.

SlackFit sees the slack of the head and trusts one latency. Both cost it: a batch that is right for the head can be
wrong for the hundred queries behind it, and where latencies vary, half of all batches exceed their median. This policy
asks five questions, and each has its reason:

1. *Which subnets?* Only those on the concave hull of accuracy over time per row in a full batch. A mix of two hull
   subnets is at least as accurate as any subnet between them for the same work, and a scheduler always mixes.
2. *How long does a batch take?* Its median, times the worker's correction, times the `target` quantile of what batches
   lately took over what was predicted. If the residuals stay as they were, that share of the batches ends in time: so
   the quantile is the attainment target that the operator states.
3. *Does it fill?* Only a subnet that runs `fill` of the largest batch, or all that is queued, within the head's slack:
   part-filled batches of a large subnet waste the capacity that a burst needs.
4. *What about those behind?* The batch is taken if the queue behind it, and the arrivals of the next `horizon_ms` at
   the measured rate, could all be met afterwards by the next lower hull subnet, on the times at which workers are
   predicted to be free. Otherwise one step down, and asked again. So accuracy falls one step before it must, not when
   it is late. What is behind runs on many workers, which are not all at their worst at once: three quarters of the
   margin count there.
5. *Is the head worth it?* If the smallest subnet can run only a part of a batch for the head, and serving it would cost
   those behind their deadlines, the head is let go: one is lost instead of many.

docs/scheduling.md has its figures beside SlackFit's, and where it fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heapify, heapreplace

from common.sched.policies.base import PolicyError, View, fitting_rows
from common.sched.profile import Profile
from common.sched.types import Choice

_BEHIND = 0.75  # share of the margin that those behind are planned with
_ARRIVING = 1 / 3  # arrivals are batched by what comes within this share of an SLO, at most
_MOST = 64  # batches looked ahead at: bounds the cost of a decision


@dataclass(frozen=True, slots=True)
class Foresight:
    """The most accurate subnet after which everybody behind can still be saved by the next one down."""

    target: float = field(
        default=0.999, metadata={"doc": "SLO attainment to hold, in [0, 1): the quantile of residuals allowed for"}
    )
    fill: float = field(
        default=0.75, metadata={"doc": "share of the largest batch that a subnet must have time for, in (0, 1]"}
    )
    horizon_ms: float = field(default=20.0, metadata={"doc": "arrivals of that long, at the measured rate, count"})

    def __post_init__(self) -> None:
        if not 0.0 <= self.target < 1.0:
            raise PolicyError(f"foresight: target: expected a number in [0, 1), got {self.target}")
        if not 0.0 < self.fill <= 1.0:
            raise PolicyError(f"foresight: fill: expected a number in (0, 1], got {self.fill}")
        if not 0.0 <= self.horizon_ms <= 10_000.0:
            raise PolicyError(f"foresight: horizon_ms: expected 0 to 10000, got {self.horizon_ms}")

    def cheapest(self, profile: Profile) -> str:
        """Return the smallest subnet."""
        return profile.smallest

    def choose(self, view: View) -> Choice | None:
        """Return the most accurate choice that leaves those behind a way out, or the quickest there is."""
        profile, head, worker = view.profile, view.head, view.worker
        factor = view.residuals.quantile(self.target) * worker.correction
        budget_us = view.slack_us / factor
        ladder = hull(profile, worker.eligible(head.min_accuracy))
        wanted = max(head.rows, min(view.queue.rows, max(1, round(self.fill * profile.max_batch))))
        ahead: _Ahead | None = None
        for place in range(len(ladder) - 1, -1, -1):
            index = ladder[place]
            rows = fitting_rows(profile, index, budget_us, "median")
            if head.rows > profile.max_batch and profile.latencies("median", head.rows)[index][head.rows] <= budget_us:
                rows = head.rows  # larger than every profiled batch: it goes alone
            if rows < wanted:
                continue
            if place == 0:
                return Choice(profile.subnets[index].id, rows)
            ahead = ahead or _Ahead.of(view, self.horizon_ms, self.target)
            if ahead.saved(index, rows, ladder[place - 1]):
                return Choice(profile.subnets[index].id, rows)
        return self._part(view, ladder[0], fitting_rows(profile, ladder[0], budget_us, "median"), ahead)

    def _part(self, view: View, index: int, rows: int, ahead: _Ahead | None) -> Choice | None:
        """The smallest subnet has no time for a full batch: run what it has time for, if those behind can bear it."""
        profile, head = view.profile, view.head
        if rows < head.rows:  # not even the head, by what lately happened; by what is expected, perhaps
            expected_us = profile.latency_us(profile.subnets[index].id, head.rows) * view.worker.correction
            if expected_us > view.slack_us + view.start_us - max(view.now_us, view.worker.free_us):
                return None
            rows = head.rows
        ahead = ahead or _Ahead.of(view, self.horizon_ms, self.target)
        if ahead.saved(index, rows, index) or not ahead.saved(index, 0, index):
            return Choice(profile.subnets[index].id, rows)
        return None


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What is behind the head, beside the queue: arrivals expected, and when the other workers are free.

    coming: (earliest start, due, rows) of batches to be. others: when each of the other workers is free, and by what
    factor it exceeds its profile's medians. factor: that of the worker to fill. reply_us: what a reply needs.
    """

    view: View
    coming: Sequence[tuple[float, float, int]]
    others: Sequence[tuple[float, float]]
    factor: float
    reply_us: int

    @classmethod
    def of(cls, view: View, horizon_ms: float, target: float) -> _Ahead:
        """Gather what lies ahead of a view."""
        head, now_us = view.head, view.now_us
        margin = 1.0 + (view.residuals.quantile(target) - 1.0) * _BEHIND
        reply_us = head.deadline_us - view.slack_us - view.start_us
        slo_us = max(1, head.deadline_us - head.arrival_us)
        per_us = view.rate.per_s(now_us) / 1e6
        size = max(1, min(view.profile.max_batch, round(per_us * slo_us * _ARRIVING)))
        apart_us = size / per_us if per_us else 0.0
        count = min(_MOST, int(per_us * horizon_ms * 1e3 / size))
        last_us = now_us + slo_us - reply_us
        coming = [(now_us + (i + 1) * apart_us, last_us + i * apart_us, size) for i in range(count)]
        others = [(max(w.free_us, now_us), w.correction * margin) for w in view.workers if w is not view.worker]
        return cls(view, coming, others, view.worker.correction * margin, reply_us)

    def saved(self, index: int, rows: int, lower: int) -> bool:
        """Whether all behind a batch of `rows` rows of subnet `index` make it with subnet `lower`.

        Each batch goes to the worker that is free first. rows: 0 lets the head go instead.
        """
        view, reply_us = self.view, self.reply_us
        profile, largest = view.profile, view.profile.max_batch
        latencies = profile.latencies("median")[lower]
        taken_us = profile.latencies("median", rows)[index][rows] * self.factor if rows else 0.0
        workers = [(view.start_us + taken_us, self.factor), *self.others]
        heapify(workers)
        for due_us, packed in view.queue.batches(rows, largest, _MOST):
            free_us, factor = workers[0]
            end_us = free_us + latencies[packed if packed < largest else largest] * factor
            if end_us > due_us - reply_us:
                return False
            heapreplace(workers, (end_us, factor))
        for earliest_us, last_us, packed in self.coming:
            free_us, factor = workers[0]
            end_us = (earliest_us if earliest_us > free_us else free_us) + latencies[packed] * factor
            if end_us > last_us:
                return False
            heapreplace(workers, (end_us, factor))
        return True


@lru_cache(maxsize=256)
def hull(profile: Profile, floor: int) -> tuple[int, ...]:
    """Indices, ascending, of the subnets from `floor` on that lie on the concave hull of accuracy over work.

    Work is the time per row in the largest batch. The hull begins with the cheapest subnet and ends with the most
    accurate one; every other subnet is no better than a mix of two of these at the same work.
    """
    latencies, largest = profile.latencies("median"), profile.max_batch
    points = sorted((latencies[i][largest], profile.subnets[i].accuracy, i) for i in range(floor, len(latencies)))
    kept: list[tuple[int, float, int]] = []
    for point in points:
        if kept and point[1] <= kept[-1][1]:
            continue
        while len(kept) > 1 and _below(kept[-2], kept[-1], point):
            kept.pop()
        kept.append(point)
    return tuple(index for _, _, index in kept)


def _below(a: tuple[int, float, int], b: tuple[int, float, int], c: tuple[int, float, int]) -> bool:
    """Whether b lies on or below the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])
