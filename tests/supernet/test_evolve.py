"""Predictors and evolution: what they are told is true, and what they find is best."""

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from common.supernet.evolve import NOISE, Array, Predicted, Predictor, best, evolve
from common.supernet.layout import Layout
from common.supernet.spec import Control, Space
from tests.supernet.conftest import Build


@pytest.fixture
def layout(build: Build) -> Layout:
    return build().layout


def controls(space: Space, count: int, seed: int = 0) -> list[Control]:
    rng, found = random.Random(seed), dict.fromkeys((space.smallest, space.largest))
    while len(found) < count:
        found[space.sample(rng)] = None
    return list(found)


def size(layout: Layout, asked: Sequence[Control]) -> Array:
    """Something that depends on depths and widths as latency does: more where there is more to do."""
    return np.array([sum(c.depth) + sum(map(math.log, layout.active(c))) for c in asked])


def worth(layout: Layout, asked: Sequence[Control]) -> Array:
    """Something that saturates as accuracy does."""
    return 95 - 40 * np.exp(-size(layout, asked) / 12)


def test_what_was_not_measured_is_predicted(space: Space, layout: Layout) -> None:
    """Trained on 40 subnets, a predictor ranks 200 others nearly right and beats their mean by far."""
    known, asked = controls(space, 40), controls(space, 200, seed=1)
    others = [c for c in asked if c not in known]
    mean, deviation = Predictor(layout, known, list(worth(layout, known)))(others)
    truth = worth(layout, others)
    assert np.abs(mean - truth).mean() < np.abs(truth - truth.mean()).mean() / 4
    assert np.corrcoef(mean, truth)[0, 1] > 0.95
    assert (deviation > 0).all()


def test_the_fit_is_that_of_subnets_left_out(space: Space, layout: Layout) -> None:
    """The error in closed form is that of a kernel regression from which each subnet was left out in turn."""
    known = controls(space, 12)
    values = worth(layout, known) + np.random.default_rng(0).normal(0, 1, len(known))
    predictor = Predictor(layout, known, list(values))
    kernel = predictor._kernel(predictor._known, predictor._known)
    scaled = (values - values.mean()) / values.std()
    wrong = []
    for left in range(len(known)):
        keep = [i for i in range(len(known)) if i != left]
        weights = np.linalg.solve(kernel[np.ix_(keep, keep)] + NOISE * np.eye(len(keep)), scaled[keep])
        wrong.append(abs(scaled[left] - kernel[left, keep] @ weights) * values.std())
    assert predictor.fit.error == pytest.approx(np.mean(wrong))
    assert predictor.fit.baseline == pytest.approx(np.abs(values - values.mean()).mean())


def test_doubt_grows_where_little_is_known(space: Space, layout: Layout) -> None:
    """A predictor that has seen small subnets alone doubts itself more at the largest than at those it knows."""
    small = [c for c in controls(space, 60) if max(c.width) < 100]
    predictor = Predictor(layout, small, list(worth(layout, small)))
    assert predictor([space.largest])[1][0] > predictor(small)[1].max()


def test_equal_values_are_predicted(space: Space, layout: Layout) -> None:
    """Where all measured subnets are alike, so is what is predicted: no division by a spread of nothing."""
    known = controls(space, 8)
    mean, _ = Predictor(layout, known, [70.0] * 8)(controls(space, 20, seed=2))
    assert mean == pytest.approx(70.0)


def test_evolution_finds_the_front(space: Space, layout: Layout) -> None:
    """Of a space of which everything is known, evolution finds nearly all that the best front can offer."""
    every = [
        Control(depth, width, expand)
        for depth, width, expand in itertools.product(
            *(itertools.product(*part) for part in (space.depth, space.width, space.expand))
        )
    ]
    assert len(every) == space.size
    odd = {c: (hash((c.depth, c.width, c.expand)) % 97) / 97 for c in every}  # what shape alone does not tell

    def accuracies(asked: Sequence[Control]) -> Array:
        return worth(layout, asked) + [3 * odd[c] for c in asked]

    def cost(asked: Sequence[Control]) -> Array:
        return size(layout, asked)

    told: list[int] = []
    looked = evolve(space, accuracies, cost, controls(space, 20), random.Random(0), 12, 100, told.append)
    assert told == list(range(1, 13))
    assert len({p.control for p in looked}) == len(looked) < space.size / 2
    for p in looked:
        space.validate(p.control)
    pairs = [(float(c), float(a)) for c, a in zip(cost(every), accuracies(every), strict=True)]
    costs = np.quantile([c for c, _ in pairs], (0.05, 0.25, 0.5, 0.75, 1.0))
    for bound in costs:
        possible = max(a for c, a in pairs if c <= bound)
        found = max(p.accuracy for p in looked if p.cost <= bound)
        chosen_blindly = max(p.accuracy for p in looked[: len(looked) // 12] if p.cost <= bound)
        assert chosen_blindly <= found
        assert possible - found < 1.0


def predicted(cost: float, accuracy: float) -> Predicted:
    return Predicted(Control((1,), (round(cost * 10),), (round(accuracy),)), accuracy, cost)


def test_fronts_are_peeled_in_order() -> None:
    """First comes the front that nothing dominates, then the next; the last to enter is thinned, its ends kept."""
    first = [predicted(1, 70), predicted(2, 80), predicted(3, 90)]
    second = [predicted(1.5, 65), predicted(2.5, 75), predicted(3.5, 85), predicted(4, 86)]
    mixed = [*second, *first]
    assert best(mixed, 3) == first
    assert best(mixed, 5) == [*first, second[0], second[-1]]
    assert best(mixed, 99) == [*first, *second]
    assert best([], 3) == []
