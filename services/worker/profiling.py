"""`superserve profile`: how fast each subnet is on this device, for workers and simulations."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table

from common import terminal
from common.errors import ConfigError
from services.worker import library

ABOUT = "How fast each subnet is on this device, for workers and simulations."
EPILOG = """\
examples:
  superserve profile --model out/models/fashion-resnet
  superserve profile --subnets hosted --batch-sizes 1,16 --runs 10 --out all.json
  superserve worker --profile out/models/fashion-resnet/profiles/DEVICE.json

A worker refuses a profile of another device, model, precision or number of threads.

exit codes: 0 done; 1 it failed while running; 2 wrong usage, or something is missing
"""


def run(flags: list[str]) -> int:
    """Measure as the flags say. ConfigError names what is missing."""
    args = parser().parse_args(flags)
    folder = library.find_model(args.model)
    try:
        import torch

        from common.supernet import artifact
        from common.supernet.explore import PROFILES, profile_file
        from common.supernet.measure import profile
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}; pip install 'superserve-mesh[worker]'") from error
    torch.set_num_threads(1)
    try:
        supernet = artifact.load(folder, args.device, precision=args.precision)
    except artifact.ArtifactError as error:
        raise ConfigError(str(error)) from error
    ids = [subnet.id for subnet in supernet.subnets]
    if args.subnets == "hosted":
        ids += supernet.hosted
    elif args.subnets != "pareto":
        ids = args.subnets.split(",")
    try:
        for subnet_id in ids:
            supernet.accuracy(subnet_id)
            supernet.actuate(subnet_id)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--subnets={args.subnets!r}: {error.args[0]}") from error
    with terminal.stages() as progress:
        taken = profile(
            supernet, args.batch_sizes, args.runs, lambda share: progress("profile", round(100 * share), 100), ids
        )
    out = args.out or folder / PROFILES / profile_file(taken)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        artifact.write_json(out, taken)
    except OSError as error:
        raise ConfigError(f"--out={str(out)!r}: {error}") from error
    terminal.console().print(_table(taken))
    print(f"{len(ids)} subnets in {taken['precision']} on {taken['device']}, written to {out}")  # noqa: T201
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of `superserve profile`."""
    made = terminal.parser("profile", ABOUT)
    made.epilog = EPILOG
    made.add_argument("--model", default="fashion-resnet", metavar="NAME", help=terminal.MODEL)
    made.add_argument(
        "--subnets",
        default="pareto",
        metavar="IDS",
        help="pareto, hosted for all, or ids separated by commas (%(default)s)",
    )
    made.add_argument(
        "--batch-sizes",
        type=_sizes,
        default=(1, 2, 4, 8, 16),
        metavar="N,N",
        help="ascending, separated by commas (1,2,4,8,16)",
    )
    made.add_argument(
        "--runs", type=terminal.positive, default=50, metavar="N", help="runs per subnet and batch size (%(default)s)"
    )
    made.add_argument("--device", default="cpu", help="cpu or cuda:N (%(default)s)")
    made.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help=terminal.PRECISION)
    made.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write; by default profiles/DEVICE.json in the model's folder"
    )
    return made


def _table(taken: dict[str, list[dict[str, list[int]]]]) -> Table:
    table = Table(title="median (p95), ms", title_justify="left")
    for heading in ("subnet", "accuracy %", *(f"batch {size}" for size in taken["batch_sizes"])):
        table.add_column(heading, justify="left" if heading == "subnet" else "right")
    for entry in taken["subnets"]:
        pairs = zip(entry["median_us"], entry["p95_us"], strict=True)
        cells = (f"{median / 1e3:.2f} ({p95 / 1e3:.2f})" for median, p95 in pairs)
        table.add_row(str(entry["id"]), f"{entry['accuracy']:.2f}", *cells)
    return table


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(map(int, text.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
        raise argparse.ArgumentTypeError(f"expected ascending numbers from 1, separated by commas, got {text!r}")
    return sizes
