"""One run: ask the server, make arrivals and bodies, send them open loop, report."""

from __future__ import annotations

import asyncio
import datetime
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadgen.errors import InputError
from loadgen.oip import Endpoint, check_model_name
from loadgen.payloads import make_payloads
from loadgen.probe import probe
from loadgen.records import Recorder, Records
from loadgen.report import Report, RunInfo, make_report
from loadgen.sender import Progress, Sender
from loadgen.traces import largest_within
from loadgen.workload import Workload, make_workload


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What to send where. Equal trace, rate, duration and seed give equal arrivals, whatever the server does."""

    url: str
    model: str
    trace: str = "poisson"  # a SPEC, see `loadgen.spec`
    rate: float | None = None  # mean queries per second; None: the SPEC's own
    duration_s: float = 10.0
    slo_ms: float = 50.0  # of a query whose tenant has none of its own, and so are the rows
    seed: int = 0
    rows: int = 1  # per query
    data: Path | None = None  # .safetensors or .npz; None: the model's shipped samples, else random tensors
    connections: int = 512  # at most; beyond it queries wait in the sender, and the report shows how long
    timeout_s: float = 10.0  # after its intended time a query without an answer is an error

    def check(self) -> None:
        """InputError names the first option that cannot be used; the trace is checked when it is made."""
        for key, value in (("slo_ms", self.slo_ms), ("timeout_s", self.timeout_s)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(key, value, "must be > 0")
        for key, count in (("rows", self.rows), ("connections", self.connections)):
            if count < 1:
                raise InputError(key, count, "must be >= 1")
        check_model_name(self.model)


async def replay(options: ReplayOptions, progress: Callable[[Progress], None] | None = None) -> Report:
    """Replay a trace against a server; returns when each query has ended, within duration + timeout. See `record`."""
    return make_report(*await record(options, progress))


async def record(options: ReplayOptions, progress: Callable[[Progress], None] | None = None) -> tuple[Records, RunInfo]:
    """Replay a trace, and return what became of each query, and what was asked for.

    `progress` is called about ten times a second. Before anything is sent InputError or a ServerError may be raised;
    afterwards nothing is: what goes wrong is counted in the report.
    """
    options.check()
    endpoint = Endpoint.parse(options.url)
    workload = make_workload(
        options.trace,
        rate=options.rate,
        duration_s=options.duration_s,
        seed=options.seed,
        slo_ms=options.slo_ms,
        rows=options.rows,
    )
    model = await asyncio.to_thread(probe, endpoint, options.model)
    payloads = make_payloads(endpoint, model, workload, data=options.data, seed=options.seed)
    recorder = Recorder(workload, payloads.labels)
    sender = Sender(
        endpoint,
        payloads.request,
        recorder,
        connections=options.connections,
        timeout_s=options.timeout_s,
    )
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    cpu_s = time.process_time()
    await sender.run(warm=_most_open(workload), progress=progress)
    cpu_s = time.process_time() - cpu_s
    info = RunInfo(
        url=options.url,
        model=options.model,
        trace=options.trace,
        rate=options.rate,
        duration_s=options.duration_s,
        slo_ms=options.slo_ms,
        seed=options.seed,
        data=payloads.data,
        started_at=started_at,
        sender_cpu_us=cpu_s * 1e6 / len(workload.intended_s),
    )
    return recorder.finish(), info


def _most_open(workload: Workload) -> int:
    """How many queries are open at most: a server that keeps an SLO has no more of it than arrive within it."""
    return sum(
        largest_within(workload.intended_s[workload.tenant == code], tenant.slo_ms / 1000)
        for code, tenant in enumerate(workload.tenants)
    )
