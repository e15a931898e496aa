"""Plain counting: histograms, and windows made of snapshots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.metrics import RECENT_S, Histogram, Recent

BOUNDS = (0.0, 1.0, 5.0)


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0, 5.0, 9.0])))
def test_histogram_counts_up_to_each_bound(values: list[float]) -> None:
    """Each bucket counts the values at or below its bound, the last one all of them; their sum is kept."""
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.add(value)
    expected = [(str(bound), float(sum(value <= bound for value in values))) for bound in BOUNDS]
    assert histogram.buckets() == [*expected, ("+Inf", float(len(values)))]
    assert histogram.total == pytest.approx(sum(values))


def test_recent_tells_what_the_last_seconds_brought() -> None:
    """With a snapshot a second, the window reaches back to the latest one that is at least 10 s old."""
    recent: Recent[str] = Recent(100.0)
    for second in range(1, 31):
        recent.snapshot(100.0 + second, {"queries": 10.0 * second})
    assert recent.gained(130.5, {"queries": 305.0}) == (RECENT_S + 0.5, {"queries": 105.0})


def test_recent_before_its_first_window_is_full() -> None:
    """Until 10 s have passed the window is the time since the start, yet at least a second; new keys began at 0."""
    recent: Recent[str] = Recent(100.0)
    assert recent.gained(100.25, {"a": 7.0}) == (1.0, {"a": 7.0})
    recent.snapshot(101.0, {"a": 7.0})
    assert recent.gained(104.0, {"a": 9.0, "b": 1.0}) == (4.0, {"a": 9.0, "b": 1.0})
