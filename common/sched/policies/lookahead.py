"""How Foresight decides: `foresight` says why, and has the options."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from math import ceil
from typing import Protocol

from common.sched.policies.base import View
from common.sched.profile import Profile
from common.sched.queue import EdfQueue
from common.sched.types import Choice

_BEHIND = 0.75  # share of the margin that those behind are planned with
_ARRIVING = 1 / 3  # arrivals are batched by what comes within this share of an SLO, at most
_LIKE = 16  # queries at the front whose SLOs are looked at
_MOST = 64  # batches looked ahead at: bounds the cost of a decision


class Options(Protocol):
    """What of the policy's options a decision needs."""

    @property
    def target(self) -> float:
        """SLO attainment to hold."""
        ...

    @property
    def fill(self) -> float:
        """Share of the largest batch that a subnet must have time for."""
        ...

    @property
    def horizon_ms(self) -> float:
        """How long arrivals at the measured rate count."""
        ...

    @property
    def burst(self) -> float:
        """Times the worst surprise that must be met."""
        ...


def decide(view: View, options: Options) -> Choice | None:
    """Return the most accurate choice that leaves those behind a way out, or the quickest there is."""
    head, worker = view.queue.head, view.worker
    profile = worker.profile
    margin = _margin(view, options.target)
    budget_us = view.slack_us / (margin * worker.correction)
    ladder, table = hull(profile, worker.eligible(head.min_accuracy)), profile.latencies("median", head.rows)
    useful = _useful(table[ladder[0]], profile.max_batch, view, margin * worker.correction)
    wanted = max(head.rows, min(view.queue.rows, max(1, round(options.fill * useful))))
    ahead: Ahead | None = None
    rows = 0
    for place in range(len(ladder) - 1, -1, -1):
        index = ladder[place]
        rows = bisect_right(table[index], budget_us, 1, profile.max_batch + 1) - 1
        if head.rows > profile.max_batch and table[index][head.rows] <= budget_us:
            rows = head.rows  # larger than every profiled batch: it goes alone
        if rows < wanted:
            continue
        if place == 0:
            return Choice(profile.subnets[index].id, rows)
        if ahead is None:
            ahead = Ahead(view, options, margin)
        end_us = ahead.end_us(index, rows)
        if ahead.bears(end_us, rows, ladder[0]) and ahead.saved(end_us, rows, ladder[place - 1]):
            return Choice(profile.subnets[index].id, rows)
    index = ladder[0]
    if rows < head.rows:  # what is cheapest in full batches need not be quickest for these rows
        index = profile.index(worker.cheapest_for(head.min_accuracy, head.rows))
        rows = head.rows if table[index][head.rows] <= budget_us else 0
    return _short(view, options.target, index, rows, wanted, margin, ahead or Ahead(view, options, margin))


def _short(view: View, target: float, index: int, rows: int, wanted: int, margin: float, ahead: Ahead) -> Choice | None:
    """The smallest subnet has no time for a batch that fills: part of one, if those behind can bear it."""
    profile, head, worker = view.profile, view.head, view.worker
    subnet = profile.subnets[index].id
    slack_us = view.slack_us + view.start_us - max(view.now_us, worker.free_us)
    expected_us = slack_us / worker.correction
    if rows < head.rows:  # not even the head, by what lately happened; by what is expected, perhaps
        alone_us = profile.latency_us(subnet, head.rows)
        # A correction that lets everybody go would never be corrected: who has nothing else to do tries.
        if alone_us > expected_us and not _idle_for(view, alone_us * worker.correction):
            return None
        rows = head.rows
    if ahead.saved(ahead.end_us(index, rows), rows, index):
        return Choice(subnet, rows)
    if ahead.saved(view.start_us, 0, index):
        return None
    medians_us, least = profile.latencies("median")[index], min(wanted, profile.max_batch)
    # Batches that shrank while their heads waited must carry the load, or every head will have waited longer.
    smallest = hull(profile, worker.cheapest)[0]
    unwaited_us = (view.slack_us + view.now_us - head.arrival_us) / (margin * worker.correction)
    shrank = index == smallest and rows < _within(medians_us, profile.max_batch, unwaited_us)
    if not ahead.overloaded(smallest, rows if shrank else 0):
        return Choice(subnet, rows)
    # More comes than can be met: batches that fill, by what was seen, meet most of it, and part-filled ones least.
    margin = min(margin, view.residuals.quantile(target, prior=1.0))
    filling = bisect_right(medians_us, expected_us / margin, 1, profile.max_batch + 1) - 1
    if filling >= least:
        return Choice(subnet, max(filling, head.rows))
    # If none of them could have such a batch even when it had just come, letting heads go would serve nobody.
    slo_us = _longest_us(view.queue)
    fresh_us = (slack_us - (head.deadline_us - view.now_us) + slo_us) / worker.correction
    needed_us = medians_us[least] * margin
    if needed_us > fresh_us or _idle_for(view, needed_us * worker.correction):
        return Choice(subnet, rows)
    return None


