"""What `scripts/bench-subnetact` shows of its figures: the table beside the paper's, and the plots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

# SuperServe (NSDI 2025), sections 1, 3 and 6.
PAPER = {
    "memory_ratio_extracted": "up to 2.6",
    "memory_ratio_hand_sized": "up to 2.6",
    "subnets_hosted": "500",
    "weights_over_statistics": "500",
    "actuation_ms": "below 1",
    "load_over_inference": "up to 14.1",
    "throughput_range": "4 (2,000-8,000 qps)",
}


def table(models: dict[str, dict[str, Any]]) -> Table:
    """Figures by row, models by column, the paper's beside them."""
    shown = Table(title="SubNetAct", title_justify="left")
    shown.add_column("figure")
    for name in models:
        shown.add_column(name, justify="right")
    shown.add_column("paper", justify="right")

    def row(label: str, of: Callable[[dict[str, Any]], str], paper: str = "") -> None:
        shown.add_row(label, *(of(figures) for figures in models.values()), paper)

    def number(key: str, digits: int = 2) -> Callable[[dict[str, Any]], str]:
        return lambda f: "-" if f[key] is None else f"{f[key]:,.{digits}f}"

    def part(key: str, name: str, digits: int) -> Callable[[dict[str, Any]], str]:
        return lambda f: f"{f[key][name]:.{digits}f}"

    def gain(kind: str) -> Callable[[dict[str, Any]], str]:
        return lambda f: "-" if f["subnetnorm_gain_points"] is None else f"{f['subnetnorm_gain_points'][kind]:+.1f}"

    row("subnets hosted", number("subnets_hosted", 0), PAPER["subnets_hosted"])
    row("weights, MiB", part("memory_mib", "weights", 2))
    row("statistics of all, MiB", part("memory_mib", "statistics", 2))
    row("plans, MiB", part("memory_mib", "plans", 2))
    row("all hosted, extracted / supernet", number("memory_ratio_hosted", 1))
    row("six extracted / supernet", number("memory_ratio_extracted"), PAPER["memory_ratio_extracted"])
    row("the same, plans not counted", number("memory_ratio_extracted_views"))
    row("four hand-sized / supernet", number("memory_ratio_hand_sized"), PAPER["memory_ratio_hand_sized"])
    row("weights / statistics of a subnet", number("weights_over_statistics", 0), PAPER["weights_over_statistics"])
    for share in ("p50", "p99"):
        paper = PAPER["actuation_ms"] if share == "p99" else ""
        row(f"actuation {share}, ms", part("actuation_ms", share, 3), paper)
    for kind in ("warm", "cold"):
        row(f"loading the largest, {kind}, ms", part("load_ms", kind, 1))
    row("loading / inference at batch 1, most", lambda f: "{warm:.1f} - {cold:.1f}".format(**f["load_over_inference"]),
        PAPER["load_over_inference"])  # fmt: skip
    row("SubnetNorm over shared statistics, points", gain("shared"))
    row("SubnetNorm over the largest's, points", gain("largest"))
    row("throughput, smallest / largest", number("throughput_range", 1), PAPER["throughput_range"])
    row("actuated / extracted and folded", number("actuated_over_extracted"))
    row("the same, plans of views alone", number("views_over_extracted"))
    row("fastest precision here", lambda f: str(f["fastest_precision"]))
    return shown


def draw(models: dict[str, dict[str, Any]], path: Path) -> None:
    """One row of four plots per model: memory, loading against actuation, accuracy, throughput."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(len(models), 4, figsize=(15, 3.4 * len(models)), layout="constrained", squeeze=False)
    for (name, figures), (memory, times, norm, throughput) in zip(models.items(), grid, strict=True):
        mib, bottom = figures["memory_mib"], 0.0
        for part, colour in (("weights", "#0072B2"), ("plans", "#56B4E9"), ("statistics", "#009E73")):
            memory.bar("supernet", mib[part], bottom=bottom, color=colour, label=part)
            bottom += mib[part]
        for other, sizes in (("extracted", mib["extracted"]), ("hand-sized", list(mib["hand_sized"].values()))):
            bottom = 0.0
            for size in sizes:
                memory.bar(f"{len(sizes)} {other}", size, bottom=bottom, color="#D55E00", edgecolor="white")
                bottom += size
        memory.set_title(f"{name}: memory, MiB\n({figures['subnets_hosted']:,} subnets hosted)", fontsize=9)
        memory.legend(frameon=False, fontsize=8)
        loads = figures["loads_ms"]
        places = range(len(loads["warm"]))
        for kind, colour in (("warm", "#E69F00"), ("cold", "#D55E00")):
            times.plot(places, loads[kind], "o-", color=colour, label=f"loading, {kind}")
        times.plot(places, figures["batch1_ms"], "s-", color="#999999", label="inference, batch 1")
        for share, style in (("p50", "-"), ("p99", "--")):
            times.axhline(figures["actuation_ms"][share], color="#0072B2", linestyle=style, label=f"actuation, {share}")
        times.set_yscale("log")
        times.set_title("ms, six subnets, smallest to largest", fontsize=9)
        times.legend(frameon=False, fontsize=8)
        gain = figures["subnetnorm_gain_points"]
        if gain is None:
            norm.text(0.5, 0.5, figures["no_accuracy"], ha="center", transform=norm.transAxes)
            norm.set_axis_off()
        else:
            for kind, colour in (("subnetnorm", "#0072B2"), ("shared", "#E69F00"), ("largest", "#D55E00")):
                norm.plot(gain["accuracy"][kind], "o-", color=colour, label=kind)
            norm.legend(frameon=False, fontsize=8)
        norm.set_title("accuracy by statistics, %", fontsize=9)
        throughput.plot(figures["throughput_rows_per_s"], "o-", color="#0072B2")
        throughput.set_ylim(bottom=0)
        throughput.set_title("rows/s at the largest batch, smallest to largest", fontsize=9)
        for axes in (memory, times, norm, throughput):
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
