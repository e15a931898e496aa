"""Live and simulated agree: one trace, profile and policy through a real mesh and through the simulator.

The mesh is real but for its devices: gateway, scheduler, Redis and workers are processes, each worker sleeps for its
profile's latency (`mesh`). Everything is stretched by a factor: latencies and SLOs times it, rates by it. So the shape
is the paper's, and one machine carries it. What is not stretched is the mesh's and the policies' own: reply margin,
dispatch delay, time constants.

What the mesh costs is measured in each live run and given to the simulator, value by value and moment by moment, not as
a mean: a policy that allows for the slowest of a thousand batches decides by the tail, and a process that has to wait
for a core delays everything at that time. The simulated scheduler has the options that the
live one wrote into its event log. That log is replayed through a fresh core, whose commands must be those that were
taken.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvloop

from common.sched.eventlog import fresh_scheduler, replay
from common.sched.profile import Profile
from common.sched.types import Arrived, Batch, BatchDone, Dispatch, Reject, Tick, WakeAt, WorkerLost
from loadgen.conditions import Conditions, Costs, Delays
from loadgen.errors import InputError, LoadgenError
from loadgen.evaluation.cases import CNN, Case, World
from loadgen.evaluation.experiments import MAXBATCH, OURS, SLACKFIT
from loadgen.evaluation.mesh import MODEL, emulated_mesh
from loadgen.profiles import load_profile
from loadgen.records import Records
from loadgen.replay import ReplayOptions, record
from loadgen.report import Report, make_report
from loadgen.simulate import Simulation

MOST = {"attainment_difference": 0.01, "accuracy_difference": 0.3, "share_difference": 0.05}  # accuracy in points
SCALE = 16.0
SIMULATIONS = 9  # of one live run, with other draws of its costs
_IDLED_US = 1_000  # between two batches, where the worker had to wait for the second
_TOLD = {"p50": 0.5, "p99": 0.99, "p999": 0.999}  # of the measured costs
_LATE = "out of reach"  # what an error says of a query that the scheduler rejected as late


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """What to compare. maf: a SPEC of a day of requests. scale: how many times slower than the paper's all is.

    InputError for a scale that speeds up.
    """

    maf: str
    scale: float = SCALE
    duration_s: float = 24.0
    policies: Sequence[str] = (OURS, SLACKFIT, MAXBATCH)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 1):
            raise InputError("scale", self.scale, "must be >= 1")

    def cases(self, profile: Path) -> dict[str, list[Case]]:
        """The runs, by the names of their traces; `profile` is the scaled one's file."""
        k = self.scale
        traces: dict[str, tuple[str, float | None]] = {
            "MAF": (self.maf, 6_400 / k),
            "bursty": (f"bursty:base={1_500 / k:g},variant={5_550 / k:g},cv2=8", None),
            "ramp": (f"ramp:start={2_500 / k:g},end={7_800 / k:g},accel={500 / k:g},cv2=8", None),
        }
        return {
            name: [
                Case(world=self._world(trace, rate, profile), policy=policy) for policy in self.policies
            ]
            for name, (trace, rate) in traces.items()
        }  # fmt: skip

    def _world(self, trace: str, rate: float | None, profile: Path) -> World:
        return World(trace=trace, rate=rate, duration_s=self.duration_s, slo_ms=36 * self.scale, profile=str(profile))


@dataclass(frozen=True, slots=True)
class Live:
    """A run against a real mesh: its records, its report, and the scheduler's event log."""

    records: Records
    report: Report
    log: Sequence[str]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a live scheduler's log commands when it is replayed, and how often that is not what was done."""

    batches: int
    rejections: int
    differences: int


