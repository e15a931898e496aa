"""`superserve search`: from a trained supernet to its Pareto set, hundreds of hosted subnets, and a profile."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from common import terminal
from common.errors import ConfigError
from services.worker import library
from services.worker.datasets import find_data

if TYPE_CHECKING:
    import argparse

    from common.supernet.explore import Found

PLOT = "frontier.png"
ABOUT = "From a trained supernet to its Pareto set, hundreds of hosted subnets, and a profile."
EPILOG = """\
examples:
  superserve search                                        fashion-resnet, to out/models/fashion-resnet
  superserve search --model out/models/rated-text-minilm --data DIR
  superserve worker --model out/models/fashion-resnet      serve what was found

--data for fashion-resnet: the IDX files of Fashion-MNIST, by default where Debian's dataset-fashion-mnist puts them.
For rated-text-*: the folder of hutto_ICWSM_2014.tar.gz. For any other model: train.safetensors and
held_out.safetensors, each with `inputs` as the model takes them and INT64 `labels`.
A search that was ended goes on where it was.

exit codes: 0 done; 1 it failed while running; 2 wrong usage, or something is missing
"""


def run(flags: list[str]) -> int:
    """Search as the flags say. ConfigError names what is missing."""
    args = parser().parse_args(flags)
    folder = library.find_model(args.model)
    out = args.out or Path("out/models") / folder.name
    try:
        import torch

        from common.supernet.artifact import ArtifactError
        from common.supernet.explore import Budget, Search, SearchError
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}; pip install 'superserve-mesh[worker]'") from error
    torch.set_num_threads(1)
    data = find_data(folder, args.data, test=args.test)
    budget = Budget(screened=args.screened, hosted=args.hosted, subnets=args.subnets, runs=args.runs, seed=args.seed)
    began = time.monotonic()
    try:
        with terminal.stages() as progress:
            search = Search(folder, out, data, budget, args.precision, args.device, args.fresh, progress)
            found = search.run()
    except (ArtifactError, SearchError, OSError) as error:
        raise ConfigError(str(error)) from error
    terminal.console().print(_table(found))
    fits = ", ".join(
        f"{name} {fit.error:.2f} off ({fit.baseline:.2f} for the mean), rank correlation {fit.rank:.2f}"
        for name, fit in (("accuracy", found.fits["accuracy"]), ("log latency", found.fits["latency"]))
    )
    print(f"predictors, on subnets left out: {fits}")  # noqa: T201 - a command line prints
    print(f"{len(found.subnets) + len(found.hosted)} subnets hosted, in {found.precision}, after ", end="")  # noqa: T201
    print(f"{time.monotonic() - began:.0f} s; written to {out}")  # noqa: T201
    if not args.no_plot:
        _plot(found, out / PLOT)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of `superserve search`."""
    made = terminal.parser("search", ABOUT)
    made.epilog = EPILOG
    made.add_argument("--model", default="fashion-resnet", metavar="NAME", help=terminal.MODEL)
    made.add_argument("--data", type=Path, metavar="DIR", help="rows to calibrate and measure with, see below")
    made.add_argument("--out", type=Path, metavar="DIR", help="folder to write to; by default out/models/NAME")
    made.add_argument(
        "--subnets", type=terminal.positive, default=8, metavar="N", help="most subnets in the Pareto set (%(default)s)"
    )
    made.add_argument(
        "--hosted",
        type=terminal.positive,
        default=512,
        metavar="N",
        help="subnets to calibrate beside them (%(default)s)",
    )
    made.add_argument(
        "--screened",
        type=terminal.positive,
        default=32,
        metavar="N",
        help="subnets to train the predictors on (%(default)s)",
    )
    made.add_argument(
        "--runs", type=terminal.positive, default=25, metavar="N", help="runs per latency of the profile (%(default)s)"
    )
    made.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help=terminal.PRECISION)
    made.add_argument("--device", default="cpu", help="cpu or cuda:N (%(default)s); a GPU has not been verified")
    made.add_argument("--test", action="store_true", help="measure the Pareto set on test rows as well")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn by chance (%(default)s)")
    made.add_argument("--fresh", action="store_true", help="begin anew, whatever is in --out")
    made.add_argument("--no-plot", action="store_true", help=f"do not draw {PLOT}")
    return made


def _table(found: Found) -> Table:
    table = Table(title="Pareto set", title_justify="left")
    sizes = found.profile["batch_sizes"]
    for heading in ("subnet", "held out %", "test %", "MMAC", *(f"batch {size}, ms" for size in sizes)):
        table.add_column(heading, justify="left" if heading == "subnet" else "right")
    latencies = {entry["id"]: entry["median_us"] for entry in found.profile["subnets"]}
    for subnet in found.subnets:
        test = "" if subnet.test_accuracy is None else f"{subnet.test_accuracy:.2f}"
        cells = (f"{us / 1e3:.2f}" for us in latencies[subnet.id])
        table.add_row(subnet.id, f"{subnet.accuracy:.2f}", test, f"{subnet.macs / 1e6:.1f}", *cells)
    return table


def _plot(found: Found, path: Path) -> None:
    """Accuracy over latency: what was hosted and measured, what people would pick, and the Pareto set."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        print(f"{path.name} not drawn: pip install 'superserve-mesh[plot]'")  # noqa: T201
        return
    mpl.use("Agg")
    from matplotlib import pyplot

    from common.supernet.explore import SCREENED_BY

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axes.scatter(
        [p.seconds * 1e3 for p in found.predicted],
        [p.accuracy for p in found.predicted],
        s=8,
        color="#bbbbbb",
        label=f"{len(found.predicted)} hosted (predicted)",
    )
    chosen = {subnet.id for subnet in found.subnets}
    places = [found.profile["batch_sizes"].index(size) for size in SCREENED_BY]  # as the predictions are
    latencies = [(1e3 * statistics.geometric_mean(c.seconds[i] for i in places), c) for c in found.candidates]
    for label, colour, marker, ids in (
        ("measured, not chosen", "#56B4E9", "o", {c.control.id for c in found.candidates} - chosen),
        ("picked by hand: all stages alike", "#D55E00", "s", set(found.baselines)),
    ):
        points = [(ms, c.accuracy) for ms, c in latencies if c.control.id in ids]
        axes.scatter(*zip(*points, strict=True) if points else ([], []), color=colour, marker=marker, label=label)
    front = sorted((ms, c.accuracy, c.control.id) for ms, c in latencies if c.control.id in chosen)
    axes.plot([p[0] for p in front], [p[1] for p in front], "-o", color="#0072B2", label="Pareto set")
    for ms, accuracy, subnet_id in front:
        # Slanting, so that neighbours' names do not meet.
        where: dict[str, Any] = {"xytext": (3, -3), "textcoords": "offset points", "rotation": -35, "va": "top"}
        axes.annotate(subnet_id, (ms, accuracy), fontsize=6, rotation_mode="anchor", **where)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(lambda ms, _: f"{ms:g}")
    axes.set_xlabel(f"latency, ms (geometric mean of batch 1 and 16, {found.precision}, {found.profile['device']})")
    axes.set_ylabel("accuracy on held-out rows, %")
    axes.grid(color="#e3e3e3")
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(f"frontier drawn to {path}")  # noqa: T201
