"""Compare policies in the simulator: the same traces, jitters, overheads and seeds for each.

    scripts/bench-policies                                     nine bursty and nine time-varying traces
    scripts/bench-policies --maf maf2019_minute_totals.csv     and a day of per-minute counts, shrunk to --maf-seconds
    scripts/bench-policies --quick                             a first look: a seed, 1 s
    scripts/bench-policies --policy foresight --policy foresight:target=0.99 --json out/policies.json

Traces are the paper's (section 6): base 1,500 q/s and gamma arrivals of 2,950, 4,900, 5,550 q/s with CV² 2, 4, 8; ramps
from 2,500 to 4,800, 6,800, 7,800 q/s at 250, 500, 5,000 q/s². SLO 36 ms, 8 workers, the reconstructed GPU profile.
A batch takes its median times 1 + |N(0, jitter)|; `hv` is 10 % and one batch in a hundred at twice the time. `@p99`
behind a policy has workers announce their p99 where it reads p95. Late heads are dropped under every policy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from common.sched.policies import PolicyError, parse_policy
from loadgen.conditions import P95, P99, Conditions
from loadgen.errors import InputError
from loadgen.evaluation.cases import Case, World, play
from loadgen.evaluation.experiments import ACCELS, CV2, ENDS, JITTERS, OVERHEADS_US, VARIANTS
from loadgen.report import attained
from loadgen.traces import make_arrivals

ROOT = Path(__file__).resolve().parent.parent
POLICIES = (
    *("foresight", "slackfit", "slackfit:quantile=median", "slackfit:quantile=p95", "slackfit:quantile=p95@p99"),
    *("maxbatch:quantile=median", "maxbatch", "maxbatch@p99", "maxacc", "fixed:smallest"),
)
TARGET = 0.999


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation: what was asked, and what came of it."""

    policy: str
    kind: str
    trace: str
    seconds: float
    rate: float | None
    jitter: str
    overhead_us: int
    seed: int
    attainment: float = 0.0
    accuracy: float = 0.0

    def case(self) -> Case:
        """What to simulate."""
        jitter, tail = JITTERS[self.jitter]
        conditions = Conditions(jitter=jitter, tail=tail, overhead_us=self.overhead_us, seed=self.seed)
        world = World(
            trace=self.trace,
            duration_s=self.seconds,
            rate=self.rate,
            seed=self.seed,
            conditions=conditions,
            upper=P99 if self.policy.endswith("@p99") else P95,
        )
        return Case(world=world, policy=self.policy.removesuffix("@p99"))


def main() -> None:
    """Run all, print a table of all and one per kind of trace."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench-policies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", action="append", help="spec, repeatable; default: all that are compared")
    parser.add_argument("--maf", type=Path, help="CSV of counts per minute, as the Azure Functions trace")
    parser.add_argument(
        "--maf-seconds", type=float, default=20.0, help="the whole file is shrunk to it; mean 6,400 q/s"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the other traces")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0, help="others than those that a policy was tuned on")
    parser.add_argument("--quick", action="store_true", help="one seed, 1 s")
    parser.add_argument("--json", type=Path, help="file to write every run to")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # policies of the user's own
    seconds, seeds = (1.0, 1) if args.quick else (args.seconds, args.seeds)
    policies = args.policy or POLICIES
    try:
        for spec in policies:
            parse_policy(spec.removesuffix("@p99"))
        if args.maf:
            make_arrivals(f"minutes:{args.maf}", rate=100.0, duration_s=1.0, seed=0)
    except (PolicyError, InputError) as error:
        parser.error(str(error))
    traces: list[tuple[str, str, float, float | None]] = [
        ("bursty", f"bursty:base=1500,variant={variant},cv2={cv2}", seconds, None)
        for variant, cv2 in itertools.product(VARIANTS, CV2)
    ]
    traces += [
        ("ramp", f"ramp:start=2500,end={end},accel={accel},cv2=8", seconds, None)
        for end, accel in itertools.product(ENDS, ACCELS)
    ]
    if args.maf:
        traces.append(("maf", f"minutes:{args.maf}", args.maf_seconds, 6_400.0))
    asked = [
        Run(policy, *trace, jitter, overhead, seed)
        for policy, trace, jitter, overhead, seed in itertools.product(
            policies, traces, JITTERS, OVERHEADS_US, range(args.first_seed, args.first_seed + seeds)
        )
    ]
    with multiprocessing.Pool(os.cpu_count()) as pool:
        runs = list(tqdm(pool.imap_unordered(run, asked, chunksize=4), total=len(asked), mininterval=5))
    console = Console(width=180)
    console.print(_all(runs, policies))
    for kind in dict.fromkeys(one.kind for one in runs):
        console.print(_by_jitter([one for one in runs if one.kind == kind], kind, policies))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps([asdict(one) for one in runs]) + "\n")
        print(f"written to {args.json}")


def run(asked: Run) -> Run:
    """Simulate one run."""
    attainment, accuracy = attained(play(asked.case()))
    return replace(asked, attainment=attainment, accuracy=accuracy)


def _case(one: Run) -> tuple[str, str, int, int]:
    """What a run has in common with those of other policies."""
    return one.trace, one.jitter, one.overhead_us, one.seed


def _all(runs: Sequence[Run], policies: Sequence[str]) -> Table:
    """A line per policy over all runs; possible are those where the smallest subnet alone meets the target."""
    possible = {_case(one) for one in runs if one.policy == "fixed:smallest" and one.attainment >= TARGET}
    table = Table(title=f"{len(runs) // len(policies)} runs each", title_justify="left")
    for heading in ("policy", "mean attainment", "least", f"runs at {TARGET}", "of those possible", "mean accuracy, %"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for policy in policies:
        own = [one for one in runs if one.policy == policy]
        met = {_case(one) for one in own if one.attainment >= TARGET}
        table.add_row(
            policy,
            f"{statistics.fmean(one.attainment for one in own):.5f}",
            f"{min(one.attainment for one in own):.5f}",
            f"{100 * len(met) / len(own):.1f} %",
            f"{100 * len(met & possible) / len(possible):.1f} %" if possible else "-",
            f"{statistics.fmean(one.accuracy for one in own):.2f}",
        )
    return table


def _by_jitter(runs: Sequence[Run], kind: str, policies: Sequence[str]) -> Table:
    """Attainment and accuracy, means over traces and seeds, by jitter and overhead."""
    table = Table(title=f"{kind}: attainment / accuracy", title_justify="left")
    columns = list(itertools.product(OVERHEADS_US, JITTERS))
    table.add_column("policy")
    for overhead, jitter in columns:
        table.add_column(f"{jitter}{' + 1 ms' if overhead else ''}", justify="right")
    for policy in policies:
        cells = []
        for overhead, jitter in columns:
            own = [r for r in runs if (r.policy, r.overhead_us, r.jitter) == (policy, overhead, jitter)]
            attainment, accuracy = (
                statistics.fmean(getattr(r, name) for r in own) for name in ("attainment", "accuracy")
            )
            cells.append(f"{attainment:.4f} / {accuracy:.2f}")
        table.add_row(policy, *cells)
    return table


if __name__ == "__main__":
    main()
