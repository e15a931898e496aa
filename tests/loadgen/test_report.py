"""The arithmetic of a report, on records made by hand."""

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from loadgen import records as records_module
from loadgen.errors import InputError
from loadgen.records import Recorder, Records
from loadgen.report import Report, RunInfo, make_report
from loadgen.table import render_table, render_trace, run_names
from loadgen.traces import Times, describe, make_parts
from loadgen.workload import Tenant, Workload, merge

NAN = float("nan")
ANSWER = b'{"outputs":[],"parameters":{"accuracy":80}}'
INFO = RunInfo(
    url="http://server",
    model="digits",
    trace="constant",
    rate=2.5,
    duration_s=2.0,
    slo_ms=100.0,
    seed=7,
    data="samples",
    started_at="2025-01-01T00:00:00+00:00",
)


def column(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(values, dtype=np.float64)


def recorder_of(intended_s: Times, slo_ms: float) -> Recorder:
    return Recorder(Workload.of_one(intended_s, Tenant(slo_ms=slo_ms)))


@pytest.fixture
def records() -> Records:
    """Five queries of two rows: in time, in time at the very limit, late, 504, and never sent."""
    return Records(
        workload=Workload.of_one(column(0.0, 0.25, 1.0, 1.05, 1.5), Tenant(slo_ms=100, rows=2)),
        sent_s=column(0.001, 0.253, 1.002, 1.05, NAN),
        done_s=column(0.05, 0.35, 1.3, NAN, NAN),
        accuracy=column(80, 90, 95, NAN, NAN),
        batch_size=column(4, 2, 6, NAN, NAN),
        queue_ms=column(1, 2, 3, NAN, NAN),
        inference_ms=column(4, 5, 6, NAN, NAN),
        deadline_met=column(1, 1, 0, NAN, NAN),
        correct_rows=column(2, 1, 0, NAN, NAN),
        subnet=np.array([1, 2, 2, 0, 0], np.int32),
        worker=np.array([1, 1, 1, 0, 0], np.int32),
        subnets=["", "small", "large"],
        workers=["", "w-1"],
        policies=["slackfit"],
        executors=["torch"],
        errors={3: "504: deadline passed", 4: "connection: Connection refused"},
    )


def test_shares_count_all_queries(records: Records) -> None:
    """Attainment is over all five; goodput over the trace's duration, in queries and rows."""
    report = make_report(records, INFO)
    assert (report.queries, report.answered, report.errors, report.unsent) == (5, 3, 2, 1)
    assert report.slo_attainment == pytest.approx(2 / 5)
    assert (report.offered_qps, report.goodput_qps, report.goodput_rows_per_s) == (2.5, 1.0, 2.0)
    assert report.errors_by_status == {"504: deadline passed": 1, "connection: Connection refused": 1}


def test_accuracies_are_means_over_the_queries_that_met_their_slo(records: Records) -> None:
    """The late answer of the best subnet does not count: (80 + 90) / 2, and 3 of 4 labels."""
    report = make_report(records, INFO)
    assert report.serving_accuracy == pytest.approx(85)
    assert report.label_accuracy == pytest.approx(75)


def test_latency_is_from_the_intended_time_over_the_answered(records: Records) -> None:
    """50, 100 and 300 ms; the lag of the sender is 1, 3, 2 and 0 ms."""
    report = make_report(records, INFO)
    assert report.latency_ms["p50"] == pytest.approx(100)
    assert report.latency_ms["max"] == pytest.approx(300)
    assert report.latency_ms["p99"] == pytest.approx(np.percentile([50, 100, 300], 99))
    assert report.sender_lag_ms["p50"] == pytest.approx(1.5)
    assert report.sender_lag_ms["max"] == pytest.approx(3)
    assert report.latency_cdf_ms[0] == pytest.approx(50)
    assert report.latency_cdf_ms[-1] == pytest.approx(300)


def test_what_the_server_told_is_averaged_over_the_answered(records: Records) -> None:
    """Subnet shares come largest first and add up to one."""
    report = make_report(records, INFO)
    assert list(report.subnets) == ["large", "small"]
    assert list(report.subnets.values()) == pytest.approx([2 / 3, 1 / 3])
    assert report.workers == {"w-1": 1}
    assert (report.batch_size_mean, report.queue_ms_mean, report.inference_ms_mean) == (4, 2, 5)
    assert report.deadline_met_share == pytest.approx(2 / 3)
    assert (report.policy, report.executor) == ("slackfit", "torch")


def test_the_series_bins_by_intended_time(records: Records) -> None:
    """Twenty bins of 0.1 s: each query counts where it was due; a bin without one has no values."""
    series = make_report(records, INFO).series
    assert (series.bin_s, len(series.arrivals_qps)) == (0.1, 20)
    assert series.arrivals_qps[10] == pytest.approx(20)
    assert sum(series.arrivals_qps) * series.bin_s == pytest.approx(5)
    assert (series.slo_attainment[0], series.slo_attainment[10], series.slo_attainment[1]) == (1, 0, None)
    assert (series.serving_accuracy[2], series.serving_accuracy[10]) == (90, None)
    assert series.batch_size_mean[10] == 6
    assert series.latency_p99_ms[0] == pytest.approx(50)


def test_a_long_run_has_few_bins() -> None:
    """Two hours make 7,200 bins of a second, not 14,400 of half a second."""
    recorder = recorder_of(column(0.0, 7199.9), slo_ms=1)
    recorder.fail(0, "x")
    recorder.fail(1, "x")
    info = RunInfo(**{name: getattr(INFO, name) for name in INFO.__slots__} | {"duration_s": 7200.0})
    series = make_report(recorder.finish(), info).series
    assert (series.bin_s, len(series.arrivals_qps)) == (1.0, 7200)


def test_a_run_without_an_answer_has_no_latency() -> None:
    """All failed: attainment 0, and what cannot be known is None."""
    recorder = recorder_of(column(0.0, 0.5), slo_ms=1)
    for query in range(2):
        recorder.fail(query, "504: late")
    report = make_report(recorder.finish(), INFO)
    assert (report.slo_attainment, report.serving_accuracy, report.label_accuracy) == (0, None, None)
    assert (report.latency_ms["p50"], report.latency_cdf_ms, report.sender_lag_ms["p99"]) == (None, [], None)


@given(st.lists(st.one_of(st.floats(0, 300), st.none()), min_size=1, max_size=40))
@example([None, 100.0])  # at its SLO, which is not what floats make of it
def test_answered_and_errors_always_add_up(outcomes: list[float | None]) -> None:
    """Whatever mix of latencies and errors: the sum holds and the recorder's live count agrees with the report."""
    intended = np.sort(np.linspace(0, 1.9, len(outcomes)))
    recorder = recorder_of(intended, slo_ms=INFO.slo_ms)
    for query, latency_ms in enumerate(outcomes):
        if latency_ms is None:
            recorder.fail(query, "504: late")
        else:
            recorder.answer(query, intended[query] + latency_ms / 1000, ANSWER, 0)
    report = make_report(recorder.finish(), INFO)
    assert report.answered + report.errors == report.queries == len(outcomes)
    assert report.slo_attainment == recorder.met / len(outcomes)
    assert sum(report.series.arrivals_qps) * report.series.bin_s == pytest.approx(len(outcomes))


def test_answers_beyond_the_bound_of_memory_are_read_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one body the second is read at once, and both count the same."""
    monkeypatch.setattr(records_module, "_MAX_HELD_BYTES", 1)
    recorder = recorder_of(column(0.0, 0.0), slo_ms=1000)
    recorder.answer(0, 0.5, b"unread", 0)
    recorder.answer(1, 0.5, b"refused at once", 0)
    assert (recorder.answered, recorder.met, list(recorder.errors)) == (1, 1, [1])
    recorder.finish()
    assert (recorder.answered, recorder.met, list(recorder.errors)) == (0, 0, [1, 0])


@pytest.fixture
def tenants(records: Records) -> Records:
    """The same five queries of two tenants: `fast` has the first and the third, `fine` the others, of one row each."""
    fast, fine = Tenant("fast", slo_ms=40, rows=2, priority=1), Tenant("fine", slo_ms=400, min_accuracy=91)
    codes = np.array([0, 1, 0, 1, 1], np.int32)
    return dataclasses.replace(records, workload=Workload(records.workload.intended_s, codes, (fast, fine)))


def test_each_query_is_held_to_the_slo_of_its_tenant(tenants: Records) -> None:
    """Answers after 50, 100 and 300 ms: those of `fast` miss 40 ms, that of `fine` makes 400 ms with its one row."""
    report = make_report(tenants, INFO)
    assert report.slo_attainment == pytest.approx(1 / 5)
    assert report.rows == pytest.approx(7 / 5)
    assert report.goodput_rows_per_s == 0.5
    assert report.serving_accuracy == 90
    assert report.slos_ms == [40, 400]


def test_each_tenant_has_its_own_figures(tenants: Records) -> None:
    """Errors, latencies and the least accuracy are told apart; 90 % for a floor of 91 is a violation."""
    fast, fine = make_report(tenants, INFO).tenants.values()
    assert (fast.queries, fast.answered, fast.errors, fast.slo_attainment, fast.serving_accuracy) == (2, 2, 0, 0, None)
    assert (fast.rows, fast.priority, fast.least_accuracy, fast.floor_violations) == (2, 1, 80, 0)
    assert fast.latency_ms["max"] == pytest.approx(300)
    assert (fine.queries, fine.answered, fine.errors) == (3, 1, 2)
    assert fine.errors_by_status == {"504: deadline passed": 1, "connection: Connection refused": 1}
    assert fine.slo_attainment == pytest.approx(1 / 3)
    assert (fine.serving_accuracy, fine.least_accuracy, fine.floor_violations) == (90, 90, 1)


def test_a_run_without_tenants_tells_of_none(records: Records) -> None:
    """One tenant without a name is the run itself; with a name it is told."""
    assert make_report(records, INFO).tenants == {}
    named = dataclasses.replace(records, workload=Workload.of_one(records.workload.intended_s, Tenant("a")))
    assert list(make_report(named, INFO).tenants) == ["a"]


def test_a_tenant_without_a_query_has_no_figures(records: Records) -> None:
    """A tenant that a short run never came to: nothing is known of it."""
    nobody = Workload(records.workload.intended_s, np.zeros(5, np.int32), (Tenant(slo_ms=100), Tenant("late")))
    late = make_report(dataclasses.replace(records, workload=nobody), INFO).tenants["late"]
    assert (late.queries, late.slo_attainment, late.least_accuracy, late.latency_ms["p50"]) == (0, None, None, None)


def test_a_report_of_tenants_survives_its_file(tenants: Records, tmp_path: Path) -> None:
    """What is loaded equals what was saved, tenants included; a file written before there were any still loads."""
    report = make_report(tenants, INFO)
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    older = orjson.loads(report.to_json())
    del older["tenants"]
    (tmp_path / "older.json").write_bytes(orjson.dumps(older))
    assert Report.load(tmp_path / "older.json") == dataclasses.replace(report, tenants={})


def test_a_report_survives_its_file(records: Records, tmp_path: Path) -> None:
    """What is loaded equals what was saved."""
    report = make_report(records, INFO)
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"series": {}}', '{"series": 1}'])
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    """Any other file is an InputError that names it."""
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"other\.json: cannot be read"):
        Report.load(path)


def shown(what: RenderableType) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(what)
    return console.export_text()


def test_reports_stand_side_by_side(records: Records) -> None:
    """The table has a column per run, a row per measure and per subnet, and says what went wrong."""
    report = make_report(records, INFO)
    text = shown(render_table([report, report]))
    runs, numbers = ("slackfit #1", "slackfit #2"), ("0.4000", "85.00", "75.00", "66.7%", "1 x 504: deadline")
    for part in runs + numbers:
        assert part in text
    assert run_names([report]) == ["slackfit"]


def test_tenants_stand_side_by_side(tenants: Records, records: Records) -> None:
    """Below the runs each tenant has its own rows; a run without it has none, and the title tells every SLO."""
    text = shown(render_table([make_report(tenants, INFO), make_report(records, INFO)]))
    assert "SLO differs" in text
    assert "SLO 40 / 400 ms" in shown(render_table([make_report(tenants, INFO)]))
    for row in (r"tenant fine", r"  SLO attainment +│ +0\.3333 │ +- │", r"below the floor +│ 1 \(floor 91\) │ +- │"):
        assert re.search(row, text), row
    assert re.search(r"errors / queries +│ +2 / 3 │ +- │", text)


def shown_trace(spec: str, duration_s: float) -> str:
    parts = make_parts(spec, duration_s=duration_s)
    return shown(render_trace(parts, describe(merge(parts).intended_s, duration_s)))


def test_a_trace_is_shown_with_its_numbers() -> None:
    """Ten even queries in a second: the numbers, and no dispersion of windows too long for it."""
    text = shown_trace("constant:rate=10", 1.0)
    assert "10.0 q/s" in text
    assert "0.00 (0 even, 1 Poisson)" in text
    assert "0.90 at 10 ms, 0.00 at 100 ms (0" in text


def test_a_mix_is_shown_by_its_parts_and_tenants() -> None:
    """Two parts of the same kind are told apart, and what a tenant's queries have of their own is there."""
    text = shown_trace(
        "constant:rate=10+constant:rate=10+constant:rate=40,from=1,to=2,tenant=a,slo_ms=9,min_accuracy=77", 2.0
    )
    for part in ("constant #1", "constant #2", "a: constant 1 s to 2 s", "40 queries, 20.0 q/s, 50.0% of all"):
        assert part in text
    assert re.search(r"tenant a +slo_ms 9, min_accuracy 77", text)
