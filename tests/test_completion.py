"""Help and shell completion of every command, in the shells themselves."""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import loadgen.cli
import services.cli
from services.cli import USAGE, command

PROGRAMS = {"superserve": "services.cli", "loadgen": "loadgen.cli"}
SERVICES = ("up", "gateway", "scheduler", "worker")
TOOLS = ("policies", "status", "doctor", "explain", "search", "profile", "import", "completion")
LOADGEN = ("replay", "simulate", "evaluate", "trace", "compare", "completion")

# What readline does when tab is pressed after the words: call the function registered for the first of them.
PRESS_TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
[[ $(complete -p "$1") =~ -F\\ ([^\\ ]+) ]]
"${BASH_REMATCH[1]}" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    code = f"import sys; from {PROGRAMS[program]} import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The completion script of each program for each shell."""
    folder = tmp_path_factory.mktemp("scripts")
    made = {}
    for program in PROGRAMS:
        for shell in ("bash", "zsh", "fish"):
            done = run(program, "completion", shell)
            assert (done.returncode, done.stderr) == (0, "")
            made[program, shell] = folder / f"{program}.{shell}"
            made[program, shell].write_text(done.stdout)
    return made


def shell_or_skip(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}: Debian's package {name}")
    return found


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("superserve", ""), {*SERVICES, *TOOLS}),
        (("superserve", "s"), {"scheduler", "search", "status"}),
        (("superserve", "scheduler", "--late", ""), {"drop", "serve"}),
        (("superserve", "scheduler", "--policy", "ma"), {"maxbatch", "maxacc"}),
        (("superserve", "up", "--profile", "rtx2080ti-r"), {"rtx2080ti-reconstructed"}),
        (("superserve", "worker", "--model", "fashion-r"), {"fashion-resnet"}),
        (("superserve", "gateway", "--max-"), {"--max-slo-ms", "--max-body-bytes", "--max-queue"}),
        (("superserve", "scheduler", "--event-log", "event"), {"events.jsonl"}),
        (("superserve", "completion", ""), {"bash", "zsh", "fish"}),
        (("superserve", "doctor", "--d"), {"--device"}),
        (("loadgen", ""), set(LOADGEN)),
        (("loadgen", "simulate", "--late", "s"), {"serve"}),
        (("loadgen", "replay", "--slo"), {"--slo-ms"}),
        (("loadgen", "replay", "--out", "event"), {"events.jsonl"}),
    ],
    ids=lambda words: " ".join(words if isinstance(words, tuple) else sorted(words)),
)
def test_bash_completes(
    scripts: dict[tuple[str, str], Path], tmp_path: Path, words: tuple[str, ...], expected: set[str]
) -> None:
    """Commands, flags, values where there is a choice, files where one is asked for: all that fit, and no other."""
    (tmp_path / "events.jsonl").touch()
    call = [shell_or_skip("bash"), "-c", PRESS_TAB, "bash", str(scripts[words[0], "bash"]), *words]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert (set(done.stdout.split()), done.stderr) == (expected, "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("superserve st", {"status"}),
        ("superserve worker --executor ", {"torch", "emulated"}),
        ("superserve scheduler --pol", {"--policy"}),
        ("loadgen sim", {"simulate"}),
    ],
)
def test_fish_completes(scripts: dict[tuple[str, str], Path], words: str, expected: set[str]) -> None:
    """fish offers the same, each with what it means."""
    script = scripts[words.split()[0], "fish"]
    call = [shell_or_skip("fish"), "--no-config", "-c", f"source {script}; complete -C '{words}'"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=30, check=True)
    offered = dict(line.split("\t") for line in done.stdout.splitlines())
    assert offered.keys() == expected
    assert all(offered.values())


@pytest.mark.parametrize("program", PROGRAMS)
def test_zsh_takes_the_script(scripts: dict[tuple[str, str], Path], program: str) -> None:
    """zsh's own completion system registers the script for the program, as a file in its fpath."""
    zsh, script = shell_or_skip("zsh"), scripts[program, "zsh"]
    shutil.copy(script, script.parent / f"_{program}")
    code = f"fpath=({script.parent} $fpath); autoload -Uz compinit; compinit -u -D; print $_comps[{program}]"
    done = subprocess.run([zsh, "-f", "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout.strip(), done.stderr) == (f"_{program}", "")
    subprocess.run([zsh, "-f", "-n", script], timeout=30, check=True)


@pytest.mark.parametrize(
    ("program", "name"),
    [*(("superserve", name) for name in (*SERVICES, *TOOLS)), *(("loadgen", name) for name in ("", *LOADGEN))],
)
def test_help_has_examples_and_exit_codes(program: str, name: str) -> None:
    """``--help`` of each command ends with 0, shows how it is called, and which exit codes it has."""
    done = run(program, *([name] if name else []), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    examples = done.stdout.partition("xamples:\n")[2]
    assert f"  {program} {name}" in examples
    assert "exit codes: 0 " in done.stdout


def flags(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.Action]]:
    """Each flag and argument of a program's commands, with the command's name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, its_parser in action.choices.items():
                yield from flags(its_parser, f"{name} {command}")
        elif not isinstance(action, argparse._HelpAction):
            yield f"{name} {'/'.join(action.option_strings) or action.dest}", action


@pytest.mark.parametrize("parser", [services.cli.parser, loadgen.cli._parser], ids=PROGRAMS)
def test_every_flag_is_explained(parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Each says what it is for, what it takes in words of its own, and what holds without it."""
    for name, action in flags(parser()):
        text = (action.help or "") % vars(action)
        assert text, name
        assert "null" not in text, name
        assert action.metavar not in ("str", "int", "float"), name
        if isinstance(action.default, str | float | int) and not isinstance(action.default, bool):
            shown = f"{action.default:g}" if isinstance(action.default, float) else str(action.default)
            assert shown in text or action.default == argparse.SUPPRESS or action.dest == "redis", name


def test_usage_names_every_command() -> None:
    """``superserve --help`` has a line for each command, and its examples and exit codes."""
    listed = [line.split()[0] for line in USAGE.partition("commands:\n")[2].partition("\n\n")[0].splitlines()]
    assert listed == [*SERVICES, *TOOLS]
    assert "examples:" in USAGE
    assert "exit codes:" in USAGE


@pytest.mark.parametrize("name", TOOLS)
def test_unknown_flag_of_a_tool_is_wrong_usage(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A flag that there is not is code 2, named, for commands that are no services as well."""
    required = {"import": ["ofa-resnet50", "x"], "completion": ["bash"], "explain": ["2f"]}
    with pytest.raises(SystemExit) as ended:
        command([name, *required.get(name, []), "--nonesuch"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --nonesuch" in capsys.readouterr().err


def test_unknown_shell_is_wrong_usage() -> None:
    """Another shell than those listed is code 2."""
    for program in PROGRAMS:
        done = run(program, "completion", "tcsh")
        assert (done.returncode, done.stdout) == (2, "")
        assert "invalid choice: 'tcsh'" in done.stderr
