"""The search of a whole space: predictors trained on measured subnets, and evolution over what they predict.

Source: SuperServe section 5 (registration: architecture search for the Pareto set); once-for-all (Cai et al., 2020) for
evolution over a predictor of accuracy that is trained on measured subnets; NSGA-II (Deb et al., 2002) for fronts.

Latency is predicted from latencies measured on the device, like accuracy from accuracies measured on held-out rows;
what is predicted decides only what is measured next.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.supernet.layout import Layout
from common.supernet.spec import Control, Space

Array = NDArray[np.float64]
NOISE = 0.1  # variance of a measurement, as a share of the variance among subnets


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a predictor does on subnets left out of its training, one by one.

    error: mean absolute error, in the quantity's own unit, or as a share for latencies; baseline: the same of always
    predicting the mean; rank: Spearman's correlation of predicted and measured.
    """

    error: float
    baseline: float
    rank: float


class Predictor:
    """A Gaussian process over depths and the logarithms of channel counts: a linear trend and smooth departures.

    controls: the measured subnets; values: what was measured, one each. Kernel, length scale and noise are fixed: on
    200 measured subnets of `fashion-resnet`, half and double of them were no better; quadratic ridge regression was off
    by twice as much with 48 subnets to learn from.
    """

    def __init__(self, layout: Layout, controls: Sequence[Control], values: Sequence[float]) -> None:
        self._layout = layout
        raw, target = self._raw(controls), np.asarray(values, dtype=np.float64)
        self._mean, spread = raw.mean(0), raw.std(0)
        self._scale = np.where(spread > 0, spread, 1.0)
        self._known = (raw - self._mean) / self._scale
        self._offset, self._unit = float(target.mean()), float(target.std()) or 1.0
        centred = (target - self._offset) / self._unit
        self._inverse = np.linalg.inv(self._kernel(self._known, self._known) + NOISE * np.eye(len(target)))
        self._weights = self._inverse @ centred
        wrong = self._weights / np.diag(self._inverse) * self._unit  # left out, in closed form
        rank = float(np.corrcoef(_ranks(target - wrong), _ranks(target))[0, 1]) if len(target) > 2 else 0.0
        self.fit = Fit(float(np.abs(wrong).mean()), float(np.abs(target - self._offset).mean()), rank)

    def __call__(self, controls: Sequence[Control]) -> tuple[Array, Array]:
        """Mean and standard deviation of what is predicted, [controls] each."""
        at = (self._raw(controls) - self._mean) / self._scale
        across = self._kernel(at, self._known)  # [controls, known]
        variance = 1.0 + (at**2).mean(1) - ((across @ self._inverse) * across).sum(1)
        return across @ self._weights * self._unit + self._offset, np.sqrt(np.maximum(variance, 0.0)) * self._unit

    def _raw(self, controls: Sequence[Control]) -> Array:
        return np.array([[*c.depth, *np.log(self._layout.active(c) or [1])] for c in controls], dtype=np.float64)

    def _kernel(self, a: Array, b: Array) -> Array:
        apart = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T  # squared distances, [a, b]
        kernel: Array = np.exp(-apart / (2 * a.shape[1])) + a @ b.T / a.shape[1]
        return kernel


@dataclass(frozen=True, slots=True)
class Predicted:
    """A subnet with its predicted accuracy in percent and cost in the logarithm of seconds."""

    control: Control
    accuracy: float
    cost: float


def evolve(
    space: Space,
    accuracy: Callable[[Sequence[Control]], Array],
    cost: Callable[[Sequence[Control]], Array],
    seeds: Sequence[Control],
    rng: random.Random,
    generations: int = 30,
    population: int = 200,
    progress: Callable[[int], Any] = lambda _: None,
) -> list[Predicted]:
    """Evolve subnets towards high accuracy at low cost; returns all that were looked at.

    accuracy, cost: predictors. Each generation keeps the best fronts of what there is and adds children of them: two
    parents' entries mixed, and some drawn anew. `progress` is told of each generation.
    """
    known: dict[Control, Predicted] = {}

    def look(controls: Sequence[Control]) -> None:
        fresh = [c for c in dict.fromkeys(controls) if c not in known]
        if fresh:
            for c, a, b in zip(fresh, accuracy(fresh), cost(fresh), strict=True):
                known[c] = Predicted(c, float(a), float(b))

    look([*seeds, *(space.sample(rng) for _ in range(population))])
    for generation in range(generations):
        parents = best(list(known.values()), population // 2)
        look([_child(space, rng.choice(parents).control, rng.choice(parents).control, rng) for _ in range(population)])
        progress(generation + 1)
    return list(known.values())


def best(found: Sequence[Predicted], count: int) -> list[Predicted]:
    """The best front, then the next, and so on until there are `count`; the last front is thinned by cost."""
    left, chosen = sorted(found, key=lambda p: (p.cost, -p.accuracy)), list[Predicted]()
    while left and len(chosen) < count:
        front, rest, most = [], [], -np.inf
        for candidate in left:
            if candidate.accuracy > most:
                front.append(candidate)
                most = candidate.accuracy
            else:
                rest.append(candidate)
        room = count - len(chosen)
        if len(front) > room:
            front = [front[round(i * (len(front) - 1) / max(room - 1, 1))] for i in range(room)]
        chosen, left = chosen + front, rest
    return chosen


def _child(space: Space, mother: Control, father: Control, rng: random.Random, anew: float = 0.1) -> Control:
    def mix(mine: tuple[int, ...], others: tuple[int, ...], legal: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
        entries = zip(mine, others, legal, strict=True)
        return tuple(rng.choice(v) if rng.random() < anew else rng.choice((a, b)) for a, b, v in entries)

    return Control(
        mix(mother.depth, father.depth, space.depth),
        mix(mother.width, father.width, space.width),
        mix(mother.expand, father.expand, space.expand),
    )


def _ranks(values: Array) -> Array:
    ranks: Array = np.argsort(np.argsort(values)).astype(np.float64)
    return ranks
