"""Shell completion for the argparse parsers of our commands, by shtab."""

from __future__ import annotations

import argparse
from pathlib import Path

import shtab

SHELLS = ("bash", "zsh", "fish")
EPILOG = """\
examples:
  eval "$({program} completion bash)"                        in ~/.bashrc
  {program} completion zsh > "${{fpath[1]}}/_{program}"            once; then a new shell
  {program} completion fish > ~/.config/fish/completions/{program}.fish

exit codes: 0 done; 2 wrong usage
"""
ABOUT = "Print the script that completes this program's commands, flags and values in a shell."


def fill(parser: argparse.ArgumentParser, program: str) -> argparse.ArgumentParser:
    """Make a parser that of ``PROGRAM completion``, and return it."""
    parser.description, parser.epilog = ABOUT, EPILOG.format(program=program)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to complete")
    return parser


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script for a parser with its subparsers; arguments of the type Path are completed by files."""
    _complete_paths(parser)
    return str(shtab.complete(parser, shell))


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for of_command in action.choices.values():
                _complete_paths(of_command)
        elif action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's own way to be told
