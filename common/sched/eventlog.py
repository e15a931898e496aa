"""A log of events that replays to the same commands: what a bug report is made of.

JSON lines. The first is a header with the format, the policy's full spec and the options; each other is one event
with the time at which it was applied. Writing and reading files is the caller's: a sink takes lines, `replay` takes
them back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any, assert_never

from common.sched.core import Scheduler
from common.sched.options import SchedulerOptions
from common.sched.policies import Policy, PolicyError, parse_policy, spec_of
from common.sched.profile import Profile, ProfileError
from common.sched.types import (
    Arrived,
    Batch,
    BatchDone,
    Command,
    Event,
    Query,
    Tick,
    WorkerDraining,
    WorkerHello,
    WorkerLost,
)

FORMAT = 1


class EventLogError(ValueError):
    """A log cannot be replayed; the message names the line and what is wrong with it."""


class EventLog:
    """Writes the events of one scheduler, which must be fresh, to `sink`, which takes a line with its newline."""

    def __init__(self, sink: Callable[[str], object], scheduler: Scheduler) -> None:
        self._sink = sink
        header = {"format": FORMAT, "policy": spec_of(scheduler.policy), "options": asdict(scheduler.options)}
        sink(_line(header))

    def append(self, event: Event, now_us: int) -> None:
        """Write one event, as it is given to `Scheduler.handle`."""
        self._sink(_line({"now_us": now_us} | _to_dict(event)))


def replay(lines: Iterable[str]) -> Iterator[tuple[int, Event, list[Command]]]:
    """Apply a log to a fresh scheduler, and yield each event with its time and the commands that it gives.

    Raises EventLogError for a line that is not of the format.
    """
    lines = iter(lines)
    header = next(lines, None)
    if header is None:
        return
    scheduler = fresh_scheduler(header)
    for now_us, event in events(lines):
        yield now_us, event, apply(scheduler, event, now_us)


def apply(scheduler: Scheduler, event: Event, now_us: int) -> list[Command]:
    """Apply an event of a log: a worker that was refused is in it too, changed nothing, and is refused again."""
    try:
        return scheduler.handle(event, now_us)
    except (PolicyError, ProfileError):
        return []


def events(lines: Iterable[str]) -> Iterator[tuple[int, Event]]:
    """Read the lines behind a log's first: each event with its time. Raises as `replay` does."""
    for number, line in enumerate(lines, start=2):
        try:
            data = json.loads(line)
            now_us, event = int(data["now_us"]), _from_dict(data)
        except (ValueError, KeyError, TypeError) as error:
            raise EventLogError(f"line {number}: {type(error).__name__}: {error}") from error
        yield now_us, event


def fresh_scheduler(header: str) -> Scheduler:
    """Return a scheduler of the policy and the options that a log's first line names. Raises as `replay` does."""
    return Scheduler(*read_header(header))


def read_header(header: str) -> tuple[Policy, SchedulerOptions]:
    """Return the policy and the options that a log's first line names. Raises as `replay` does."""
    try:
        data = json.loads(header)
        if data.get("format") != FORMAT:
            raise EventLogError(f"format: expected {FORMAT}, got {data.get('format')!r}")
        return parse_policy(data["policy"]), SchedulerOptions(**data["options"])
    except (ValueError, KeyError, TypeError) as error:
        raise EventLogError(f"line 1: {type(error).__name__}: {error}") from error


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":")) + "\n"


def _to_dict(event: Event) -> dict[str, Any]:
    match event:
        case Arrived(queries):
            return {"event": "arrived", "queries": queries}
        case BatchDone(worker, batch, started_us, finished_us):
            return {
                "event": "done",
                "worker": worker,
                "batch": batch,
                "started_us": started_us,
                "finished_us": finished_us,
            }
        case WorkerHello(worker, profile, running):
            batches = [{"id": b.id, "subnet": b.subnet, "queries": b.queries} for b in running]
            return {"event": "hello", "worker": worker, "profile": profile.to_dict(), "running": batches}
        case WorkerLost(worker):
            return {"event": "lost", "worker": worker}
        case WorkerDraining(worker):
            return {"event": "draining", "worker": worker}
        case Tick():
            return {"event": "tick"}
        case _:
            assert_never(event)


def _from_dict(data: dict[str, Any]) -> Event:
    worker = data.get("worker", "")
    match data["event"]:
        case "arrived":
            return Arrived(tuple(Query(*q) for q in data["queries"]))
        case "done":
            return BatchDone(worker, data["batch"], data["started_us"], data["finished_us"])
        case "hello":
            running = (
                Batch(b["id"], worker, b["subnet"], tuple(Query(*q) for q in b["queries"])) for b in data["running"]
            )
            return WorkerHello(worker, Profile.from_dict(data["profile"]), tuple(running))
        case "lost":
            return WorkerLost(worker)
        case "draining":
            return WorkerDraining(worker)
        case "tick":
            return Tick()
    raise EventLogError(f"event: unknown {data['event']!r}")
