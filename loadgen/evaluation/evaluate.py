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

from loadgen.errors import InputError
from loadgen.evaluation.cases import run_all
from loadgen.evaluation.experiments import FULL, QUICK, experiments
from loadgen.evaluation.plots import draw_all
from loadgen.evaluation.report import write_report
from loadgen.evaluation.summary import summarise
from loadgen.report import package_version
from loadgen.workload import make_workload

SYNTHETIC_DAY = "minutes:synthetic-day"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """What to evaluate with. maf: a SPEC of a day of requests."""

    out: Path
    maf: str = SYNTHETIC_DAY
    quick: bool = False


def evaluate(options: EvaluateOptions, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Run all, write `report.md`, `summary.json` and the plots into `out`; returns the summary.

    InputError for a day that cannot be read or a folder that cannot be made.
    """
    started = time.monotonic()
    make_workload(options.maf, rate=100.0, duration_s=1.0)  # to be told now if it cannot be read
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("out", options.out, f"cannot be made: {error.strerror}") from None
    asked = experiments(options.maf, QUICK if options.quick else FULL)
    results = run_all((case for one in asked for cell in one.cells for case in cell.cases()), progress)
    summary = summarise(results, asked)
    summary["run"] = _run(options, time.monotonic() - started)
    draw_all(results, asked, summary, options.out)
    (options.out / "report.md").write_text(write_report(summary, asked))
    (options.out / "summary.json").write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")
    return summary


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
        "quick": options.quick,
        "day": day,
        "seed": 0,
    }
