"""Reports and traces as one PNG. matplotlib is an extra: `pip install 'superserve-mesh[plot]'`."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.errors import MissingExtraError
from loadgen.report import CDF_PERCENT, Number, Report, TenantReport
from loadgen.spec import split_spec
from loadgen.table import part_names, run_names, slo_text, tenant_name
from loadgen.traces import Part, Times, TraceStats, window_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind; with line styles they survive a black-and-white print too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LEFT, _RIGHT = 0.06, 0.985  # of the figure's width
LINES = ("-", "--", "-.", ":")
GREY, _LIGHT_GREY = "#666666", "#a0a0a0"
_RATE_BINS = 300
_MOST_LAYERS = 7
_LEGEND_COLUMNS = 4
_MOST_ROWS = 6  # of runs and tenants that a figure has room for
_TITLE_LENGTH = 95
_LEAST_DISPERSION = 0.01  # below that a trace is even, and a logarithm has no 0
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}


def plot(reports: Sequence[Report], path: Path, names: Sequence[str] | None = None) -> None:
    """Draw reports over each other: load, accuracy, batch size and attainment over time, and latencies.

    `names` heads the runs, by default their policies. MissingExtraError without matplotlib, OSError when `path` cannot
    be written.
    """
    heads = list(names or run_names(reports))
    with plot_style():
        figure = new_figure(12.5, 7.8, top=1.0)
        grid = figure.add_gridspec(4, 2, width_ratios=(1.55, 1), hspace=0.42, wspace=0.16)
        load = figure.add_subplot(grid[0, 0])
        over_time = [load, *(figure.add_subplot(grid[row, 0], sharex=load) for row in (1, 2, 3))]
        _draw_load(load, reports, heads)
        for axes, title, key in (
            (over_time[1], "Serving accuracy, % (of queries within the SLO)", "serving_accuracy"),
            (over_time[2], "Batch size, rows", "batch_size_mean"),
            (over_time[3], "SLO attainment", "slo_attainment"),
        ):
            axes.set_title(title)
            for position, report in enumerate(reports):
                _line(axes, position, *_steps(report, getattr(report.series, key)), label=heads[position])
        over_time[2].set_ylim(bottom=0)
        over_time[3].set_ylim(-0.04, 1.04)
        over_time[3].set_xlabel("time, s")
        for axes in over_time[:-1]:
            axes.tick_params(labelbottom=False)
        load.set_xlim(0, max(report.duration_s for report in reports))
        _draw_latency(figure.add_subplot(grid[:3, 1]), reports, heads)
        _draw_summary(figure.add_subplot(grid[3, 1]), reports, heads)
        handles, labels = over_time[3].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper left", ncols=4, bbox_to_anchor=(_LEFT - 0.01, 0.96), handlelength=3)
        save_figure(figure, path, _title(reports))


def plot_trace(parts: Sequence[Part], stats: TraceStats, trace: str, path: Path) -> None:
    """Draw a trace: who sends when, the distribution of its gaps, and its burstiness. Raises as `plot` does."""
    with plot_style():
        layers = _layers(parts)
        legend_rows = math.ceil((len(layers) + 1) / _LEGEND_COLUMNS) if len(layers) > 1 else 0
        figure = new_figure(11, 6.8, top=0.75 + 0.2 * legend_rows)
        grid = figure.add_gridspec(2, 2, hspace=0.42, wspace=0.16)
        arrivals = np.sort(np.concatenate([part.times for part in parts]))
        _draw_parts(figure.add_subplot(grid[0, :]), layers, stats)
        _draw_gaps(figure.add_subplot(grid[1, 0]), arrivals, stats)
        _draw_dispersion(figure.add_subplot(grid[1, 1]), stats)
        save_figure(figure, path, _cut(_short(trace), _TITLE_LENGTH))


def _draw_parts(axes: Axes, layers: Mapping[str, Times], stats: TraceStats) -> None:
    """The rate over time, what each part sends on top of the others."""
    bin_s = _round_up(stats.duration_s / _RATE_BINS)
    axes.set_title(
        f"Arrivals, q/s by {bin_s * 1000:g} ms (mean {stats.mean_qps:,.0f}, peak second {stats.peak_second_qps:,.0f})"
    )
    edges = np.append(np.arange(math.ceil(stats.duration_s / bin_s - 1e-9)) * bin_s, stats.duration_s)
    below = np.zeros(len(edges) - 1)
    for colour, (name, times) in zip((*COLOURS[:-1], _LIGHT_GREY), layers.items(), strict=False):
        above = below + np.bincount(window_of(times, bin_s), minlength=len(below))[: len(below)] / np.diff(edges)
        axes.stairs(above, edges, baseline=below, fill=True, color=colour, alpha=0.85, label=name)
        below = above
    axes.axhline(stats.mean_qps, color=GREY, linewidth=1, linestyle="--", label="mean of all")
    axes.set_xlabel("time, s")
    axes.set_xlim(0, stats.duration_s)
    axes.set_ylim(0, float(below.max()) * 1.05)
    if len(layers) > 1:
        axes.legend(loc="lower left", ncols=_LEGEND_COLUMNS, bbox_to_anchor=(-0.01, 1.05), handlelength=1.4)


def _round_up(value: float) -> float:
    """The next 1, 2 or 5 of a power of ten: evenly spaced arrivals then fill bins evenly."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def _layers(parts: Sequence[Part]) -> dict[str, Times]:
    """What is told apart in a plot: the parts; the tenants when those are too many; the largest and the others."""
    layers = dict(zip(part_names(parts), (part.times for part in parts), strict=True))
    if len(layers) > _MOST_LAYERS:
        tenants: dict[str, list[Times]] = {}
        for part in parts:
            tenants.setdefault(part.component.tenant or "no tenant", []).append(part.times)
        layers = {name: np.concatenate(times) for name, times in tenants.items()}
    if len(layers) > _MOST_LAYERS:
        order = sorted(layers, key=lambda name: -len(layers[name]))
        kept, rest = order[: _MOST_LAYERS - 1], order[_MOST_LAYERS - 1 :]
        layers = {name: layers[name] for name in kept} | {
            f"{len(rest)} others": np.concatenate([layers[name] for name in rest])
        }
    return layers


