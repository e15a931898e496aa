"""A brownout controller: when quality falls, when it rises, and when it holds."""

from dataclasses import replace

import pytest

from common.sched.policies import parse_policy
from common.sched.policies.brownout import Level
from common.sched.types import Batch, BatchDone, Choice
from common.sched.worker import Worker
from tests.sched.conftest import Start
from tests.sched.harness import BIG, PROFILE, SMALL, Harness, dispatched, make_profile, make_view, query, rejected

MID = replace(BIG, id="mid", accuracy=75.0)
THREE = make_profile(SMALL, MID, BIG)


def serve(core: Harness, number: int, now_us: int, took_us: int, slo_us: int = 100_000) -> str:
    """Send a query, let its batch end after `took_us`, and return its subnet."""
    (batch,) = dispatched(core.arrive(query(number, now_us + slo_us, now_us), now_us=now_us))
    core.finish(batch, now_us, now_us + took_us)
    return batch.subnet


def test_quality_falls_and_rises_a_step_per_window(start: Start) -> None:
    """Above 0.8 of the SLO one subnet down per window, as far as there is one; between 0.5 and 0.8 hold; below, up."""
    core = start("brownout:window_ms=100,low=0.5")
    core.hello(profile=THREE)
    took_us = [90_000, 80_001, 81_000, 99_000, 80_000, 50_000, 49_999, 10_000, 10_000]
    subnets = [serve(core, i, 100_000 * i, us) for i, us in enumerate(took_us)]
    assert subnets == ["big", "mid", "small", "small", "small", "small", "small", "mid", "big"]


def test_a_window_is_judged_when_it_is_over(start: Start) -> None:
    """Within 100 ms of the last verdict nothing changes, whatever ended; then all that ended since counts together."""
    core = start("brownout:window_ms=100,tail=0.5")
    core.hello(profile=THREE)
    took_us = [27_000, 27_000, 18_000, 18_000, 18_000]
    subnets = [serve(core, i, 33_000 * i, us, 30_000) for i, us in enumerate(took_us)]
    assert subnets == ["big", "big", "big", "big", "mid"]


def test_a_lull_changes_nothing(start: Start) -> None:
    """A window in which nothing ended holds the level, however long it was."""
    core = start("brownout:window_ms=100")
    core.hello(profile=THREE)
    assert serve(core, 1, 0, 90_000) == "big"
    assert serve(core, 2, 100_000, 60_000) == "mid"
    (batch,) = dispatched(core.arrive(query(3, 9_100_000, 9_000_000), now_us=9_000_000))
    core.arrive(query(4, 9_300_000, 9_200_000), now_us=9_200_000)
    assert batch.subnet == "mid"


def test_late_queries_are_pressure(start: Start) -> None:
    """A query given up as late counts as slower than all, and one given up for another reason does not count."""
    core = start("brownout:window_ms=100")
    core.hello(profile=THREE)
    assert rejected(core.arrive(query(1, 9_000))) == [(1, "late")]
    assert serve(core, 2, 10_000, 10_000) == "mid"
    level = Level()
    level.rejected(query(1), "poison", 0)
    view = make_view(THREE, [query(2)], 100_000, learned=level)
    assert parse_policy("brownout").choose(view) == Choice("big", 4)


@pytest.mark.parametrize(("slow", "subnet"), [(4, "big"), (5, "small")])
def test_the_tail_is_judged(slow: int, subnet: str) -> None:
    """Of 100 queries the 96th in order decides: with 5 slow ones it is slow, with 4 it is not."""
    level = Level()
    slow_ones = tuple(query(i, 100_000) for i in range(slow))
    level.finished(Batch(1, "w", "big", slow_ones), BatchDone("w", 1, 0, 90_000))
    fine = tuple(query(i, 100_000) for i in range(slow, 100))
    level.finished(Batch(2, "w", "big", fine), BatchDone("w", 2, 0, 60_000))
    view = make_view(PROFILE, [query(1)], 100_000, learned=level)
    choice = parse_policy("brownout").choose(view)
    assert choice is not None
    assert choice.subnet == subnet


@pytest.mark.parametrize(
    ("slack_us", "choice"), [(55_000, Choice("big", 4)), (33_000, Choice("big", 2)), (21_999, None)]
)
def test_its_batch_fits_the_head(slack_us: int, choice: Choice | None) -> None:
    """The subnet of the level runs the largest batch whose p95 fits the slack; a head that none fits is let go."""
    view = make_view(PROFILE, [query(i) for i in range(9)], slack_us, learned=Level())
    assert parse_policy("brownout").choose(view) == choice


def test_accuracy_demanded_is_given_at_any_level() -> None:
    """A head that demands more than the level's subnet has gets the cheapest that reaches it."""
    level = Level()
    level.lowered = 2
    view = make_view(THREE, [query(1, min_accuracy=72.0)], 100_000, learned=level)
    assert parse_policy("brownout").choose(view) == Choice("mid", 4)


def test_workers_with_fewer_subnets_stop_at_their_smallest() -> None:
    """The level counts from the top of each profile, and falls as far as the longest one has subnets."""
    level, policy = Level(), parse_policy("brownout:window_ms=1")
    view = make_view(make_profile(SMALL, MID), [query(1)], 100_000, learned=level)
    view = view._replace(workers=(view.worker, Worker("v", THREE, 0)))
    chosen = []
    for i in range(5):
        level.rejected(query(9), "late", 0)
        choice = policy.choose(view._replace(now_us=1_000 * (i + 1)))
        chosen.append(choice and choice.subnet)
    assert chosen == ["small"] * 5
    assert level.lowered == 2
