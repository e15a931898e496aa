"""`loadgen evaluate`: run the experiments, and write report, plots and figures into a folder."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from common import compiled
from loadgen.bounds import require_scipy
from loadgen.errors import InputError, LoadgenError
from loadgen.evaluation.agreement import SCALE, LiveOptions, agreement
from loadgen.evaluation.cases import run_all
from loadgen.evaluation.experiments import FULL, OURS, QUICK, SLACKFIT, experiments
from loadgen.evaluation.mesh import find_superserve
from loadgen.evaluation.plots import draw_all
from loadgen.evaluation.report import write_report
from loadgen.evaluation.summary import summarise
from loadgen.plot import require_matplotlib
from loadgen.report import package_version
from loadgen.workload import make_workload

SYNTHETIC_DAY = "minutes:synthetic-day"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """What to evaluate with. maf: a SPEC of a day of requests. live: against a mesh too, so many times slower."""

    out: Path
    maf: str = SYNTHETIC_DAY
    quick: bool = False
    live: bool = False
    scale: float = SCALE


def evaluate(
    options: EvaluateOptions,
    progress: Callable[[int, int], None],
    live_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Run all, write `report.md`, `summary.json` and the plots into `out`; returns the summary.

    InputError for a day that cannot be read, a folder that cannot be made, or what `agreement` cannot use;
    MissingExtraError without matplotlib or scipy: all of them before anything is run.
    LoadgenError, once all is written, if a live scheduler's event log replays to other commands than were taken.
    """
    started = time.monotonic()
    require_matplotlib()
    require_scipy()
    live = _live(options)
    make_workload(options.maf, rate=100.0, duration_s=1.0)  # to be told now if it cannot be read
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("out", options.out, f"cannot be made: {error.strerror}") from None
    asked = experiments(options.maf, QUICK if options.quick else FULL)
    results = run_all((case for one in asked for cell in one.cells for case in cell.cases()), progress)
    summary = summarise(results, asked)
    summary["run"] = _run(options, time.monotonic() - started)
    if live is not None:
        summary["agreement"] = agreement(live, live_progress)
    draw_all(results, asked, summary, options.out)
    (options.out / "report.md").write_text(write_report(summary, asked))
    (options.out / "summary.json").write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")
    if live is not None:
        wrong = [name for name, run in summary["agreement"]["runs"].items() if run["replayed"]["differences"]]
        if wrong:
            raise LoadgenError(f"event logs replay to other commands than were taken: {'; '.join(wrong)}")
    return summary


def _live(options: EvaluateOptions) -> LiveOptions | None:
    """What to compare, if anything; InputError now if it could not be run later."""
    if not options.live:
        return None
    find_superserve()
    if options.quick:
        return LiveOptions(maf=options.maf, scale=options.scale, duration_s=8, policies=(OURS, SLACKFIT))
    return LiveOptions(maf=options.maf, scale=options.scale)


def _run(options: EvaluateOptions, seconds: float) -> dict[str, Any]:
    """When, where and with what this was run."""
    day = "synthetic, shipped with the package" if options.maf == SYNTHETIC_DAY else f"`{Path(options.maf).name}`"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": seconds,
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "version": package_version(),
        "compiled": compiled.in_use(),
        "quick": options.quick,
        "day": day,
        "seed": 0,
    }
