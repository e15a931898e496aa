"""What no policy can exceed: the paper's ZILP solved exactly on small instances, and a fluid bound on full traces.

Both maximise the paper's objective (section 4), the sum of accuracy over the queries served within their deadlines,
and both know every arrival beforehand. A policy's share of the optimum is its own sum over `Bound.utility`.

- `fluid`: queries are divisible and so are workers. A linear program over groups of arrivals; any length of trace.
- `zilp`: every batch, by integer programming. Any mix of SLOs, rows, floors and workers; some ten queries.
- `search`: every batch, by dynamic programming. One SLO, one row each, like workers; some fifty queries.
- `optimum`: whichever of these two suits.

Workers are given as one profile each: `[profile] * 8`, or the values of a simulation's workers. Batches take their
profiled median plus `overhead_us`. Messages take no time, which only helps.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, pi, sqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.sched.profile import Profile
from common.sched.types import Query
from loadgen.errors import InputError, MissingExtraError
from loadgen.workload import Workload

Load: TypeAlias = Workload | Sequence[Query]
Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

MAX_GROUPS = 1_000  # of arrivals in the fluid bound: docs/bounds.md has what more would gain
MAX_VARIABLES = 200_000  # of the ZILP
MAX_STARTS = 20_000  # of the ZILP
MAX_WAYS = 500_000  # that the search follows, a minute or two
_FIRST = 2  # ways to a state in a first search, whose result lets the exact one leave out most


@dataclass(frozen=True, slots=True)
class Bound:
    """`utility` is the sum of accuracy, in percent, over queries served in time: the most there can be.

    `attainment` (a share of all queries) and `accuracy` (percent, of those served; nan if none is) are those of one
    optimal mix; their product is the utility per query. A policy may exceed one of them, but not the utility.
    """

    utility: float
    attainment: float
    accuracy: float

    @classmethod
    def of(cls, utility: float, served: float, queries: int) -> Bound:
        """Return the bound whose optimal mix serves `served` of `queries`."""
        return cls(utility, served / queries, utility / served if served else float("nan"))


def require_scipy() -> None:
    """MissingExtraError without scipy: to be told before a run, not after it."""
    try:
        import scipy.optimize  # noqa: F401 - to see whether it is there
    except ImportError as error:
        raise MissingExtraError("scipy", "evaluate") from error


def latency_factor(jitter: float, tail: float = 0.0) -> float:
    """Mean of what a simulated batch takes over its median: 1 + |N(0, jitter)|, doubled with probability `tail`."""
    return (1.0 + jitter * sqrt(2.0 / pi)) * (1.0 + tail)


def fluid(
    load: Load,
    workers: Collection[Profile],
    *,
    overhead_us: int = 0,
    jitter: float = 0.0,
    tail: float = 0.0,
    bin_us: int | None = None,
) -> Bound:
    """Bound the utility of a load by a linear program. Raises MissingExtraError without scipy.

    bin_us: arrivals of one SLO are grouped by bins of that length: by default a quarter of the shortest SLO, or longer
    so that there are about `MAX_GROUPS` groups, less with several SLOs, each of which needs a curve over all groups.

    Why no policy exceeds it, whatever the bins. Take any schedule and drop the queries that it serves late: that frees
    time and costs no utility. Share the time of each batch among its queries by their rows.

    - *Price.* A query of r rows served in time by subnet s was in a batch of b >= r rows, which ended within the
      query's SLO. So its share is at least r x l_s(b) / b for the best such b: the largest batch where l(b) / b falls
      with b, the least over b where a profile breaks that. This is the price that the program charges.
    - *Windows.* All that time lies between the query's arrival and its deadline. A group counts as there from its
      first arrival, and as due at its last deadline, so each window only grows.
    - *Capacity.* n workers do at most n x t of work in a time t, all workers of one profile together. The program lets
      that work be cut, moved between them and done in parallel, which the schedule did not need.
    - *Order.* Queries of one SLO have deadlines in the order of arrivals, so those sent to workers of one profile can
      be done in that order (an exchange of work between two of them breaks no window). Then one curve per SLO and
      profile, the work done by each moment, says it all: it is never above the work of the groups there by then,
      never below that of the groups due by then, never falls, and all curves of a profile rise by at most n x t.

    So the schedule's shares, or less, satisfy the program, whose utility is then at least the schedule's. Smaller bins
    remove only what the groups add.

    Under jitter prices are multiplied by the mean factor. That bounds what a policy reaches on average over a long
    trace, not in every run: luck, and the batch that each worker may run over a deadline, are left out.
    """
    queries = _Queries.of(load)
    classes = _classes(queries, bin_us)
    events_us = np.unique(np.concatenate([moments for c in classes for moments in (c.first_us, c.due_us)]))
    factor = latency_factor(jitter, tail)
    program = _Program()
    served: list[Ints] = []
    limits = [[program.rows(0.0, kind.counts) for kind in c.kinds] for c in classes]
    for profile, count in Counter(workers).items():
        rises = program.rows(-inf, count * np.diff(events_us, prepend=events_us[0]) / 1e3)
        for c, most in zip(classes, limits, strict=True):
            groups = len(c.first_us)
            admitted = program.variables(np.zeros(groups))  # work, in ms, of each group and those before it
            done = program.variables(np.zeros(len(events_us)))  # work, in ms, done by each event
            sums = program.rows(0.0, np.zeros(groups))
            program.put(sums, admitted, 1.0)
            program.put(sums[1:], admitted[:-1], -1.0)
            for kind, limit in zip(c.kinds, most, strict=True):
                for index, price_us in _prices(profile, kind, c.slo_us, factor, overhead_us):
                    taken = program.variables(np.full(groups, profile.subnets[index].accuracy))
                    program.put(limit, taken, 1.0)
                    program.put(sums, taken, -price_us / 1e3)
                    served.append(taken)
            program.put(rises, done, 1.0)
            program.put(rises[1:], done[:-1], -1.0)
            grows = program.rows(0.0, np.full(len(events_us) - 1, inf))
            program.put(grows, done[1:], 1.0)
            program.put(grows, done[:-1], -1.0)
            there = program.rows(0.0, np.full(groups, inf))
            program.put(there[1:], admitted[:-1], 1.0)
            program.put(there, done[np.searchsorted(events_us, c.first_us)], -1.0)
            due = program.rows(0.0, np.full(groups, inf))
            program.put(due, done[np.searchsorted(events_us, c.due_us)], 1.0)
            program.put(due, admitted, -1.0)
    utility, values = program.solve()
    return Bound.of(utility, float(sum(values[taken].sum() for taken in served)), len(queries.rows))


def optimum(load: Load, workers: Collection[Profile], *, overhead_us: int = 0, tolerance: float = 0.0) -> Bound:
    """Solve a small instance: `search`, with that tolerance, where it applies, else `zilp`. Raises as they do."""
    if _Queries.of(load).alike and len(set(workers)) == 1:
        return search(load, workers, overhead_us=overhead_us, tolerance=tolerance)
    return zilp(load, workers, overhead_us=overhead_us)


def zilp(load: Load, workers: Collection[Profile], *, overhead_us: int = 0) -> Bound:
    """Solve the paper's ZILP (section 4), which chooses subnet, batch, worker and time for every query, by HiGHS.

    - *Times.* Move every batch to the left until a query's arrival or the end of the batch before it stops it. It stays
      in time. So every start is an arrival plus the latencies of some batches, and no other start is looked at.
    - *Batches.* An integer counts the batches of each subnet, size and start on the workers of one profile, of which
      no more run at any moment than there are workers: they can be told apart afterwards, by start. Sizes end at the
      largest profiled batch; only a query of more rows than that goes alone, as in the scheduler.
    - *Queries.* A variable per query and batch that it could be in: it has arrived, its deadline is not before the end,
      its floor is met. A query is in one batch at most, the rows in a batch are at most its size. A batch with room is
      no gain, as a smaller one takes no longer. With one row per query and batches given, this is a transportation
      problem, whose vertices are integral: these variables can be continuous. Otherwise they are integers, and each
      worker has batches of its own, as rows must be packed into each.

    Raises MissingExtraError without scipy, InputError if the instance needs more than `MAX_STARTS` starts or
    `MAX_VARIABLES` variables: fewer queries, or times with a coarser common step.
    """
    queries = _Queries.of(load)
    single = bool((queries.rows == 1).all())
    program = _Program()
    once = program.rows(0.0, np.ones(len(queries.rows)))
    served: list[Ints] = []
    for profile, count in Counter(workers).items() if single else [(profile, 1) for profile in workers]:
        batches = _batches(queries, profile, overhead_us)
        starts_us = np.array(sorted({start_us for _, start_us, _, _ in batches}), np.int64)
        running = program.rows(0.0, np.full(len(starts_us), float(count)))
        for (accuracy, start_us, latency_us, size), members in batches.items():
            number = program.variables(np.zeros(1), integral=True)
            begin, end = np.searchsorted(starts_us, (start_us, start_us + latency_us))
            program.put(running[begin:end], np.repeat(number, end - begin), 1.0)
            chosen = program.variables(np.full(len(members), accuracy), integral=not single)
            program.put(once[members], chosen, 1.0)
            room = program.rows(0.0, np.full(1, inf))
            program.put(room, number, float(size))
            program.put(np.repeat(room, len(members)), chosen, -queries.rows[members].astype(float))
            served.append(chosen)
            if program.size > MAX_VARIABLES:
                raise InputError("queries", len(queries.rows), f"the ZILP has more than {MAX_VARIABLES} variables")
    utility, values = program.solve()
    return Bound.of(utility, float(sum(values[chosen].sum() for chosen in served)), len(queries.rows))


def search(load: Load, workers: Collection[Profile], *, overhead_us: int = 0, tolerance: float = 0.0) -> Bound:
    """Solve the ZILP by dynamic programming, for queries of one SLO and floor and one row each, on like workers.

    Take an optimal schedule, order its batches by start, and change it, as long as one of these changes applies:

    - a batch goes to the worker that is free first, and what was to follow there changes places with it;
    - a batch takes the first queries that are still to be served and due no sooner than it ends: those that it gives
      up arrived by its start, so they can replace the others wherever these were, or stay unserved like them;
    - a batch starts as soon as its worker is free and its last query is there.

    None loses utility, the third moves starts forward, and there are finitely many schedules. So some optimal schedule
    is made of steps that depend on two things alone: which queries are still to be served, and when each worker is
    free. Of the ways to the same queries, those are kept which no other beats in every worker's time and in utility.
    With one worker the queries left behind a batch are dead, and its batches are contiguous. With more they need not
    be: a short batch may run beside a long one, for a query due before the long one ends and one come after it began.

    tolerance: the share by which the utility may lie above the optimum, never below it. Ways that cannot do better
    than that are counted by what could come of them at most, instead of being followed; what it saves is much.

    Raises InputError for other loads or workers, and for an instance with more than `MAX_WAYS` ways to follow.
    """
    queries = _Queries.of(load)
    if not queries.alike:
        raise InputError("queries", len(queries.rows), "must have one SLO, one floor and one row each")
    if len(set(workers)) != 1:
        raise InputError("workers", len(workers), "must be alike, and at least one")
    instance = _Search.of(queries, next(iter(workers)), overhead_us)
    found = instance.run(len(workers), keep=_FIRST)
    found = instance.run(len(workers), found, tolerance)
    return Bound.of(*found, len(queries.rows))


@dataclass(frozen=True, slots=True)
class _Queries:
    """The queries of a load by order of arrival, one array per property."""

    arrival_us: Ints
    deadline_us: Ints
    rows: Ints
    min_accuracy: Floats

    @classmethod
    def of(cls, load: Load) -> _Queries:
        """Gather them. Raises InputError if there is none."""
        if isinstance(load, Workload):
            arrival_us = load.arrival_us
            slo_us, rows, floor = (
                np.array(values)[load.tenant]
                for values in zip(*((round(t.slo_ms * 1e3), t.rows, t.min_accuracy) for t in load.tenants), strict=True)
            )
            queries = cls(arrival_us, arrival_us + slo_us, rows, floor)
        else:
            queries = cls(
                np.array([query.arrival_us for query in load], np.int64),
                np.array([query.deadline_us for query in load], np.int64),
                np.array([query.rows for query in load], np.int64),
                np.array([query.min_accuracy for query in load]),
            )
        if not len(queries.rows):
            raise InputError("queries", 0, "must be at least one")
        order = np.argsort(queries.arrival_us, kind="stable")
        return cls(
            queries.arrival_us[order], queries.deadline_us[order], queries.rows[order], queries.min_accuracy[order]
        )

    @property
    def alike(self) -> bool:
        """Whether all have one SLO, one floor and one row."""
        kinds = {*zip(self.deadline_us - self.arrival_us, self.rows, self.min_accuracy, strict=True)}
        return len(kinds) == 1 and next(iter(kinds))[1] == 1


@dataclass(frozen=True, slots=True)
class _Kind:
    """Queries of one SLO that have `rows` and a floor in common; `counts`: of each group."""

    rows: int
    min_accuracy: float
    counts: Floats


@dataclass(frozen=True, slots=True)
class _Class:
    """The queries of one SLO in groups by arrival: when the first of each is there, when the last is due."""

    slo_us: int
    first_us: Ints
    due_us: Ints
    kinds: Sequence[_Kind]


def _classes(queries: _Queries, bin_us: int | None) -> list[_Class]:
    slos_us, slo = np.unique(queries.deadline_us - queries.arrival_us, return_inverse=True)
    if bin_us is None:
        duration_us = int(queries.arrival_us[-1] - queries.arrival_us[0])
        bin_us = max(int(slos_us[0]) // 4, duration_us * len(slos_us) ** 2 // MAX_GROUPS, 1)
    sizes, size = np.unique(queries.rows, return_inverse=True)
    floors, floor = np.unique(queries.min_accuracy, return_inverse=True)
    kinds = size * len(floors) + floor
    classes = []
    for i, slo_us in enumerate(slos_us.tolist()):
        mine = slo == i
        arrival_us = queries.arrival_us[mine]
        _, first, group = np.unique(arrival_us // bin_us, return_index=True, return_inverse=True)
        last_us = np.append(arrival_us[first[1:] - 1], arrival_us[-1])
        present = [
            _Kind(
                int(sizes[kind // len(floors)]),
                float(floors[kind % len(floors)]),
                np.bincount(group[kinds[mine] == kind], minlength=len(first)).astype(float),
            )
            for kind in np.unique(kinds[mine]).tolist()
        ]
        classes.append(_Class(slo_us, arrival_us[first], last_us + slo_us, present))
    return classes


def _prices(profile: Profile, kind: _Kind, slo_us: int, factor: float, overhead_us: int) -> Iterator[tuple[int, float]]:
    """Each subnet that can serve such a query in time, by index, and the least time that the query takes of a worker.

    Batches that take longer than the SLO, even without jitter, are left out.
    """
    table = profile.latencies("median", kind.rows)
    for index in range(profile.first_at_least(kind.min_accuracy), len(table)):
        taken_us = [
            (factor * table[index][size] + overhead_us) * kind.rows / size
            for size in range(kind.rows, max(kind.rows, profile.max_batch) + 1)
            if table[index][size] + overhead_us <= slo_us
        ]
        if taken_us:
            yield index, min(taken_us)


def _batches(queries: _Queries, profile: Profile, overhead_us: int) -> dict[tuple[float, int, int, int], Ints]:
    """The queries that could be in each batch, keyed by its accuracy, start, latency and size."""
    largest = int(queries.rows.max())
    table = profile.latencies("median", largest)
    sizes = {*range(1, min(profile.max_batch, int(queries.rows.sum())) + 1), *queries.rows.tolist()}
    kinds = {
        (subnet.accuracy, table[index][size] + overhead_us, size)
        for index, subnet in enumerate(profile.subnets)
        for size in sizes
    }
    batches = {}
    for start_us in _starts(queries, {latency_us for _, latency_us, _ in kinds}):
        there = queries.arrival_us <= start_us
        for accuracy, latency_us, size in kinds:
            fits = queries.rows == size if size > profile.max_batch else queries.rows <= size
            members = np.flatnonzero(
                there & fits & (start_us + latency_us <= queries.deadline_us) & (queries.min_accuracy <= accuracy)
            )
            if queries.rows[members].sum() >= size:
                batches[accuracy, start_us, latency_us, size] = members
    return batches


def _starts(queries: _Queries, latencies_us: Collection[int]) -> list[int]:
    """Every arrival plus any sum of latencies, as long as a batch can still end in time."""
    last_us = int(queries.deadline_us.max()) - min(latencies_us)
    found = set(queries.arrival_us.tolist())
    fresh = list(found)
    while fresh:
        start_us = fresh.pop()
        later = {start_us + us for us in latencies_us if start_us + us <= last_us} - found
        found |= later
        fresh.extend(later)
        if len(found) > MAX_STARTS:
            raise InputError("queries", len(queries.rows), f"the ZILP has more than {MAX_STARTS} starts of batches")
    return sorted(found)


_Left: TypeAlias = tuple[int, ...]  # queries passed over that can still be served
_Way: TypeAlias = tuple[tuple[int, ...], float, int]  # when each worker is free, ascending; utility; queries served


@dataclass(frozen=True, slots=True)
class _Search:
    """What `search` goes through: states (next query, those left before it), and the best ways to each.

    subnets: accuracy, and latency by size. hull: (price, accuracy) from nothing to the most accurate subnet, concave.
    """

    arrival_us: Sequence[int]
    deadline_us: Sequence[int]
    subnets: Sequence[tuple[float, Sequence[int]]]
    shortest_us: int
    hull: Sequence[tuple[float, float]]

    @classmethod
    def of(cls, queries: _Queries, profile: Profile, overhead_us: int) -> _Search:
        """Prepare the tables of an instance."""
        first = profile.first_at_least(float(queries.min_accuracy[0]))
        table = [[us + overhead_us for us in row] for row in profile.latencies("median")[first:]]
        subnets = list(zip((s.accuracy for s in profile.subnets[first:]), table, strict=True))
        prices = [(min(us / size for size, us in enumerate(row) if size), accuracy) for accuracy, row in subnets]
        shortest_us = min((row[1] for row in table), default=0)
        return cls(queries.arrival_us.tolist(), queries.deadline_us.tolist(), subnets, shortest_us, _concave(prices))

    def run(
        self, workers: int, best: tuple[float, int] = (0.0, 0), tolerance: float = 0.0, keep: int | None = None
    ) -> tuple[float, int]:
        """Return utility and queries served of the best way, if that beats `best`; the utility within `tolerance`.

        States come after all that lead to them: more queries passed, or fewer left. keep: ways to a state that are
        followed, at most, for a quick result that need not be the best.
        """
        count = len(self.arrival_us)
        ways: dict[tuple[int, _Left], list[_Way]] = {(0, ()): [((self.arrival_us[0],) * workers, 0.0, 0)]}
        heap: list[tuple[int, int, _Left]] = [(0, 0, ())]
        followed, possible = 0, 0.0
        while heap:
            following, _, left = heapq.heappop(heap)
            waiting = (*left, *range(following, count))
            there = ways.pop((following, left))
            if keep is not None:
                there = sorted(there, key=lambda way: self._most(waiting, way), reverse=True)[:keep]
            for way in there:
                best = max(best, way[1:])
                if (most := self._most(waiting, way)) <= best[0] * (1.0 + tolerance):
                    possible = max(possible, most)
                    continue
                followed += 1
                if followed > MAX_WAYS:
                    why = f"the search has more than {MAX_WAYS} ways to follow: take fewer, or a greater tolerance"
                    raise InputError("queries", count, why)
                for key, reached in self._steps(waiting, following, way):
                    if key not in ways:
                        ways[key] = []
                        heapq.heappush(heap, (key[0], -len(key[1]), key[1]))
                    _keep(ways[key], reached)
        return (max(possible, best[0]) if tolerance else best[0]), best[1]

    def _most(self, waiting: Sequence[int], way: _Way) -> float:
        """No more utility than this can come of a way: all the time left, at the price of the largest batches."""
        if not waiting:
            return way[1]
        time_us = sum(max(0, self.deadline_us[-1] - free_us) for free_us in way[0])
        price_us = time_us / len(waiting)
        for (low_us, low), (high_us, high) in pairwise(self.hull):
            if price_us < high_us:
                return way[1] + len(waiting) * (low + (high - low) * (price_us - low_us) / (high_us - low_us))
        return way[1] + len(waiting) * self.hull[-1][1]

    def _steps(self, waiting: Sequence[int], following: int, way: _Way) -> Iterator[tuple[tuple[int, _Left], _Way]]:
        """Every batch that can start next: `size` queries from `place` in `waiting` on."""
        (free_us, *others), utility, served = way
        arrivals_us, deadlines_us = self.arrival_us, self.deadline_us
        dues_us = [deadlines_us[query] for query in waiting]
        for accuracy, latencies_us in self.subnets:
            for size in range(1, min(len(latencies_us) - 1, len(waiting)) + 1):
                for place in range(bisect_left(dues_us, free_us + latencies_us[size]), len(waiting) - size + 1):
                    last = waiting[place + size - 1]
                    start_us = max(free_us, arrivals_us[last])
                    end_us = start_us + latencies_us[size]
                    again_us = max(start_us, min([end_us, *others]))  # no later batch starts before that
                    if place and self._wasted(waiting[0], free_us, start_us, again_us):
                        break
                    if end_us > dues_us[place] or (place and dues_us[place - 1] >= end_us):
                        continue
                    beyond = max(following, last + 1)
                    left = tuple(
                        query
                        for query in (*waiting[:place], *waiting[place + size :])
                        if query < beyond and deadlines_us[query] >= again_us + self.shortest_us
                    )
                    if left or beyond < len(arrivals_us):
                        again_us = max(again_us, arrivals_us[left[0] if left else beyond])
                    frees = tuple(sorted(max(us, again_us) for us in (end_us, *others)))
                    yield (beyond, left), (frees, utility + size * accuracy, served + size)

    def _wasted(self, passed: int, free_us: int, start_us: int, again_us: int) -> bool:
        """Whether a query passed over is lost though the worker, idle until `start_us`, had time for it."""
        return (
            max(free_us, self.arrival_us[passed]) + self.shortest_us <= min(start_us, self.deadline_us[passed])
            and self.deadline_us[passed] < again_us + self.shortest_us
        )


def _concave(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners, from (0, 0) up to the greatest y, of the concave hull of points (x, y)."""
    kept = [(0.0, 0.0)]
    for x, y in sorted(points):
        if y <= kept[-1][1]:
            continue
        while len(kept) > 1 and (kept[-1][1] - kept[-2][1]) * (x - kept[-2][0]) <= (y - kept[-2][1]) * (
            kept[-1][0] - kept[-2][0]
        ):
            kept.pop()
        kept.append((x, y))
    return kept


