"""Foresight, by hand: which subnets it uses, what it asks of those behind, and when it lets a head go.

One worker unless said otherwise; small takes 10, 12, 14, 16 ms and big 20, 30, 40, 50 ms for 1 to 4 rows.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.sched.policies import View, parse_policy
from common.sched.policies.foresight import hull
from common.sched.profile import Subnet
from common.sched.queue import EdfQueue
from common.sched.types import Choice, Query
from common.sched.worker import Worker
from tests.sched.harness import PROFILE, SMALL, make_profile, make_view, query

POLICY = parse_policy("foresight")


def seen(view: View, ratio: float = 1.0) -> View:
    """The view after 600 batches that took that much over what was predicted."""
    for _ in range(600):
        view.residuals.add(ratio)
    return view


def waiting(*deadlines_us: int) -> list[Query]:
    return [query(i, deadline_us) for i, deadline_us in enumerate(deadlines_us)]


def subnet(name: str, accuracy: float, us: int) -> Subnet:
    return Subnet(name, accuracy, (us // 4, us // 2, us), (us // 4, us // 2, us))


def test_subnets_off_the_hull_are_not_used() -> None:
    """Subnets below the line between two others are left out; where those are not eligible, they count."""
    profile = make_profile(
        subnet("a", 70, 10_000),
        subnet("below", 71, 30_000),  # from a to c, 70 to 78, the line passes 72.7 at 30 ms
        subnet("too", 75, 50_000),  # 75.3 there
        subnet("c", 78, 70_000),
        subnet("d", 79, 90_000),
        subnet("dear", 79.5, 200_000),
    )
    assert [profile.subnets[i].id for i in hull(profile, 0)] == ["a", "c", "d", "dear"]
    assert [profile.subnets[i].id for i in hull(profile, 1)] == ["below", "too", "c", "d", "dear"]


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 1_000)), min_size=1, max_size=8, unique_by=lambda x: x[0]))
def test_no_subnet_lies_above_the_hull(points: list[tuple[int, int]]) -> None:
    """Every subnet is on the hull, or a mix of two hull subnets is at least as accurate for the same work."""
    profile = make_profile(*(subnet(f"s{a}", a, 4_000 * us) for a, us in points))
    kept = [(profile.latency_us(profile.subnets[i].id, 4), profile.subnets[i].accuracy) for i in hull(profile, 0)]
    assert kept == sorted(kept)
    for us, accuracy in ((profile.latency_us(s.id, 4), s.accuracy) for s in profile.subnets):
        under = [point for point in kept if point[0] <= us]
        over = [point for point in kept if point[0] >= us]
        assert under  # the cheapest is kept
        (a_us, a), (b_us, b) = under[-1], (over or under)[0 if over else -1]
        mixed = a if a_us == b_us else a + (b - a) * (us - a_us) / (b_us - a_us)
        assert accuracy <= mixed + 1e-9


@pytest.mark.parametrize(
    ("slack_us", "ratio", "choice"),
    [
        (40_000, 1.0, Choice("big", 3)),  # three of four rows is full enough
        (39_999, 1.0, Choice("small", 4)),
        (40_000, 1.1, Choice("small", 4)),
        (44_001, 1.1, Choice("big", 3)),
        (17_601, 1.1, Choice("small", 4)),
    ],
)
def test_the_margin_is_what_was_seen(slack_us: int, ratio: float, choice: Choice) -> None:
    """A subnet must fill its batch within the slack less the worst that batches lately took over their prediction."""
    assert POLICY.choose(seen(make_view(PROFILE, waiting(slack_us, *[10**9] * 8), slack_us), ratio)) == choice


def test_the_target_is_the_operators() -> None:
    """A lower target forgives a rare slow batch, and buys accuracy with it."""
    view = make_view(PROFILE, waiting(40_000, *[10**9] * 8), 40_000)
    for i in range(1_000):
        view.residuals.add(2.0 if i % 100 == 0 else 1.0)
    assert parse_policy("foresight:target=0.999").choose(view) == Choice("small", 4)
    assert parse_policy("foresight:target=0.9").choose(view) == Choice("big", 3)


def test_a_short_queue_is_spent_on_accuracy() -> None:
    """With fewer rows queued than would fill a batch, all of them count as full."""
    assert POLICY.choose(seen(make_view(PROFILE, waiting(10**9), 20_000))) == Choice("big", 1)
    assert POLICY.choose(seen(make_view(PROFILE, waiting(10**9, 10**9), 29_999))) == Choice("small", 4)


@pytest.mark.parametrize(("due_us", "choice"), [(66_000, Choice("big", 4)), (65_999, Choice("small", 4))])
def test_those_behind_decide(due_us: int, choice: Choice) -> None:
    """Big is taken if the four behind it, after its 50 ms, can be met by small in 16 ms; else small."""
    queued = waiting(*[60_000] * 4, *[due_us] * 4)
    assert POLICY.choose(seen(make_view(PROFILE, queued, 60_000))) == choice


def test_those_behind_go_to_any_worker() -> None:
    """A second worker that is free takes those behind, so that the first may do its best; a busy one does not."""
    view = seen(make_view(PROFILE, waiting(*[60_000] * 4, *[60_500] * 4), 60_000))
    assert POLICY.choose(view) == Choice("small", 4)
    other = Worker("other", PROFILE, 0)
    assert POLICY.choose(replace(view, workers=(view.worker, other))) == Choice("big", 4)
    other.free_us = 50_000
    assert POLICY.choose(replace(view, workers=(view.worker, other))) == Choice("small", 4)


def test_those_who_will_arrive_count() -> None:
    """Arrivals at the measured rate, due an SLO later, keep a lone worker from a subnet that they could not follow."""
    queued = [query(i, 60_000) for i in range(4)]  # SLO 60 ms
    assert POLICY.choose(seen(make_view(PROFILE, queued, 60_000))) == Choice("big", 4)
    view = seen(make_view(PROFILE, queued, 60_000))
    view.rate.add(40, 0)  # 400 rows/s: four in each of the next 10 ms; after 50 ms, 16 ms each
    assert POLICY.choose(view) == Choice("small", 4)
    assert parse_policy("foresight:horizon_ms=0").choose(view) == Choice("big", 4)


def test_a_head_that_would_cost_others_is_let_go() -> None:
    """Time for one row of small: it is served if those behind are met all the same, or lost anyway; else let go."""

    def choice(*behind_us: int) -> Choice | None:
        return POLICY.choose(seen(make_view(PROFILE, waiting(11_000, *behind_us), 11_000)))

    assert choice(*[26_000] * 4) == Choice("small", 1)  # 10 ms, then 16 for four
    assert choice(*[25_999] * 4) is None  # met only without it
    assert choice(*[15_999] * 4) == Choice("small", 1)  # lost either way


def test_a_head_with_a_slim_chance_is_served() -> None:
    """What lately happened leaves no time for the head, what is expected does: it is served, alone."""
    view = seen(make_view(PROFILE, waiting(11_000), 11_000), 1.5)
    assert POLICY.choose(view) == Choice("small", 1)
    assert POLICY.choose(replace(view, slack_us=9_999)) is None


def test_a_query_larger_than_every_batch_goes_alone() -> None:
    """Six rows where four are the largest batch: the most accurate subnet that has time for them."""
    view = seen(make_view(PROFILE, [query(0, 10**9, rows=6)], 10**6))
    assert POLICY.choose(view) == Choice("big", 6)


def test_one_subnet_is_enough() -> None:
    """A profile of one subnet leaves nothing to choose but the batch."""
    view = seen(make_view(make_profile(SMALL), waiting(*[10**9] * 9), 14_000))
    assert POLICY.choose(view) == Choice("small", 3)


def cut(rows: Sequence[int], skipped: int, size: int, most: int = 99) -> list[tuple[int, int]]:
    queue = EdfQueue()
    queue.push([query(i, 1_000 + i, rows=n) for i, n in enumerate(rows)])
    return queue.batches(skipped, size, most)


def test_batches_behind_are_cut_in_order() -> None:
    """Behind the rows that leave, batches follow in EDF order with their earliest deadlines; no query is split."""
    assert cut([1] * 10, 4, 4) == [(1_004, 4), (1_008, 2)]
    assert cut([1] * 10, 0, 4, most=2) == [(1_001, 4), (1_005, 4)]
    assert cut([1] * 4, 4, 4) == []
    assert cut([3, 2, 1, 6, 1], 4, 4) == [(1_001, 3), (1_003, 6), (1_004, 1)]
    assert cut([3, 2, 1, 6, 1], 5, 4) == [(1_002, 1), (1_003, 6), (1_004, 1)]


@given(st.integers(1, 30), st.integers(0, 20), st.integers(1, 8), st.integers(1, 5))
def test_single_rows_are_cut_alike(count: int, skipped: int, size: int, most: int) -> None:
    """The quick way for queries of one row gives what the long way gives for the same rows."""
    assert [(d, 2 * n) for d, n in cut([1] * count, skipped, size, most)] == cut(
        [2] * count, 2 * skipped, 2 * size, most
    )
