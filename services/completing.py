"""``superserve completion``: the script that completes commands, flags and values in a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common import completion, terminal

if TYPE_CHECKING:
    import argparse


def run(flags: list[str]) -> int:
    """Print the script for a shell; returns the exit code."""
    from services import cli  # which loads this module

    print(completion.script(cli.parser(), parser().parse_args(flags).shell))  # noqa: T201 - a command line prints
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``superserve completion``."""
    return completion.fill(terminal.parser("completion", ""), "superserve")
