"""The benchmark behind ``scripts/bench-mesh``: the mesh without inference.

Emulated workers answer at once, so that what is left is the mesh: HTTP, streams, decisions. A closed loop of a fixed
number of connections keeps it saturated, as ``wrk`` would. CPU time is what the kernel counted for each process over
the load; the requests/s of several runs are told with their spread, for on a shared machine they vary widely.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from common import embedded
from common.errors import ConfigError
from loadgen.errors import LoadgenError
from loadgen.replay import ReplayOptions, replay
from loadgen.table import progress_bar
from services.mesh import Mesh

MODEL = "fashion-resnet"
NEGLIGIBLE_US = 1
FLOOD_QPS = 40_000  # more than can be served: the connections are what bounds the load
SLO_MS = 10_000.0  # nothing is late, so every query takes the whole way
WARM_UP_QUERIES = 2_000

console = Console(stderr=True)


def profile(path: Path, max_batch: int) -> Path:
    """Write the profile of a device that takes no time."""
    sizes = [1, max_batch]
    latencies = [NEGLIGIBLE_US] * len(sizes)
    subnet = {"id": "instant", "accuracy": 50.0, "median_us": latencies, "p95_us": latencies}
    document = {"format": 1, "device": "none", "executor": "emulated", "batch_sizes": sizes, "subnets": [subnet]}
    path.write_text(json.dumps(document))
    return path


async def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Start the mesh once, load it once per run and number of rows, and return a result for each."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="superserve-bench-")))
        log = stack.enter_context((folder / "mesh.log").open("wb"))
        url = stack.enter_context(embedded.server())
        mesh = Mesh(url, ("--log-level", "warning"), log)
        try:
            with console.status("starting the mesh"):
                gateway = await start(mesh, args, profile(folder / "instant.json", args.max_batch))
            await flood(gateway, 1, WARM_UP_QUERIES, args)
            return [
                await measure(mesh, gateway, rows, args)
                for rows in args.rows
                for _ in range(args.runs)
            ]  # fmt: skip
        finally:
            await mesh.stop_all()


async def start(mesh: Mesh, args: argparse.Namespace, instant: Path) -> str:
    """Start scheduler, workers and gateways; return the gateways' URL."""
    await mesh.start("scheduler", "--model", MODEL, "--max-in-flight", str(args.max_in_flight))
    for _ in range(args.workers):
        await mesh.start("worker", "--model", MODEL, "--executor", "emulated", "--profile", str(instant))
    shared = ["--reuse-port"] if args.gateways > 1 else []
    address = await mesh.start_gateway("--port", "0", *shared)
    for _ in range(1, args.gateways):
        await mesh.start_gateway("--port", address.rpartition(":")[2], *shared)
    await mesh.wait_for_workers(MODEL, args.workers)
    await mesh.wait_until_ready(address)
    return address


async def flood(gateway: str, rows: int, queries: int, args: argparse.Namespace) -> tuple[Any, float]:
    """Send queries over a bounded number of connections as fast as they are answered; return report and seconds."""
    options = ReplayOptions(
        url=gateway, model=MODEL, trace="constant", rate=FLOOD_QPS, duration_s=queries / FLOOD_QPS,
        slo_ms=SLO_MS, rows=rows, connections=args.connections, timeout_s=120.0,
    )  # fmt: skip
    started = time.perf_counter()
    with progress_bar(console) as show:
        report = await replay(options, show)
    return report, time.perf_counter() - started


