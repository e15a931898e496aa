"""The command line: `loadgen replay`, `simulate`, `evaluate`, `trace`, `compare`, `completion`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop
from rich.console import Console

from common import completion, terminal
from common.sched import policies
from loadgen import spec
from loadgen.errors import InputError, LoadgenError
from loadgen.evaluation.agreement import SCALE
from loadgen.evaluation.evaluate import SYNTHETIC_DAY, EvaluateOptions, evaluate
from loadgen.plot import plot, plot_trace, require_matplotlib
from loadgen.profiles import load_profile
from loadgen.replay import ReplayOptions, replay
from loadgen.report import Report
from loadgen.simulating import SimulateOptions, check_policy, simulate_policy
from loadgen.table import counter, progress_bar, render_table, render_trace, run_names
from loadgen.traces import describe, make_parts
from loadgen.workload import merge

_INTERRUPTED = 130
_SPECS = f"a SPEC is one of these, or several joined by +:\n\n{(spec.__doc__ or '').partition(chr(10) * 2)[2]}"
_EXIT_CODES = """
exit codes: 0 done; 1 a result could not be written; 2 wrong usage, SPEC or file; 130 interrupted
"""
_EXIT_CODES_OF_REPLAY = """
exit codes: 0 done, whatever the server answered; 1 a result could not be written;
2 wrong usage, SPEC or file; 3 server not reachable, not ready, or without the model; 130 interrupted
"""
_EXAMPLES = """
Queries are sent at the times that a trace has for them, however the server fares (open loop): a slow one is not spared.

examples:
  loadgen replay --rate 200                                           to a mesh that runs: superserve up
  loadgen trace ramp:start=2500,end=7800,accel=500,cv2=8 --duration 30 --plot ramp.png
  loadgen simulate --policy foresight --policy slackfit --trace bursty:base=1500,variant=5550,cv2=8
  loadgen compare slackfit.json maxacc.json --plot both.png
  loadgen evaluate --out out/quick --quick
"""
_REPLAYED = """
examples:
  loadgen replay --rate 200
  loadgen replay --trace bursty:base=1500,variant=5550,cv2=8 --rate 300 --duration 30 \\
      --slo-ms 36 --out slackfit.json --plot slackfit.png
  loadgen replay --trace minutes:synthetic-day --rate 400 --duration 120
  loadgen replay --trace 'bursty:base=20,variant=80,cv2=4,tenant=video,slo_ms=36+poisson:rate=50,tenant=mail,priority=1'
  loadgen replay --url http://gateway:8000 --model rated-text-tiny --rate 50
"""
_SIMULATED = """
examples:
  loadgen simulate --trace bursty:base=1500,variant=5550,cv2=8
  loadgen simulate --rate 3000 --workers 4 --jitter 0.1
  loadgen simulate --policy foresight --policy slackfit --policy fixed:smallest --jitter 0.1 --plot both.png \\
      --trace ramp:start=2500,end=7800,accel=500,cv2=8 --duration 20
  loadgen simulate --trace minutes:maf.csv --rate 6400 --duration 120 --kill worker-3@60 --join worker-7@90
"""
_TRACED = """
examples:
  loadgen trace ramp:start=2500,end=7800,accel=500,cv2=8 --duration 30 --plot ramp.png
  loadgen trace 'bursty:base=20,variant=80,cv2=4,tenant=video+poisson:rate=50,tenant=mail'
"""
_COMPARED = """
examples:
  loadgen compare slackfit.json maxacc.json
  loadgen compare slackfit.json maxacc.json --plot both.png
"""
_EVALUATED = """
`report.md` holds tables and plots like the paper's, its figures beside ours; `summary.json` holds the figures. Needs
the extra `evaluate`. Minutes on two cores; --quick: under one.

examples:
  loadgen evaluate --out out/evaluation
  loadgen evaluate --out out/evaluation --maf minutes:maf.csv,column=all_rows
  loadgen evaluate --out out/quick --quick
  loadgen evaluate --out out/live --live
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
    _check_writable("out", arguments.out)
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
    return _show([report], arguments)


def _simulate(arguments: argparse.Namespace) -> int:
    specs: list[str] = arguments.policy or [policies.DEFAULT]
    if len(specs) > 1:
        for key, path in (("out", arguments.out), ("event-log", arguments.event_log)):
            if path is not None:
                raise InputError(key, path, "takes one --policy")
    _check_writable("out", arguments.out)
    _check_writable("event-log", arguments.event_log)
    _check_plot(arguments.plot)
    options = SimulateOptions(
        profile=arguments.profile,
        workers=arguments.workers,
        trace=arguments.trace,
        rate=arguments.rate,
        duration_s=arguments.duration,
        slo_ms=arguments.slo_ms,
        seed=arguments.seed,
        rows=arguments.rows,
        jitter=arguments.jitter,
        tail=arguments.tail,
        overhead_ms=arguments.overhead_ms,
        hop_ms=arguments.hop_ms,
        actuation_ms=arguments.actuation_ms,
        kills=arguments.kill,
        joins=arguments.join,
        slow=arguments.slow,
        late=arguments.late,
        event_log=arguments.event_log,
    )
    sys.path.append(str(Path.cwd()))  # policies of the user's own, as in `superserve scheduler`
    profile = load_profile(options.profile)
    for policy in specs:
        check_policy(policy, profile)
    with counter(Console(stderr=True)) as count:
        reports = [simulate_policy(policy, options, count(policy)) for policy in specs]
    return _show(reports, arguments, specs)


