"""A query's story, told from a log: what it says is what happened."""

from dataclasses import replace

import pytest

from common.sched import Batch, Scheduler, SchedulerOptions, parse_policy
from common.sched.eventlog import EventLog, EventLogError, replay
from common.sched.explain import UnknownQueryError, explain
from common.sched.policies import PolicyError
from common.sched.story import Adopted, Dispatched, Finished, PutBack, Read, Rejected, Step, Story
from common.sched.types import BatchDone, Dispatch, Reject, Tick, WorkerHello, WorkerLost
from loadgen.conditions import Conditions
from loadgen.simulate import Simulation
from loadgen.workload import make_workload
from tests.sched.conftest import Start
from tests.sched.harness import PROFILE, Harness, dispatched, query

GATEWAY = 5 << 32


def story(core: Harness, number: int) -> Story:
    return explain(core._lines, number)


def kinds(told: Story) -> list[type[Step]]:
    return [type(step) for step in told.steps]


def step(told: Story, kind: type[Step]) -> Step:
    (found,) = [one for one in told.steps if isinstance(one, kind)]
    return found


def test_life_of_a_query(start: Start) -> None:
    """Read behind the more urgent ones, dispatched with its place in the batch, begun, ended: with what was known."""
    core = start()
    core.hello()
    (first,) = dispatched(core.arrive(query(1, 30_000), now_us=0))
    core.arrive(query(2, 70_000, 100), query(3, 60_000, 100, rows=2), query(4, 80_000, 100), now_us=200)
    (second,) = dispatched(core.finish(first, 0, 20_000))
    core.finish(second, 20_000, 36_000)
    told = story(core, 2)
    assert told.ended
    assert told.query == query(2, 70_000, 100)
    assert told.policy == "maxbatch:quantile=median,late=shed"
    read, left, ended = told.steps
    assert read == Read(200, ahead=1, ahead_rows=2, workers=1, attempts=0)
    assert ended == Finished(36_000, "w", second.id, 20_000, 36_000, spare_us=34_000)
    assert isinstance(left, Dispatched)
    assert (left.at_us, left.worker, left.batch, left.subnet) == (20_000, "w", second.id, second.subnet)
    assert (left.rows, left.queries, left.place, left.batches_before) == (4, 3, 2, 0)
    assert left.decision is not None
    assert (left.decision.head, left.decision.ahead, left.decision.queued_rows) == (3, 1, 4)
    assert left.decision.slack_us == 40_000
    (candidate,) = left.decision.candidates
    assert (candidate.worker, candidate.state, candidate.free_in_us, candidate.batches) == ("w", "taken", 0, 0)


def test_options_are_the_policy_s(start: Start) -> None:
    """Each subnet with each batch that holds the head: predicted latency, if it fits, share of the queue, if taken."""
    core = start()
    core.hello()
    core.arrive(*(query(i, 20_000) for i in range(1, 5)))
    left = step(story(core, 4), Dispatched)
    assert isinstance(left, Dispatched)
    assert left.decision is not None
    options = {(o.subnet, o.rows): (o.latency_us, o.meets_slack, o.queue_share, o.taken) for o in left.decision.options}
    assert options == {
        ("small", 1): (10_000, True, 0.25, False),
        ("small", 2): (12_000, True, 0.5, False),
        ("small", 4): (16_000, True, 1.0, True),
        ("big", 1): (20_000, True, 0.25, False),
        ("big", 2): (30_000, False, 0.5, False),
        ("big", 4): (50_000, False, 1.0, False),
    }
    assert (left.degraded, left.best_accuracy) == ("policy", 80.0)
    assert left.why == (
        "big would have run up to 1 row within the slack of 20.0 ms that the most urgent query of its batch had, but "
        "no better one the whole batch: the policy ran 4 on small, of 4 that were queued."
    )


@pytest.mark.parametrize(
    ("spec", "asked", "words"),
    [
        ("maxbatch:quantile=median", query(1), "No live worker has a more accurate subnet."),
        (
            "maxbatch:quantile=median",
            query(1, 15_000),
            "slack of 15.0 ms that it had: the quickest, big, takes 20.0 ms",
        ),
        ("fixed:small", query(1), "uses nothing better than small of itself"),
        ("infaas", query(1, min_accuracy=75.0), "No live worker has a more accurate subnet."),
    ],
)
def test_why_in_a_sentence(start: Start, spec: str, asked: object, words: str) -> None:
    """The reason is told with its figures."""
    core = start(spec)
    core.hello()
    core.arrive(asked)  # type: ignore[arg-type]
    left = step(story(core, 1), Dispatched)
    assert isinstance(left, Dispatched)
    assert words in left.why