async def measure(mesh: Mesh, gateway: str, rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """Load the mesh once; CPU microseconds are per query, which has ``rows`` rows."""
    before = cpu_seconds(mesh)
    own = time.process_time()
    report, elapsed_s = await flood(gateway, rows, args.queries, args)
    own = time.process_time() - own
    spent = {kind: after - before[kind] for kind, after in cpu_seconds(mesh).items()} | {"loadgen": own}
    status = await mesh.wait_for_workers(MODEL, args.workers)
    if report.answered < report.queries:
        console.print(f"[red]{report.errors} of {report.queries} queries failed: {report.errors_by_status}")
    return {
        "rows": rows,
        "queries": report.queries,
        "answered": report.answered,
        "requests_per_s": report.answered / elapsed_s,
        "rows_per_s": report.answered * rows / elapsed_s,
        "batch_size_mean": report.batch_size_mean,
        "cpu_us_per_query": {kind: seconds * 1e6 / report.queries for kind, seconds in spent.items()},
        "idle_gap_us": {key: [worker["idle_us"][key] for worker in status.workers] for key in ("p50", "p99")},
        "queue_ms_mean": report.queue_ms_mean,
    }


def cpu_seconds(mesh: Mesh) -> dict[str, float]:
    """Return the CPU seconds that each kind of process has used so far."""
    spent = dict.fromkeys(("gateway", "scheduler", "worker", "redis"), 0.0)
    kinds = {child.process.pid: child.kind for child in mesh.children}
    for process in psutil.Process().children():
        times = process.cpu_times()
        spent[kinds.get(process.pid, "redis")] += times.user + times.system
    return spent


def show(results: list[dict[str, Any]]) -> Table:
    """Return a table with a column for each number of rows: median and spread over the runs."""
    table = Table(title="the mesh under saturation, inference emulated and negligible: median (min-max) of the runs")
    table.add_column("")
    groups = {rows: [r for r in results if r["rows"] == rows] for rows in dict.fromkeys(r["rows"] for r in results)}
    for rows in groups:
        table.add_column(f"{rows} row{'s' if rows > 1 else ''} a request", justify="right")

    def add(name: str, values: dict[int, list[float]], pattern: str) -> None:
        table.add_row(
            name,
            *(
                f"{statistics.median(v):{pattern}} ({min(v):{pattern}}-{max(v):{pattern}})"
                for v in values.values()
            ),
        )  # fmt: skip

    add("requests/s", {rows: [r["requests_per_s"] for r in group] for rows, group in groups.items()}, ",.0f")
    add("rows/s", {rows: [r["rows_per_s"] for r in group] for rows, group in groups.items()}, ",.0f")
    add("batch size, mean rows", {rows: [r["batch_size_mean"] for r in group] for rows, group in groups.items()}, ".1f")
    for kind in ("gateway", "scheduler", "worker", "redis", "loadgen"):
        values = {rows: [r["cpu_us_per_query"][kind] for r in group] for rows, group in groups.items()}
        add(f"CPU us per query: {kind}", values, ".1f")
    for key in ("p50", "p99"):
        gaps = {rows: [gap for r in group for gap in r["idle_gap_us"][key]] for rows, group in groups.items()}
        add(f"worker's idle gap, us {key}", gaps, ",.0f")
    return table


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench-mesh", description=__doc__)
    parser.add_argument("--queries", type=int, default=30_000, help="queries per run (default: 30000)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="rows a request (default: 1 8)")
    parser.add_argument("--connections", type=int, default=256, help="connections of the closed loop (default: 256)")
    parser.add_argument("--workers", type=int, default=1, help="worker processes (default: 1)")
    parser.add_argument("--gateways", type=int, default=1, help="gateway processes (default: 1)")
    parser.add_argument("--max-in-flight", type=int, default=8, help="batches at a worker at a time (default: 8)")
    parser.add_argument("--max-batch", type=int, default=64, help="rows of a worker's largest batch (default: 64)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    return parser.parse_args()


if __name__ == "__main__":
    parsed = arguments()
    try:
        outcome = uvloop.run(main(parsed))
    except (ConfigError, LoadgenError, OSError) as error:
        sys.exit(f"bench-mesh: {error}")
    Console().print(show(outcome))
    if parsed.json is not None:
        parsed.json.write_text(json.dumps({"runs": outcome}, indent=2))