def _show(reports: Sequence[Report], arguments: argparse.Namespace, names: Sequence[str] | None = None) -> int:
    """Write the first report where --out says, draw all where --plot says, and print them side by side."""
    to_stdout = str(arguments.out) == "-"
    if to_stdout:
        print(reports[0].to_json().decode())
    elif arguments.out is not None:
        reports[0].save(arguments.out)
    if arguments.plot is not None:
        plot(reports, arguments.plot, names)
    terminal.console(stderr=to_stdout).print(render_table(reports, names))
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    options = EvaluateOptions(
        out=arguments.out, maf=arguments.maf, quick=arguments.quick, live=arguments.live, scale=arguments.scale
    )
    with counter(Console(stderr=True)) as count:
        evaluate(options, count("evaluate"), *([count("live")] if options.live else []))
    print(f"written: {arguments.out / 'report.md'}, summary.json and the plots beside it")
    return 0


def _trace(arguments: argparse.Namespace) -> int:
    _check_plot(arguments.plot)
    parts = make_parts(arguments.spec, rate=arguments.rate, duration_s=arguments.duration, seed=arguments.seed)
    stats = describe(merge(parts).intended_s, arguments.duration)
    if arguments.plot is not None:
        plot_trace(parts, stats, arguments.spec, arguments.plot)
    terminal.console().print(render_trace(parts, stats))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    _check_plot(arguments.plot)
    reports = [Report.load(path) for path in arguments.reports]
    heads = run_names(reports)
    unnamed = len({report.policy for report in reports}) < len(reports)
    names = [path.stem for path in arguments.reports] if unnamed else heads
    if arguments.plot is not None:
        plot(reports, arguments.plot, names)
    terminal.console().print(render_table(reports, names))
    return 0


def _complete(arguments: argparse.Namespace) -> int:
    print(completion.script(_parser(), arguments.shell))
    return 0


def _check_plot(path: Path | None) -> None:
    if path is not None:
        require_matplotlib()
    _check_writable("plot", path)


def _check_writable(key: str, path: Path | None) -> None:
    """Before a run, not after it: InputError when the folder of `path` is not there."""
    if path is not None and (not path.parent.is_dir() or path.is_dir()):
        raise InputError(key, path, "is a folder" if path.is_dir() else "its folder does not exist")


def _parser() -> argparse.ArgumentParser:
    parser = _command(
        None, "loadgen", "Open-loop load for an Open Inference Protocol server.", _EXAMPLES, _EXIT_CODES_OF_REPLAY
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(
        commands, "replay", "Send a trace to a server and report what came of it.", _REPLAYED + "\n" + _SPECS,
        _EXIT_CODES_OF_REPLAY,
    )  # fmt: skip
    run.set_defaults(run=_replay)
    run.add_argument("--url", default="http://127.0.0.1:8000", help="the only server spoken to (%(default)s)")
    run.add_argument("--model", default="fashion-resnet", metavar="NAME", help="the model to ask (%(default)s)")
    run.add_argument(
        "--trace", default="poisson", metavar="SPEC", help="when queries are sent, see below (%(default)s)"
    )
    _add_shape(run)
    run.add_argument(
        "--slo-ms",
        type=float,
        default=50.0,
        metavar="MS",
        help="from sending to the answer in time; a tenant's own wins (%(default)g)",
    )
    run.add_argument(
        "--rows", type=int, default=1, metavar="N", help="rows per query; a tenant's own wins (%(default)s)"
    )
    run.add_argument(
        "--data", type=Path, metavar="FILE",
        help=".safetensors, .npz or .json with the model's input and `labels`; default: the samples shipped with the "
        "model, else random tensors",
    )  # fmt: skip
    run.add_argument(
        "--connections", type=int, default=512, metavar="N",
        help="most of them; beyond, queries wait in the sender, which the report shows as sender lag (%(default)s)",
    )  # fmt: skip
    run.add_argument(
        "--timeout", type=float, default=10.0, metavar="S",
        help="a query without an answer so long after its intended time is an error (%(default)g)",
    )  # fmt: skip
    run.add_argument("--out", type=Path, metavar="FILE", help="write the report as JSON; - is standard output")
    run.add_argument("--plot", type=Path, metavar="FILE", help="draw the run as PNG (needs the extra `plot`)")

    simulation = _command(
        commands, "simulate", "Play a trace through the scheduler's own core on a simulated clock.",
        _SIMULATED + "\n" + _SPECS,
    )  # fmt: skip
    simulation.set_defaults(run=_simulate)
    _add_world(simulation)

    evaluation = _command(
        commands, "evaluate", "Run the paper's evaluation, and what goes past it, in the simulator.", _EVALUATED
    )
    evaluation.set_defaults(run=_evaluate)
    evaluation.add_argument("--out", type=Path, required=True, metavar="DIR", help="report, plots and summary.json")
    evaluation.add_argument(
        "--maf", default=SYNTHETIC_DAY, metavar="SPEC",
        help="the day of requests, as minutes:FILE; default: a synthetic one that is shipped (%(default)s)",
    )  # fmt: skip
    evaluation.add_argument("--quick", action="store_true", help="short traces: a look in under a minute")
    evaluation.add_argument(
        "--live", action="store_true",
        help="hold the simulator against a real mesh of emulated workers as well, which it starts: minutes more, on a "
        "machine with nothing else to do",
    )  # fmt: skip
    evaluation.add_argument(
        "--scale", type=float, default=SCALE, metavar="K",
        help="with --live: latencies and SLOs times K, rates by K, so that the machine carries it (%(default)g)",
    )  # fmt: skip

    trace = _command(commands, "trace", "Show what a trace is like before anything is sent.", _TRACED + "\n" + _SPECS)
    trace.set_defaults(run=_trace)
    trace.add_argument("spec", metavar="SPEC", help="when queries are sent, see below")
    _add_shape(trace)
    trace.add_argument("--plot", type=Path, metavar="FILE", help="draw the trace as PNG (needs the extra `plot`)")

    compare = _command(commands, "compare", "Print reports side by side.", _COMPARED)
    compare.set_defaults(run=_compare)
    compare.add_argument(
        "reports", nargs="+", type=Path, metavar="FILE.json", help="what --out of `replay` or `simulate` wrote"
    )
    compare.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw them over each other as PNG (needs the extra `plot`)"
    )

    completing = completion.fill(commands.add_parser("completion", help=completion.ABOUT), "loadgen")
    completing.set_defaults(run=_complete)
    return parser


