"""What a person sees in the terminal: reports side by side, a trace before it is sent, a run's progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from loadgen.report import Number, Report, TenantReport
from loadgen.traces import Part, TraceStats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen import sender

_MOST_ERRORS = 5
_BARS = "▁▂▃▄▅▆▇█"
_SHOWN_WINDOWS_S = (0.01, 0.1, 1.0)
_LATE_SHARE = 0.1  # of the SLO: a sender later than that distorts what it measures


def render_table(reports: Sequence[Report], names: Sequence[str] | None = None) -> RenderableType:
    """Reports side by side, one column each, headed by `names` or their policies, then what went wrong in each."""
    heads = names or run_names(reports)
    table = Table()
    table.add_column("", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for label, value in _ROWS:
        table.add_row(label, *(value(report) for report in reports))
    subnets = sorted({name for report in reports for name in report.subnets})
    for position, subnet in enumerate(subnets):
        shares = (report.subnets.get(subnet, 0.0) for report in reports)
        cells = (f"{share:.1%}" if share else "-" for share in shares)
        table.add_row(f"{'share of subnet' if position == 0 else ''} {subnet}".rjust(24), *cells)
    for name in dict.fromkeys(name for report in reports for name in report.tenants):
        table.add_section()
        table.add_row(tenant_name(name), *("" for _ in reports), style="bold")
        own = [report.tenants.get(name) for report in reports]
        for label, value_of in _TENANT_ROWS:
            table.add_row(f"  {label}", *("-" if tenant is None else value_of(tenant) for tenant in own))
    notes = (note for head, report in zip(heads, reports, strict=True) for note in _notes(head, report))
    return Group(Text(_title(reports), style="bold"), table, *notes)


def run_names(reports: Sequence[Report]) -> list[str]:
    """A name for each run that tells it from the others: its policy, with a number where that is not enough."""
    return _numbered([report.policy or "run" for report in reports])


def tenant_name(name: str) -> str:
    """A tenant as a person reads it; queries of none have the name ''."""
    return f"tenant {name}" if name else "no tenant"


def part_names(parts: Sequence[Part]) -> list[str]:
    """A name for each part of a trace that tells it from the others: its tenant, its kind, and when it sends."""
    found = []
    for part in parts:
        component = part.component
        name = f"{component.tenant}: {component.kind}" if component.tenant else component.kind
        if component.from_s or component.to_s is not None:
            until = "the end" if component.to_s is None else f"{component.to_s:g} s"
            name += f" {component.from_s:g} s to {until}"
        found.append(name)
    return _numbered(found)


def _numbered(names: Sequence[str]) -> list[str]:
    """The same names, with a number where there are several."""
    return [
        f"{name} #{names[: position + 1].count(name)}" if names.count(name) > 1 else name
        for position, name in enumerate(names)
    ]


def render_trace(parts: Sequence[Part], stats: TraceStats) -> RenderableType:
    """What a trace is like: its numbers, what each part sends, and its rate over time as a line of bars."""
    tenants: dict[str, dict[str, float]] = {}
    for part in parts:
        tenants.setdefault(part.component.tenant, {}).update(part.component.settings)
    table = Table(show_header=False, box=None)
    for label, value in (
        ("queries", f"{stats.queries:,}"),
        ("duration", f"{stats.duration_s:g} s"),
        ("mean rate", f"{stats.mean_qps:,.1f} q/s"),
        ("peak second", f"{stats.peak_second_qps:,.0f} q/s ({stats.peak_to_mean:.2f} x mean)"),
        ("peak 100 ms", f"{stats.peak_100ms_qps:,.0f} q/s ({stats.peak_100ms_qps / stats.mean_qps:.2f} x mean)"),
        ("CV of the gaps", f"{stats.gap_cv:.2f} (0 even, 1 Poisson)"),
        ("dispersion of counts", _dispersion(stats)),
        *(zip(part_names(parts), _shares(parts, stats), strict=True) if len(parts) > 1 else ()),
        *(
            (tenant_name(name), ", ".join(f"{key} {value:g}" for key, value in settings.items()))
            for name, settings in tenants.items()
            if settings
        ),
    ):
        table.add_row(label, value)
    counts, _ = np.histogram(np.concatenate([part.times for part in parts]), bins=60, range=(0, stats.duration_s))
    heights = np.minimum(counts * len(_BARS) // max(1, int(counts.max())), len(_BARS) - 1)
    return Group(table, Text("".join(_BARS[height] for height in heights)))


def _dispersion(stats: TraceStats) -> str:
    known = (
        f"{stats.dispersion[window_s]:.2f} at {window_s * 1000:g} ms"
        for window_s in _SHOWN_WINDOWS_S
        if window_s in stats.dispersion
    )
    return f"{', '.join(known) or '-'} (0 even, 1 Poisson)"


def _shares(parts: Sequence[Part], stats: TraceStats) -> Iterator[str]:
    for part in parts:
        queries = len(part.times)
        yield f"{queries:,} queries, {queries / stats.duration_s:,.1f} q/s, {queries / stats.queries:.1%} of all"


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[sender.Progress], None]]:
    """A live line for one run; call what it yields with each `Progress`."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[now]}"),
        console=console, refresh_per_second=4,
    )  # fmt: skip
    with bar:
        task = bar.add_task("replay", total=None, now="", visible=False)

        def show(now: sender.Progress) -> None:
            ended = now.answered + now.errors
            met = f"{now.met / ended:.2%} within SLO" if ended else ""
            text = f"{ended:,}/{now.queries:,}  {met}  errors {now.errors:,}"
            bar.update(task, total=now.queries, completed=ended, now=text, visible=True)

        yield show


