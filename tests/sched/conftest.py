"""Fixtures of the scheduling tests."""

from collections.abc import Callable, Iterator

import pytest

from common.sched.options import SchedulerOptions
from tests.sched.harness import Harness

Start = Callable[..., Harness]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a scheduler: `start("slackfit", late="serve")`. Invariants and replay are checked when the test ends."""
    started: list[Harness] = []

    def factory(spec: str = "maxbatch:quantile=median", **options: object) -> Harness:
        harness = Harness(spec, SchedulerOptions(**options))  # type: ignore[arg-type]
        started.append(harness)
        return harness

    yield factory
    for harness in started:
        harness.scheduler.check()
        harness.close()
        assert all(len(outcomes) == 1 for outcomes in harness.outcomes.values()), "a query had two outcomes"
