"""A brownout controller, after BrownoutServe: quality falls and rises step by step, by the latency that is measured.

One level for all workers: how many subnets below the most accurate one. Each window of time is judged when it is over,
by a quantile of what its queries took of their SLO, (finish - arrival) / (deadline - arrival); one given up as late
took more than all. Above `high` the level falls by one subnet, below `low` it rises by one, between them it holds, as
it does if nothing ended. A window is over at the first decision after `window_ms`, so a lull prolongs it.

A window longer than a burst comes too late; one shorter than a query's time in the system judges a level by queries of
the one before it, and steps too far. 20 ms, about half the paper's SLO, was best of 10 to 200, and falls through six
subnets in 0.1 s. `low` is far below `high` because the next subnet takes up to 1.7 times as long (reconstructed
profile, full batch): a step up must not be the cause of the next step down.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from common.sched.policies.base import Fitting, Learner, PolicyError, View
from common.sched.types import Batch, BatchDone, Choice, Query, Reason


class Level(Learner):
    """Shares of their SLO that queries took in this window, and by how many subnets quality is lowered."""

    __slots__ = ("_shares", "_until_us", "lowered")

    def __init__(self) -> None:
        self._shares: list[float] = []
        self._until_us = 0
        self.lowered = 0

    def finished(self, batch: Batch, done: BatchDone) -> None:
        """Note what the queries of a batch took."""
        for query in batch.queries:
            slo_us = max(1, query.deadline_us - query.arrival_us)
            self._shares.append((done.finished_us - query.arrival_us) / slo_us)

    def rejected(self, query: Query, reason: Reason, now_us: int) -> None:
        """Note a query that came too late."""
        if reason == "late":
            self._shares.append(inf)

    def step(self, policy: Brownout, view: View) -> int:
        """Judge the window if it is over; return by how many subnets quality is lowered now."""
        if view.now_us >= self._until_us:
            self._until_us = view.now_us + round(policy.window_ms * 1000)
            if self._shares:
                share = sorted(self._shares)[int(policy.tail * len(self._shares))]
                most = max(len(worker.profile.subnets) for worker in view.workers) - 1
                self.lowered = min(most, max(0, self.lowered + (share > policy.high) - (share < policy.low)))
                self._shares.clear()
        return self.lowered


@dataclass(frozen=True, slots=True)
class Brownout(Fitting):
    """One subnet for all, lowered and restored step by step as the measured latency nears the SLO."""

    window_ms: float = field(default=20.0, metadata={"doc": "least time from one step to the next"})
    tail: float = field(default=0.95, metadata={"doc": "which quantile of a window's latencies is judged, in [0, 1)"})
    high: float = field(default=0.8, metadata={"doc": "share of the SLO above which quality falls"})
    low: float = field(default=0.3, metadata={"doc": "share of the SLO below which quality rises"})

    def __post_init__(self) -> None:
        if not 0.001 <= self.window_ms <= 1e9:
            raise PolicyError(f"brownout: window_ms: expected 0.001 to 1e9, got {self.window_ms}")
        if not 0.0 <= self.tail < 1.0:
            raise PolicyError(f"brownout: tail: expected a number in [0, 1), got {self.tail}")
        if not 0.0 <= self.low <= self.high < inf:
            raise PolicyError(f"brownout: low: expected 0 to high, which is {self.high}, got {self.low}")

    def learner(self) -> Level:
        """Return a level at full quality."""
        return Level()

    def choose(self, view: View) -> Choice | None:
        """Return the largest batch that fits of the subnet of the level."""
        assert isinstance(view.learned, Level)
        return self.serve(view, max(0, len(view.profile.subnets) - 1 - view.learned.step(self, view)))
