"""The figures of the evaluation: what `summary.json` holds and what the report's tables are made of.

*Equal* is determined thus, for a policy P in a world and under a rule for late queries, against the paper's baselines
(Clipper+ of each subnet, and INFaaS):

- accuracy gained at equal attainment: P's accuracy less that of the most accurate baseline whose attainment is at
  least P's, less `EQUAL_ATTAINMENT`;
- attainment gained at equal accuracy: P's attainment over the best one of those baselines that are at least as
  accurate as P.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.sched.options import Late
from loadgen.evaluation.cases import Result, Results, bound_world
from loadgen.evaluation.experiments import INFAAS, OURS, Cell, Experiment, is_baseline

EQUAL_ATTAINMENT = 0.001
_SETTLED_POINTS = 0.25  # as accurate as before a burst: within this of the mean there
_SETTLED_BINS = 3  # for so many bins in a row


@dataclass(frozen=True, slots=True)
class Gain:
    """What a policy gains over the baselines; None where no baseline is its equal."""

    accuracy_gain_points: float | None
    at_attainment_of: str | None
    attainment_ratio: float | None
    at_accuracy_of: str | None


def gain(results: Results, cell: Cell, policy: str, late: Late = "drop") -> Gain:
    """Compare a policy with the baselines of its cell, see the module's docstring."""
    own = results.of(cell.world, policy, late)
    baselines = [(name, results.of(cell.world, name, late)) for name in cell.policies if is_baseline(name)]
    as_good = [(r.accuracy, name) for name, r in baselines if r.attainment >= own.attainment - EQUAL_ATTAINMENT]
    as_accurate = [(r.attainment, name) for name, r in baselines if r.attainment > 0 and r.accuracy >= own.accuracy]
    least, best = max(as_good, default=None), max(as_accurate, default=None)
    return Gain(
        own.accuracy - least[0] if least else None,
        least[1] if least else None,
        own.attainment / best[0] if best else None,
        best[1] if best else None,
    )


def summarise(results: Results, experiments: Sequence[Experiment]) -> dict[str, Any]:
    """What `summary.json` holds of the experiments, by their keys."""
    return {experiment.key: _experiment(results, experiment) for experiment in experiments}


def _experiment(results: Results, experiment: Experiment) -> dict[str, Any]:
    cells = experiment.cells
    found: dict[str, Any] = {"title": experiment.title, "paper": experiment.paper}
    for late in cells[0].late:
        suffix = "" if late == "drop" else "_late_serve"
        found[f"policies{suffix}"] = {
            name: _mean([_figures(results, results.of(c.world, name, late)) for c in cells if name in c.policies])
            for name in dict.fromkeys(name for cell in cells for name in cell.policies)
        }
    if len(cells) > 1 and experiment.key != "small":
        found["cells"] = {
            cell.name: {name: _figures(results, results.of(cell.world, name)) for name in cell.policies}
            for cell in cells
        }
    if INFAAS in cells[0].policies and experiment.key not in ("faults", "jitter", "small"):
        found |= _gains([gain(results, cell, OURS) for cell in cells])
        found["gains"] = {
            name: _gains([gain(results, cell, name) for cell in cells])
            for name in cells[0].policies
            if not is_baseline(name)
        }
    special = _SPECIAL.get(experiment.key)
    return found | (special(results, cells) if special else {})


def _figures(results: Results, result: Result) -> dict[str, float | None]:
    report = result.report
    return {
        "slo_attainment": result.attainment,
        "serving_accuracy": report.serving_accuracy,
        "bound_share": results.share(result),
        "misses": result.misses,
        "latency_p99_ms": report.latency_ms["p99"],
    }


def _gains(gains: Sequence[Gain]) -> dict[str, Any]:
    """Means over cells, and the most, of those that have an equal."""
    found: dict[str, Any] = {}
    for key in ("accuracy_gain_points", "attainment_ratio"):
        known = [value for one in gains if (value := getattr(one, key)) is not None]
        found[key] = statistics.fmean(known) if known else None
        if len(gains) > 1:
            found[f"{key}_most"] = max(known, default=None)
    if len(gains) == 1:
        found["at_attainment_of"], found["at_accuracy_of"] = gains[0].at_attainment_of, gains[0].at_accuracy_of
    return found


