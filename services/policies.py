"""``superserve policies``: what a scheduler can schedule by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common import terminal
from common.sched.policies import available

if TYPE_CHECKING:
    import argparse

EPILOG = """\
examples:
  superserve policies
  superserve scheduler --policy slackfit:buckets=16
  superserve up --policy 'coarse:slackfit:buckets=4;quantile=median'
  loadgen simulate --policy foresight --policy fixed:smallest --policy infaas:accuracy=77

--policy takes a name, or name:option=value,option=value. The subnet of `fixed`, the floor of `infaas` and the policy
inside `coarse` need no name if they come first; that policy's own commas are written as semicolons. A policy of your
own is module:Class, or module:Class:option=value, imported from the folder in which the command is run.

exit codes: 0 done; 2 wrong usage
"""


def run(flags: list[str]) -> int:
    """Print every policy with its options; returns the exit code."""
    parser().parse_args(flags)
    for name, text in available().items():
        print(f"{name}: {text}\n")  # noqa: T201 - a command line prints
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``superserve policies``."""
    made = terminal.parser("policies", "Print the scheduling policies and their options.")
    made.epilog = EPILOG
    return made