@contextmanager
def counter(console: Console) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Live lines for work that counts: call what it yields with a name, and what that gives with (done, total)."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, refresh_per_second=4) as bar:

        def line(name: str) -> Callable[[int, int], None]:
            task = bar.add_task(name, total=None, visible=False)
            return lambda done, total: bar.update(task, completed=done, total=total, visible=True)

        yield line


def _title(reports: Sequence[Report]) -> str:
    """What the runs have in common."""
    parts = []
    for label, values in (
        ("model", {report.model for report in reports}),
        ("trace", {report.trace for report in reports}),
        ("SLO", {slo_text(report) for report in reports}),
        ("duration", {f"{report.duration_s:g} s" for report in reports}),
        ("seed", {str(report.seed) for report in reports}),
    ):
        parts.append(f"{label} {values.pop() if len(values) == 1 else 'differs'}")
    return ", ".join(parts)


def slo_text(report: Report) -> str:
    """The SLOs of a run."""
    return " / ".join(f"{slo_ms:g}" for slo_ms in report.slos_ms) + " ms"


def _notes(name: str, report: Report) -> Iterator[Text]:
    """What a reader must know before trusting the numbers."""
    errors = list(report.errors_by_status.items())
    for reason, count in errors[:_MOST_ERRORS]:
        yield Text(f"{name}: {count:,} x {reason}", style="red")
    if len(errors) > _MOST_ERRORS:
        yield Text(f"{name}: {len(errors) - _MOST_ERRORS} more kinds of errors", style="red")
    late = report.sender_lag_ms["p99"]
    if late is not None and late > _LATE_SHARE * report.slos_ms[0]:
        why = "every connection was busy, or the sender had too little CPU"
        yield Text(f"{name}: queries left {late:.1f} ms late (p99), latencies include that: {why}", style="yellow")


def _format(value: Number, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


_ROWS: tuple[tuple[str, Callable[[Report], str]], ...] = (
    ("SLO attainment", lambda r: f"{r.slo_attainment:.4f}"),
    ("serving accuracy, %", lambda r: _format(r.serving_accuracy, "{:.2f}")),
    ("label accuracy, %", lambda r: _format(r.label_accuracy, "{:.2f}")),
    ("latency p50, ms", lambda r: _format(r.latency_ms["p50"], "{:.1f}")),
    ("latency p95, ms", lambda r: _format(r.latency_ms["p95"], "{:.1f}")),
    ("latency p99, ms", lambda r: _format(r.latency_ms["p99"], "{:.1f}")),
    ("latency max, ms", lambda r: _format(r.latency_ms["max"], "{:.1f}")),
    ("offered, q/s", lambda r: f"{r.offered_qps:,.1f}"),
    ("goodput, q/s", lambda r: f"{r.goodput_qps:,.1f}"),
    ("goodput, rows/s", lambda r: f"{r.goodput_rows_per_s:,.1f}"),
    ("answered / queries", lambda r: f"{r.answered:,} / {r.queries:,}"),
    ("errors", lambda r: f"{r.errors:,}"),
    ("batch size, mean", lambda r: _format(r.batch_size_mean, "{:.1f}")),
    ("sender lag p99, ms", lambda r: _format(r.sender_lag_ms["p99"], "{:.2f}")),
    ("executor", lambda r: r.executor or "-"),
    ("CPU per query, us", lambda r: _format(r.sender_cpu_us, "{:.1f}")),
)
_TENANT_ROWS: tuple[tuple[str, Callable[[TenantReport], str]], ...] = (
    ("SLO, ms", lambda t: f"{t.slo_ms:g}"),
    ("SLO attainment", lambda t: _format(t.slo_attainment, "{:.4f}")),
    ("serving accuracy, %", lambda t: _format(t.serving_accuracy, "{:.2f}")),
    ("least accuracy, %", lambda t: _format(t.least_accuracy, "{:.2f}")),
    ("below the floor", lambda t: f"{t.floor_violations:,} (floor {t.min_accuracy:g})" if t.min_accuracy else "-"),
    ("latency p99, ms", lambda t: _format(t.latency_ms["p99"], "{:.1f}")),
    ("errors / queries", lambda t: f"{t.errors:,} / {t.queries:,}"),
)
