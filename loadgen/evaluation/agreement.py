"""Live and simulated agree: one trace, profile and policy through a real mesh and through the simulator.

The mesh is real but for its devices: gateway, scheduler, Redis and workers are processes, each worker sleeps for its
profile's latency (`mesh`). Everything is stretched by a factor: latencies and SLOs times it, rates by it. So the shape
is the paper's, and one machine carries it.

What a mesh costs is measured by a run of its own, from its scheduler's event log, and given to the simulator: how long
a message takes, and what a batch takes beyond its profile. The simulated scheduler has the options that the live one
wrote into its log. That log is replayed through a fresh core, whose commands must be those that were taken.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvloop
from numpy.typing import ArrayLike

from common.sched.eventlog import fresh_scheduler, replay
from common.sched.profile import Profile
from common.sched.types import Arrived, Batch, BatchDone, Dispatch, Reject
from loadgen.errors import InputError, LoadgenError
from loadgen.evaluation.cases import CNN, Case, World
from loadgen.evaluation.experiments import OURS, SLACKFIT
from loadgen.evaluation.mesh import MODEL, emulated_mesh
from loadgen.profiles import load_profile
from loadgen.records import Records
from loadgen.replay import ReplayOptions, record
from loadgen.report import Report, RunInfo, make_report
from loadgen.simulate import Conditions, Costs, Simulation

ATTAINMENT, ACCURACY_POINTS, SHARE = 0.01, 0.3, 0.05  # by which live and simulated may differ
SCALE = 8.0
_MOST_DRAWN = 4_096
_LATE = "504"  # how an answer begins that tells of a query rejected as late


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
    info = RunInfo(
        url="simulation",
        model=MODEL,
        trace=world.trace,
        rate=world.rate,
        duration_s=world.duration_s,
        slo_ms=world.slo_ms,
        seed=world.seed,
        data="none",
        started_at="",
    )
    return make_report(records, info)


def measure(live: Live, profile: Profile) -> Costs:
    """What the mesh cost in a run, by its scheduler's log and its client's clock.

    A clock that is ahead of another's can make a way shorter than nothing; it counts as nothing. Dispatches count where
    the worker was idle. LoadgenError if nothing was served.
    """
    dispatches_us, reports_us, overheads_us, ingress_us = list[int](), list[int](), list[int](), list[int]()
    sent: dict[int, tuple[int, Batch, bool]] = {}
    busy: Counter[str] = Counter()
    for now_us, event, commands in replay(live.log):
        if isinstance(event, Arrived):
            ingress_us += [now_us - query.arrival_us for query in event.queries]
        elif isinstance(event, BatchDone) and event.batch in sent:
            at_us, batch, found_idle = sent.pop(event.batch)
            busy[batch.worker] -= 1
            reports_us.append(now_us - event.finished_us)
            if found_idle:
                dispatches_us.append(event.started_us - at_us)
            taken_us = event.finished_us - event.started_us
            overheads_us.append(taken_us - profile.latency_us(batch.subnet, batch.rows))
        for command in commands:
            if isinstance(command, Dispatch):
                worker = command.batch.worker
                sent[command.batch.id] = now_us, command.batch, not busy[worker]
                busy[worker] += 1
    records = live.records
    replies_us = (records.done_s - records.workload.intended_s) * 1e6 - (records.queue_ms + records.inference_ms) * 1e3
    replies_us = replies_us[~np.isnan(replies_us)]
    if not (dispatches_us and len(replies_us)):
        raise LoadgenError("the mesh served nothing: its costs are not known")
    return Costs(
        _sample(dispatches_us),
        _sample(reports_us),
        _sample(overheads_us),
        _sample(replies_us),
        max(0, round(statistics.fmean(ingress_us))),
    )


def _sample(values_us: ArrayLike) -> tuple[int, ...]:
    """At most some thousand quantiles of the values, evenly spaced, at least 0 each."""
    values = np.maximum(np.asarray(values_us, np.float64), 0.0)
    count = min(len(values), _MOST_DRAWN)
    return tuple(int(us) for us in np.quantile(values, (np.arange(count) + 0.5) / count))


def check_replay(live: Live) -> Replayed:
    """Replay a live scheduler's log, and count what was done otherwise than a fresh core commands.

    Every batch that a worker reports must have been commanded, by that id, to that worker; every answer must come from
    the subnet, the worker and a batch of the rows that were commanded for its query; every query rejected as late must
    have been answered so.
    """
    batches: dict[int, Batch] = {}
    by_query: dict[int, tuple[str, str, int]] = {}
    done = rejections = late = differences = 0
    for _, event, commands in replay(live.log):
        if isinstance(event, BatchDone):
            done += 1
            batch = batches.get(event.batch)
            differences += batch is None or batch.worker != event.worker
        for command in commands:
            if isinstance(command, Dispatch):
                batches[command.batch.id] = command.batch
                what = command.batch.subnet, command.batch.worker, command.batch.rows
                by_query.update((query.id, what) for query in command.batch.queries)
            elif isinstance(command, Reject):
                rejections += 1
                late += command.reason == "late"
    differences += abs(len(batches) - done)
    records, found = live.records, live.report.errors_by_status
    told = zip(records.ids, records.subnet, records.worker, records.batch_size, strict=True)
    for query, subnet, worker, rows in told:
        if query:
            answered = records.subnets[subnet], records.workers[worker], int(rows)
            differences += by_query.get(int(query, 16)) != answered
    differences += abs(late - sum(n for reason, n in found.items() if reason.startswith(_LATE)))
    return Replayed(len(batches), rejections, differences)


def compare(live: Report, simulated: Report) -> dict[str, Any]:
    """Both runs' figures and how far they are apart: in attainment, accuracy in points, and the largest share."""
    shares = [abs(live.subnets.get(name, 0.0) - simulated.subnets.get(name, 0.0)) for name in _names(live, simulated)]
    apart = {
        "attainment_difference": abs(live.slo_attainment - simulated.slo_attainment),
        "accuracy_difference": abs((live.serving_accuracy or 0.0) - (simulated.serving_accuracy or 0.0)),
        "share_difference": max(shares, default=0.0),
    }
    within = zip(apart.values(), (ATTAINMENT, ACCURACY_POINTS, SHARE), strict=True)
    return {
        "queries": live.queries,
        "live": _figures(live),
        "simulated": _figures(simulated),
        **apart,
        "agree": all(value <= most for value, most in within),
    }


def _figures(report: Report) -> dict[str, Any]:
    keys = ("slo_attainment", "serving_accuracy", "subnets", "batch_size_mean")
    return {key: getattr(report, key) for key in keys} | {"latency_p99_ms": report.latency_ms["p99"]}


def _names(*reports: Report) -> list[str]:
    return sorted({name for report in reports for name in report.subnets})
