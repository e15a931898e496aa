"""The accuracy debt: what it is of, and what it is not."""

import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import monotonic_us
from common.sched import Arrived, Batch, Profile, Query, Scheduler, WorkerHello
from common.sched.policies import parse_policy
from services.scheduler.metrics import Counts, Metrics, debt
from services.worker.library import PROFILES, read_profile

BEST, ACCURACY = 90.0, {"small": 80.0, "large": 90.0}
counts = st.integers(0, 10_000)


@given(counts, counts, counts)
def test_debt_is_the_accuracy_that_was_not_served(small: int, large: int, turned_away: int) -> None:
    """The best subnet's accuracy for every query, less the accuracy served, 0 for a query turned away; per second."""
    served = 80.0 * small + 90.0 * large
    owed = 90.0 * (small + large + turned_away) - served
    assert debt(BEST, ACCURACY, {"small": small, "large": large, None: turned_away}, 10.0) == pytest.approx(owed / 10)


def test_subnet_better_than_those_left_owes_nothing() -> None:
    """When the workers with the best subnet are gone, what they served is no credit; nor is a subnet never heard of."""
    assert debt(80.0, ACCURACY, {"large": 50, "small": 50, "unknown": 50}, 10.0) == 0.0


def exposed(metrics: Metrics) -> float:
    """The gauge's value."""
    (sample,) = [s for family in metrics.collect() for s in family.samples if s.name.endswith("accuracy_debt")]
    return sample.value


def profile() -> Profile:
    return read_profile(PROFILES / "rtx2080ti-reconstructed.json")


def metrics_of(core: Scheduler, tally: Counts) -> Metrics:
    return Metrics(f"model-{secrets.token_hex(4)}", tally, lambda: core, lambda: 0, lambda: 0)


def test_gauge_counts_dispatches_and_rejections_for_load() -> None:
    """Batches by less than the best subnet, and queries rejected for load, show; those by the best, and rejections that
    no worker would have prevented, do not."""
    core, tally = Scheduler(parse_policy("slackfit")), Counts()
    core.handle(WorkerHello("w", profile()), 1)
    metrics, subnets = metrics_of(core, tally), profile().subnets
    tally.dispatched(Batch(1, "w", subnets[-1].id, (Query(1, 0, 1_000),)), 10)
    tally.outcomes["min_accuracy"] += 5
    tally.outcomes["poison"] += 5
    assert exposed(metrics) == 0.0
    tally.dispatched(Batch(2, "w", subnets[0].id, (Query(2, 0, 1_000), Query(3, 0, 1_000))), 10)
    below = 2 * (subnets[-1].accuracy - subnets[0].accuracy)
    assert exposed(metrics) == pytest.approx(below)  # in the first second, which counts whole
    tally.outcomes["late"] += 1
    assert exposed(metrics) == pytest.approx(below + subnets[-1].accuracy)


def test_what_waits_owes_nothing_yet() -> None:
    """A queue of queries that no worker serves is backlog, not debt."""
    core, now_us = Scheduler(parse_policy("slackfit")), monotonic_us()
    core.handle(Arrived((Query(1, now_us, now_us + 10**9),)), now_us)
    assert core.queued_rows == 1
    assert exposed(metrics_of(core, Counts())) == 0.0


def test_slack_of_a_late_batch_is_none() -> None:
    """The slack counted is that of the earliest deadline, in seconds, and never below 0."""
    tally = Counts()
    tally.dispatched(Batch(1, "w", "small", (Query(1, 0, 30_000), Query(2, 0, 90_000))), 10_000)
    tally.dispatched(Batch(2, "w", "small", (Query(3, 0, 30_000),)), 40_000)
    assert tally.slack.total == pytest.approx(0.02)
    assert dict(tally.slack.buckets())["0.0005"] == 1.0
