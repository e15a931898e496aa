"""The evaluation's figures, each like one of the paper's where it has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen.evaluation.cases import Result, Results, bound_world
from loadgen.evaluation.experiments import Cell, Experiment, is_baseline
from loadgen.plot import COLOURS, GREY, LINES, new_figure, plot_style, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vPX*"


def draw_all(results: Results, experiments: Sequence[Experiment], summary: Mapping[str, Any], folder: Path) -> None:
    """Write one PNG per experiment, named by its key, and `dynamics.png`, into `folder`."""
    for experiment in experiments:
        with plot_style():
            _DRAW[experiment.key](results, experiment, summary[experiment.key], folder / f"{experiment.key}.png")
    by_key = {experiment.key: experiment for experiment in experiments}
    with plot_style():
        _dynamics(results, by_key["bursty"], by_key["time_varying"], folder / "dynamics.png")
    if "agreement" in summary:
        with plot_style():
            draw_agreement(summary["agreement"], folder / "agreement.png")


def draw_agreement(found: Mapping[str, Any], path: Path) -> None:
    """The share of each subnet, live beside simulated, a run each: a row per trace, a column per policy."""
    runs = found["runs"].values()
    traces, policies = (list(dict.fromkeys(run[key] for run in runs)) for key in ("trace", "policy"))
    subnets = sorted({name for run in runs for kind in ("live", "simulated") for name in run[kind]["subnets"]})
    figure = new_figure(12.5, 1.4 + 2.1 * len(traces), top=1.25)
    grid = figure.subplots(
        len(traces), len(policies), sharex=True, sharey=True, squeeze=False, gridspec_kw={"hspace": 0.3, "wspace": 0.06}
    )
    for run in runs:
        axes = grid[traces.index(run["trace"])][policies.index(run["policy"])]
        axes.set_title(f"{run['trace']}, {run['policy']}")
        for place, kind in enumerate(("live", "simulated")):
            at = [i + (place - 0.5) * 0.4 for i in range(len(subnets))]
            shares = [100 * run[kind]["subnets"].get(name, 0.0) for name in subnets]
            axes.bar(at, shares, 0.37, color=COLOURS[place], label=kind)
        axes.set_xticks(range(len(subnets)), subnets)
    for axes in grid[-1]:
        axes.set_xlabel("subnet, by its accuracy")
    for axes in grid[:, 0]:
        axes.set_ylabel("answers, %")
    _legend_above(figure, grid[0][0])
    save_figure(figure, path, "Live and simulated")


def _scatter(axes: Axes, results: Results, cell: Cell, *, names: bool) -> None:
    """Attainment and accuracy of every policy of a cell; the fixed baselines are one line, from small to large."""
    fixed = [results.of(cell.world, name) for name in cell.policies if is_baseline(name)]
    axes.plot(
        [one.attainment for one in fixed], [one.accuracy for one in fixed],
        color=GREY, marker=".", linewidth=1, label="INFaaS, Clipper+ (six subnets)",
    )  # fmt: skip
    for place, name in enumerate(name for name in cell.policies if not is_baseline(name)):
        one = results.of(cell.world, name)
        axes.plot(
            [one.attainment], [one.accuracy], linestyle="none", marker=_MARKERS[place % len(_MARKERS)], markersize=7,
            color=COLOURS[place % len(COLOURS)], label=name, alpha=0.85,
        )  # fmt: skip
    axes.set_xlim(-0.04, 1.06)
    if names:
        axes.set_xlabel("SLO attainment")
        axes.set_ylabel("serving accuracy, %")


def _one_cell(results: Results, experiment: Experiment, summary: Mapping[str, Any], path: Path) -> None:
    """One world: the scatter, and what each policy of ours did over time (paper, figure 8)."""
    cell = experiment.cells[0]
    figure = new_figure(12.5, 6.4, top=0.9)
    grid = figure.add_gridspec(3, 2, width_ratios=(1, 1.4), hspace=0.4, wspace=0.18)
    scatter = figure.add_subplot(grid[:, 0])
    scatter.set_title("Attainment and accuracy, late queries dropped")
    _scatter(scatter, results, cell, names=True)
    scatter.legend(loc="lower left")
    shown = [results.of(cell.world, name) for name in cell.policies if not is_baseline(name)][:2]
    load, accuracy, batch = (figure.add_subplot(grid[row, 1]) for row in range(3))
    _over_time((load, accuracy, batch), shown)
    accuracy.legend(loc="lower left", ncols=2)
    save_figure(figure, path, experiment.title)


def _over_time(axes: Sequence[Axes], shown: Sequence[Result]) -> None:
    """Arrivals, accuracy and batch size over time."""
    load, accuracy, batch = axes
    series = shown[0].report.series
    load.set_title("Arrivals, q/s")
    load.fill_between(*_steps(series.bin_s, series.arrivals_qps), step="post", color=GREY, alpha=0.35, linewidth=0)
    load.set_ylim(bottom=0)
    for title, target, key in (
        ("Serving accuracy, %", accuracy, "serving_accuracy"),
        ("Batch size, rows", batch, "batch_size_mean"),
    ):
        target.set_title(title)
        for place, one in enumerate(shown):
            _line(target, place, *_steps(one.report.series.bin_s, getattr(one.report.series, key)), one.case.policy)
    batch.set_ylim(bottom=0)
    batch.set_xlabel("time, s")
    for target in axes:
        target.set_xlim(0, shown[0].case.world.duration_s)


def _grid(results: Results, experiment: Experiment, summary: Mapping[str, Any], path: Path) -> None:
    """Three by three worlds, a scatter each (paper, figures 9 and 10)."""
    figure = new_figure(12.5, 10, top=1.15)
    all_axes = figure.subplots(3, 3, sharex=True, sharey=True, gridspec_kw={"hspace": 0.25, "wspace": 0.08})
    for axes, cell in zip(all_axes.flat, experiment.cells, strict=True):
        axes.set_title(cell.name.replace(",", ", "))
        _scatter(axes, results, cell, names=False)
    for axes in all_axes[-1]:
        axes.set_xlabel("SLO attainment")
    for axes in all_axes[:, 0]:
        axes.set_ylabel("serving accuracy, %")
    handles, labels = all_axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper left", ncols=6, bbox_to_anchor=(0.05, 0.955))
    save_figure(figure, path, experiment.title)


def _by_cell(results: Results, experiment: Experiment, summary: Mapping[str, Any], path: Path) -> None:
    """Attainment and accuracy of each policy, cell by cell (paper, figure 11c)."""
    figure = new_figure(12.5, 4.6, top=1.15)
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.14})
    places = range(len(experiment.cells))
    for place, name in enumerate(experiment.cells[0].policies):
        found = [results.of(cell.world, name) for cell in experiment.cells]
        _line(left, place, places, [one.attainment for one in found], name, marker=_MARKERS[place % len(_MARKERS)])
        _line(right, place, places, [one.accuracy for one in found], name, marker=_MARKERS[place % len(_MARKERS)])
    for axes, title in ((left, "SLO attainment"), (right, "Serving accuracy, %")):
        axes.set_title(title)
        axes.set_xticks(list(places), [cell.name.replace(" + ", "\n+ ") for cell in experiment.cells])
    _legend_above(figure, left)
    save_figure(figure, path, experiment.title)


def _misses(results: Results, experiment: Experiment, summary: Mapping[str, Any], path: Path) -> None:
    """SLO misses against the actuation delay (paper, figure 1b)."""
    figure = new_figure(12.5, 4.6, top=1.15)
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.14})
    delays_ms = [float(cell.name) for cell in experiment.cells]
    for place, name in enumerate(experiment.cells[0].policies):
        found = [results.of(cell.world, name) for cell in experiment.cells]
        marker = _MARKERS[place % len(_MARKERS)]
        _line(left, place, delays_ms, [100 * (1 - one.attainment) for one in found], name, marker=marker)
        _line(right, place, delays_ms, [one.accuracy for one in found], name, marker=marker)
    for axes, title in ((left, "SLO misses, % of queries"), (right, "Serving accuracy, %")):
        axes.set_title(title)
        axes.set_xlabel("actuation delay, ms")
    left.set_yscale("symlog", linthresh=0.01)
    left.set_ylim(bottom=0)
    _legend_above(figure, left)
    save_figure(figure, path, experiment.title)


def _faults(results: Results, experiment: Experiment, summary: Mapping[str, Any], path: Path) -> None:
    """Accuracy and attainment over time while workers die (paper, figure 11a)."""
    cell = experiment.cells[0]
    figure = new_figure(12.5, 5.4, top=1.15)
    axes = figure.subplots(2, 1, sharex=True, gridspec_kw={"hspace": 0.28})
    for place, name in enumerate(cell.policies):
        series = results.of(cell.world, name).report.series
        for target, key in zip(axes, ("serving_accuracy", "slo_attainment"), strict=True):
            _line(target, place, *_steps(series.bin_s, getattr(series, key)), name)
    for target, title in zip(axes, ("Serving accuracy, %", "SLO attainment"), strict=True):
        target.set_title(title)
        for time_us, _ in cell.world.conditions.deaths:
            target.axvline(time_us / 1e6, color=GREY, linewidth=1, linestyle=":")
    axes[-1].set_xlabel("time, s; a worker dies at each dotted line")
    axes[-1].set_xlim(0, cell.world.duration_s)
    _legend_above(figure, axes[0])
    save_figure(figure, path, experiment.title)


def _way_back(results: Results, experiment: Experiment, summary: Mapping[str, Any], path: Path) -> None:
    """Accuracy and attainment over time around a burst, each cell a column."""
    figure = new_figure(12.5, 6.2, top=1.0)
    grid = figure.subplots(2, len(experiment.cells), sharex=True, sharey="row", gridspec_kw={"wspace": 0.08})
    policies = list(dict.fromkeys(name for cell in experiment.cells for name in cell.policies))
    for column, cell in enumerate(experiment.cells):
        accuracy, attainment = grid[0][column], grid[1][column]
        for place, name in enumerate(policies):
            if name not in cell.policies:
                continue
            series = results.of(cell.world, name).report.series
            _line(accuracy, place, *_steps(series.bin_s, series.serving_accuracy), name)
            _line(attainment, place, *_steps(series.bin_s, series.slo_attainment), name)
        accuracy.set_title(f"Serving accuracy, %; a change of subnet costs {cell.name} ms")
        attainment.set_title("SLO attainment")
        attainment.set_xlabel("time, s")
        for axes in (accuracy, attainment):
            axes.axvspan(cell.world.duration_s / 3, cell.world.duration_s / 2, color=GREY, alpha=0.15, linewidth=0)
        attainment.legend(loc="center right")
        accuracy.set_xlim(0, cell.world.duration_s)
    save_figure(figure, path, experiment.title)


def _tenants(results: Results, experiment: Experiment, summary: Mapping[str, Any], path: Path) -> None:
    """Attainment and accuracy of each tenant under each policy."""
    figure = new_figure(12.5, 4.4, top=1.15)
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.14})
    by_policy: Mapping[str, Mapping[str, Any]] = summary["tenants"]
    width = 0.8 / len(by_policy)
    for place, (policy, tenants) in enumerate(by_policy.items()):
        at = [i + (place - (len(by_policy) - 1) / 2) * width for i in range(len(tenants))]
        for axes, key in ((left, "slo_attainment"), (right, "serving_accuracy")):
            values = [one[key] or 0.0 for one in tenants.values()]
            axes.bar(at, values, width * 0.92, color=COLOURS[place % len(COLOURS)], label=policy)
    tenants = next(iter(by_policy.values()))
    for axes, title in ((left, "SLO attainment"), (right, "Serving accuracy, % (line: the tenant's floor)")):
        axes.set_title(title)
        axes.set_xticks(range(len(tenants)), list(tenants))
    left.set_ylim(0, 1.05)
    right.set_ylim(bottom=70)
    for i, one in enumerate(tenants.values()):
        if one["min_accuracy"]:
            right.hlines(one["min_accuracy"], i - 0.45, i + 0.45, color="#000000", linewidth=1)
    _legend_above(figure, left)
    save_figure(figure, path, experiment.title)


def _small(results: Results, experiment: Experiment, summary: Mapping[str, Any], path: Path) -> None:
    """Each instance's share of the optimum under each policy, in ascending order."""
    figure = new_figure(9, 4.4, top=1.15)
    axes = figure.subplots()
    for place, name in enumerate(experiment.cells[0].policies):
        shares = sorted(
            results.of(cell.world, name).share(results.optima[bound_world(cell.world)]) for cell in experiment.cells
        )
        _line(axes, place, range(1, len(shares) + 1), [100 * share for share in shares], name, marker=".")
    axes.set_title("Share of the ZILP's optimum, %")
    axes.set_xlabel("instances, each policy's in ascending order")
    _legend_above(figure, axes)
    save_figure(figure, path, experiment.title)