class Ahead:
    """What is behind the head, beside the queue: arrivals expected, the worst burst, when the other workers are free.

    The first of `factors`, by which workers exceed their profiles' medians, is that of the worker to fill.
    """

    __slots__ = (
        *("_behind", "_burst", "_coming", "_due_us", "_factors", "_free_us", "_largest", "_least", "_likely"),
        *("_per_us", "_profile", "_queue", "_reply_us", "_slo_us", "_start_us", "_table", "_useful"),
    )

    def __init__(self, view: View, options: Options, margin: float) -> None:
        now_us, queue, worker = view.now_us, view.queue, view.worker
        profile, others = worker.profile, [other for other in view.workers if other is not worker]
        margin = 1.0 + (margin - 1.0) * _BEHIND
        self._queue = queue
        self._profile = profile
        self._table = profile.latencies("median")
        self._largest = profile.max_batch
        self._start_us = view.start_us
        self._reply_us = queue.head.deadline_us - view.slack_us - view.start_us
        self._free_us = [other.free_us if other.free_us > now_us else now_us for other in others]
        self._factors = [worker.correction * margin, *[other.correction * margin for other in others]]
        self._least = min(self._factors)
        self._likely = view.residuals.quantile(0.5, prior=1.0) / margin
        # Who is to come is like who waits: the shortest of their SLOs is what a burst would have.
        self._slo_us = slo_us = max(1, min([query.deadline_us - query.arrival_us for query in queue.first(_LIKE)]))
        self._due_us = now_us + slo_us - self._reply_us
        self._burst = options.burst * view.rate.surprise(now_us)
        self._per_us = per_us = view.rate.per_s(now_us) / 1e6
        smallest = self._table[hull(profile, worker.cheapest)[0]]
        fits = _within(smallest, self._largest, (slo_us - self._reply_us) / self._least)
        self._useful = fits if fits == self._largest else _useful(smallest, self._largest, view, self._least)
        size = max(1, min(fits, round(per_us * slo_us * _ARRIVING)))
        count = min(_MOST, int(per_us * options.horizon_ms * 1e3 / size))
        first_us = float(self._due_us)
        self._coming = ([int(first_us + float(i * size) / per_us) for i in range(count)], size if count else 0)
        self._behind: dict[int, tuple[list[int], int]] = {}

    def end_us(self, index: int, rows: int) -> int:
        """When the worker to fill has run a batch of subnet `index`, of `rows` rows or all that are there."""
        rows = min(rows, self._queue.rows)
        table = self._table if rows < len(self._table[index]) else self._profile.latencies("median", rows)
        return self._start_us + ceil(table[index][rows] * self._factors[0])

    def saved(self, end_us: int, rows: int, lower: int) -> bool:
        """Whether all behind the first `rows` rows, whose batch ends at `end_us`, make it with subnet `lower`.

        Each batch goes to the worker that is free first: so the k-th of them ends at the k-th of all the moments at
        which workers could end one. Arrivals to come are taken as there already: only their deadlines bind.
        """
        dues_us, packed = self._behind.get(rows) or self._cut(rows)
        median_us = self._table[lower][packed]
        steps_us: list[int] = [ceil(median_us * factor) for factor in self._factors]
        ends_us: list[int] = [end_us, *self._free_us]
        for place, step_us in enumerate(steps_us):
            ends_us[place] = ends_us[place] + step_us
        for due_us in dues_us:
            first, soonest_us = 0, ends_us[0]
            for place, at_us in enumerate(ends_us):
                if at_us < soonest_us:
                    first, soonest_us = place, at_us
            if soonest_us > due_us:
                return False
            ends_us[first] = soonest_us + steps_us[first]
        return True

    def bears(self, end_us: int, rows: int, smallest: int) -> bool:
        """Whether the worst burst, were it to land right after that batch, would make it with subnet `smallest`.

        It would keep all workers busy with many batches: they count as likely, not as long as they can get. A batch is
        at most so large that two of them fit into an SLO, as half of one may have gone when a worker is free; or there
        is one for all the time that is left.
        """
        due_us, medians_us, likely, largest = self._due_us, self._table[smallest], self._likely, self._largest
        size = _within(medians_us, largest, (self._slo_us - self._reply_us) / (2.0 * likely * self._least))
        median_us = medians_us[size] * likely
        missing = max(0, self._queue.rows - rows) + self._burst
        for at_us, factor in zip([end_us, *self._free_us], self._factors, strict=True):
            if missing <= 0.0:
                return True
            if at_us < due_us:
                left_us = float(due_us - at_us)
                borne = left_us // (median_us * factor) * size
                if size < largest:
                    borne = max(borne, bisect_right(medians_us, left_us / (likely * factor), 1, largest + 1) - 1.0)
                missing -= borne
        return missing <= 0.0 or not self._burst

    def overloaded(self, smallest: int, rows: int = 0) -> bool:
        """Whether rows arrive faster than all workers could run them with subnet `smallest` in batches of `rows`.

        0: in full batches; where a full batch does not end within an SLO, in batches just too long to.
        """
        size = rows or min(self._largest, self._useful + 1)
        return self._per_us > sum([size / (self._table[smallest][size] * factor) for factor in self._factors])

    def _cut(self, rows: int) -> tuple[list[int], int]:
        """When batches behind the first `rows` rows are due, and the rows of the largest."""
        dues_us, packed = self._queue.batches(rows, self._useful, _MOST)
        coming_us, size = self._coming
        dues_us = [due_us - self._reply_us for due_us in dues_us]
        found = self._behind[rows] = (dues_us + coming_us, max(packed, size))
        return found


