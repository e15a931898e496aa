"""Measure SlackFit's options in the simulator, one changed at a time, and the time that a decision takes.

scripts/bench-slackfit                        the sweep behind the defaults: about ten minutes on one core
scripts/bench-slackfit --seconds 1 --seeds 1  a first look
scripts/bench-slackfit --decisions            microseconds per decision and per query, at 100 and 10,000 queued
scripts/bench-slackfit --policy slackfit:buckets=8 --policy maxbatch --trace minutes:maf.csv --rate 6400
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from common.sched import (
    Arrived,
    BatchDone,
    Dispatch,
    Profile,
    Query,
    Scheduler,
    SchedulerOptions,
    WorkerHello,
)
from common.sched.policies import parse_policy
from loadgen.conditions import Conditions
from loadgen.report import attained
from loadgen.simulate import simulate
from loadgen.workload import make_workload

ROOT = Path(__file__).resolve().parent.parent
PROFILE = ROOT / "services/worker/profiles/rtx2080ti-reconstructed.json"
TRACES = [
    "bursty:base=1500,variant=4900,cv2=4",
    "bursty:base=1500,variant=5550,cv2=8",
    "ramp:start=2500,end=7800,accel=5000,cv2=8",
]
BASELINE = "slackfit:quantile=p95"  # the options are varied one at a time from here
VARIANTS = [
    *("slackfit", "slackfit:margin=0.95", "slackfit:margin=0.999", "slackfit:quantile=median", BASELINE),
    *(f"{BASELINE},buckets={n}" for n in (4, 8, 16, 32, 128)),
    *(f"{BASELINE},{option}" for option in ("edge=pair", "batches=profiled", "ties=fast", "empty=best")),
    *(f"{BASELINE},{option}" for option in ("partial=keep", "late=drain", "late=shrink")),
    *("maxbatch", "fixed:smallest"),
]


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench-slackfit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--policy", action="append", help="policy spec, repeatable; default: SlackFit's options, one by one"
    )
    parser.add_argument("--trace", action="append", help="trace SPEC as in `loadgen`, repeatable")
    parser.add_argument("--rate", type=float, help="queries per second; default: the trace's own")
    parser.add_argument(
        "--jitter", type=float, action="append", help="half-normal share of latency, repeatable; 0 and 0.1"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--slo-ms", type=float, default=36.0)
    parser.add_argument("--hop-us", type=int, default=500, help="way of one message between scheduler and worker")
    parser.add_argument("--overhead-us", type=int, default=0, help="added to each batch")
    parser.add_argument("--max-in-flight", type=int, default=SchedulerOptions().max_in_flight)
    parser.add_argument("--start-quantile", type=float, default=SchedulerOptions().start_quantile)
    parser.add_argument("--profile", type=Path, default=PROFILE)
    parser.add_argument("--decisions", action="store_true", help="time decisions instead")
    args = parser.parse_args()
    profile = Profile.from_dict(json.loads(args.profile.read_text()))
    if args.decisions:
        for spec in args.policy or ["slackfit", "slackfit:quantile=p95", "maxbatch", "fixed:smallest"]:
            for queued in (100, 10_000):
                print_decisions(spec, profile, args.workers, queued)
        return
    print(f"{args.seeds} seeds of {args.seconds:g} s, {args.workers} workers; mean (least to most)")
    print(f"{'policy':36} {'jitter':>6}  {'attainment':28} accuracy")
    for spec in args.policy or VARIANTS:
        for jitter in args.jitter or [0.0, 0.1]:
            runs = [
                run(spec, profile, trace, jitter, seed, args)
                for trace in args.trace or TRACES
                for seed in range(args.seeds)
            ]
            attainment, accuracy = spread([run[0] for run in runs], 4), spread([run[1] for run in runs], 2)
            print(f"{spec:36} {jitter:6g}  {attainment:28} {accuracy}", flush=True)


def run(
    spec: str, profile: Profile, trace: str, jitter: float, seed: int, args: argparse.Namespace
) -> tuple[float, float]:
    """Return attainment and mean accuracy of one run. Workers announce the profile that they would measure."""
    workload = make_workload(trace, rate=args.rate, duration_s=args.seconds, seed=seed, slo_ms=args.slo_ms)
    conditions = Conditions(jitter=jitter, overhead_us=args.overhead_us, hop_us=args.hop_us, seed=seed)
    options = SchedulerOptions(
        reply_margin_us=args.hop_us, max_in_flight=args.max_in_flight, start_quantile=args.start_quantile
    )
    return attained(simulate(Scheduler(parse_policy(spec), options), workload, profile, args.workers, conditions))


def spread(values: list[float], digits: int) -> str:
    """Format mean, least and most."""
    mean, least, most = statistics.mean(values), min(values), max(values)
    return f"{mean:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def print_decisions(spec: str, profile: Profile, workers: int, queued: int, batches: int = 5000) -> None:
    """Keep `queued` queries waiting and end one batch after the other: CPU time per decision, and per query in all."""
    scheduler = Scheduler(parse_policy(spec))
    for i in range(workers):
        scheduler.handle(WorkerHello(f"worker-{i}", profile), 0)
    slo_us = 36_000 * (1 + queued // 50)
    now_us = next_id = served = 0
    arrivals_s = 0.0
    decisions_us: list[float] = []
    running = []
    while len(decisions_us) < batches:
        while scheduler.queued_rows < queued:
            pack = Arrived(tuple(Query(next_id + i, now_us + i, now_us + i + slo_us) for i in range(16)))
            next_id += 16
            start = time.thread_time()
            commands = scheduler.handle(pack, now_us)
            arrivals_s += time.thread_time() - start
            running += [command.batch for command in commands if isinstance(command, Dispatch)]
        running.sort(key=lambda batch: scheduler.workers[batch.worker].free_us)
        batch = running.pop(0)
        worker = scheduler.workers[batch.worker]
        now_us = max(now_us, worker.free_us if len(worker.batches) == 1 else now_us)
        started_us = now_us - worker.batches[batch.id].expected_us  # it took what was predicted
        done = BatchDone(batch.worker, batch.id, started_us, now_us)
        start = time.thread_time()
        commands = scheduler.handle(done, now_us)
        spent = time.thread_time() - start
        dispatched = [command.batch for command in commands if isinstance(command, Dispatch)]
        running += dispatched
        served += len(batch.queries)
        if dispatched:
            decisions_us += [spent * 1e6 / len(dispatched)]
    decisions_us.sort()
    p50, p99 = decisions_us[len(decisions_us) // 2], decisions_us[len(decisions_us) * 99 // 100]
    per_query = (sum(decisions_us) / len(decisions_us) * batches + arrivals_s * 1e6) / served
    print(
        f"{spec:24} {queued:6} queued: decision p50 {p50:5.1f} p99 {p99:5.1f} us; {per_query:4.1f} us per query in all"
    )


if __name__ == "__main__":
    main()
