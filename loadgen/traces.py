"""Arrival times of a run: a SPEC, a rate, a duration and a seed give the same offsets every time.

Each component of a SPEC draws from a seed of its own, so that one put behind the others leaves their draws alone.
Every kind but `timestamps` is one idea: a unit process (gaps of mean 1 and squared coefficient of variation cv2: even,
exponential or gamma) is laid over the cumulative number of expected arrivals, and read back as times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadgen.errors import InputError
from loadgen.spec import Bursty, Component, Constant, Minutes, Poisson, Process, Ramp, Timestamps, parse_spec
from loadgen.trace_files import read_minutes, read_timestamps

Times = NDArray[np.float64]

MAX_QUERIES = 20_000_000  # 160 MB of offsets: more is a typing error
WINDOWS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of the index of dispersion
_FEWEST_WINDOWS = 10  # that a variance is taken of


def make_arrivals(trace: str, *, rate: float | None = None, duration_s: float, seed: int = 0) -> Times:
    """Arrival offsets of one run: seconds from its start, sorted, within [0, `duration_s`), at least one.

    Arguments and errors are those of `make_parts`.
    """
    parts = make_parts(trace, rate=rate, duration_s=duration_s, seed=seed)
    return np.sort(np.concatenate([part.times for part in parts]))


@dataclass(frozen=True, slots=True)
class Part:
    """What one component of a SPEC sends: sorted offsets from the start of the run, perhaps none."""

    component: Component
    times: Times


def make_parts(trace: str, *, rate: float | None = None, duration_s: float, seed: int = 0) -> list[Part]:
    """What each component of a SPEC sends within [0, `duration_s`); at least one query in all.

    `trace` is a SPEC (see `loadgen.spec`). `rate` is the wanted mean in queries per second: every rate of the SPEC is
    scaled by the same factor, so that ratios and shape stay. Without it the SPEC's own rates hold: `minutes` keeps the
    mean rate of its file, `timestamps` replays each request of its file once, `constant` and `poisson` have only what
    their key `rate` says. InputError names the key and the value that cannot be used.
    """
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise InputError("duration", duration_s, "must be seconds > 0")
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise InputError("rate", rate, "must be queries per second > 0")
    if seed < 0:
        raise InputError("seed", seed, "must be >= 0")
    components = parse_spec(trace)
    spans_s = [_span_s(component, duration_s) for component in components]
    files = [_read(component.process) for component in components]
    rates = _rates(components, files, spans_s, rate, duration_s)
    expected = sum(mean * span_s for mean, span_s in zip(rates, spans_s, strict=True))
    if expected > MAX_QUERIES:
        raise InputError("rate x duration", f"{expected:.3g}", f"is more than {MAX_QUERIES} queries")
    parts = []
    for position, component in enumerate(components):
        # The first draws from the seed itself: alone it sends the same whatever may be put behind it.
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(position,) if position else ()))
        times = _arrivals(component.process, files[position], rates[position], spans_s[position], rng)
        times = np.sort(times[times < spans_s[position]]) + component.from_s
        parts.append(Part(component, times[times < duration_s]))
    if not any(len(part.times) for part in parts):
        raise InputError("trace", trace, f"sends no query within {duration_s:g} s")
    return parts


def _span_s(component: Component, duration_s: float) -> float:
    """How long a component sends. InputError when that is not within the run."""
    to_s = duration_s if component.to_s is None else component.to_s
    if component.from_s >= duration_s or to_s > duration_s:
        key, value = ("from", component.from_s) if component.from_s >= duration_s else ("to", to_s)
        raise InputError(f"{component.kind}: {key}", f"{value:g}", f"is not within the run of {duration_s:g} s")
    return to_s - component.from_s


def _read(process: Process) -> Times:
    """What the file of a process holds: counts or stamps; nothing for a kind without a file."""
    match process:
        case Minutes(file, column):
            return read_minutes(file, column)
        case Timestamps(file, column):
            return read_timestamps(file, column)
        case _:
            return np.empty(0)


def _rates(
    components: Sequence[Component], files: Sequence[Times], spans_s: Sequence[float], rate: float | None, run_s: float
) -> list[float]:
    """The mean of each component while it sends. With a `rate` for the run each keeps its share of all queries."""
    if rate is not None and len(components) == 1:
        return [rate * (run_s / spans_s[0])]
    own = [
        component.rate or _own_rate(component, file, span_s)
        for component, file, span_s in zip(components, files, spans_s, strict=True)
    ]
    if rate is None:
        return own
    scale = rate * run_s / sum(mean * span_s for mean, span_s in zip(own, spans_s, strict=True))
    return [mean * scale for mean in own]


def _own_rate(component: Component, file: Times, span_s: float) -> float:
    """The mean rate of a component that is told none. InputError for a kind that has none of its own."""
    match component.process:
        case Bursty(base, variant, _):
            return base + variant
        case Ramp() as ramp:
            return _ramp_expected(ramp, span_s) / span_s
        case Minutes():
            return float(file.mean()) / 60.0
        case Timestamps():
            return len(file) / span_s
        case Constant() | Poisson():
            raise InputError(
                "rate", "(missing)", f"{component.kind} has no rate of its own: give --rate, or rate= in the SPEC"
            )


def _arrivals(process: Process, file: Times, rate: float, span_s: float, rng: np.random.Generator) -> Times:
    """Offsets from the start of `span_s` seconds of mean `rate`; some may lie beyond them."""
    match process:
        case Constant() | Poisson():
            cv2 = 0.0 if isinstance(process, Constant) else 1.0
            return _unit_process(rate * span_s, cv2, rng) / rate
        case Bursty(base, variant, cv2):
            scale = rate / (base + variant)
            base, variant = base * scale, variant * scale
            bursts = _unit_process(variant * span_s, cv2, rng) / variant
            if base == 0:
                return bursts
            return np.concatenate((_unit_process(base * span_s, 0.0, rng) / base, bursts))
        case Ramp():
            ramp = _scaled(process, rate / (_ramp_expected(process, span_s) / span_s))
            return _ramp_times(ramp, _unit_process(_ramp_expected(ramp, span_s), ramp.cv2, rng))
        case Minutes():
            expected = np.concatenate(([0.0], np.cumsum(file))) * (rate * span_s / file.sum())
            edges = np.linspace(0.0, span_s, len(file) + 1)
            units = _unit_process(float(expected[-1]), 1.0 if process.within == "poisson" else 0.0, rng)
            return np.interp(units, expected, edges)
        case Timestamps():
            return _resampled(file, rate, span_s)


def _unit_process(expected: float, cv2: float, rng: np.random.Generator) -> Times:
    """Points on [0, `expected`) whose gaps have mean 1 and squared coefficient of variation `cv2`.

    Gaps are Gamma(shape 1/cv2, scale cv2): exponential at 1; at 0 they are all 1 and the first point is at 0.
    """
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


def _resampled(stamps: Times, rate: float, span_s: float) -> Times:
    """`stamps`, which start at 0, shrunk to `span_s`: as many quantiles of them as `rate` asks for.

    Quantiles keep the shape: fewer than the file has leaves out every so-manieth request, more fills the gaps between
    neighbours evenly, so that a burst stays a burst.
    """
    count = len(stamps)
    shrunk = stamps * (span_s / (stamps[-1] * count / (count - 1)))  # n stamps have n - 1 gaps
    wanted = max(1, round(rate * span_s))
    resampled: Times = np.interp(np.arange(wanted) * (count / wanted), np.arange(count + 1), np.append(shrunk, span_s))
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
    dispersion: Mapping[float, float]  # window in seconds: variance over mean of the counts within

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
        dispersion={
            window_s: _dispersion(arrivals, window_s, int(duration_s / window_s + 1e-9))
            for window_s in WINDOWS_S
            if window_s * _FEWEST_WINDOWS <= duration_s
        },
    )


def _dispersion(arrivals: Times, window_s: float, windows: int) -> float:
    """Variance over mean of the counts in `windows` windows side by side: 0 even, 1 Poisson, more for bursts."""
    window = window_of(arrivals, window_s)
    _, counts = np.unique(window[window < windows], return_counts=True)  # of those that hold any
    mean = int(counts.sum()) / windows
    return max(0.0, float((counts**2).sum()) / windows / mean - mean) if mean else 0.0


def largest_within(arrivals: Times, window_s: float) -> int:
    """The most arrivals that any window of `window_s` seconds holds."""
    ends = np.searchsorted(arrivals, arrivals + window_s, side="right")
    return int((ends - np.arange(len(arrivals))).max(initial=0))


def _peak(arrivals: Times, window_s: float) -> float:
    """The highest rate over windows of `window_s` laid side by side."""
    return float(np.bincount(window_of(arrivals, window_s)).max()) / window_s


def window_of(arrivals: Times, window_s: float) -> NDArray[np.int64]:
    """The number of each arrival's window, of those laid side by side; one on an edge belongs to the later window."""
    return (arrivals / window_s + 1e-9).astype(np.int64)
