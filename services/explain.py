"""``superserve explain``: what became of one query and why, read from a scheduler's event log."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from common import terminal
from common.errors import ConfigError
from common.sched.eventlog import EventLogError
from common.sched.explain import UnknownQueryError, explain
from common.sched.story import Adopted, Decision, Dispatched, Finished, PutBack, Read, Rejected, count, ms
from common.settings import from_environment

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from common.sched.story import Candidate, Option, Step, Story

DESCRIPTION = """\
What became of one query, and why: how long it queued and behind whom, which workers and which subnets were to be had,
which the policy took, and how it ended. Replays the event log that `superserve scheduler --event-log FILE` writes, up
to the query's end.
"""
EPILOG = """\
examples:
  superserve up --event-log events.jsonl
  superserve explain 2f9b1c4400000012 --event-log events.jsonl
  superserve explain 2f9b1c4400000012 --event-log events.jsonl --json | jq '.steps[-1]'

The ID is the `query_id` among an answer's parameters, its header X-Superserve-Query-Id (errors have it too), or in the
gateway's log (--log-queries).
exit codes: 0 explained, 1 the log has no such query or is broken, 2 wrong usage
"""
_ID = re.compile(r"(0x)?[0-9a-fA-F]{1,16}")
_MOST_SUBNETS = 12  # in a person's table; --json has all


def run(flags: list[str]) -> int:
    """Run the command and return its exit code; ConfigError for wrong usage."""
    args = parser().parse_args(flags)
    if not _ID.fullmatch(args.id):
        raise ConfigError(f"ID={args.id!r}: expected up to 16 hexadecimal digits, as an answer's query_id has them")
    if args.event_log is None:
        raise ConfigError("--event-log: name the file that the scheduler writes with its own --event-log")
    path = Path(args.event_log)
    try:
        story = explain(_lines(path), int(args.id, 16))
    except OSError as error:
        raise ConfigError(f"--event-log={args.event_log!r}: {error.strerror or error}") from error
    except (UnknownQueryError, EventLogError, UnicodeDecodeError) as error:
        print(f"superserve explain: {path}: {error}", file=sys.stderr)  # noqa: T201 - a command line prints
        return 1
    if args.json:
        print(json.dumps(document(story), indent=2))  # noqa: T201 - a command line prints
    else:
        _show(story, terminal.console())
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of its command line."""
    made = terminal.parser("explain", DESCRIPTION)
    made.epilog = EPILOG
    made.add_argument("id", metavar="ID", help="the query's id, 16 hexadecimal digits")
    made.add_argument(
        "--event-log", metavar="FILE", default=from_environment("event_log"),
        help="the scheduler's event log, or a former one: FILE.1 (default: SUPERSERVE_EVENT_LOG)",
    )  # fmt: skip
    made.add_argument("--json", action="store_true", help="one JSON document in place of text")
    return made


def document(story: Story) -> dict[str, Any]:
    """Return a story as JSON has it; each step says by ``step`` what it is."""
    query = story.query
    return {
        "query_id": f"{query.id:016x}",
        "policy": story.policy,
        "arrival_us": query.arrival_us,
        "deadline_us": query.deadline_us,
        "rows": query.rows,
        "min_accuracy": query.min_accuracy,
        "priority": query.priority,
        "ended": story.ended,
        "steps": [_document(step) for step in story.steps],
    }


def _document(step: Step) -> dict[str, Any]:
    told = {"step": "put_back" if isinstance(step, PutBack) else type(step).__name__.lower(), **asdict(step)}
    if isinstance(step, Dispatched | Rejected) and step.decision is not None and step.decision.choice is not None:
        told["decision"]["choice"] = step.decision.choice._asdict()
    return told


def _lines(path: Path) -> Iterator[str]:
    """The log's lines, with a bar of how far it is read; a last line that is still being written is left out."""
    err = Console(stderr=True)
    with (
        Progress(console=err, disable=not err.is_terminal, transient=True) as progress,
        progress.open(path, "r", encoding="utf-8", description="replaying") as file,
    ):
        for line in file:
            if line.endswith("\n"):
                yield line


def _show(story: Story, console: Console) -> None:
    query, steps = story.query, story.steps
    slo_us = query.deadline_us - query.arrival_us
    floor = f", min_accuracy {query.min_accuracy:g} %" if query.min_accuracy else ""
    console.print(f"[bold]query {query.id:016x}[/] of {count(query.rows, 'row')}, SLO {ms(slo_us)}{floor}")
    console.print(Text(f"policy {story.policy}"))
    arrived = datetime.fromtimestamp(query.arrival_us / 1e6, UTC).isoformat(sep=" ", timespec="milliseconds")
    _line(console, "+0.0 ms", f"arrived at its gateway ({arrived})")
    for step in steps:
        for at_us, text in _told(step):
            _line(console, f"+{ms(at_us - query.arrival_us)}", text)
        if isinstance(step, Dispatched | Rejected):
            _line(console, "", f"Why: {step.why}")
        if isinstance(step, Dispatched | Rejected) and step.decision is not None:
            _show_decision(step.decision, console)
        elif isinstance(step, Rejected) and step.candidates:
            console.print(_workers(step.candidates))
    if not story.ended:
        _line(console, "", "the log ends here, and the query has not ended")


