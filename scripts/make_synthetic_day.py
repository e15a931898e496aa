"""Make `loadgen/data/synthetic_day.csv`: 1,440 counts per minute, INVENTED to look like a day of Azure Functions.

    scripts/make-synthetic-day                      writes the file anew; the same seed gives the same file
    scripts/make-synthetic-day --compare day.csv    its figures beside those of other files

No request of anybody is in it. What it imitates of serverless load, as Shahrad et al. (ATC 2020) describe it and the
MAF trace of the SuperServe paper shows it (a mean of 6,400 q/s when shrunk to 120 s, spikes to 8,750, so 1.37 times):

- a day and its night: two harmonics, the afternoon a third above the hours before dawn;
- timers: spikes in the first minute of each hour, half hour, ten and five minutes, which fall off within two minutes;
  each has a height of its own, since not every job runs each time;
- minute-scale noise: an autoregression, what users do together, and independent noise, what each does by chance;
- bursts of up to twenty minutes at no time that could be told before.

The level is such that `minutes:synthetic-day` over 120 s, without a rate, has the paper's mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from loadgen.spec import shipped_trace
from loadgen.trace_files import read_minutes

Minutes = NDArray[np.float64]

NAME, COLUMN = "synthetic-day", "synthetic_requests"
MINUTES = 1440
MEAN_QPS = 6400.0
TIMERS = {60: 0.09, 30: 0.05, 10: 0.035, 5: 0.015}  # minutes between spikes: their height over the day's mean
FALL = (1.0, 0.35, 0.1)  # of a spike, minute by minute
BURSTS, LONGEST = 12, 20  # minutes


def make_day(seed: int) -> Minutes:
    """Counts per minute, whole numbers."""
    rng = np.random.default_rng(seed)
    minute = np.arange(MINUTES)
    day = 2 * np.pi * minute / MINUTES
    level = 1 - 0.145 * np.cos(day - 2 * np.pi * 3.5 / 24) - 0.03 * np.cos(2 * day - 2 * np.pi * 2 / 12)
    drift = np.zeros(MINUTES)
    for k in range(1, MINUTES):
        drift[k] = 0.9 * drift[k - 1] + rng.normal(0, 0.008)
    spikes = np.zeros(MINUTES + len(FALL))
    for period, height in TIMERS.items():
        starts = np.arange(0, MINUTES, period)
        heights = height * rng.gamma(8, 1 / 8, len(starts))
        for after, share in enumerate(FALL):
            spikes[starts + after] += heights * share
    for start, height in zip(rng.integers(0, MINUTES, BURSTS), rng.gamma(6, 0.02, BURSTS), strict=True):
        spikes[start : start + int(rng.integers(1, LONGEST + 1))] += height
    shape = level * (1 + drift) + spikes[:MINUTES] + rng.normal(0, 0.012, MINUTES)
    counts: Minutes = np.round(shape * (MEAN_QPS * 60 / shape.mean()))
    return counts


def figures(counts: Minutes) -> list[str]:
    """What two days are compared by."""
    hour = counts.reshape(-1, 60).mean(axis=1)
    return [
        f"{counts.mean() / 60:,.0f}",
        f"{counts.max() / counts.mean():.2f}",
        f"{counts.std() / counts.mean():.3f}",
        f"{np.corrcoef(counts[:-1], counts[1:])[0, 1]:.2f}",
        f"{hour.min() / counts.mean():.2f} to {hour.max() / counts.mean():.2f}",
        f"{counts[::60].mean() / counts.mean():.2f}",
    ]


def main() -> None:
    """Write the file, or print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--out", type=Path, default=shipped_trace(NAME), metavar="FILE")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="FILE", help="print figures, write nothing")
    args = parser.parse_args()
    day = make_day(args.seed)
    if args.compare is None:
        lines = [f"minute,{COLUMN}", *(f"{minute},{count:.0f}" for minute, count in enumerate(day, start=1))]
        args.out.write_text("\n".join(lines) + "\n")
        return
    table = Table("", NAME, *(path.name for path in args.compare))
    names = ("mean, requests/s", "peak / mean", "CV of the minutes", "lag-1 autocorrelation")
    columns = [figures(counts) for counts in (day, *(read_minutes(path) for path in args.compare))]
    for name, *values in zip((*names, "hours / mean", "first minutes of hours / mean"), *columns, strict=True):
        table.add_row(name, *values)
    Console().print(table)


if __name__ == "__main__":
    main()