def _keep(ways: list[_Way], way: _Way) -> None:
    """Add a way, unless one is no worse in all; drop those that it makes needless."""
    frees, utility, _ = way
    for other, most, _ in ways:
        if most >= utility and all(a <= b for a, b in zip(other, frees, strict=True)):
            return
    ways[:] = [kept for kept in ways if kept[1] > utility or any(a < b for a, b in zip(kept[0], frees, strict=True))]
    ways.append(way)


class _Program:
    """A linear program that grows block by block: the most of gains x variables, variables at least 0."""

    def __init__(self) -> None:
        self.size = 0
        self._height = 0
        self._gains: list[Floats] = []
        self._integral: list[Floats] = []
        self._limits: list[tuple[Floats, Floats]] = []
        self._entries: list[tuple[Ints, Ints, Floats]] = []

    def variables(self, gains: Floats, *, integral: bool = False) -> Ints:
        """Add a variable per gain; return their columns."""
        self._gains.append(gains)
        self._integral.append(np.full(len(gains), float(integral)))
        self.size += len(gains)
        return np.arange(self.size - len(gains), self.size)

    def rows(self, least: float, most: Floats) -> Ints:
        """Add a row per value of `most`, whose sum is to lie between `least` and that; return them."""
        self._limits.append((np.full(len(most), least), most))
        self._height += len(most)
        return np.arange(self._height - len(most), self._height)

    def put(self, rows: Ints, columns: Ints, coefficients: float | Floats) -> None:
        """Put a coefficient at each pair of row and column."""
        columns = np.broadcast_to(columns, rows.shape)
        self._entries.append((rows, columns, np.broadcast_to(coefficients, rows.shape).astype(float)))

    def solve(self) -> tuple[float, Floats]:
        """Return the most there is, and the variables that give it. Raises MissingExtraError without scipy."""
        require_scipy()
        from scipy.optimize import LinearConstraint, milp
        from scipy.sparse import csr_array

        if not self.size:
            return 0.0, np.zeros(0)
        gains, integral = np.concatenate(self._gains), np.concatenate(self._integral)
        least, most = (np.concatenate(side) for side in zip(*self._limits, strict=True))
        rows, columns, values = (np.concatenate(part) for part in zip(*self._entries, strict=True))
        matrix = csr_array((values, (rows, columns)), shape=(self._height, self.size))
        result = milp(
            -gains,
            integrality=integral,
            constraints=LinearConstraint(matrix, least, most),
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            raise RuntimeError(f"HiGHS: {result.message}")
        return float(gains @ result.x), result.x