def test_late_query(start: Start) -> None:
    """Rejected as late: no worker could have met the deadline, and by how much the nearest missed it."""
    core = start()
    core.hello()
    core.arrive(query(1, 30_000))
    core.arrive(query(2, 25_000), now_us=0)
    told = story(core, 2)
    assert kinds(told) == [Read, Rejected]
    ended = told.steps[-1]
    assert isinstance(ended, Rejected)
    assert (ended.reason, ended.decision) == ("late", None)
    assert ended.why == "Even w, the first that could end it, would be 5.0 ms late with its quickest subnet."
    assert [(one.state, one.spare_us, one.free_in_us) for one in ended.candidates] == [("too late", -5_000, 20_000)]


def test_query_that_the_policy_let_go(start: Start) -> None:
    """Rejected by the policy: the options that it had are told, none taken."""
    core = start("maxbatch")
    core.hello()
    core.arrive(query(1, 10_500))  # small's median meets it, its p95 does not
    ended = step(story(core, 1), Rejected)
    assert isinstance(ended, Rejected)
    assert ended.why.startswith("The policy let it go, with a slack of 10.5 ms")
    assert ended.decision is not None
    assert ended.decision.choice is None
    assert not any(option.taken for option in ended.decision.options)


def test_query_served_late(start: Start) -> None:
    """Under `late=serve` the policy is not asked for a head that is late, and the story says so."""
    core = start(late="serve")
    core.hello()
    (batch,) = dispatched(core.arrive(query(1, 5_000)))
    core.finish(batch, 0, 10_000)
    told = story(core, 1)
    left, ended = told.steps[1:]
    assert isinstance(left, Dispatched)
    assert isinstance(ended, Finished)
    assert left.decision is None
    assert "(late=serve)" in left.why
    assert ended.spare_us == -5_000


def test_queries_turned_away_at_the_door(start: Start) -> None:
    """Without room, and without a subnet that is accurate enough."""
    core = start(max_queue_rows=2)
    core.hello()
    core.arrive(query(1), query(2, rows=2), query(3, min_accuracy=99.0))
    full, demanding = (step(story(core, number), Rejected) for number in (2, 3))
    assert isinstance(full, Rejected)
    assert isinstance(demanding, Rejected)
    assert (full.reason, demanding.reason) == ("queue_full", "min_accuracy")
    assert "at most 2 may be (max_queue_rows)" in full.why
    assert demanding.why == "It demands 99 %; the best subnet of a live worker has 80 %."


def test_query_whose_workers_die(start: Start) -> None:
    """Put back with the blame and dispatched again, until it is poison."""
    core = start(max_attempts=2)
    for name in ("a", "b"):
        core.hello(name)
    core.arrive(query(1))
    core.send(WorkerLost("a"), 1_000)
    core.send(WorkerLost("b"), 2_000)
    told = story(core, 1)
    assert kinds(told) == [Read, Dispatched, PutBack, Dispatched, PutBack, Rejected]
    assert [one for one in told.steps if isinstance(one, PutBack)] == [
        PutBack(1_000, "a", blamed=True, attempts=1),
        PutBack(2_000, "b", blamed=True, attempts=2),
    ]
    ended = told.steps[-1]
    assert isinstance(ended, Rejected)
    assert ended.reason == "poison"
    assert ended.why.startswith("2 workers died")


def test_query_without_workers(start: Start) -> None:
    """It waits until its deadline, and that is told."""
    core = start()
    core.arrive(query(1, 30_000))
    assert not story(core, 1).ended
    core.send(Tick(), 30_000)
    ended = step(story(core, 1), Rejected)
    assert isinstance(ended, Rejected)
    assert (ended.reason, ended.candidates) == ("no_worker", ())


def test_query_of_the_scheduler_before(start: Start) -> None:
    """A batch found running after a restart is told as such, and so is its end."""
    core = start()
    running = Batch(7, "w", "small", (query(1), query(2)))
    core.send(WorkerHello("w", PROFILE, (running,)), 500)
    core.finish(running, 0, 10_000)
    assert story(core, 2).steps == (
        Adopted(500, "w", 7, "small"),
        Finished(10_000, "w", 7, 0, 10_000, spare_us=990_000),
    )