def _line(console: Console, at: str, text: str) -> None:
    console.print(Text(f"{at:>10}  {text}"), soft_wrap=True)


def _told(step: Step) -> Iterator[tuple[int, str]]:
    """Each moment of a step, and what happened then."""
    match step:
        case Read():
            ahead = f"{count(step.ahead, 'query')} ({count(step.ahead_rows, 'row')}) ahead of it"
            yield step.at_us, f"read by the scheduler: {ahead}, {count(step.workers, 'worker')}"
        case Dispatched():
            how = f"degraded: {step.degraded}" if step.degraded else "the best there is"
            place = f"number {step.place} of {count(step.queries, 'query')} in batch {step.batch}"
            subnet = f"{step.subnet} ({step.accuracy:g} %, {how})"
            before = count(step.batches_before, "other batch")
            yield step.at_us, f"dispatched to {step.worker} on {subnet}, {place}, after {before}"
        case Adopted():
            yield step.at_us, f"found on {step.worker} in batch {step.batch} on {step.subnet}: the scheduler is new"
        case PutBack():
            blame = "it was running it and is blamed" if step.blamed else "it had not begun it"
            yield step.at_us, f"{step.worker} was lost, {blame}: back to the queue, {count(step.attempts, 'attempt')}"
        case Finished():
            when = f"{ms(step.spare_us)} before" if step.spare_us >= 0 else f"{ms(-step.spare_us)} after"
            yield step.started_us, f"begun by {step.worker}"
            yield step.finished_us, f"ended, {when} its deadline"
        case Rejected():
            yield step.at_us, f"rejected: {step.reason}"


def _show_decision(decision: Decision, console: Console) -> None:
    whose = f"The slack of the most urgent, {decision.head:016x}, was" if decision.ahead else "Its slack was"
    console.print(
        Text(
            f"\nThe policy was asked to fill {decision.worker}, with {count(decision.queued_rows, 'row')} queued and "
            f"{count(decision.ahead, 'query')} before this one. {whose} {ms(decision.slack_us)}.\nTimes: the profile's "
            f"median x {decision.correction:.2f} (this worker, lately) x {decision.margin:.2f} (few batches exceed)."
        ),
        soft_wrap=True,
    )
    rows = sorted({option.rows for option in decision.options})
    shares = {option.rows: option.queue_share for option in decision.options}
    table = Table("subnet", "accuracy", *(f"{count(n, 'row')}\n{shares[n]:.0%} of queue" for n in rows))
    for column in table.columns[1:]:
        column.justify = "right"
    subnets = _subnets_to_show(decision)
    for subnet in subnets:
        options = [option for option in decision.options if option.subnet == subnet]
        table.add_row(Text(subnet), f"{options[0].accuracy:g} %", *(_cell(option) for option in options))
    console.print(table)
    hidden = len({option.subnet for option in decision.options}) - len(subnets)
    if hidden:
        console.print(f"{hidden} more subnets are left out; --json has all")
    console.print(_workers(decision.candidates))


def _cell(option: Option) -> Text:
    verdict = "fits" if option.meets_slack else "late"
    style = "bold" if option.taken else "green" if option.meets_slack else "red"
    return Text(f"{'taken: ' if option.taken else ''}{ms(option.latency_us)} {verdict}", style)


def _subnets_to_show(decision: Decision) -> list[str]:
    """All of few; of many the cheapest, the best, and those around the one taken."""
    known = list(dict.fromkeys(option.subnet for option in decision.options))
    if len(known) <= _MOST_SUBNETS:
        return known
    place = known.index(decision.choice.subnet) if decision.choice is not None else 0
    half = _MOST_SUBNETS // 2 - 1
    return [name for i, name in enumerate(known) if abs(i - place) <= half or i in (0, len(known) - 1)]


def _workers(candidates: tuple[Candidate, ...]) -> Table:
    table = Table("worker", "state", "free in", "holds", "needs at least", "spare", "correction")
    for one in candidates:
        needs, spare = ("-" if us is None else ms(us) for us in (one.needs_us, one.spare_us))
        holds = count(one.batches, "batch")
        table.add_row(Text(one.worker), one.state, ms(one.free_in_us), holds, needs, spare, f"{one.correction:.2f}")
    return table