def _margin(view: View, target: float) -> float:
    """Return what a batch is allowed to take over its prediction.

    One that took so long that a full batch of the smallest subnet would have missed an SLO by it counts while the load
    leaves room for that. Where it does not, no plan that carries the load would have saved that batch: after a hiccup
    of the machine the margin is that of all others.
    """
    worker, head = view.worker, view.queue.head
    profile, margin = worker.profile, view.residuals.margin(target)
    largest = profile.max_batch
    full_us = profile.latencies("median")[hull(profile, worker.cheapest)[0]][largest] * worker.correction
    affordable = (head.deadline_us - head.arrival_us) / full_us
    if margin <= affordable:
        return margin
    rows_per_s = len(view.workers) * largest / (full_us * margin) * 1e6
    return margin if view.rate.per_s(view.now_us) <= rows_per_s else view.residuals.margin(target, max(1.0, affordable))


def _within(medians_us: tuple[int, ...], largest: int, us: float) -> int:
    """Return the rows of the largest batch, at least 1 and at most `largest`, that takes no longer."""
    return largest if medians_us[largest] <= us else max(1, bisect_right(medians_us, us, 1, largest) - 1)


def _useful(medians_us: tuple[int, ...], largest: int, view: View, factor: float) -> int:
    """Return the rows of the largest batch that an idle worker ends within the longest SLO that waits.

    `factor` is what it takes over its median. Larger ones are of no use to anybody.
    """
    head = view.queue.head
    reply_us = head.deadline_us - view.slack_us - view.start_us
    if medians_us[largest] * factor <= head.deadline_us - head.arrival_us - reply_us:  # nearly always
        return largest
    return _within(medians_us, largest, (_longest_us(view.queue) - reply_us) / factor)


def _longest_us(queue: EdfQueue) -> int:
    """Return the longest SLO among the queries at the front."""
    return max([query.deadline_us - query.arrival_us for query in queue.first(_LIKE)])


def _idle_for(view: View, us: float) -> bool:
    """Whether the worker to fill has had nothing to do for longer than that."""
    return not view.worker.batches and view.now_us - view.worker.free_us > us


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
