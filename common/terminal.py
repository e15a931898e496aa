"""What commands of a terminal share: parsers, consoles and progress bars, and how their flags are read."""

from __future__ import annotations

import argparse
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODEL = "name of a shipped model, or the folder of one (%(default)s)"
PRECISION = "what weights are held and computed with; auto measures which is faster here (%(default)s)"
_QUIET_STEP = 0.25  # without a terminal, a line for each such share of a stage


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return a parser for `superserve COMMAND`."""
    return argparse.ArgumentParser(
        prog=f"superserve {command}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def positive(text: str) -> int:
    """A number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def console(*, stderr: bool = False) -> Console:
    """A console wide enough for a table when its output goes to a file or a pipe."""
    usual = Console(stderr=stderr, highlight=False)
    return usual if usual.is_terminal else Console(stderr=stderr, highlight=False, width=160)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that is told (stage, done, total): one bar per stage, or lines where no terminal looks."""
    err = Console(stderr=True)
    if not err.is_terminal:
        told: dict[str, float] = {}

        def tell(stage: str, done: int, total: int) -> None:
            share = done / max(total, 1)
            if stage not in told or share - told[stage] >= _QUIET_STEP or (share >= 1 > told[stage]):
                told[stage] = share
                err.print(f"{stage}: {done}/{total}", highlight=False)

        yield tell
        return
    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as progress:
        tasks: dict[str, object] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]  # rich's own id

        yield show