def _draw_gaps(axes: Axes, arrivals: Times, stats: TraceStats) -> None:
    """How long the gaps are, beside a Poisson process of the same mean."""
    axes.set_title(f"Gaps between arrivals (CV {stats.gap_cv:.2f})")
    axes.set_xlabel("gap, ms (log scale)")
    axes.set_ylabel("share at most that long")
    axes.set_ylim(0, 1.02)
    gaps_ms = np.sort(np.diff(arrivals)) * 1000
    if len(gaps_ms) and gaps_ms[-1] > 0:
        mean = float(gaps_ms.mean())
        least = max(mean / 1000, 1e-4)  # shorter ones are drawn at the left edge
        axes.plot(
            np.maximum(gaps_ms, least), np.arange(1, len(gaps_ms) + 1) / len(gaps_ms), color=COLOURS[0], linewidth=1.6
        )
        times = np.geomspace(least, max(float(gaps_ms[-1]), 7 * mean), 200)
        axes.plot(times, -np.expm1(-times / mean), color=GREY, linewidth=1, linestyle="--", label="Poisson")
        axes.set_xscale("log")
        axes.set_xlim(times[0], times[-1])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(loc="upper left")


def _draw_dispersion(axes: Axes, stats: TraceStats) -> None:
    """Variance over mean of the counts, by the length of the window: bursts longer than a window stand out of 1."""
    from matplotlib.ticker import NullFormatter

    axes.set_title("Index of dispersion of counts")
    axes.set_xlabel("window, ms (log scale)")
    axes.set_ylabel("variance / mean (log scale)")
    windows_ms = [window_s * 1000 for window_s in stats.dispersion]
    values = np.maximum(list(stats.dispersion.values()), _LEAST_DISPERSION)
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--", label="Poisson: 1")
    axes.plot(windows_ms, values, color=COLOURS[0], linewidth=1.6, marker="o", markersize=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.9, 1100)
    axes.set_ylim(min([0.7, *(values * 0.7)]), max([12.0, *(values * 1.4)]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="best")


def _draw_load(axes: Axes, reports: Sequence[Report], heads: Sequence[str]) -> None:
    """The arrivals, once when all runs had the same."""
    axes.set_title("Arrivals, q/s")
    same = all(report.series.arrivals_qps == reports[0].series.arrivals_qps for report in reports)
    if same:
        times, values = _steps(reports[0], reports[0].series.arrivals_qps)
        edges = [*times, reports[0].duration_s]
        axes.stairs(values, edges, fill=True, color=GREY, alpha=0.35, linewidth=0)
        axes.stairs(values, edges, color=GREY, linewidth=0.9)
    else:
        for position, report in enumerate(reports):
            _line(axes, position, *_steps(report, report.series.arrivals_qps), label=heads[position])
    axes.set_ylim(bottom=0)


def _draw_latency(axes: Axes, reports: Sequence[Report], heads: Sequence[str]) -> None:
    """Shares of ALL queries: a run with errors never reaches 1."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_title("Latency from the intended send time, and SLOs", pad=16)
    for position, report in enumerate(reports):
        share = np.array(CDF_PERCENT) / 100 * (report.answered / report.queries)
        latency = report.latency_cdf_ms
        _line(axes, position, latency, share[: len(latency)], label=heads[position])
    slos_ms = sorted({slo_ms for report in reports for slo_ms in report.slos_ms})
    for slo_ms in slos_ms:
        axes.axvline(slo_ms, color=GREY, linewidth=1)
        axes.text(
            slo_ms,
            1.03,
            f"SLO {slo_ms:g} ms" if len(slos_ms) == 1 else f"{slo_ms:g}",
            ha="center",
            color=GREY,
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("latency, ms (log scale)")
    axes.set_ylabel("share of all queries answered by then")


def _draw_summary(axes: Axes, reports: Sequence[Report], heads: Sequence[str]) -> None:
    """The three numbers that the paper compares, per run, and per tenant where there is room."""
    from matplotlib.transforms import Bbox

    axes.axis("off")
    rows: list[tuple[str, Report | TenantReport]] = list(zip(heads, reports, strict=True))
    if len(reports) + sum(len(report.tenants) for report in reports) <= _MOST_ROWS:
        rows = []
        for head, report in zip(heads, reports, strict=True):
            rows += [(head, report), *((tenant_name(name), tenant) for name, tenant in report.tenants.items())]
    cells = [
        [
            _text(row.slo_attainment, "{:.4f}"),
            _text(row.serving_accuracy, "{:.2f} %"),
            _text(row.latency_ms["p99"], "{:.0f} ms"),
        ]
        for _, row in rows
    ]
    height = min(1.0, 0.24 * (len(rows) + 1))
    table = axes.table(
        cells,
        rowLabels=[name for name, _ in rows],
        colLabels=["attainment", "accuracy", "p99"],
        cellLoc="center",
        bbox=Bbox.from_bounds(0.22, 0.0, 0.78, height),
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for cell in table.get_celld().values():
        cell.set_edgecolor("#d0d0d0")


def _line(axes: Axes, position: int, x: Sequence[float], y: Any, label: str) -> None:
    colour, line = COLOURS[position % len(COLOURS)], LINES[position % len(LINES)]
    axes.plot(x, y, color=colour, linestyle=line, linewidth=1.5, label=label)


def _steps(report: Report, values: Sequence[Number]) -> tuple[list[float], list[float]]:
    """Bin starts and values; a bin without a value is a gap in the line."""
    starts = [position * report.series.bin_s for position in range(len(values))]
    return starts, [float("nan") if value is None else value for value in values]


def _text(value: Number, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def _title(reports: Sequence[Report]) -> str:
    """Model, trace and SLO; all of them where the runs differ."""
    models, slos = {report.model for report in reports}, {f"SLO {slo_text(report)}" for report in reports}
    before, behind = " / ".join(sorted(models)) + ", ", ", " + " / ".join(sorted(slos))
    traces = " / ".join(sorted({_short(report.trace) for report in reports}))
    return before + _cut(traces, _TITLE_LENGTH - len(before) - len(behind)) + behind


def _short(trace: str) -> str:
    """A SPEC without the folders of its files."""
    parts = (part.partition(":") for part in split_spec(trace))
    return " + ".join(f"{kind}{colon}{rest.rsplit('/', 1)[-1]}" for kind, colon, rest in parts)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: max(0, length - 1)]}…"


def require_matplotlib() -> None:
    """MissingExtraError without matplotlib: to be told before a run, not after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot")


def plot_style() -> Any:
    """A context in which everything is drawn alike. MissingExtraError without matplotlib."""
    require_matplotlib()
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def new_figure(width: float, height: float, top: float = 0.75) -> Figure:
    """Sizes in inches; `top` is kept for title and legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left=_LEFT, right=_RIGHT, top=1 - top / height, bottom=0.5 / height)
    return figure


def save_figure(figure: Figure, path: Path, title: str) -> None:
    """Write a figure under its title as PNG. OSError when it cannot be written."""
    figure.suptitle(title, x=_LEFT, ha="left", fontsize=12, fontweight="bold")
    figure.savefig(path, dpi=130, format="png")
