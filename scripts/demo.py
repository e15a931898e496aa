"""The demo behind ``scripts/demo``: one mesh, one trace, four policies.

Gateway, scheduler and worker run as processes of their own around a real Redis. The worker and the gateway stay;
between runs the scheduler is replaced by one of the next policy, which is how a policy is changed in production too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
import uvloop
from rich.console import Console

from common import embedded
from common.errors import ConfigError
from common.sched import policies
from loadgen.errors import LoadgenError
from loadgen.plot import plot
from loadgen.replay import ReplayOptions, replay
from loadgen.report import Report
from loadgen.table import progress_bar, render_table
from services.mesh import Child, Mesh

MODEL = "fashion-resnet"
POLICIES = (policies.DEFAULT, "slackfit", "fixed:largest", "fixed:smallest")
TRACE = "bursty:base=1,variant=3,cv2=4"
# Of what the smallest subnet sustains: bursts of this trace then exceed what the largest can do many times over, and
# stay within what the smallest can.
LOAD = 0.22
# The capacity is read off a ramp, in shares of what the worker's profile promises: past the rate that the mesh
# sustains, goodput falls.
RAMP = (0.1, 1.3)

console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long each part takes, in seconds."""

    capacity_s: float
    warm_up_s: float
    replay_s: float


FULL = Plan(capacity_s=4.0, warm_up_s=3.0, replay_s=20.0)
QUICK = Plan(capacity_s=2.0, warm_up_s=1.0, replay_s=4.0)


async def main(args: argparse.Namespace) -> None:
    """Run the demo and write its report."""
    plan = QUICK if args.quick else FULL
    out: Path = args.out
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((out / "mesh.log").open("wb"))
        url = os.environ.get("REDIS_URL") or stack.enter_context(embedded.server())
        mesh = Mesh(url, ("--log-level", "info", "--grace-s", "5"), log)
        try:
            reports, capacity_qps = await run(mesh, plan, args)
        finally:
            await mesh.stop_all()
    document = {
        "capacity_qps": capacity_qps,
        "runs": [orjson.loads(report.to_json()) for report in reports],
    }
    (out / "report.json").write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    plot(reports, out / "report.png")
    Console().print(render_table(reports))
    console.print(f"\nwrote {out / 'report.json'} and {out / 'report.png'}; the services' log is {out / 'mesh.log'}")


async def run(mesh: Mesh, plan: Plan, args: argparse.Namespace) -> tuple[list[Report], float]:
    """Start the mesh, measure its capacity, and replay the same trace under each policy."""
    with console.status("starting Redis, gateway, worker; at the first start the worker measures its profile"):
        await mesh.start("worker", "--model", MODEL)
        gateway = await mesh.start_gateway("--port", "0")
        scheduler = await start_scheduler(mesh, gateway, "fixed:smallest")
    console.print(f"serving {MODEL} at {gateway}, one worker")
    capacity_qps = await measure_capacity(mesh, gateway, plan, args)
    console.print(f"the smallest subnet sustains {capacity_qps:,.0f} queries/s within {args.slo_ms:g} ms, end to end")
    reports = []
    for policy in POLICIES:
        await mesh.stop(scheduler)
        scheduler = await start_scheduler(mesh, gateway, policy)
        options = ReplayOptions(
            url=gateway, model=MODEL, trace=TRACE, rate=capacity_qps * LOAD, duration_s=plan.replay_s,
            slo_ms=args.slo_ms, seed=args.seed,
        )  # fmt: skip
        # A scheduler that has just started knows only the profile; one that serves has learned what batches take now.
        await replay_with_bar(f"{policy}: warm-up", replace(options, duration_s=plan.warm_up_s, seed=args.seed + 1))
        reports.append(await replay_with_bar(policy, options))
    return reports, capacity_qps


async def start_scheduler(mesh: Mesh, gateway: str, policy: str) -> Child:
    """Start a scheduler and wait until it has taken over the worker and the gateway knows."""
    child = await mesh.start("scheduler", "--model", MODEL, "--policy", policy)
    await mesh.wait_for_workers(MODEL, 1, policy)
    await mesh.wait_until_ready(gateway)
    return child


async def measure_capacity(mesh: Mesh, gateway: str, plan: Plan, args: argparse.Namespace) -> float:
    """Return the best goodput, in queries per second, that any part of a ramp reached."""
    status = await mesh.wait_for_workers(MODEL, 1)
    start, end = (share * status.workers[0]["peak_qps"] for share in RAMP)
    trace = f"ramp:start={start:.0f},end={end:.0f},accel={(end - start) / plan.capacity_s:.0f},cv2=1"
    options = ReplayOptions(
        url=gateway, model=MODEL, trace=trace, duration_s=plan.capacity_s, slo_ms=args.slo_ms, seed=args.seed
    )
    series = (await replay_with_bar(f"capacity: ramp from {start:,.0f} to {end:,.0f} queries/s", options)).series
    shares = zip(series.arrivals_qps, series.slo_attainment, strict=True)
    return max(qps * (share or 0.0) for qps, share in shares)


async def replay_with_bar(name: str, options: ReplayOptions) -> Report:
    """Replay with a progress bar."""
    console.print(f"[bold]{name}[/]")
    with progress_bar(console) as show:
        return await replay(options, show)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter replays: under 40 seconds in all")
    parser.add_argument("--slo-ms", type=float, default=100.0, help="latency SLO of every query (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="of the trace, the same for each policy (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write to (default: out/demo)")
    return parser.parse_args()


if __name__ == "__main__":
    parsed = arguments()
    try:
        parsed.out.mkdir(parents=True, exist_ok=True)
        uvloop.run(main(parsed))
    except (ConfigError, LoadgenError, OSError) as error:
        sys.exit(f"demo: {error}")
