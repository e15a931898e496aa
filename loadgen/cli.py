"""The command line: `loadgen replay`, `loadgen trace`, `loadgen compare`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop
from rich.console import Console

from loadgen import spec
from loadgen.errors import InputError, LoadgenError
from loadgen.plot import plot, plot_trace, require_matplotlib
from loadgen.replay import ReplayOptions, replay
from loadgen.report import Report
from loadgen.table import progress_bar, render_table, render_trace, run_names
from loadgen.traces import describe, make_parts
from loadgen.workload import merge

_INTERRUPTED = 130
_SPECS = f"a SPEC is one of these, or several joined by +:\n\n{(spec.__doc__ or '').partition(chr(10) * 2)[2]}"
_EXIT_CODES = """
exit codes: 0 done, whatever the server answered; 1 a result could not be written;
2 wrong usage, SPEC or file; 3 server not reachable, not ready, or without the model; 130 interrupted
"""
_EXAMPLES = """
examples:
  loadgen replay --rate 200
  loadgen replay --trace bursty:base=1500,variant=5550,cv2=8 --rate 300 --duration 30 \\
      --slo-ms 36 --out slackfit.json --plot slackfit.png
  loadgen replay --trace minutes:synthetic-day --rate 400 --duration 120
  loadgen replay --trace 'bursty:base=20,variant=80,cv2=4,tenant=video,slo_ms=36+poisson:rate=50,tenant=mail,priority=1'
  loadgen trace ramp:start=2500,end=7800,accel=500,cv2=8 --duration 30 --plot ramp.png
  loadgen compare slackfit.json maxacc.json --plot both.png
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except LoadgenError as error:
        print(f"loadgen: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"loadgen: {error}", file=sys.stderr)
        return LoadgenError.exit_code
    except KeyboardInterrupt:
        print("loadgen: interrupted, no report", file=sys.stderr)
        return _INTERRUPTED


def _replay(arguments: argparse.Namespace) -> int:
    out: Path | None = arguments.out
    _check_writable("out", out)
    _check_plot(arguments.plot)
    options = ReplayOptions(
        url=arguments.url,
        model=arguments.model,
        trace=arguments.trace,
        rate=arguments.rate,
        duration_s=arguments.duration,
        slo_ms=arguments.slo_ms,
        seed=arguments.seed,
        rows=arguments.rows,
        data=arguments.data,
        connections=arguments.connections,
        timeout_s=arguments.timeout,
    )
    with progress_bar(Console(stderr=True)) as show:
        report = uvloop.run(replay(options, show))
    to_stdout = out is not None and str(out) == "-"
    if to_stdout:
        print(report.to_json().decode())
    elif out is not None:
        report.save(out)
    if arguments.plot is not None:
        plot([report], arguments.plot)
    _console(stderr=to_stdout).print(render_table([report]))
    return 0


def _trace(arguments: argparse.Namespace) -> int:
    _check_plot(arguments.plot)
    parts = make_parts(arguments.spec, rate=arguments.rate, duration_s=arguments.duration, seed=arguments.seed)
    stats = describe(merge(parts).intended_s, arguments.duration)
    if arguments.plot is not None:
        plot_trace(parts, stats, arguments.spec, arguments.plot)
    _console().print(render_trace(parts, stats))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    _check_plot(arguments.plot)
    reports = [Report.load(path) for path in arguments.reports]
    policies = run_names(reports)
    unnamed = len({report.policy for report in reports}) < len(reports)
    names = [path.stem for path in arguments.reports] if unnamed else policies
    if arguments.plot is not None:
        plot(reports, arguments.plot, names)
    _console().print(render_table(reports, names))
    return 0


def _check_plot(path: Path | None) -> None:
    if path is not None:
        require_matplotlib()
    _check_writable("plot", path)


def _check_writable(key: str, path: Path | None) -> None:
    """Before a run, not after it: InputError when the folder of `path` is not there."""
    if path is not None and (not path.parent.is_dir() or path.is_dir()):
        raise InputError(key, path, "is a folder" if path.is_dir() else "its folder does not exist")


def _console(*, stderr: bool = False) -> Console:
    """A console wide enough for a table when its output goes to a file or a pipe."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=160)


def _parser() -> argparse.ArgumentParser:
    parser = _command(None, "loadgen", "Open-loop load for an Open Inference Protocol server.", _EXAMPLES)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(
        commands, "replay", "Send a trace to a server and report what came of it.", _EXAMPLES + "\n" + _SPECS
    )
    run.set_defaults(run=_replay)
    run.add_argument("--url", default="http://127.0.0.1:8000", help="the only server spoken to (%(default)s)")
    run.add_argument("--model", default="fashion-resnet", help="the model to ask (%(default)s)")
    run.add_argument("--trace", default="poisson", metavar="SPEC", help="when queries are sent (%(default)s)")
    _add_shape(run)
    run.add_argument(
        "--slo-ms", type=float, default=50.0, metavar="MS", help="deadline where the tenant has none (%(default)g)"
    )
    run.add_argument("--rows", type=int, default=1, metavar="N", help="rows per query, likewise (%(default)s)")
    run.add_argument(
        "--data", type=Path, metavar="FILE",
        help=".safetensors, .npz or .json with the model's input and `labels`; default: the samples shipped with the "
        "model, else random tensors",
    )  # fmt: skip
    run.add_argument(
        "--connections", type=int, default=512, metavar="N",
        help="at most; beyond it queries wait in the sender, which the report shows as sender lag (%(default)s)",
    )  # fmt: skip
    run.add_argument(
        "--timeout", type=float, default=10.0, metavar="S",
        help="a query without an answer so long after its intended time is an error (%(default)g)",
    )  # fmt: skip
    run.add_argument("--out", type=Path, metavar="FILE", help="write the report as JSON; - is standard output")
    run.add_argument("--plot", type=Path, metavar="FILE", help="draw the run as PNG (needs the extra `plot`)")

    trace = _command(commands, "trace", "Show what a trace is like before anything is sent.", _SPECS)
    trace.set_defaults(run=_trace)
    trace.add_argument("spec", metavar="SPEC")
    _add_shape(trace)
    trace.add_argument("--plot", type=Path, metavar="FILE", help="draw the trace as PNG (needs the extra `plot`)")

    compare = _command(commands, "compare", "Print reports side by side.", "")
    compare.set_defaults(run=_compare)
    compare.add_argument("reports", nargs="+", type=Path, metavar="FILE.json", help="what `replay --out` wrote")
    compare.add_argument("--plot", type=Path, metavar="FILE", help="draw them over each other as PNG")
    return parser


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rate", type=float, metavar="QPS",
        help="mean queries per second that the trace is scaled to; default: the SPEC's own",
    )  # fmt: skip
    parser.add_argument("--duration", type=float, default=10.0, metavar="S", help="seconds (%(default)g)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="equal seeds give equal runs (%(default)s)")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser] | None, name: str, about: str, epilog: str
) -> argparse.ArgumentParser:
    text, keep = epilog + _EXIT_CODES, argparse.RawDescriptionHelpFormatter
    if commands is None:
        return argparse.ArgumentParser(prog=name, description=about, epilog=text, formatter_class=keep)
    return commands.add_parser(name, help=about, description=about, epilog=text, formatter_class=keep)
