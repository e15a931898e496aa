"""Coarse-grained switching, by hand: what a change of subnet must have time for, and who pays where it has none.

small takes 10, 12, 14, 16 ms and big 20, 30, 40, 50 ms for 1 to 4 rows; a change takes 30 ms.
"""

from dataclasses import dataclass, replace

import pytest

from common.sched.policies import View, parse_policy
from common.sched.profile import Profile
from common.sched.types import Choice
from common.sched.worker import Worker
from tests.sched.conftest import Start
from tests.sched.harness import PROFILE, dispatched, make_view, query

LOADING = replace(PROFILE, actuation_us=30_000)
POLICY = "coarse:maxbatch:quantile=median,quantile=median"


def loaded(subnet: str, slack_us: int, queued: int = 9, min_accuracy: float = 0.0) -> View:
    view = make_view(LOADING, [query(i, slack_us, min_accuracy=min_accuracy) for i in range(queued)], slack_us)
    view.worker.subnet = subnet
    return view


@pytest.mark.parametrize(
    ("subnet", "slack_us", "choice"),
    [
        ("big", 50_000, Choice("big", 4)),  # 1: as wanted
        ("small", 80_000, Choice("big", 4)),  # 2: 30 ms to change and 50 to run
        ("small", 79_999, Choice("small", 4)),  # 3: too late to change
        ("small", 50_000, Choice("small", 4)),
        ("big", 46_000, Choice("small", 4)),  # 2: small@4 is wanted, and takes 16 ms after the change
        ("big", 40_000, Choice("small", 1)),  # 2: there is time for small@1 after the change
        ("big", 39_999, Choice("big", 2)),  # 3: there is none
        ("big", 20_000, Choice("big", 1)),
        ("big", 19_999, Choice("small", 1)),  # 4: big has no time for the head, which carries the change alone
        ("big", 9_999, Choice("small", 1)),  # 5: nothing has
        ("small", 9_999, None),
        ("", 50_000, Choice("small", 4)),  # 2
        ("", 39_999, Choice("small", 1)),  # 4: nothing is loaded
        ("gone", 39_999, Choice("small", 1)),
    ],
)
def test_a_change_must_fit(subnet: str, slack_us: int, choice: Choice | None) -> None:
    """A worker changes if there is time for it, keeps its subnet if that can serve the head, else loses the head."""
    assert parse_policy(POLICY).choose(loaded(subnet, slack_us)) == choice


def test_a_late_batch_is_no_reason_to_change() -> None:
    """A policy that serves late heads all the same does not make a worker change that can still make it by staying."""
    policy = parse_policy("coarse:maxbatch:quantile=median;late=drain,quantile=median")
    assert policy.choose(loaded("big", 39_999)) == Choice("big", 2)
    assert policy.choose(loaded("big", 46_000)) == Choice("small", 4)


@pytest.mark.parametrize(
    ("subnet", "slack_us", "choice"),
    [
        ("small", 50_000, Choice("big", 1)),  # 2: big@1, 20 ms, after the change
        ("small", 49_999, Choice("big", 1)),  # 4: too late to change, and small will not do
        ("big", 20_000, Choice("big", 1)),  # 3
        ("big", 19_999, None),  # 5: the cheapest that may serve it is loaded, and has no time
    ],
)
def test_no_query_is_served_below_its_accuracy(subnet: str, slack_us: int, choice: Choice | None) -> None:
    """Where there is no time for a change, a head that demands more than what is loaded has is served late, or goes."""
    policy = parse_policy("coarse:maxacc:quantile=median,quantile=median")
    assert policy.choose(loaded(subnet, slack_us, 9, 75.0)) == choice


def test_without_a_delay_the_policy_alone_decides() -> None:
    """With an actuation of 0 the choice is the inner policy's, whatever is loaded."""
    view = make_view(PROFILE, [query(i) for i in range(9)], 50_000)
    view.worker.subnet = "small"
    assert parse_policy(POLICY).choose(view) == Choice("big", 4)


SEEN: list[View] = []


@dataclass(frozen=True)
class Watch:
    """Wants the largest subnet for the head alone, and remembers what it was shown."""

    def cheapest(self, profile: Profile) -> str:
        return profile.smallest

    def choose(self, view: View) -> Choice:
        SEEN.append(view)
        return Choice(view.profile.largest, view.head.rows)


def test_asked_again_the_policy_sees_a_worker_busy_for_longer() -> None:
    """Start, slack and the worker's free time are later by the delay, in the view and among the workers."""
    SEEN.clear()
    view, other = loaded("small", 80_000), Worker("v", LOADING, 0)
    view = view._replace(now_us=5_000, start_us=7_000, slack_us=73_000, workers=(other, view.worker))
    assert parse_policy(f"coarse:{__name__}:Watch").choose(view) == Choice("big", 1)
    first, again = SEEN
    assert first is view
    assert (again.start_us, again.slack_us) == (37_000, 43_000)
    assert again.worker.free_us == 35_000
    assert list(again.workers) == [other, again.worker]
    assert view.worker.free_us == other.free_us == 0


def test_delays_add_up(start: Start) -> None:
    """Through the core: the first batch loads small, a roomy head changes to big, and both delays are predicted."""
    core = start(POLICY)
    core.hello(profile=LOADING)
    (first,) = dispatched(core.arrive(query(1, 45_000)))
    assert (first.subnet, core.scheduler.workers["w"].free_us) == ("small", 40_000)
    core.finish(first, 0, 40_000)
    (second,) = dispatched(core.arrive(query(2, 99_999), now_us=50_000))
    assert (second.subnet, core.scheduler.workers["w"].free_us) == ("small", 60_000)
    core.finish(second, 50_000, 60_000)
    (third,) = dispatched(core.arrive(query(3, 110_000), now_us=60_000))
    assert (third.subnet, core.scheduler.workers["w"].free_us) == ("big", 110_000)


def test_a_learner_is_that_of_the_policy_inside(start: Start) -> None:
    """A brownout inside learns as it does outside, and the log replays."""
    core = start("coarse:brownout:window_ms=1")
    core.hello(profile=LOADING)
    now_us = 0
    for number in range(6):
        (batch,) = dispatched(core.arrive(query(number, now_us + 100_000, now_us), now_us=now_us))
        core.finish(batch, now_us, now_us + 99_000)
        now_us += 100_000
    assert batch.subnet == "small"
