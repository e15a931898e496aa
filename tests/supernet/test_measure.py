"""Accuracy, latency and cost of subnets, and the choice among them."""

import itertools

import torch

from common.sched.profile import Profile
from common.supernet.data import Images
from common.supernet.measure import accuracy, cost, latencies, profile
from common.supernet.search import Candidate, alike_controls, candidates, pareto, spread
from common.supernet.spec import Control, Space
from common.supernet.supernet import Supernet
from tests.supernet.conftest import Build, pictures


def test_accuracy_is_percent_right() -> None:
    """Accuracy counts the rows whose highest score is at the label, over all batches, the last one included."""
    images = Images(torch.arange(10, dtype=torch.uint8).view(10, 1, 1), torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 1, 1]))
    assert accuracy(lambda x: torch.nn.functional.one_hot(x.flatten().long() % 2, 2), images, batch=3) == 90.0


def test_cells_take_turns() -> None:
    """Every cell is timed once per round, in changing order, after a warm-up that does not count."""
    ran: list[tuple[str, int]] = []
    told: list[float] = []
    cells = [("a", 1), ("a", 2), ("b", 1)]
    times = latencies(lambda *cell: ran.append(cell), cells, runs=5, warm_up=2, progress=told.append)
    assert [len(times[cell]) for cell in cells] == [5, 5, 5]
    rounds = [ran[i : i + 3] for i in range(0, len(ran), 3)]
    assert len(rounds) == 7
    assert all(sorted(round_) == cells for round_ in rounds)
    assert len({tuple(round_) for round_ in rounds}) > 1
    assert told[-1] == 1.0


def test_macs_by_hand(build: Build, space: Space) -> None:
    """Multiply-accumulates and weights of the smallest subnet are what a pencil gives."""
    model = build(space.smallest)
    macs, params = cost(model, space.smallest, pictures(1).inputs)  # 4 channels everywhere, but 8 of 24 in the last
    stem = 9 * 4 * 14 * 14
    first = 2 * 9 * 4 * 4 * 14 * 14
    second = (2 * 9 * 4 * 4 + 4 * 4) * 7 * 7
    third = (9 * 4 * 4 + 9 * 4 * 8 + 4 * 8) * 4 * 4
    assert macs == stem + first + second + third + 8 * 5
    norms = 2 * (4 + 3 * 4 + 2 * 4 + 4 + 4 + 8 + 8) - 2 * 4
    assert params == 9 * 4 + 2 * 144 + 2 * 144 + 16 + 144 + 288 + 32 + norms + 8 * 5 + 5


def test_profile_is_what_the_scheduler_reads(shipped: Supernet) -> None:
    """A measured profile reads as common.sched's Profile, lists the Pareto set by accuracy, and says what it is."""
    told: list[float] = []
    data = profile(shipped, batch_sizes=(1, 4), runs=3, progress=told.append)
    read = Profile.from_dict(data)
    assert [subnet.id for subnet in read.subnets] == [subnet.id for subnet in shipped.subnets]
    assert read.batch_sizes == (1, 4)
    assert (data["executor"], data["threads"], data["runs"]) == ("torch", 1, 3)
    assert data["device"]
    assert data["versions"]["torch"] == torch.__version__
    assert told[-1] == 1.0


def candidate(width: int, accuracy: float, *seconds: float) -> Candidate:
    return Candidate(Control((1,), (width,), (100,)), accuracy, seconds)


def test_pareto_drops_the_dominated() -> None:
    """What is dearer and no better is dropped, and so is what is cheaper at one batch size and dearer at another."""
    small, better, large = candidate(10, 80, 1, 2), candidate(20, 85, 2, 5), candidate(30, 90, 4, 10)
    dearer, as_good, crossing = candidate(21, 84, 2, 6), candidate(31, 90.05, 5, 11), candidate(25, 87, 5, 5)
    assert pareto([large, crossing, as_good, small, dearer, better]) == [small, better, large]


def test_spread_keeps_both_ends() -> None:
    """A thinned front keeps both ends, has as many subnets as asked, and loses the crowded ones first."""
    front = [candidate(10 + i, 80 + i, 2.0**i) for i in range(8)]
    near = candidate(90, 84.01, 2.0**4 * 1.01)
    assert spread([*front[:5], near, *front[5:]], 8) in (front, [*front[:4], near, *front[5:]])
    thin = spread(front, 4)
    assert len(thin) == 4
    assert (thin[0], thin[-1]) == (front[0], front[-1])
    assert max(b.accuracy - a.accuracy for a, b in itertools.pairwise(thin)) <= 4
    assert spread(front[:3], 4) == front[:3]


def test_candidates_are_distinct_and_include_the_ends(space: Space) -> None:
    """The search looks at as many distinct legal subnets as asked, both ends among them."""
    found = candidates(space, 30, seed=0)
    assert len(found) == len(set(found)) == 30
    assert {space.smallest, space.largest} < set(found)
    for control in [*found, *alike_controls(space)]:
        space.validate(control)
