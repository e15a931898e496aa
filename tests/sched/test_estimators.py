"""What the core learns from what it sees."""

from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.sched.estimators import ArrivalRate, DispatchDelay, Residuals


def test_rate_approaches_a_steady_stream() -> None:
    """After ten time constants of one row a millisecond the rate is a thousand a second; 1 s of silence forgets it."""
    rate = ArrivalRate()
    for now_us in range(0, 1_000_000, 1_000):
        rate.add(1, now_us)
    assert rate.per_s(1_000_000) == pytest.approx(1_000, rel=0.01)
    assert rate.per_s(2_000_000) < 1


def test_rate_survives_a_clock_that_steps_back() -> None:
    """Rows that arrive at an earlier time than the last are counted, not amplified."""
    rate = ArrivalRate()
    rate.add(1, 1_000_000)
    rate.add(1, 0)
    assert rate.per_s(1_000_000) == pytest.approx(20)


def test_surprise_is_what_the_rate_did_not_announce() -> None:
    """After a steady 1,000 rows/s, 100 rows in 20 ms exceed the announced 20 by 80; 10 s later a third is left."""
    rate = ArrivalRate()
    for now_us in range(0, 60_000_000, 1_000):  # what the start itself surprised by is forgotten by then
        rate.add(1, now_us)
    assert rate.surprise(60_000_000) < 1
    rate.add(100, 60_000_000)
    assert rate.surprise(60_019_999) < 1  # the window has not ended
    assert rate.surprise(60_020_000) == pytest.approx(80, abs=1)
    assert rate.surprise(70_020_000) == pytest.approx(80 / exp(1), abs=1)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_surprise_does_not_depend_on_packs(rows: list[int]) -> None:
    """Rows that are given together surprise as much as one by one within a window."""
    single, pack = ArrivalRate(), ArrivalRate()
    for i, n in enumerate(rows):
        single.add(n, 5_000_000 + 900 * i)
    pack.add(sum(rows), 5_000_000)
    assert single.surprise(6_000_000) == pytest.approx(pack.surprise(6_000_000), rel=0.05)


def test_margin_starts_high_and_ends_where_the_quantile_is() -> None:
    """2.5 before any batch, 1 + 1.5 / e after 150 as predicted; the worst and a third; the quantile after enough."""
    residuals = Residuals()
    assert residuals.margin(0.999) == 2.5
    for _ in range(150):
        residuals.add(1.0)
    assert residuals.margin(0.999) == pytest.approx(1 + 1.5 / exp(1))
    residuals.add(2.0)
    assert residuals.margin(0.999) == pytest.approx(2 + 1 / 3)
    for _ in range(361):
        residuals.add(0.9)
    assert residuals.margin(0.5) == residuals.quantile(0.5, prior=0.0) == 0.9
    assert residuals.margin(0.999) == pytest.approx(2 + 1 / 3)  # of 512 none need exceed it
    for ratio in (*[0.9] * 1_489, *[1.5] * 5):
        residuals.add(ratio)
    assert residuals.margin(0.998) == residuals.quantile(0.998) == 1.5  # of 2,006 four may
    assert residuals.margin(0.999) == pytest.approx(1.5 + 0.5 / 3)  # of these two


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=40), st.floats(0.0, 0.999))
def test_quantile_is_that_of_the_sorted_ratios(ratios: list[float], q: float) -> None:
    """Without a prior the quantile is the element of the sorted window at that share of its length."""
    residuals = Residuals()
    for ratio in ratios:
        residuals.add(ratio)
    assert residuals.quantile(q, prior=0.0) == sorted(ratios)[int(q * len(ratios))]


def test_prior_holds_until_enough_is_known() -> None:
    """Up to 512 batches the quantile is at least the prior; then what was seen decides."""
    residuals = Residuals()
    assert residuals.quantile(0.5) == 1.5
    for _ in range(511):
        residuals.add(1.0)
    assert residuals.quantile(0.5) == 1.5
    residuals.add(1.0)
    assert residuals.quantile(0.5) == 1.0


def test_window_forgets() -> None:
    """Only the last 2,048 ratios count."""
    residuals = Residuals()
    for ratio in [9.0] * 100 + [1.0] * 2048:
        residuals.add(ratio)
    assert residuals.quantile(0.999) == 1.0


def test_delay_follows_a_change() -> None:
    """The delay settles on a steady one, with no deviation left, and ignores what disagreeing clocks make negative."""
    delay = DispatchDelay(0, 100_000)
    for _ in range(100):
        delay.add(2_000)
    assert delay.us == 2_000
    for _ in range(100):
        delay.add(-50)
    assert delay.us == 0