def _add_world(parser: argparse.ArgumentParser) -> None:
    """What `simulate` takes."""
    parser.add_argument(
        "--policy", action="append", metavar="SPEC",
        help=f"repeatable: side by side; `superserve policies` lists them ({policies.DEFAULT})",
    )  # fmt: skip
    parser.add_argument(
        "--profile", default="rtx2080ti-reconstructed", metavar="NAME|FILE", help="latencies of a worker (%(default)s)"
    )
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="named worker-0 and so on (%(default)s)")
    parser.add_argument(
        "--trace", default="poisson", metavar="SPEC", help="when queries arrive, see below (%(default)s)"
    )
    _add_shape(parser)
    parser.add_argument("--slo-ms", type=float, default=36.0, metavar="MS", help="deadline of a query (%(default)g)")
    parser.add_argument("--rows", type=int, default=1, metavar="N", help="rows per query (%(default)s)")
    parser.add_argument(
        "--late", choices=("drop", "serve"), default="drop",
        help="a query that cannot meet its deadline: reject it, or serve it all the same (%(default)s)",
    )  # fmt: skip
    world = parser.add_argument_group("what the world does to a batch")
    for name, metavar, text in (
        ("jitter", "SHARE", "it takes its median times 1 + |N(0, SHARE)|"),
        ("tail", "SHARE", "this share of batches takes twice as long"),
        ("overhead-ms", "MS", "added to each batch"),
        ("hop-ms", "MS", "the way of one message between scheduler and worker, or back to the client"),
        ("actuation-ms", "MS", "added where a worker ran another subnet before"),
    ):
        world.add_argument(f"--{name}", type=float, default=0.0, metavar=metavar, help=f"{text} (%(default)g)")
    world.add_argument("--kill", action="append", default=[], metavar="NAME@S", help="a worker dies then; repeatable")
    world.add_argument(
        "--join", action="append", default=[], metavar="NAME@S", help="a worker is there from then on; repeatable"
    )
    world.add_argument(
        "--slow", action="append", default=[], metavar="NAME@SxFACTOR",
        help="a worker takes so many times as long from then on; repeatable",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report as JSON; - is standard output")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the runs as PNG (needs the extra `plot`)")
    parser.add_argument(
        "--event-log", type=Path, metavar="FILE", help="write the core's events, which replay to the same commands"
    )


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rate", type=float, metavar="QPS",
        help="mean queries per second that the trace is scaled to; default: the SPEC's own, if it has one",
    )  # fmt: skip
    parser.add_argument(
        "--duration", type=float, default=10.0, metavar="S", help="length of the run in seconds (%(default)g)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="equal seeds give equal runs (%(default)s)")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser] | None,
    name: str,
    about: str,
    epilog: str,
    exit_codes: str = _EXIT_CODES,
) -> argparse.ArgumentParser:
    text, keep = epilog + exit_codes, argparse.RawDescriptionHelpFormatter
    if commands is None:
        return argparse.ArgumentParser(prog=name, description=about, epilog=text, formatter_class=keep)
    return commands.add_parser(name, help=about, description=about, epilog=text, formatter_class=keep)
