"""What the core learns from what it sees. Estimators belong to the core; policies read them through their view."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from math import exp, inf

_RATE_WINDOW_US = 100_000
_WINDOW_US = 20_000
_SURPRISE_US = 10_000_000
_RESIDUALS = 2048
_RESIDUALS_NEEDED = 512
_UNSEEN = 1.5  # of its prediction: what a batch may take longer before any was seen
_UNSEEN_BATCHES = 150
_BEYOND_WORST = 1 / 3
_TAIL_NEEDED = 4.0


class ArrivalRate:
    """Rows per second, as an exponentially fading count whose time constant is 100 ms; and how far it can be wrong."""

    __slots__ = ("_announced", "_at_us", "_rows", "_surprise", "_until_us", "_window")

    def __init__(self) -> None:
        self._rows = 0.0
        self._at_us = 0
        self._window = 0  # rows in the window of 20 ms that ends at _until_us, where the rate announced _announced
        self._until_us = 0
        self._announced = 0.0
        self._surprise = 0.0

    def add(self, rows: int, now_us: int) -> None:
        """Count rows that arrived at `now_us`."""
        if now_us >= self._until_us:
            self._surprise = self.surprise(now_us)
            self._window = 0
            self._until_us = now_us + _WINDOW_US
            self._announced = self._faded(now_us) * (_WINDOW_US / _RATE_WINDOW_US)
        self._window += rows
        self._rows = self._faded(now_us) + rows
        self._at_us = max(now_us, self._at_us)

    def per_s(self, now_us: int) -> float:
        """Return the rate at `now_us`, in rows per second."""
        return self._faded(now_us) * (1_000_000 / _RATE_WINDOW_US)

    def surprise(self, now_us: int) -> float:
        """Return by how many rows the worst window of 20 ms exceeded what the rate before it announced.

        A worst that lies back fades with a time constant of 10 s. A window that has not ended does not count.
        """
        if now_us < self._until_us:
            return self._surprise
        worst = max(self._surprise, self._window - self._announced)
        return worst * exp((self._until_us - _WINDOW_US - now_us) / _SURPRISE_US)

    def _faded(self, now_us: int) -> float:
        return self._rows * exp(min(0, self._at_us - now_us) / _RATE_WINDOW_US)


class Residuals:
    """The last 2,048 ratios of observed to predicted batch latency, and their quantiles."""

    __slots__ = ("_recent", "_sorted")

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, ratio: float) -> None:
        """Remember one ratio (1.0: as predicted), forgetting the oldest when full."""
        if len(self._recent) == _RESIDUALS:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(ratio)
        insort(self._sorted, ratio)

    def quantile(self, q: float, prior: float = 1.5) -> float:
        """Return the q-quantile of the ratios, and until 512 batches are seen at least `prior`: little is known yet."""
        n = len(self._sorted)
        if n == 0:
            return prior
        ratio = self._sorted[int(q * n)]
        return ratio if n >= _RESIDUALS_NEEDED else max(ratio, prior)

    def margin(self, q: float, below: float = inf) -> float:
        """Return the q-quantile of the ratios as a bound to plan with: among few, a rare one may be missing.

        below: ratios beyond it do not count, and it is never exceeded.

        At least 2.5 for the first batch, and e times less above 1 with each 150 batches, until 512 are seen: a batch in
        a hundred that takes twice its time has not shown within 150 with a chance of 0.22, within 512 of 0.006. And
        where so few were seen that fewer than four exceed the quantile, as 2,048 are for 0.999, it is hardly known, and
        a batch beyond it is the loss of many queries at once: a third more above 1 is allowed for.
        """
        seen = len(self._sorted)
        known = seen if below == inf else bisect_right(self._sorted, below)
        ratio = self._sorted[int(q * known)] if known else 1.0
        if seen < _RESIDUALS_NEEDED:
            ratio = max(ratio, 1.0)
        if seen * (1.0 - q) < _TAIL_NEEDED:
            ratio += (ratio - 1.0) * _BEYOND_WORST
        if seen < _RESIDUALS_NEEDED:
            ratio = max(ratio, 1.0 + _UNSEEN * exp(-seen / _UNSEEN_BATCHES))
        return min(ratio, below)


class DispatchDelay:
    """Microseconds from a dispatch to the start of its batch on an idle worker.

    Smoothed as TCP smooths its round trip: mean plus twice the mean deviation, gains 1/8 and 1/4, within [floor, cap].
    """

    __slots__ = ("_cap_us", "_deviation", "_floor_us", "_mean", "us")

    def __init__(self, floor_us: int, cap_us: int) -> None:
        self._floor_us = floor_us
        self._cap_us = cap_us
        self._mean: float | None = None
        self._deviation = 0.0
        self.us = floor_us

    def add(self, delay_us: int) -> None:
        """Learn from one batch that found its worker idle. Clocks may disagree a little: less than 0 counts as 0."""
        sample = float(max(0, delay_us))
        if self._mean is None:
            self._mean, self._deviation = sample, sample / 2
        else:
            self._deviation += (abs(sample - self._mean) - self._deviation) / 4
            self._mean += (sample - self._mean) / 8
        self.us = round(min(max(self._mean + 2 * self._deviation, self._floor_us), self._cap_us))