def _dynamics(results: Results, bursty: Experiment, ramps: Experiment, path: Path) -> None:
    """What our policy does over time on two bursty and two time-varying traces (paper, figure 13)."""
    cells = [bursty.cells[3], bursty.cells[5], ramps.cells[3], ramps.cells[5]]
    figure = new_figure(14, 6.6, top=1.15)
    grid = figure.subplots(3, len(cells), gridspec_kw={"hspace": 0.4, "wspace": 0.2})
    for column, cell in enumerate(cells):
        shown = [results.of(cell.world, name) for name in cell.policies[:2]]
        _over_time([grid[row][column] for row in range(3)], shown)
        grid[0][column].set_title(f"Arrivals, q/s: {cell.name.replace(',', ', ')}")
    _legend_above(figure, grid[1][0])
    save_figure(figure, path, "Dynamics")


def _legend_above(figure: Any, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper left", ncols=5, bbox_to_anchor=(0.05, 0.92))


def _line(axes: Axes, place: int, x: Sequence[float], y: Sequence[Any], label: str, marker: str = "") -> None:
    axes.plot(
        x, y, color=COLOURS[place % len(COLOURS)], linestyle=LINES[place % len(LINES)], linewidth=1.4, marker=marker,
        label=label,
    )  # fmt: skip


def _steps(bin_s: float, values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    return [i * bin_s for i in range(len(values))], [float("nan") if value is None else value for value in values]


_DRAW: Mapping[str, Callable[[Results, Experiment, Mapping[str, Any], Path], None]] = {
    "maf_cnn": _one_cell,
    "maf_transformer": _one_cell,
    "bursty": _grid,
    "time_varying": _grid,
    "policies": _by_cell,
    "faults": _faults,
    "actuation_delay": _misses,
    "way_back": _way_back,
    "jitter": _by_cell,
    "mixed": _tenants,
    "overloaded": _tenants,
    "small": _small,
}
