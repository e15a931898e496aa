"""What the world does to simulated batches: jitter, overhead, deaths, and what a mesh was measured to cost."""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from common.sched.options import Late, SchedulerOptions
from common.sched.profile import Profile, Subnet

MEDIAN, P95, P99 = 0.6745, 1.9600, 2.5758  # of |N(0, 1)|
_NEAR = 3  # measured delays before and behind a moment, of which one is drawn


@dataclass(frozen=True, slots=True)
class Delays:
    """What something took, as measured, and when: `us[i]` at `at_us[i]` after the start, ascending, at least one."""

    at_us: tuple[int, ...]
    us: tuple[int, ...]

    def near(self, at_us: int, random: random.Random) -> int:
        """Draw one of the few measured around that moment."""
        place = bisect_right(self.at_us, at_us)
        return self.us[random.randrange(max(0, place - _NEAR), min(len(self.us), place + _NEAR))]

    def last(self, at_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """The one measured last at each of these moments, before all the first."""
        places = np.searchsorted(np.array(self.at_us), at_us, side="right") - 1
        return np.array(self.us)[np.maximum(places, 0)]


@dataclass(frozen=True, slots=True)
class Costs:
    """What a mesh was measured to cost beside its profile, over a run.

    The way of a query from its stamp to the core, a dispatch's to its worker, what a batch takes longer, a report's way
    to the core, and a reply's to the client, with what the query needed to be stamped; and how late the core is woken.
    """

    ingress: Delays
    dispatches: Delays
    overheads: Delays
    reports: Delays
    replies: Delays
    wakes: Delays


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the world does to a batch. Times in microseconds.

    A batch takes median x (1 + |N(0, jitter)|), doubled with probability `tail`, plus `overhead_us`, plus
    `actuation_us` if its worker ran another subnet before. `hop_us` is the way of one message: a dispatch to its
    worker, a report or a reply back. `deaths` and `joins` are (time, worker): a worker that joins is not there before.
    From a time on, a worker in `slow` takes so many times as long: (time, worker, factor). `costs` come on top.
    """

    jitter: float = 0.0
    tail: float = 0.0
    overhead_us: int = 0
    hop_us: int = 0
    actuation_us: int = 0
    deaths: tuple[tuple[int, str], ...] = ()
    joins: tuple[tuple[int, str], ...] = ()
    slow: tuple[tuple[int, str, float], ...] = ()
    costs: Costs | None = None
    seed: int = 0

    def measured(self, profile: Profile, upper: float = P95) -> Profile:
        """Return the profile that a worker would measure in these conditions; `tail` is too rare to show in a p95.

        upper: the quantile of |N(0, 1)| that it announces as its p95.
        """
        subnets = tuple(self._measured(subnet, upper) for subnet in profile.subnets)
        return replace(profile, subnets=subnets, actuation_us=self.actuation_us)

    def _measured(self, subnet: Subnet, upper: float) -> Subnet:
        median, p95 = (1.0 + self.jitter * z for z in (MEDIAN, upper))
        return replace(
            subnet,
            median_us=tuple(round(us * median) + self.overhead_us for us in subnet.median_us),
            p95_us=tuple(round(us * p95) + self.overhead_us for us in subnet.median_us),
        )


def core_options(conditions: Conditions, late: Late = "drop") -> SchedulerOptions:
    """Return the options of a core that knows these conditions.

    A reply takes `hop_us`. Where messages take no time nothing is dispatched ahead: there is no round trip to hide, and
    a query that is bound to a worker that overruns could have gone to another.
    """
    instant = conditions.hop_us == 0 and conditions.costs is None
    return SchedulerOptions(late=late, reply_margin_us=conditions.hop_us, max_in_flight=1 if instant else 2)