def _mean(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Means by key; with several rows also the least attainment."""
    found: dict[str, float | None] = {}
    for key in rows[0]:
        known = [value for row in rows if (value := row[key]) is not None]
        found[key] = statistics.fmean(known) if known else None
    if len(rows) > 1:
        found["slo_attainment_least"] = min(row["slo_attainment"] or 0.0 for row in rows)
    return found


def _actuation(results: Results, cells: Sequence[Cell]) -> dict[str, Any]:
    """Misses at the longest delay over those without any; no ratio for a policy that misses nothing without."""
    found: dict[str, dict[str, Any]] = {}
    for name in cells[0].policies:
        without, longest = (results.of(cell.world, name).misses for cell in (cells[0], cells[-1]))
        found[name] = {
            "misses_without": without,
            "misses_longest": longest,
            "ratio": longest / without if without else None,
        }
    known = [one["ratio"] for one in found.values() if one["ratio"] is not None]
    return {"miss_ratios": found, "miss_ratio": max(known, default=None)}


def _faults(results: Results, cells: Sequence[Cell]) -> dict[str, Any]:
    """Attainment and accuracy by the number of workers alive."""
    cell = cells[0]
    deaths_s = [time_us / 1e6 for time_us, _ in cell.world.conditions.deaths]
    edges_s = [0.0, *deaths_s, cell.world.duration_s]
    phases = {}
    for name in cell.policies:
        report = results.of(cell.world, name).report
        phases[name] = {
            str(cell.world.workers - i): {
                "slo_attainment": _within(report.series.slo_attainment, report.series.bin_s, first, last),
                "serving_accuracy": _within(report.series.serving_accuracy, report.series.bin_s, first, last),
            }
            for i, (first, last) in enumerate(itertools.pairwise(edges_s))
        }
    return {"alive": phases}


def _way_back(results: Results, cells: Sequence[Cell]) -> dict[str, Any]:
    """Milliseconds from the end of the burst until accuracy is that of before and stays; None if it never is."""
    found: dict[str, Any] = {}
    for cell in cells:
        start_s, end_s = cell.world.duration_s / 3, cell.world.duration_s / 2
        for name in cell.policies:
            series = results.of(cell.world, name).report.series
            before = _within(series.serving_accuracy, series.bin_s, 1.0, start_s)
            after = [
                value is not None and before is not None and value >= before - _SETTLED_POINTS
                for value in series.serving_accuracy[math.ceil(end_s / series.bin_s - 1e-9) :]
            ]
            settled = next((i for i in range(len(after)) if all(after[i : i + _SETTLED_BINS])), None)
            within = _within(series.serving_accuracy, series.bin_s, start_s, end_s)
            bent = before is not None and within is not None and within < before - _SETTLED_POINTS
            found.setdefault(cell.name, {})[name] = {
                "accuracy_before": before,
                "accuracy_in_burst": within,
                "bent": bent,
                "slo_attainment_in_burst": _within(series.slo_attainment, series.bin_s, start_s, end_s),
                "back_after_ms": None if settled is None else round(settled * series.bin_s * 1e3),
                "resolution_ms": round(series.bin_s * 1e3),
            }
    return {"back": found}


def _tenants(results: Results, cells: Sequence[Cell]) -> dict[str, Any]:
    """Each tenant's own figures under each policy."""
    cell = cells[0]
    tenants = {}
    for name in cell.policies:
        report = results.of(cell.world, name).report
        tenants[name] = {
            tenant: {
                "slo_ms": one.slo_ms,
                "min_accuracy": one.min_accuracy,
                "priority": one.priority,
                "queries": one.queries,
                "slo_attainment": one.slo_attainment,
                "serving_accuracy": one.serving_accuracy,
                "least_accuracy": one.least_accuracy,
                "floor_violations": one.floor_violations,
            }
            for tenant, one in report.tenants.items()
        }
    return {"tenants": tenants}


def _small(results: Results, cells: Sequence[Cell]) -> dict[str, Any]:
    """Shares of the exact optimum, and how far the fluid bound lies above it."""
    shares = {
        name: [results.of(cell.world, name).share(results.optima[bound_world(cell.world)]) for cell in cells]
        for name in cells[0].policies
    }
    worlds = [bound_world(cell.world) for cell in cells]
    above = [results.bounds[world].utility / results.optima[world].utility - 1 for world in worlds]
    return {
        "optimum_shares": {
            name: {"mean": statistics.fmean(found), "least": min(found)} for name, found in shares.items()
        },
        "fluid_above_optimum": {"mean": statistics.fmean(above), "most": max(above), "least": min(above)},
    }


def _within(values: Sequence[float | None], bin_s: float, first_s: float, last_s: float) -> float | None:
    """Mean of the bins that lie between two times; bins weigh alike."""
    inside = values[math.ceil(first_s / bin_s - 1e-9) : math.floor(last_s / bin_s + 1e-9)]
    known = [value for value in inside if value is not None]
    return statistics.fmean(known) if known else None


_SPECIAL = {
    "actuation_delay": _actuation,
    "faults": _faults,
    "way_back": _way_back,
    "mixed": _tenants,
    "overloaded": _tenants,
    "small": _small,
}
