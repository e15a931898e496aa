"""One simulation of the evaluation, what came of it, and many of them on every core."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TypeAlias

from common.sched.core import Scheduler
from common.sched.options import Late
from common.sched.policies import parse_policy
from common.sched.profile import Profile
from loadgen.bounds import Bound, fluid, optimum
from loadgen.conditions import P95, Conditions, core_options
from loadgen.profiles import load_profile
from loadgen.records import Records
from loadgen.report import Report, RunInfo, make_report
from loadgen.simulate import simulate
from loadgen.workload import Workload, make_workload

LATE = "late"  # the reason with which the core rejects a query out of reach

CNN = "rtx2080ti-reconstructed"
TRANSFORMER = "rtx2080ti-dynabert-derived"
_TOLERANCE = 0.0005  # share by which an exact optimum may be told too high: a hundred times as fast


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A trace, the workers it meets and what happens to them: everything but the policy."""

    trace: str  # a SPEC, see `loadgen.spec`
    duration_s: float
    rate: float | None = None
    slo_ms: float = 36.0
    seed: int = 0
    profile: str = CNN
    workers: int = 8
    conditions: Conditions = field(default_factory=Conditions)
    exact: bool = False  # small enough to be solved exactly
    upper: float = P95  # what workers announce as their p95, see `Conditions.measured`

    def workload(self) -> Workload:
        """Make the queries."""
        return make_workload(self.trace, rate=self.rate, duration_s=self.duration_s, seed=self.seed, slo_ms=self.slo_ms)

    def info(self, model: str) -> RunInfo:
        """What a report of a simulation tells of its run."""
        return RunInfo(
            url="simulation",
            model=model,
            trace=self.trace,
            rate=self.rate,
            duration_s=self.duration_s,
            slo_ms=self.slo_ms,
            seed=self.seed,
            data="none",
            started_at="",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A policy in a world, and what it does with a query that cannot meet its deadline."""

    world: World
    policy: str
    late: Late = "drop"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a case."""

    case: Case
    report: Report

    @property
    def attainment(self) -> float:
        """SLO attainment."""
        return self.report.slo_attainment

    @property
    def accuracy(self) -> float:
        """Serving accuracy in percent, NaN if no query met its SLO."""
        return math.nan if self.report.serving_accuracy is None else self.report.serving_accuracy

    @property
    def misses(self) -> int:
        """Queries that did not meet their SLO."""
        return round((1 - self.attainment) * self.report.queries)

    def share(self, bound: Bound) -> float:
        """Accuracy summed over the queries that met their SLO, the paper's objective, over its upper bound."""
        return self.attainment * self.report.queries * (self.accuracy if self.attainment else 0.0) / bound.utility


def play(case: Case) -> Records:
    """Simulate one case."""
    world = case.world
    scheduler = Scheduler(parse_policy(case.policy), core_options(world.conditions, case.late))
    profile = _profile(world.profile)
    return simulate(scheduler, world.workload(), profile, world.workers, world.conditions, upper=world.upper)


def run_case(case: Case) -> Result:
    """Simulate one case and report it."""
    world = case.world
    return Result(case, make_report(play(case), world.info(world.profile)))


def run_bound(world: World, *, exact: bool = False) -> Bound:
    """The upper bound of a world, whose workers all live all the time: fluid, or the paper's ZILP for a small one."""
    if exact:
        return optimum(world.workload(), [_profile(world.profile)] * world.workers, tolerance=_TOLERANCE)
    conditions = world.conditions
    return fluid(
        world.workload(),
        [_profile(world.profile)] * world.workers,
        overhead_us=conditions.overhead_us,
        jitter=conditions.jitter,
        tail=conditions.tail,
    )


# Simulations of a case under some rules, or a world's bound: fluid, or exact if so marked.
_Task: TypeAlias = tuple[Case, tuple[Late, ...]] | tuple[World, bool]


@dataclass(slots=True)
class Results:
    """Everything that was run, looked up by what was asked."""

    cases: dict[Case, Result]
    bounds: dict[World, Bound]  # fluid
    optima: dict[World, Bound]  # of small worlds

    def of(self, world: World, policy: str, late: Late = "drop") -> Result:
        """The result of a case that was asked for."""
        return self.cases[Case(world=world, policy=policy, late=late)]

    def share(self, result: Result) -> float:
        """A result as a share of the optimum's upper bound."""
        return result.share(self.bounds[bound_world(result.case.world)])


def bound_world(world: World) -> World:
    """The world that bounds this one: without what can only cost (hops, actuation, deaths, slow or late workers)."""
    kept = world.conditions
    return replace(world, conditions=Conditions(jitter=kept.jitter, tail=kept.tail, overhead_us=kept.overhead_us))


def run_all(cases: Iterable[Case], progress: Callable[[int, int], None]) -> Results:
    """Run cases, each once, and the bounds of their worlds, on every core. Progress is told (done, total)."""
    wanted = list(dict.fromkeys(cases))
    worlds = list(dict.fromkeys(bound_world(case.world) for case in wanted))
    rules: dict[Case, list[Late]] = {}
    for case in wanted:
        rules.setdefault(replace(case, late="drop"), []).append(case.late)
    # The longest first, so that no core idles at the end.
    by_length = sorted(rules, key=lambda case: -case.world.duration_s * (case.world.rate or 5_000))
    results = Results({}, {}, {})
    exact = [world for world in worlds if world.exact]
    total = len(wanted) + len(worlds) + len(exact)
    progress(0, total)
    with _pool() as pool:
        tasks: list[_Task] = [(world, True) for world in exact]
        tasks += [(world, False) for world in worlds]
        tasks += [(case, tuple(rules[case])) for case in by_length]
        done = 0
        for found in pool.imap_unordered(_run, tasks):
            if isinstance(found, list):
                results.cases.update((result.case, result) for result in found)
                done += len(found)
            else:
                world, of_optimum, bound = found
                (results.optima if of_optimum else results.bounds)[world] = bound
                done += 1
            progress(done, total)
    return results


def run_rules(case: Case, rules: Sequence[Late]) -> list[Result]:
    """Simulate a case under each rule for late queries; where none was late, one run is that of both rules."""
    results: list[Result] = []
    for rule in sorted(rules):  # drop first: it says what was late
        asked = replace(case, late=rule)
        alike = bool(results) and LATE not in results[0].report.errors_by_status
        results.append(Result(asked, results[0].report) if alike else run_case(asked))
    return results


@contextmanager
def _pool() -> Iterator[multiprocessing.pool.Pool]:
    """Processes to run in, one per core; started afresh, so that no thread of this one is copied."""
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        yield pool


@lru_cache
def _profile(name: str) -> Profile:
    return load_profile(name)


def _run(task: _Task) -> list[Result] | tuple[World, bool, Bound]:
    asked, how = task
    if isinstance(asked, Case):
        assert isinstance(how, tuple)
        return run_rules(asked, how)
    return asked, bool(how), run_bound(asked, exact=bool(how))
