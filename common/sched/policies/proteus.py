"""Proteus: every few seconds a linear program assigns subnets to workers for the demand expected. After ASPLOS 2024.

Demand is a moving average (EWMA) of the rows that arrived in each second, times `headroom`. A worker's capacity with a
subnet is that of its largest batch whose latency fits half the SLO: a query may have waited for one such batch before
its own. The mixed integer program, over workers g of the same profile and their subnets s,

    maximise    sum acc[g,s] z[g,s]                 accuracy of the demand served; z: shares of the demand
    subject to  z[g,s] <= capacity[g,s] / demand n[g,s],  sum over s of n[g,s] = workers of g,  sum of z = 1

gives each worker a subnet, to within a hundredth of a point of accuracy. Among solutions that close, those with the
more accurate workers weigh more: one queue serves all, so that spare capacity is used. If there is no solution, not
even the smallest subnets carry the demand: all run them.

Between two solutions a worker runs its subnet on the largest batch that fits the head's slack.

What the paper has and this has not: queues per worker and routing by shares of the demand, in place of which every
worker takes from the one queue, earliest deadline first, which favours it; several applications at once; and a lower
accuracy for the workers that cannot be helped, in place of all smallest. The SLO is that of the head when the program
is solved.

Until the first second is over nothing is known, and workers that joined since the last solution are in none: they run
their smallest subnets, which is the safe side. Those that left are missed until the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.sched.policies.base import Fitting, Learner, PolicyError, View, fitting_rows
from common.sched.profile import Profile, Quantile
from common.sched.types import Choice
from common.sched.worker import Worker

_WINDOW_US = 1_000_000
_SPARE = 1e-3  # what a point of the workers' accuracy weighs against one of the demand's: enough to break ties
_GAP = 1e-4  # of the optimum, which is percent: a hundredth of a point. To prove more takes HiGHS minutes at 64 workers


class Demand(Learner):
    """Rows per second, a moving average over windows of 1 s from the first arrival on, and what was assigned for it.

    per_s: None until the first window is over, which is then the average.
    """

    __slots__ = ("_gain", "_rows", "_until_us", "assigned", "due_us", "per_s")

    def __init__(self, gain: float) -> None:
        self._gain = gain
        self._rows = 0
        self._until_us: int | None = None
        self.per_s: float | None = None
        self.assigned: dict[str, int] = {}
        self.due_us = 0

    def arrived(self, rows: int, now_us: int) -> None:
        """Count rows in the window of `now_us`."""
        self.close(now_us)
        self._rows += rows

    def close(self, now_us: int) -> None:
        """Take the windows that are over into the average."""
        if self._until_us is None:
            self._until_us = now_us + _WINDOW_US
        over = (now_us - self._until_us) // _WINDOW_US + 1
        if over > 0:
            first = self._rows if self.per_s is None else self.per_s + (self._rows - self.per_s) * self._gain
            self.per_s = first * (1.0 - self._gain) ** (over - 1)
            self._rows = 0
            self._until_us += over * _WINDOW_US


@dataclass(frozen=True, slots=True)
class Proteus(Fitting):
    """One subnet per worker, assigned every few seconds by a linear program for the demand expected."""

    period_s: float = field(default=10.0, metadata={"doc": "time from one assignment to the next"})
    gain: float = field(default=0.3, metadata={"doc": "weight of the last second in the demand, in (0, 1]"})
    headroom: float = field(default=1.05, metadata={"doc": "capacity assigned over the demand expected"})

    def __post_init__(self) -> None:
        if not 0.001 <= self.period_s <= 1e6:
            raise PolicyError(f"proteus: period_s: expected 0.001 to 1e6, got {self.period_s}")
        if not 0.0 < self.gain <= 1.0:
            raise PolicyError(f"proteus: gain: expected a number in (0, 1], got {self.gain}")
        if not 0.0 < self.headroom <= 1e3:
            raise PolicyError(f"proteus: headroom: expected a number in (0, 1000], got {self.headroom}")

    def learner(self) -> Demand:
        """Return a demand of which nothing is known."""
        return Demand(self.gain)

    def cheapest(self, profile: Profile) -> str:
        """Return the smallest subnet. Raises PolicyError if there is no solver."""
        _solver()
        return profile.smallest

    def choose(self, view: View) -> Choice | None:
        """Return the largest batch that fits of the subnet assigned to the worker."""
        learned = view.learned
        assert isinstance(learned, Demand)
        learned.close(view.now_us)
        if learned.per_s is not None and view.now_us >= learned.due_us:
            learned.due_us = view.now_us + round(self.period_s * 1e6)
            learned.assigned = self._assign(view, learned.per_s * self.headroom)
        return self.serve(view, learned.assigned.get(view.worker.name, 0))

    def _assign(self, view: View, rows_per_s: float) -> dict[str, int]:
        """Return the index of the subnet of each worker. One that runs what the plan wants keeps it."""
        groups: dict[Profile, list[Worker]] = {}
        for worker in sorted(view.workers, key=lambda worker: worker.name):
            groups.setdefault(worker.profile, []).append(worker)
        sizes = [(profile, len(workers)) for profile, workers in groups.items()]
        counts = plan(sizes, rows_per_s, view.head.deadline_us - view.head.arrival_us, self.quantile)
        assigned: dict[str, int] = {}
        for (profile, workers), left in zip(groups.items(), counts, strict=True):
            for index, subnet in enumerate(profile.subnets):
                keep = [worker.name for worker in workers if worker.subnet == subnet.id][: left[index]]
                assigned |= dict.fromkeys(keep, index)
                left[index] -= len(keep)
            rest = [index for index, count in enumerate(left) for _ in range(count)]
            others = (worker.name for worker in workers if worker.name not in assigned)
            assigned |= dict(zip(others, rest, strict=True))
        return assigned


def plan(
    groups: Sequence[tuple[Profile, int]], rows_per_s: float, slo_us: int, quantile: Quantile = "p95"
) -> list[list[int]]:
    """Return how many of each group's workers run each subnet; if that cannot carry the demand, all the smallest.

    groups: (profile, workers). A subnet that runs not even one row in half the SLO is not used, but for the smallest.
    """
    options = [
        (group, index, subnet.accuracy, capacity)
        for group, (profile, _) in enumerate(groups)
        for index, subnet in enumerate(profile.subnets)
        if (capacity := capacity_per_s(profile, index, slo_us, quantile)) > 0.0 or index == 0
    ]
    n, workers = len(options), sum(count for _, count in groups)
    accuracy = np.array([option[2] for option in options])
    share = np.array([1.0 if capacity >= rows_per_s else capacity / rows_per_s for *_, capacity in options])
    member = np.array([[option[0] == group for option in options] for group in range(len(groups))], dtype=float)
    counts = np.array([count for _, count in groups], dtype=float)
    solver = _solver()
    result = solver.milp(  # over n of each option, then z of each
        -np.concatenate([accuracy * (_SPARE / workers), accuracy]),
        integrality=np.repeat([1, 0], n),
        bounds=solver.Bounds(0.0, np.concatenate([member.T @ counts, np.ones(n)])),
        constraints=[
            solver.LinearConstraint(np.hstack([-np.diag(share), np.eye(n)]), -np.inf, 0.0),
            solver.LinearConstraint(np.hstack([member, np.zeros_like(member)]), counts, counts),
            solver.LinearConstraint(np.repeat([[0.0, 1.0]], n, axis=1), 1.0, 1.0),
        ],
        options={"mip_rel_gap": _GAP},
    )
    planned = [[0] * len(profile.subnets) for profile, _ in groups]
    if result.x is None:
        for row, (_, count) in zip(planned, groups, strict=True):
            row[0] = count
        return planned
    for (group, index, *_), count in zip(options, result.x[:n], strict=True):
        planned[group][index] = round(count)
    return planned


def capacity_per_s(profile: Profile, index: int, slo_us: int, quantile: Quantile) -> float:
    """Return the rows per second of a subnet in the largest batch that it runs in half the SLO; 0 if it runs none."""
    rows = fitting_rows(profile, index, slo_us / 2, quantile)
    return rows * 1e6 / profile.latencies(quantile)[index][rows]


def _solver() -> Any:
    try:
        from scipy import optimize
    except ImportError as error:
        raise PolicyError(f"proteus: needs scipy ({error}): pip install 'superserve-mesh[evaluate]'") from error
    return optimize
