"""Arrival times of a run: a SPEC, a rate, a duration and a seed give the same offsets every time.

Every kind but `timestamps` is one idea: a unit process (gaps of mean 1 and squared coefficient of variation cv2: even,
exponential or gamma) is laid over the cumulative number of expected arrivals, and read back as times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadgen.errors import InputError
from loadgen.spec import Bursty, Constant, Minutes, Poisson, Ramp, Timestamps, parse_spec
from loadgen.trace_files import read_minutes, read_timestamps

Times = NDArray[np.float64]

MAX_QUERIES = 20_000_000  # 160 MB of offsets: more is a typing error


def make_arrivals(trace: str, *, rate: float | None = None, duration_s: float, seed: int = 0) -> Times:
    """Arrival offsets of one run: seconds from its start, sorted, within [0, `duration_s`), at least one.

    `trace` is a SPEC (see `loadgen.spec`). `rate` is the wanted mean in queries per second: every rate of the SPEC is
    scaled by the same factor, so that ratios and shape stay. Without it the SPEC's own rates hold: `minutes` keeps the
    mean rate of its file, `timestamps` replays each request of its file once, `constant` and `poisson` have none.
    InputError names the key and the value that cannot be used.
    """
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise InputError("duration", duration_s, "must be seconds > 0")
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise InputError("rate", rate, "must be queries per second > 0")
    if seed < 0:
        raise InputError("seed", seed, "must be >= 0")
    times = _arrivals(trace, rate, duration_s, np.random.default_rng(seed))
    times = np.sort(times[times < duration_s])
    if not len(times):
        raise InputError("trace", trace, f"sends no query within {duration_s:g} s")
    return times


def _arrivals(trace: str, rate: float | None, duration_s: float, rng: np.random.Generator) -> Times:
    spec = parse_spec(trace)
    match spec:
        case Constant() | Poisson():
            if rate is None:
                raise InputError("rate", "(missing)", f"the trace {trace} has no rate of its own")
            cv2 = 0.0 if isinstance(spec, Constant) else 1.0
            return _unit_process(rate * duration_s, cv2, rng) / rate
        case Bursty(base, variant, cv2):
            scale = 1.0 if rate is None else rate / (base + variant)
            base, variant = base * scale, variant * scale
            bursts = _unit_process(variant * duration_s, cv2, rng) / variant
            if base == 0:
                return bursts
            return np.concatenate((_unit_process(base * duration_s, 0.0, rng) / base, bursts))
        case Ramp():
            ramp = spec if rate is None else _scaled(spec, rate / (_ramp_expected(spec, duration_s) / duration_s))
            return _ramp_times(ramp, _unit_process(_ramp_expected(ramp, duration_s), ramp.cv2, rng))
        case Minutes(file, column, within):
            counts = read_minutes(file, column)
            mean = float(counts.mean()) / 60.0 if rate is None else rate
            expected = np.concatenate(([0.0], np.cumsum(counts))) * (mean * duration_s / counts.sum())
            edges = np.linspace(0.0, duration_s, len(counts) + 1)
            units = _unit_process(float(expected[-1]), 1.0 if within == "poisson" else 0.0, rng)
            return np.interp(units, expected, edges)
        case Timestamps(file, column):
            return _resampled(read_timestamps(file, column), rate, duration_s)


def _unit_process(expected: float, cv2: float, rng: np.random.Generator) -> Times:
    """Points on [0, `expected`) whose gaps have mean 1 and squared coefficient of variation `cv2`.

    Gaps are Gamma(shape 1/cv2, scale cv2): exponential at 1; at 0 they are all 1 and the first point is at 0.
    """
    if expected > MAX_QUERIES:
        raise InputError("rate x duration", f"{expected:.3g}", f"is more than {MAX_QUERIES} queries")
    if cv2 == 0:
        return np.arange(math.ceil(expected - 1e-9), dtype=np.float64)
    chunk = int(min(expected + 4 * math.sqrt(expected * cv2) + 16, MAX_QUERIES / 10))
    points: Times = np.cumsum(rng.gamma(1 / cv2, cv2, chunk))
    while points[-1] < expected:
        points = np.concatenate((points, points[-1] + np.cumsum(rng.gamma(1 / cv2, cv2, chunk))))
    return points[: int(np.searchsorted(points, expected))]


def _scaled(ramp: Ramp, factor: float) -> Ramp:
    """The same ramp with every rate times `factor`: it takes the same time."""
    return Ramp(ramp.start * factor, ramp.end * factor, ramp.accel * factor, ramp.cv2)


def _ramp_expected(ramp: Ramp, until_s: float) -> float:
    """Expected arrivals of a ramp within its first `until_s` seconds."""
    rising_s = min((ramp.end - ramp.start) / ramp.accel, until_s)
    return (ramp.start + ramp.accel * rising_s / 2) * rising_s + ramp.end * (until_s - rising_s)


def _ramp_times(ramp: Ramp, expected: Times) -> Times:
    """When a ramp has had so many `expected` arrivals: the inverse of `_ramp_expected`."""
    rising_s = (ramp.end - ramp.start) / ramp.accel
    risen = _ramp_expected(ramp, rising_s)
    # The root of start*t + accel*t^2/2 = expected, in the form that loses no digits.
    root = np.sqrt(np.maximum(ramp.start**2 + 2 * ramp.accel * np.minimum(expected, risen), 0.0))
    rising = np.divide(2 * np.minimum(expected, risen), ramp.start + root, out=np.zeros_like(expected), where=root > 0)
    return np.where(expected < risen, rising, rising_s + (expected - risen) / ramp.end)


def _resampled(stamps: Times, rate: float | None, duration_s: float) -> Times:
    """`stamps`, which start at 0, shrunk to `duration_s`; with a `rate`, as many quantiles of them as it asks for.

    Quantiles keep the shape: fewer than the file has leaves out every so-manieth request, more fills the gaps between
    neighbours evenly, so that a burst stays a burst.
    """
    count = len(stamps)
    shrunk: Times = stamps * (duration_s / (stamps[-1] * count / (count - 1)))  # n stamps have n - 1 gaps
    if rate is None:
        return shrunk
    wanted = max(1, round(rate * duration_s))
    if wanted > MAX_QUERIES:
        raise InputError("rate x duration", wanted, f"is more than {MAX_QUERIES} queries")
    resampled: Times = np.interp(
        np.arange(wanted) * (count / wanted), np.arange(count + 1), np.append(shrunk, duration_s)
    )
    return resampled


@dataclass(frozen=True, slots=True)
class TraceStats:
    """What a trace is like, before anything is sent. Rates are queries per second."""

    queries: int
    duration_s: float
    mean_qps: float
    peak_second_qps: float
    peak_100ms_qps: float
    gap_cv: float  # standard deviation of the inter-arrival gaps over their mean

    @property
    def peak_to_mean(self) -> float:
        """The busiest second against the mean."""
        return self.peak_second_qps / self.mean_qps


def describe(arrivals: Times, duration_s: float) -> TraceStats:
    """Rate, peaks and burstiness of `arrivals`."""
    gaps = np.diff(arrivals)
    gap_mean = float(gaps.mean()) if len(gaps) else 0.0
    return TraceStats(
        queries=len(arrivals),
        duration_s=duration_s,
        mean_qps=len(arrivals) / duration_s,
        peak_second_qps=_peak(arrivals, min(1.0, duration_s)),
        peak_100ms_qps=_peak(arrivals, min(0.1, duration_s)),
        gap_cv=float(gaps.std()) / gap_mean if gap_mean > 0 else 0.0,
    )


def largest_within(arrivals: Times, window_s: float) -> int:
    """The most arrivals that any window of `window_s` seconds holds."""
    ends = np.searchsorted(arrivals, arrivals + window_s, side="right")
    return int((ends - np.arange(len(arrivals))).max(initial=0))


def _peak(arrivals: Times, window_s: float) -> float:
    """The highest rate over windows of `window_s` laid side by side."""
    windows = (arrivals / window_s + 1e-9).astype(np.int64)  # an arrival on an edge belongs to the later window
    return float(np.bincount(windows).max()) / window_s