def test_query_that_waited_and_was_found_running(start: Start) -> None:
    """A query read anew after a restart, and then found in a batch of the scheduler before, waits no more."""
    core = start()
    core.arrive(query(1))
    running = Batch(7, "w", "small", (query(1),))
    core.send(WorkerHello("w", PROFILE, (running,)), 500)
    core.finish(running, 0, 10_000)
    assert kinds(story(core, 1)) == [Read, Adopted, Finished]


def test_worker_that_was_refused(start: Start) -> None:
    """A log has the hello of a worker that the policy cannot use: it is refused again, and the log goes on."""
    core = start("fixed:subnet=none")
    with pytest.raises(PolicyError):
        core.hello()
    core.arrive(query(1, 50_000))
    core.send(Tick(), 50_000)
    assert kinds(story(core, 1)) == [Read, Rejected]
    assert [commands for _, event, commands in replay(core._lines) if isinstance(event, WorkerHello)] == [[]]


def test_unknown_query(start: Start) -> None:
    """What is not in the log is told with the nearest that is, and whose log it seems to be."""
    core = start()
    core.arrive(query(GATEWAY + 3), query(GATEWAY + 9))
    with pytest.raises(
        UnknownQueryError, match=r"no query 0000000500000008 among the 2 .* nearest is 0000000500000009"
    ):
        story(core, GATEWAY + 8)
    with pytest.raises(UnknownQueryError, match="there are 0000000500000003 to 0000000500000009"):
        story(core, GATEWAY + 8)
    with pytest.raises(UnknownQueryError, match="of another gateway"):
        story(core, 8)


def test_broken_log(start: Start) -> None:
    """A line that cannot be read is named by its number, unless the query's end comes before it."""
    core = start()
    core.hello()
    (batch,) = dispatched(core.arrive(query(1)))
    lines = [*core._lines, "{broken\n"]
    with pytest.raises(EventLogError, match="line 4: JSONDecodeError"):
        explain(lines, 1)
    core.finish(batch, 0, 20_000)
    assert explain([*core._lines, "{broken\n"], 1).ended
    with pytest.raises(EventLogError, match="line 1: the log is empty"):
        explain([], 1)


@pytest.mark.parametrize("spec", ["foresight", "slackfit", "brownout", "coarse:slackfit", "fixed:small"])
def test_stories_agree_with_what_was_decided(spec: str) -> None:
    """In a simulated overload every query's story has the batch, subnet, reason and end that the commands gave it."""
    lines: list[str] = []
    scheduler = Scheduler(parse_policy(spec), SchedulerOptions())
    log = EventLog(lines.append, scheduler)
    workload = make_workload("poisson", rate=600.0, duration_s=1.0, seed=3, slo_ms=60.0)
    profile = replace(PROFILE, actuation_us=1_000 if spec.startswith("coarse") else 0)
    Simulation(scheduler, {"a": profile, "b": profile}, Conditions(jitter=0.1), log=log).run(workload)
    dispatches: dict[int, Dispatch] = {}
    ends: dict[int, str] = {}
    for _, event, commands in replay(lines):
        if isinstance(event, BatchDone):
            ends |= {q.id: "done" for d in dispatches.values() if d.batch.id == event.batch for q in d.batch.queries}
        for command in commands:
            if isinstance(command, Dispatch):
                dispatches |= dict.fromkeys([q.id for q in command.batch.queries], command)
            elif isinstance(command, Reject):
                ends[command.query.id] = command.reason
    assert set(ends.values()) == {"done", "late"}
    for number in sorted(ends)[::7]:
        told = explain(lines, number)
        ended = told.steps[-1]
        assert ends[number] == (ended.reason if isinstance(ended, Rejected) else "done")
        left = [one for one in told.steps if isinstance(one, Dispatched)]
        expected = dispatches.get(number)
        assert [one.batch for one in left] == ([expected.batch.id] if expected else [])
        for one in left:
            assert expected is not None
            assert (one.subnet, one.degraded, one.rows) == (
                expected.batch.subnet, expected.degraded, expected.batch.rows,
            )  # fmt: skip
            assert one.decision is not None
            assert expected.batch.queries[one.place - 1].id == number
            taken = [option for option in one.decision.options if option.taken]
            assert [option.subnet for option in taken] == [one.subnet]
