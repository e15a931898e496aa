"""The assignment of options to workers, against a solver of mixed integer programs."""

from itertools import pairwise
from random import Random

import numpy as np
import pytest

from common.sched.policies.assignment import Capacity, assign

Groups = list[tuple[list[Capacity], int]]

# Accuracy and rows per second of one worker, the most accurate first: the reconstructed profile's at 36 ms, about.
CAPACITIES = ((80.16, 430.0), (79.44, 610.0), (78.25, 790.0), (77.64, 860.0), (76.69, 1_230.0), (73.82, 2_070.0))
NEAR = 0.03  # points: what the search, and the solver, may leave


def fleet(kind: str, demand: float) -> Groups:
    """Workers whose shares are of a demand: in rows per second, so many equal ones, or each with a speed of its own."""
    count, _, unlike = kind.partition(" ")
    speeds = [(1.0, int(count))]
    if unlike:
        chance = Random(7)
        speeds = [(chance.uniform(0.85, 1.15), 1) for _ in range(int(count))]
    return [
        ([Capacity(accuracy, min(1.0, rows * speed / demand)) for accuracy, rows in CAPACITIES], workers)
        for speed, workers in speeds
    ]


def value(groups: Groups, counts: list[list[int]]) -> float:
    """Accuracy of the demand, which must be carried, the most accurate workers first."""
    left, total = 1.0, 0.0
    used = [(o, n) for (options, _), row in zip(groups, counts, strict=True) for o, n in zip(options, row, strict=True)]
    for option, count in sorted(used, reverse=True):
        taken = min(left, option.share * count)
        total, left = total + taken * option.accuracy, left - taken
    assert left < 1e-6
    return total


def solved(groups: Groups) -> float:
    """The same program by HiGHS, to within a hundredth of a point."""
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed (extra evaluate)")
    options = [option for some, _ in groups for option in some]
    n = len(options)
    member = np.repeat(np.eye(len(groups)), [len(some) for some, _ in groups], axis=1)
    workers = np.array([count for _, count in groups])
    shares = np.diag([option.share for option in options])
    result = optimize.milp(  # over how many workers run each option, then the share of the demand that these carry
        np.concatenate([np.zeros(n), [-option.accuracy for option in options]]),
        integrality=np.repeat([1, 0], n),
        bounds=optimize.Bounds(0.0, np.concatenate([member.T @ workers, np.ones(n)])),
        constraints=[
            optimize.LinearConstraint(np.hstack([-shares, np.eye(n)]), -np.inf, 0.0),
            optimize.LinearConstraint(np.hstack([member, np.zeros_like(member)]), workers, workers),
            optimize.LinearConstraint(np.repeat([[0.0, 1.0]], n, axis=1), 1.0, 1.0),
        ],
        options={"mip_rel_gap": 1e-4},
    )
    assert result.x is not None
    return -float(result.fun)


@pytest.mark.parametrize("kind", ["1", "3", "8", "20", "64", "8 unlike"])
def test_assignment_is_as_good_as_a_solver_s(kind: str) -> None:
    """From what the best options carry to what the smallest do, no demand is served less accurately than by HiGHS."""
    workers = int(kind.partition(" ")[0])
    for load in np.linspace(400, 1_850, 9):
        groups = fleet(kind, load * workers)
        counts = assign(groups)
        assert counts is not None
        assert [sum(row) for row in counts] == [count for _, count in groups]
        assert value(groups, counts) >= solved(groups) - NEAR, load


def test_more_demand_is_never_served_better() -> None:
    """With 64 unlike workers, too many to compare, accuracy falls with demand, up to what all smallest ones carry."""
    loads = np.linspace(300, 1_900, 12)
    values = [value(groups, counts) for load in loads if (counts := assign(groups := fleet("64 unlike", load * 64)))]
    assert len(values) == len(loads)
    assert all(later <= before + NEAR for before, later in pairwise(values))
    assert values[0] == pytest.approx(80.16)
    assert values[-1] < 75.0


def test_demand_beyond_all_workers_has_no_assignment() -> None:
    """What even the workers' largest shares do not carry is told, and what they just carry is assigned."""
    assert assign([([Capacity(80.0, 0.2), Capacity(70.0, 0.3)], 3)]) is None
    assert assign([([Capacity(80.0, 0.2), Capacity(70.0, 1 / 3)], 3)]) == [[0, 3]]


def test_idle_workers_hold_their_best() -> None:
    """Workers that the demand does not need run what is most accurate; one that can carry nothing is no obstacle."""
    groups = [([Capacity(70.0, 1.0), Capacity(80.0, 0.6)], 5), ([Capacity(60.0, 0.0)], 1)]
    assert assign(groups) == [[0, 5], [1]]
