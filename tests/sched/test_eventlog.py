"""The log of events: what is written is replayed, and what is not of the format is refused."""

import json

import pytest

from common.sched.eventlog import EventLog, EventLogError, replay
from common.sched.types import Batch, Event, Tick, WorkerDraining, WorkerHello, WorkerLost
from tests.sched.conftest import Start
from tests.sched.harness import PROFILE, Harness, query


def test_log_replays_every_kind_of_event(start: Start) -> None:
    """Each event is read back equal, in order, at its time, and gives the commands it gave."""
    core = start("slackfit:buckets=7", late="serve", first_batch=100)
    running = Batch(3, "v", "small", (query(8, rows=2, min_accuracy=12.5, priority=-1, attempts=2),))
    core.hello()
    core.send(WorkerHello("v", PROFILE, (running,)), 10)
    core.arrive(query(1, min_accuracy=75.0), query(2, 1), now_us=20)
    core.finish(running, 30, 40)
    events: list[Event] = [WorkerDraining("v"), Tick(), WorkerLost("w")]
    for event in events:
        core.send(event, 50)
    replayed = list(replay(core._lines))
    assert [commands for _, _, commands in replayed] == core.history
    assert [event for _, event, _ in replayed][-3:] == events
    assert replayed[1][:2] == (10, WorkerHello("v", PROFILE, (running,)))


def test_log_is_one_json_object_a_line(start: Start) -> None:
    """The header names format, full policy spec and options; each event carries its time."""
    core = start("fixed:small", reply_margin_us=700)
    core.arrive(query(1), now_us=5)
    header, event = (json.loads(line) for line in core._lines)
    assert header["format"] == 1
    assert header["policy"] == "fixed:quantile=p95,late=shed,subnet=small"
    assert header["options"]["reply_margin_us"] == 700
    assert event == {"now_us": 5, "event": "arrived", "queries": [[1, 0, 1_000_000, 1, 0.0, 0, 0]]}


def test_log_is_written_line_by_line() -> None:
    """The sink is given whole lines as events are appended, the header first."""
    core, lines = Harness("maxbatch"), list[str]()
    log = EventLog(lines.append, core.scheduler)
    log.append(Tick(), 7)
    assert lines[1:] == ['{"now_us":7,"event":"tick"}\n']


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1: JSONDecodeError"),
        (['{"format": 2}'], "line 1: EventLogError: format: expected 1, got 2"),
        (['{"format":1,"policy":"none","options":{}}'], "line 1: PolicyError: policy: unknown 'none'"),
        (['{"format":1,"policy":"maxbatch","options":{"x":1}}'], "line 1: TypeError"),
        (['{"format":1,"policy":"maxbatch","options":{}}', '{"now_us":1,"event":"nap"}'], "line 2: .* unknown 'nap'"),
        (['{"format":1,"policy":"maxbatch","options":{}}', '{"event":"tick"}'], "line 2: KeyError: 'now_us'"),
    ],
)
def test_wrong_lines_are_named(lines: list[str], message: str) -> None:
    """A line that cannot be replayed is refused by its number and what is wrong with it."""
    with pytest.raises(EventLogError, match=message):
        list(replay(lines))
