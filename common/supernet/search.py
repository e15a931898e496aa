"""What a search begins with and what it keeps: subnets from all over a space; few of them, each worth its time.

Source: SuperServe section 5 (registration: architecture search for the Pareto set, then profiling) and section 4 (its
properties P1 and P2: latency grows with batch and with accuracy)."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from common.supernet.spec import Control, Space


@dataclass(frozen=True, slots=True)
class Candidate:
    """A subnet that was measured: accuracy in percent, seconds per batch size (ascending batch sizes)."""

    control: Control
    accuracy: float
    seconds: tuple[float, ...]

    @property
    def cost(self) -> float:
        """One figure for its latency: the geometric mean over the batch sizes, in seconds."""
        return math.exp(statistics.fmean(map(math.log, self.seconds)))


def candidates(space: Space, count: int, seed: int) -> list[Control]:
    """`count` distinct subnets: smallest, largest, then half of them alike over the stages and half at random."""
    rng = random.Random(seed)
    chosen = dict.fromkeys((space.smallest, space.largest))
    alike = alike_controls(space)
    rng.shuffle(alike)
    for control in alike:
        if len(chosen) < (count + 2) // 2:
            chosen[control] = None
    while len(chosen) < min(count, space.size):
        chosen[space.sample(rng)] = None
    return list(chosen)


def alike_controls(space: Space) -> list[Control]:
    """Subnets whose stages take the same place, from 0 to 1, in their lists of legal values."""

    def alike(part: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
        steps = max(map(len, part))
        shares = [step / max(steps - 1, 1) for step in range(steps)]
        return [tuple(values[round(share * (len(values) - 1))] for values in part) for share in shares]

    return [Control(*parts) for parts in itertools.product(*map(alike, (space.depth, space.width, space.expand)))]


def pareto(measured: Sequence[Candidate], gain: float = 0.1) -> list[Candidate]:
    """Those that no cheaper or equally dear one comes within `gain` points of in accuracy, by ascending cost.

    Both accuracy and latency at every batch size ascend along the result (P2).
    """
    front: list[Candidate] = []
    for candidate in sorted(measured, key=lambda c: (c.cost, -c.accuracy)):
        if not front or candidate.accuracy >= front[-1].accuracy + gain:
            front.append(candidate)
    ascending = front[-1:]
    for candidate in reversed(front[:-1]):
        if all(a < b for a, b in zip(candidate.seconds, ascending[-1].seconds, strict=True)):
            ascending.append(candidate)
    return ascending[::-1]


def spread(front: Sequence[Candidate], count: int) -> list[Candidate]:
    """`count` of a Pareto front, both ends among them: the most crowded one goes until no more are left.

    Crowded is who has near neighbours, in accuracy and in the logarithm of cost, each relative to the whole range.
    """
    kept = list(front)
    if len(kept) <= count:
        return kept
    costs, accuracies = math.log(kept[-1].cost / kept[0].cost), kept[-1].accuracy - kept[0].accuracy

    def room(index: int) -> float:
        below, above = kept[index - 1], kept[index + 1]
        return math.log(above.cost / below.cost) / costs + (above.accuracy - below.accuracy) / accuracies

    while len(kept) > count:
        del kept[min(range(1, len(kept) - 1), key=room)]
    return kept