def agreement(options: LiveOptions, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Run every case live and simulated; the section `agreement` of `summary.json`. Progress counts live queries.

    Raises as `run_live` does.
    """
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="loadgen-agreement-") as temporary:
        path = Path(temporary) / "profile.json"
        path.write_bytes(orjson.dumps(scaled(load_profile(CNN), options.scale).to_dict()))
        cases = [(name, case) for name, of_trace in options.cases(path).items() for case in of_trace]
        queries = [len(case.world.workload().intended_s) for _, case in cases]
        for place, (name, case) in enumerate(cases):
            runs[f"{name}, {case.policy}"] = {
                "trace": name,
                "policy": case.policy,
                **run_both(case, _from(progress, sum(queries[:place]), sum(queries))),
            }
    return {
        "scale": options.scale,
        "duration_s": options.duration_s,
        "workers": cases[0][1].world.workers,
        "slo_ms": cases[0][1].world.slo_ms,
        "profile": CNN,
        "simulations": SIMULATIONS,
        "most": MOST,
        "runs": runs,
    }


def _from(progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int], None]:
    """The progress of one run, told as that of all."""
    return lambda ended: progress(before + ended, total)


def run_both(case: Case, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Run a case live, and hold it against simulations of it."""
    return hold_against(run_live(case, progress), case)


def hold_against(live: Live, case: Case) -> dict[str, Any]:
    """A live run beside simulations of its case: how far apart they are, what the mesh cost, and its log's replay."""
    costs = measure(live, load_profile(case.world.profile))
    worlds = [replace(case.world, conditions=Conditions(costs=costs, seed=seed)) for seed in range(SIMULATIONS)]
    simulated = [run_simulated(replace(case, world=world), live.log[0]) for world in worlds]
    return {
        **compare(live.report, simulated),
        "costs_ms": {
            field.name: {
                name: round(float(np.quantile(getattr(costs, field.name).us, q)) / 1e3, 3) for name, q in _TOLD.items()
            }
            for field in fields(costs)
        },
        "sender_lag_p99_ms": live.report.sender_lag_ms["p99"],
        "replayed": asdict(check_replay(live)),
    }


def scaled(profile: Profile, factor: float) -> Profile:
    """The profile of a device that takes `factor` times as long."""
    return replace(
        profile,
        subnets=tuple(
            replace(
                subnet,
                median_us=tuple(round(us * factor) for us in subnet.median_us),
                p95_us=tuple(round(us * factor) for us in subnet.p95_us),
            )
            for subnet in profile.subnets
        ),
    )


def run_live(case: Case, progress: Callable[[int], None] | None = None) -> Live:
    """Replay a case's trace against a fresh mesh of emulated workers. MeshError or ServerError if it fails.

    The world's profile is a file, its conditions are what they are. Progress is told how many queries have ended.
    """
    world = case.world
    count = None if progress is None else lambda now: progress(now.answered + now.errors)
    with tempfile.TemporaryDirectory(prefix="loadgen-live-") as temporary:
        folder = Path(temporary)
        with emulated_mesh(Path(world.profile), case.policy, world.workers, folder) as url:
            options = ReplayOptions(
                url=url,
                model=MODEL,
                trace=world.trace,
                rate=world.rate,
                duration_s=world.duration_s,
                slo_ms=world.slo_ms,
                seed=world.seed,
            )
            records, info = uvloop.run(record(options, count))
        log = (folder / "events.jsonl").read_text().splitlines()
    return Live(records, make_report(records, info), log)


def run_simulated(case: Case, header: str) -> Report:
    """Simulate a case under the policy and the options of a live scheduler's log, whose first line is `header`.

    Workers announce the world's profile as it is, as emulated ones do.
    """
    world = case.world
    profile = load_profile(world.profile)
    workers = dict.fromkeys((f"worker-{i}" for i in range(world.workers)), profile)
    records = Simulation(fresh_scheduler(header), workers, world.conditions).run(world.workload())
    return make_report(records, world.info(MODEL))


def measure(live: Live, profile: Profile) -> Costs:
    """What the mesh cost in a run, by its scheduler's log and its client's clock.

    Where clocks disagree a way can seem shorter than nothing; it counts as nothing. A dispatch's way is seen where the
    worker waited for it; where it came before the worker was free, it took the usual, or less if there was less time.
    LoadgenError if nothing was served.
    """
    records = live.records
    start_us: int | None = None  # of the run, on the clock of the log
    ingress, overheads, reports, wakes = (list[tuple[int, int]]() for _ in range(4))
    ways: list[tuple[int, int, bool]] = []  # of dispatches: when, how long, whether that is all of it
    sent: dict[int, tuple[int, Batch]] = {}
    free_us: dict[str, int] = {}
    wake_us: int | None = None
    for now_us, event, commands in replay(live.log):
        if isinstance(event, Arrived):
            if start_us is None:
                start_us = event.queries[0].arrival_us - round(records.workload.intended_s[0] * 1e6)
            ingress += [(query.arrival_us, now_us - query.arrival_us) for query in event.queries]
        elif isinstance(event, BatchDone) and event.batch in sent:
            at_us, batch = sent.pop(event.batch)
            reports.append((event.finished_us, now_us - event.finished_us))
            waited_us = event.started_us - free_us.get(batch.worker, 0)
            ways.append((at_us, event.started_us - at_us, waited_us > _IDLED_US))
            free_us[batch.worker] = event.finished_us
            taken_us = event.finished_us - event.started_us
            overheads.append((at_us, taken_us - profile.latency_us(batch.subnet, batch.rows)))
        elif isinstance(event, Tick) and wake_us is not None:
            wakes.append((now_us, now_us - wake_us))
        wake_us = next((one.at_us for one in commands if isinstance(one, WakeAt)), None)
        sent |= {one.batch.id: (now_us, one.batch) for one in commands if isinstance(one, Dispatch)}
    finished_us = records.workload.intended_s * 1e6 + (records.queue_ms + records.inference_ms) * 1e3
    answered = ~np.isnan(finished_us)
    seen_us = [took_us for _, took_us, seen in ways if seen]
    if start_us is None or not seen_us or not answered.any():
        raise LoadgenError("the mesh served nothing: its costs are not known")
    replies_us = records.done_s * 1e6 - finished_us
    replies = zip(finished_us[answered].tolist(), replies_us[answered].tolist(), strict=True)
    usual_us = round(statistics.median(seen_us))
    dispatches = [(at_us, took_us if seen else min(took_us, usual_us)) for at_us, took_us, seen in ways]
    return Costs(
        ingress=_delays(ingress, start_us),
        dispatches=_delays(dispatches, start_us),
        overheads=_delays(overheads, start_us),
        reports=_delays(reports, start_us),
        replies=_delays(replies, 0),
        wakes=_delays(wakes or [(start_us, 0)], start_us),
    )


def _delays(found: Iterable[tuple[float, float]], start_us: int) -> Delays:
    at_us, us = zip(*sorted(found), strict=True)
    return Delays(tuple(round(at - start_us) for at in at_us), tuple(max(0, round(one)) for one in us))


def check_replay(live: Live) -> Replayed:
    """Replay a live scheduler's log, and count what was done otherwise than a fresh core commands.

    Every batch that a worker reports must have been commanded, by that id, to that worker, and every one commanded be
    reported, unless its worker was lost; every answer must come from the subnet, the worker and a batch of the rows
    that were commanded for its query; every query rejected as late must have been answered so.
    """
    running: dict[int, Batch] = {}
    lost: dict[int, Batch] = {}
    commanded: defaultdict[int, set[tuple[str, str, int]]] = defaultdict(set)
    batches = rejections = late = differences = 0
    for _, event, commands in replay(live.log):
        if isinstance(event, BatchDone):
            batch = running.pop(event.batch, None) or lost.get(event.batch)
            differences += batch is None or batch.worker != event.worker
        elif isinstance(event, WorkerLost):
            lost |= {batch.id: running.pop(batch.id) for batch in [*running.values()] if batch.worker == event.worker}
        for command in commands:
            if isinstance(command, Dispatch):
                batch = running[command.batch.id] = command.batch
                batches += 1
                for query in batch.queries:
                    commanded[query.id].add((batch.subnet, batch.worker, batch.rows))
            elif isinstance(command, Reject):
                rejections += 1
                late += command.reason == "late"
    differences += len(running)
    records, found = live.records, live.report.errors_by_status
    told = zip(records.ids, records.subnet, records.worker, records.batch_size, strict=True)
    for query_id, subnet, worker, rows in told:
        if query_id:
            answer = records.subnets[subnet], records.workers[worker], int(rows)
            differences += answer not in commanded[int(query_id, 16)]
    differences += abs(late - sum(count for reason, count in found.items() if _LATE in reason))
    return Replayed(batches, rejections, differences)


def compare(live: Report, simulated: Sequence[Report]) -> dict[str, Any]:
    """A live run's figures beside the means of several simulations, and how far they are apart.

    In attainment, in accuracy (points), and in the share of the subnet where that is most. `simulated_spread` is the
    most by which a simulation is apart from their own mean in a share: a live run cannot be asked for less.
    """
    subnets = sorted({name for report in (live, *simulated) for name in report.subnets})
    shares = {name: statistics.fmean([report.subnets.get(name, 0.0) for report in simulated]) for name in subnets}
    attainment = statistics.fmean([report.slo_attainment for report in simulated])
    accuracy = statistics.fmean([report.serving_accuracy or 0.0 for report in simulated])  # 0: none was in time

    def apart(report: Report) -> float:
        return max((abs(report.subnets.get(name, 0.0) - share) for name, share in shares.items()), default=0.0)

    differences = {
        "attainment_difference": abs(live.slo_attainment - attainment),
        "accuracy_difference": abs((live.serving_accuracy or 0.0) - accuracy),
        "share_difference": apart(live),
    }
    return {
        "queries": live.queries,
        "live": {
            "slo_attainment": live.slo_attainment,
            "serving_accuracy": live.serving_accuracy,
            "subnets": live.subnets,
        },
        "simulated": {"slo_attainment": attainment, "serving_accuracy": accuracy, "subnets": shares},
        **differences,
        "simulated_spread": max(apart(report) for report in simulated),
        "agree": all(differences[key] <= most for key, most in MOST.items()),
    }
