"""A policy that fails does no harm: the core serves without it, and remembers the error."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from common.sched import Scheduler, parse_policy
from common.sched.explain import explain
from common.sched.policies import PolicyError, View
from common.sched.policies.base import Learner
from common.sched.profile import Profile, ProfileError
from common.sched.story import Dispatched
from common.sched.types import Arrived, Batch, BatchDone, Choice, Query, Reason, WorkerHello
from loadgen.errors import InputError
from loadgen.simulate import simulate
from loadgen.workload import make_workload
from tests.sched.conftest import Start
from tests.sched.harness import PROFILE, SMALL, dispatched, ids, make_profile, query

WAYS: dict[str, Callable[[View], object]] = {
    "raises": lambda view: 1 // (view.head.id - view.head.id),
    "word": lambda view: "small",
    "pair": lambda view: ("small", 4),
    "nothing": lambda view: Choice("small", None),  # type: ignore[arg-type]
    "half": lambda view: Choice("small", 1.5),  # type: ignore[arg-type]
    "unknown": lambda view: Choice("nowhere", 4),
}
ERRORS = {
    "raises": (ZeroDivisionError, "division"),
    "word": (PolicyError, "choose: expected a Choice or None, got str"),
    "pair": (PolicyError, "choose: expected a Choice or None, got tuple"),
    "nothing": (PolicyError, "choose: rows: expected an integer, got None"),
    "half": (PolicyError, "choose: rows: expected an integer, got 1.5"),
    "unknown": (ProfileError, "no 'nowhere' on 'test', which has small, big"),
}


@dataclass(frozen=True)
class Failing:
    """Fails for the heads whose number is even; serves the others by the most accurate subnet, alone."""

    way: str = "raises"

    def cheapest(self, profile: Profile) -> str:
        return profile.smallest

    def choose(self, view: View) -> Choice | None:
        if view.head.id % 2 == 0:
            return WAYS[self.way](view)  # type: ignore[return-value]
        return Choice(view.profile.largest, 1)


class Deaf(Learner):
    """Fails whatever it is told."""

    def arrived(self, rows: int, now_us: int) -> None:
        raise KeyError(rows)

    def finished(self, batch: Batch, done: BatchDone) -> None:
        raise KeyError(done)

    def rejected(self, query: Query, reason: Reason, now_us: int) -> None:
        raise KeyError(reason)


@dataclass(frozen=True)
class Untaught(Failing):
    """Has a learner that fails, none that is one, or one that cannot be made; and a last subnet that is no question."""

    kind: str = "deaf"

    def cheapest(self, profile: Profile) -> str:
        return profile.subnets[0 if len(profile.subnets) > 1 else 9].id

    def learner(self) -> Any:
        return {"deaf": Deaf, "none": dict}[self.kind]()


@pytest.mark.parametrize("late", ["drop", "serve"])
@pytest.mark.parametrize("way", WAYS)
def test_the_head_is_served_by_the_quickest(start: Start, way: str, late: str) -> None:
    """Heads that the policy fails for go in the largest batch of the quickest subnet that ends in time, others as it
    says; invariants hold, and the log replays to the same commands."""
    core = start(f"tests.sched.test_failing:Failing:way={way}", late=late)
    core.hello()
    (first,) = dispatched(core.arrive(*(query(i, 15_000) for i in (2, 3, 4)), query(5, 90_000)))
    assert (first.subnet, ids(first)) == ("small", [2, 3, 4])  # 14 ms; four rows take 16
    kind, words = ERRORS[way]
    assert core.scheduler.failures == 1
    assert isinstance(core.scheduler.failure, kind)
    assert words in str(core.scheduler.failure)
    (second,) = dispatched(core.finish(first, 0, 14_000))
    assert (second.subnet, ids(second)) == ("big", [5])
    (third,) = dispatched(core.arrive(query(6, 500_000, 40_000, min_accuracy=75.0), query(7, 500_000), now_us=40_000))
    assert (third.subnet, ids(third)) == ("big", [6, 7])
    assert core.scheduler.failures == 2


def test_a_story_tells_that_the_policy_failed(start: Start) -> None:
    """What became of a query says that the policy failed for it, and how."""
    core = start("tests.sched.test_failing:Failing")
    core.hello()
    core.arrive(query(2), query(3))
    left = explain(core._lines, 3).steps[-1]
    assert isinstance(left, Dispatched)
    assert left.decision is not None
    assert left.why.startswith("The policy failed (ZeroDivisionError: ")
    assert [(o.subnet, o.rows) for o in left.decision.options if o.taken] == [("small", 2)]


def test_a_choice_of_numpy_is_a_choice(start: Start) -> None:
    """Rows may be any integer, numpy's too."""

    class Counted(Failing):
        def choose(self, view: View) -> Choice | None:
            return Choice("small", np.int64(2))  # type: ignore[arg-type]

    scheduler = Scheduler(Counted())
    scheduler.handle(Arrived((query(1), query(2), query(3))), 0)
    (batch,) = dispatched(scheduler.handle(WorkerHello("w", PROFILE), 0))
    assert ids(batch) == [1, 2]
    assert scheduler.failure is None


def test_a_learner_that_fails_does_no_harm(start: Start) -> None:
    """A learner may raise whenever it is told something: queries are served and rejected all the same."""
    core = start("tests.sched.test_failing:Untaught")
    core.hello()
    (first,) = dispatched(core.arrive(query(1), query(3, 2_000_000), query(5, 1_000)))
    assert core.outcomes == {5: ["late"]}
    core.finish(first, 0, 20_000)
    assert core.scheduler.failures == 3
    assert isinstance(core.scheduler.failure, KeyError)


def test_what_is_no_learner_is_refused() -> None:
    """A scheduler does not begin with a `learner()` that makes something else, or fails."""
    with pytest.raises(PolicyError, match=r"learner: expected a Learner of common\.sched\.policies\.base, got dict"):
        Scheduler(parse_policy("tests.sched.test_failing:Untaught:kind=none"))
    with pytest.raises(PolicyError, match="learner: KeyError: 'other'"):
        Scheduler(parse_policy("tests.sched.test_failing:Untaught:kind=other"))


def test_a_cheapest_that_fails_refuses_the_worker() -> None:
    """Whatever `cheapest` raises for a profile is a PolicyError of the hello, which changes nothing."""
    scheduler = Scheduler(Untaught())
    with pytest.raises(PolicyError, match="cheapest: IndexError: tuple index out of range"):
        scheduler.handle(WorkerHello("w", make_profile(SMALL)), 0)
    assert not scheduler.workers


def test_a_simulation_ends_at_the_first_failure() -> None:
    """The simulator raises what the policy did, with the place and the time, in one line."""
    workload = make_workload("poisson", rate=100, duration_s=1, seed=0, slo_ms=50)
    with pytest.raises(InputError, match=r"division.* \(test_failing\.py, line \d+, at \d\.\d+ s\)$") as failed:
        simulate(Scheduler(Failing()), workload, PROFILE, 1)
    assert failed.value.key == "policy"
    with pytest.raises(InputError, match=r"got str \(at \d\.\d+ s\)$"):
        simulate(Scheduler(Failing("word")), workload, PROFILE, 1)
