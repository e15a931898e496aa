"""Pictures of runs that are hard to draw."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loadgen import plot
from loadgen.errors import MissingExtraError
from loadgen.records import Recorder
from loadgen.report import Report, make_report
from loadgen.traces import describe, make_parts
from loadgen.workload import Tenant, Workload
from tests.loadgen.test_report import ANSWER, INFO


def report_of(latencies_ms: list[float | None]) -> Report:
    recorder = Recorder(Workload.of_one(np.linspace(0, 1.9, len(latencies_ms)), Tenant(slo_ms=100)))
    for query, latency_ms in enumerate(latencies_ms):
        if latency_ms is None:
            recorder.fail(query, "504: late")
        else:
            recorder.answer(query, recorder.intended_s[query] + latency_ms / 1000, ANSWER, 0)
    return make_report(recorder.finish(), INFO)


@pytest.mark.parametrize(
    "runs",
    [
        [[10.0, 20, 30]],
        [[None, None]],
        [[0.0, 0.0], *[[200.0, None, 10]] * 8],
    ],
    ids=["one", "nothing answered", "nine"],
)
def test_any_runs_can_be_drawn(tmp_path: Path, runs: list[list[float | None]]) -> None:
    """One run or nine, answered or not: a PNG of a readable size."""
    path = tmp_path / "plot.png"
    plot.plot([report_of(run) for run in runs], path)
    with Image.open(path) as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50


@pytest.mark.parametrize(
    "spec",
    [
        "constant:rate=20",
        "timestamps:{stamps}",
        "+".join(f"poisson:rate={rate},tenant=t{rate}" for rate in range(1, 12)),
        "+".join(["poisson:rate=9,tenant=a", "constant:rate=9"] * 6),
    ],
    ids=["even", "two at once", "eleven tenants", "twelve parts of two tenants"],
)
def test_any_trace_can_be_drawn(tmp_path: Path, spec: str) -> None:
    """Without a gap, or of more parts than there are colours."""
    stamps = tmp_path / "stamps.csv"
    stamps.write_text("t\n0\n0\n0.1\n")
    parts = make_parts(spec.format(stamps=stamps), duration_s=3)
    times = np.sort(np.concatenate([part.times for part in parts]))
    plot.plot_trace(parts, describe(times, 3.0), spec, tmp_path / "trace.png")
    with Image.open(tmp_path / "trace.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'superserve-mesh\[plot\]'"):
        plot.plot([report_of([1.0])], tmp_path / "plot.png")
