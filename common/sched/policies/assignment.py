"""Which worker runs what, so that a demand is carried at the highest accuracy: a small integer program, solved here.

Workers of a group are interchangeable, so a solution is a count per group and option, an option being an accuracy and
the share of the demand that a worker carries with it. The most accurate workers serve first, the last as far as needed.

Let workers be divided among options, and the program is linear: each group moves along the upper hull of its points
(share, share x accuracy), all at the same slope l, and at most one group stands between two vertices. The value with
any other choice is at most the linear one's, less sum of (v(vertex) - v(option)) over the workers that deviate, with
v = (accuracy - l) x share where that is positive (weak duality). So choices are tried in the order of that loss, from
none on, and the search ends when the loss leaves no room for a better one. Pure: no clock ends it, but a count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import compress, islice
from operator import mul
from typing import NamedTuple

_SPARE = 1e-3  # what a point of the workers' accuracy weighs against one of the demand's: enough to break ties
_NEAR = 0.01  # points below the optimum that end the search
_WORK = 200_000  # choices that are tried at most, times options to look at: some 30 ms; equal workers take under 1 ms
_EXACT = 1e-9  # of the demand


class Capacity(NamedTuple):
    """What a worker may run; `share`: of the demand that it carries so, at most 1."""

    accuracy: float
    share: float


class Edge(NamedTuple):
    """A part of a group's hull: workers that go from one option to the next, or from idleness (None) to the first."""

    slope: float
    group: int
    before: int | None
    after: int
    share: float


class Move(NamedTuple):
    """A worker leaves its group's vertex: `loss` in points of accuracy, `share` as it gains it, slots of options."""

    loss: float
    share: float
    at: int
    to: int


def assign(groups: Sequence[tuple[Sequence[Capacity], int]]) -> list[list[int]] | None:
    """Return how many workers of each group run each of its options; None if they cannot carry the demand.

    groups: (options, workers).
    """
    edges = sorted((e for g, group in enumerate(groups) for e in _hull(g, *group)), key=lambda e: -e.slope)
    vertex = [max(range(len(options)), key=lambda i: options[i]) for options, _ in groups]
    left = 1.0
    for edge in edges:
        if edge.share >= left - _EXACT:
            break
        left -= edge.share
        vertex[edge.group] = edge.after
    else:
        return None
    if edge.before is not None:
        return _search(groups, vertex, edge)
    return [
        [workers if index == at else 0 for index in range(len(options))]
        for (options, workers), at in zip(groups, vertex, strict=True)
    ]


def _hull(group: int, options: Sequence[Capacity], workers: int) -> list[Edge]:
    """Return the edges of a group's upper hull from idleness on, by descending slope."""
    edges: list[Edge] = []
    share = value = 0.0
    before = None
    while True:
        beyond = [i for i, option in enumerate(options) if option.share > share]
        if not beyond:
            return edges
        slope, _, after = max(
            ((o.accuracy * o.share - value) / (o.share - share), o.share, i) for i in beyond for o in (options[i],)
        )
        edges.append(Edge(slope, group, before, after, (options[after].share - share) * workers))
        before, share = after, options[after].share
        value = options[after].accuracy * share


def _search(groups: Sequence[tuple[Sequence[Capacity], int]], vertex: list[int], edge: Edge) -> list[list[int]]:
    """Return the best counts that are found around those with each group at its vertex, and one on an edge."""
    places = sorted(
        ((group, index) for group, (options, _) in enumerate(groups) for index in range(len(options))),
        key=lambda place: groups[place[0]][0][place[1]],
        reverse=True,
    )
    slots = {place: slot for slot, place in enumerate(places)}
    home = [slots[group, index] for group, index in enumerate(vertex)]
    start = [0] * len(places)
    for slot, (_, workers) in zip(home, groups, strict=True):
        start[slot] = workers
    options = [groups[group][0][index] for group, index in places]
    worth = [max(0.0, (accuracy - edge.slope) * share) for accuracy, share in options]
    before, after = home[edge.group], slots[edge.group, edge.after]
    moves = sorted(
        Move(max(0.0, worth[at] - worth[to]), options[to].share - options[at].share, at, to)
        for to, (group, _) in enumerate(places)
        if to not in (at := home[group], after)
    )
    bound = edge.slope + sum(map(mul, worth, start)) + _SPARE * options[0].accuracy
    wasted = max(0.0, options[-1].accuracy - edge.slope)  # at least, by a share of the demand that is carried beyond it
    step = options[after].share - options[before].share
    best, found = -math.inf, start
    for loss, share, chosen in islice(_choices(moves, start, options), 1 + _WORK // len(places)):
        if loss >= bound - best - _NEAR:
            break
        moved = max(0, math.ceil((1.0 - share - 2.0 * _EXACT) / step))
        if loss + (share + moved * step - 1.0) * wasted >= bound - best:
            continue
        counts = start.copy()
        for number in chosen:
            counts[moves[number].at] -= 1
            counts[moves[number].to] += 1
        counts[before] -= moved
        counts[after] += moved
        if counts[before] >= 0 and (value := _value(options, counts)) > best:
            best, found = value, counts
    return [[found[slots[group, index]] for index in range(len(some))] for group, (some, _) in enumerate(groups)]


def _choices(
    moves: Sequence[Move], workers: Sequence[int], options: Sequence[Capacity]
) -> Iterator[tuple[float, float, tuple[int, ...]]]:
    """Yield what sets of moves lose, the share of the demand with them, and their numbers; by what they lose.

    moves: by their loss; each may be made as often as there are `workers` at its option to make it.
    """
    share = sum(count * option.share for option, count in zip(options, workers, strict=True))
    yield 0.0, share, ()
    waiting: list[tuple[float, float, tuple[int, ...]]] = []
    if moves:
        waiting.append((moves[0].loss, share + moves[0].share, (0,)))
    while waiting:
        loss, share, chosen = heappop(waiting)
        last = chosen[-1]
        move = moves[last]
        if last + 1 < len(moves):  # each set is made once: its last move is repeated, or replaced by the next one
            other = moves[last + 1]
            replaced = (*chosen[:-1], last + 1)
            heappush(waiting, (loss - move.loss + other.loss, share - move.share + other.share, replaced))
        if sum(moves[number].at == move.at for number in chosen) <= workers[move.at]:
            heappush(waiting, (loss + move.loss, share + move.share, (*chosen, last)))
            yield loss, share, chosen


def _value(options: Sequence[Capacity], counts: Sequence[int]) -> float:
    """Return the accuracy of the demand on so many workers of each option, the best first, and what breaks ties."""
    left, served, spare, workers = 1.0, 0.0, 0.0, 0
    for (accuracy, share), count in zip(compress(options, counts), filter(None, counts), strict=True):
        taken = min(left, count * share)
        served, left = served + taken * accuracy, left - taken
        spare, workers = spare + count * accuracy, workers + count
    return served + _SPARE * spare / workers
