"""Why a batch's subnet is not the best: each reason in a situation made by hand.

Latencies are those of the harness, for 1, 2, 4 rows: small 10, 12, 16 ms, big 20, 30, 50 ms; tiny half of small's.
"""

from dataclasses import dataclass

import pytest

from common.sched.policies.base import View, best_of
from common.sched.policies.coarse import Coarse
from common.sched.policies.fixed import Fixed
from common.sched.policies.maxbatch import MaxBatch
from common.sched.profile import Profile, Subnet
from common.sched.types import Choice, Command, Dispatch, WorkerDraining
from tests.sched.conftest import Start
from tests.sched.harness import BIG, PROFILE, SMALL, dispatched, make_profile, only, query

TINY = Subnet("tiny", 60.0, (5_000, 6_000, 8_000), (5_500, 6_500, 9_000))
THREE = make_profile(TINY, SMALL, BIG)


@dataclass(frozen=True, slots=True)
class Modest:
    """A user's policy that never goes above small of itself, though there is slack."""

    def cheapest(self, profile: Profile) -> str:
        return profile.smallest

    def best(self, profile: Profile) -> str:
        return "small"

    def choose(self, view: View) -> Choice:
        return Choice("small" if view.slack_us >= 10_000 else "tiny", 4)


def reasons(commands: list[Command]) -> list[tuple[str, str]]:
    return [(command.batch.subnet, command.degraded) for command in only(commands, Dispatch)]


def test_best_subnet_is_not_degraded(start: Start) -> None:
    """The most accurate subnet of all live workers has no reason; that of the only worker is it."""
    core = start()
    core.hello()
    assert reasons(core.arrive(query(1))) == [("big", "")]
    other = start()
    other.hello(profile=make_profile(SMALL))
    assert reasons(other.arrive(query(1))) == [("small", "")]


@pytest.mark.parametrize(("deadline_us", "expected"), [(20_000, ("big", "")), (19_999, ("small", "slack"))])
def test_slack(start: Start, deadline_us: int, expected: tuple[str, str]) -> None:
    """A head that big would serve one microsecond after its deadline is served by small, by its slack."""
    core = start()
    core.hello()
    assert reasons(core.arrive(query(1, deadline_us))) == [expected]


def test_policy(start: Start) -> None:
    """Big would have met the head's slack alone; the policy runs all four on small, and that is its choice."""
    core = start()
    core.hello()
    assert reasons(core.arrive(*(query(i, 20_000) for i in range(1, 5)))) == [("small", "policy")]


def test_reason_is_that_of_the_most_urgent_query(start: Start) -> None:
    """A query with all the time in the world shares a batch with one that has none, and its reason."""
    core = start()
    core.hello()
    batches = core.arrive(query(1, 15_000), query(2, 1_000_000))
    assert reasons(batches) == [("small", "slack")]
    assert [item.id for item in dispatched(batches)[0].queries] == [1, 2]


@pytest.mark.parametrize(("min_accuracy", "expected"), [(65.0, ("small", "floor")), (0.0, ("tiny", "policy"))])
def test_floor(start: Start, min_accuracy: float, expected: tuple[str, str]) -> None:
    """The least accurate subnet that the head allows, where a better one fits: the floor set it. Without, the policy.

    infaas would be a cap, so this is a policy that goes as low as it may: brownout, all steps down.
    """
    core = start("brownout:window_ms=1,high=0.0,low=0.0,quantile=median")
    core.hello(profile=THREE)
    for i in range(2):  # each batch takes some of its SLO, which is above 0: a step down
        (batch,) = dispatched(core.arrive(query(10 + i), now_us=i * 100_000))
        core.finish(batch, i * 100_000, i * 100_000 + THREE.latency_us(batch.subnet, 1))
    now_us = 500_000
    assert reasons(core.arrive(query(1, now_us + 25_000, now_us, min_accuracy=min_accuracy), now_us=now_us)) == [
        expected
    ]


def test_slack_comes_before_floor(start: Start) -> None:
    """Where no better subnet would have met the slack, that is why, floor or not."""
    core = start()
    core.hello(profile=THREE)
    assert reasons(core.arrive(query(1, 15_000, min_accuracy=65.0))) == [("small", "slack")]


@pytest.mark.parametrize("spec", ["fixed:small", "infaas:65", "coarse:fixed:small", f"{__name__}:Modest"])
@pytest.mark.parametrize("deadline_us", [15_000, 1_000_000])
def test_cap_of_a_policy(start: Start, spec: str, deadline_us: int) -> None:
    """A policy that uses nothing better of itself is the reason, whatever the slack."""
    core = start(spec)
    core.hello(profile=THREE)
    assert reasons(core.arrive(query(1, deadline_us))) == [("small", "cap")]


def test_below_its_cap_a_policy_is_not_capped(start: Start) -> None:
    """A head for whom even the policy's best is too slow is degraded by its slack."""
    core = start(f"{__name__}:Modest")
    core.hello(profile=THREE)
    assert reasons(core.arrive(query(1, 9_000))) == [("tiny", "slack")]


def test_floor_above_a_cap(start: Start) -> None:
    """A query that demands more than the policy's cap is served above it, by its floor."""
    core = start("fixed:tiny")
    core.hello(profile=THREE)
    assert reasons(core.arrive(query(1, min_accuracy=65.0))) == [("small", "floor")]


def test_cap_of_a_worker(start: Start) -> None:
    """A worker without the best subnet caps what it serves, until the one that has it drains."""
    core = start()
    core.hello("a", make_profile(SMALL))
    core.hello("b", make_profile(BIG))
    (batch, *_) = dispatched(core.arrive(query(1)))
    assert (batch.worker, core.history[-1][0]) == ("a", Dispatch(batch, "cap"))
    core.finish(batch, 0, 10_000)
    core.send(WorkerDraining("b"), 10_000)
    assert reasons(core.arrive(query(2), now_us=10_000)) == [("small", "")]


def test_late_head_has_no_slack(start: Start) -> None:
    """Served late, under `late=serve`, a head is degraded by its slack."""
    core = start(late="serve")
    core.hello()
    assert reasons(core.arrive(query(1, 5_000))) == [("small", "slack")]


def test_what_batches_lately_took_counts(start: Start) -> None:
    """50 ms are enough for big's 20, but not once batches took twice as long as predicted and the worker is slow.

    Correction 1.5, quantile 2.0: big is predicted to take 60 ms.
    """
    core = start("slackfit")
    core.hello()
    (batch,) = dispatched(core.arrive(query(1)))
    assert batch.subnet == "big"
    core.finish(batch, 0, 40_000)
    assert reasons(core.arrive(query(2, 100_000), now_us=50_000)) == [("small", "slack")]


def test_best_of_a_policy() -> None:
    """By itself a policy uses all subnets; one that says otherwise is believed, also inside another."""
    assert best_of(MaxBatch(), PROFILE) == 1
    assert best_of(Fixed(subnet="smallest"), PROFILE) == 0
    assert best_of(Coarse("fixed:smallest"), PROFILE) == 0
    assert best_of(Coarse("maxbatch"), PROFILE) == 1


def test_subnets_alike_in_accuracy_are_not_better(start: Start) -> None:
    """A slower subnet of the same accuracy, which would not meet the slack, is no better one: the worker has none."""
    core = start()
    twin = Subnet("twin", 70.0, (11_000, 13_000, 17_000), (12_000, 14_000, 19_000))
    core.hello(profile=make_profile(SMALL, twin))
    core.hello("best", make_profile(BIG))
    assert reasons(core.arrive(query(1, 10_500))) == [("small", "cap")]
