"""Traces: grammar, statistics, determinism and files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import InputError
from loadgen.spec import shipped_trace, split_spec
from loadgen.trace_files import read_minutes, read_timestamps
from loadgen.traces import Times, describe, largest_within, make_arrivals, make_parts

BURSTY = "bursty:base=1500,variant=5550,cv2=8"
RAMP = "ramp:start=100,end=400,accel=100,cv2=1"
RATES = st.floats(10, 2000)  # of a trace of 5 s, so that none is without a query
SEEDS = st.integers(0, 2**32)


def gap_cv2(times: Times) -> float:
    gaps = np.diff(times)
    return float(gaps.var() / gaps.mean() ** 2)


@given(kind=st.sampled_from(["constant", "poisson", BURSTY, RAMP]), rate=RATES, seed=SEEDS)
def test_offsets_are_sorted_within_the_duration_and_repeat_by_seed(kind: str, rate: float, seed: int) -> None:
    """Any kind gives sorted float64 offsets in [0, duration), and the same ones for the same seed."""
    times = make_arrivals(kind, rate=rate, duration_s=5.0, seed=seed)
    assert times.dtype == np.float64
    assert times[0] >= 0
    assert times[-1] < 5.0
    assert (np.diff(times) >= 0).all()
    np.testing.assert_array_equal(times, make_arrivals(kind, rate=rate, duration_s=5.0, seed=seed))


@pytest.mark.parametrize("kind", ["poisson", BURSTY, RAMP])
def test_another_seed_gives_another_trace(kind: str) -> None:
    """Seeds 1 and 2 do not give the same arrivals."""
    first, second = (make_arrivals(kind, rate=100, duration_s=5, seed=seed) for seed in (1, 2))
    assert len(first) != len(second) or not np.array_equal(first, second)


def test_constant_is_evenly_spaced_from_zero() -> None:
    """100 q/s for 2 s are 200 queries, 10 ms apart, the first at 0."""
    times = make_arrivals("constant", rate=100, duration_s=2)
    np.testing.assert_allclose(times, np.arange(200) * 0.01)


@pytest.mark.parametrize("rate", [1000.0, 3000.0])
def test_poisson_has_its_rate_and_a_squared_cv_of_one(rate: float) -> None:
    """Over 60 s mean rate and CV^2 lie within 3 and 5 percent."""
    times = make_arrivals("poisson", rate=rate, duration_s=60, seed=3)
    assert len(times) / 60 == pytest.approx(rate, rel=0.03)
    assert gap_cv2(times) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("cv2", [2.0, 4.0, 8.0])
def test_gamma_gaps_have_the_rate_and_the_cv_asked_for(cv2: float) -> None:
    """A bursty trace without a base is a gamma process: its mean within 5 %, its CV^2 within 10 %."""
    times = make_arrivals(f"bursty:base=0,variant=2000,cv2={cv2}", duration_s=60, seed=5)
    assert len(times) / 60 == pytest.approx(2000, rel=0.05)
    assert gap_cv2(times) == pytest.approx(cv2, rel=0.1)


def test_bursty_is_an_even_base_merged_with_gamma_arrivals() -> None:
    """Taking the evenly spaced base out of the merge leaves the variant's rate and CV."""
    times = make_arrivals("bursty:base=250,variant=1000,cv2=4", duration_s=60, seed=2)
    base = np.arange(250 * 60) / 250
    assert np.isin(base, times).all()
    rest = np.setdiff1d(times, base)
    assert len(rest) / 60 == pytest.approx(1000, rel=0.05)
    assert gap_cv2(rest) == pytest.approx(4, rel=0.1)


def test_a_rate_keeps_the_ratio_of_base_and_variant() -> None:
    """The paper's 1500 + 5550 q/s scaled to 705 are 150 evenly spaced and 555 of bursts."""
    times = make_arrivals(BURSTY, rate=705, duration_s=60, seed=1)
    assert len(times) / 60 == pytest.approx(705, rel=0.05)
    assert np.isin(np.arange(150 * 60) / 150, times).mean() > 0.99


def test_a_ramp_rises_then_stays() -> None:
    """From 1000 q/s at 500 q/s^2 to 3000 takes 4 s: per-second counts follow the line, then the plateau."""
    times = make_arrivals("ramp:start=1000,end=3000,accel=500,cv2=0", duration_s=6)
    counts, _ = np.histogram(times, bins=6, range=(0, 6))
    np.testing.assert_allclose(counts, [1250, 1750, 2250, 2750, 3000, 3000], atol=2)


def test_a_falling_ramp_is_the_mirror_of_a_rising_one() -> None:
    """A negative acceleration leads down."""
    counts, _ = np.histogram(
        make_arrivals("ramp:start=3000,end=1000,accel=-500,cv2=0", duration_s=6), bins=6, range=(0, 6)
    )
    np.testing.assert_allclose(counts, [2750, 2250, 1750, 1250, 1000, 1000], atol=2)


def test_a_rate_scales_a_ramp_without_changing_its_time() -> None:
    """At a tenth of its mean every second holds a tenth of the queries."""
    spec = "ramp:start=1000,end=3000,accel=500,cv2=0"
    full, _ = np.histogram(make_arrivals(spec, duration_s=6), bins=6, range=(0, 6))
    tenth, _ = np.histogram(make_arrivals(spec, rate=full.sum() / 60, duration_s=6), bins=6, range=(0, 6))
    np.testing.assert_allclose(tenth, full / 10, atol=2)


@pytest.fixture
def minutes(tmp_path: Path) -> Path:
    path = tmp_path / "minutes.csv"
    path.write_text("minute,all_rows,some\n1,600,0\n2,1200,60\n3,1800,60\n4,0,0\n")
    return path


def test_minutes_shrink_the_whole_file_to_the_duration(minutes: Path) -> None:
    """Four minutes become four equal parts of the run, with the file's shape, scaled to the rate."""
    times = make_arrivals(f"minutes:{minutes},within=even", rate=450, duration_s=8)
    counts, _ = np.histogram(times, bins=4, range=(0, 8))
    np.testing.assert_allclose(counts, [600, 1200, 1800, 0], atol=1)


def test_minutes_without_a_rate_keep_the_mean_of_the_file(minutes: Path) -> None:
    """3600 requests in 240 s are 15 q/s, Poisson within each minute."""
    times = make_arrivals(f"minutes:{minutes}", duration_s=400, seed=1)
    assert len(times) / 400 == pytest.approx(15, rel=0.05)
    assert (times < 300).all()


def test_minutes_take_the_column_that_is_named(minutes: Path) -> None:
    """`column=some` reads that column, and one that is not there is refused with those that are."""
    np.testing.assert_array_equal(read_minutes(minutes, "some"), [0, 60, 60, 0])
    with pytest.raises(InputError, match=r"column=none: .*minute, all_rows, some"):
        read_minutes(minutes, "none")


def test_the_shipped_day_is_what_its_script_makes(tmp_path: Path) -> None:
    """The file is labelled as invented in its column, and the script makes it again, but for the last digit."""
    path = tmp_path / "day.csv"
    script = Path(__file__).parents[2] / "scripts" / "make_synthetic_day.py"
    subprocess.run([sys.executable, script, "--out", path], check=True)
    np.testing.assert_allclose(read_minutes(shipped_trace("synthetic-day")), read_minutes(path), atol=1)
    assert path.read_text().startswith("minute,synthetic_requests\n1,")


def test_the_shipped_day_has_the_shape_that_it_imitates() -> None:
    """1,440 minutes of the paper's 6,400 q/s on average and 8,750 at most; the first of each hour are busier."""
    counts = read_minutes(shipped_trace("synthetic-day"))
    assert len(counts) == 1440
    assert counts.mean() / 60 == pytest.approx(6400, rel=0.001)
    assert counts.max() / counts.mean() == pytest.approx(8750 / 6400, rel=0.02)
    assert counts[::60].mean() > 1.1 * counts.mean()


def test_a_shipped_trace_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`minutes:synthetic-day` needs no path; a file of that name that is there comes first."""
    monkeypatch.chdir(tmp_path)
    times = make_arrivals("minutes:synthetic-day", rate=100, duration_s=10)
    assert len(times) == pytest.approx(1000, rel=0.1)
    Path("synthetic-day").write_text("minute,n\n1,1\n2,0\n")
    assert (make_arrivals("minutes:synthetic-day", rate=100, duration_s=10) < 5).all()


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    path = tmp_path / "stamps.csv"
    lines = ["TIMESTAMP,Tokens", "2023-11-16 18:17:03.0000000,1", "2023-11-16 18:17:03.5000001,2"]
    lines += ["2023-11-16T18:17:04.0000000Z,3", "2023-11-16 18:17:06.0000000,4"]
    path.write_bytes("\r\n".join(lines).encode() + b"\r\n\r\n")
    return path


def test_timestamps_are_read_to_100_ns(stamps: Path) -> None:
    """CRLF lines, 100 ns stamps, a blank line at the end and a Z are understood."""
    np.testing.assert_allclose(read_timestamps(stamps), [0, 0.5000001, 1, 3], rtol=0, atol=1e-9)


def test_timestamps_without_a_rate_are_all_replayed(stamps: Path) -> None:
    """Four stamps over 3 s stand for 4 s; shrunk to 2 s every offset halves."""
    np.testing.assert_allclose(make_arrivals(f"timestamps:{stamps}", duration_s=2), [0, 0.25, 0.5, 1.5], atol=1e-6)


def test_timestamps_at_a_rate_keep_their_shape(stamps: Path) -> None:
    """Eight queries of four stamps: each gap is halved in its place; two queries: every other stamp."""
    spec = f"timestamps:{stamps}"
    np.testing.assert_allclose(make_arrivals(spec, rate=2, duration_s=4), [0, 0.25, 0.5, 0.75, 1, 2, 3, 3.5], atol=1e-6)
    np.testing.assert_allclose(make_arrivals(spec, rate=0.5, duration_s=4), [0, 1], atol=1e-6)


def test_stamps_may_be_seconds(tmp_path: Path) -> None:
    """Plain numbers are seconds, in any order."""
    path = tmp_path / "seconds.csv"
    path.write_text("when\n12.5\n10\n11\n")
    np.testing.assert_allclose(read_timestamps(path), [0, 1, 2.5])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sawtooth", "trace=sawtooth: unknown kind"),
        ("constant", r"rate=\(missing\)"),
        ("poisson:1", "poisson=1: this kind takes no FILE"),
        ("bursty:base=1,variant=2", r"bursty: cv2=\(missing\): needs a number"),
        ("bursty:base=1,variant=2,cv2=-1", "bursty: cv2=-1: must be >= 0"),
        ("bursty:base=1,variant=2,cv2=1e9", "bursty: cv2=1e\\+09: must be <= 10000"),
        ("bursty:base=1,variant=0,cv2=1", "bursty: variant=0: must be > 0"),
        ("bursty:base=x,variant=2,cv2=1", "bursty: base=x: needs a number"),
        ("bursty:base=inf,variant=2,cv2=1", "bursty: base=inf: must be finite"),
        ("bursty:base=1,variant=2,cv2=1,cv=2", "bursty: cv=2: unknown key; known: base, variant, cv2"),
        ("bursty:base=1,base=2", "bursty: base=2: given twice"),
        ("bursty:base=1,variant", r"bursty: variant=\(none\): write key=value"),
        ("ramp:start=2,end=1,accel=1,cv2=1", "ramp: accel=1: must be < 0"),
        ("ramp:start=1,end=2,accel=-1,cv2=1", "ramp: accel=-1: must be > 0"),
        ("minutes:", r"minutes: FILE=\(missing\)"),
        ("minutes:/no/such.csv", "minutes: FILE=/no/such.csv: no such file"),
        ("timestamps:/no/such.csv", "timestamps: FILE=/no/such.csv: no such file"),
        ("minutes:no-such-day", "minutes: FILE=no-such-day: no such file"),
        ("constant+poisson:rate=1", r"rate=\(missing\): constant has no rate of its own"),
        ("poisson:rate=0", "poisson: rate=0: must be > 0"),
        ("poisson:rate=1,from=0.5,to=0.5", "poisson: to=0.5: must be after from=0.5"),
        ("poisson:rate=1,from=1", "poisson: from=1: is not within the run of 1 s"),
        ("poisson:rate=1,to=1.5", "poisson: to=1.5: is not within the run of 1 s"),
        ("poisson:rate=1+sine:rate=1", r"poisson: rate=1\+sine:rate=1: needs a number"),
        ("poisson:rate=1,slo_ms=5", "poisson: slo_ms=5: belongs to a tenant: give tenant=NAME"),
        ("poisson:rate=1,tenant=a b", "poisson: tenant=a b: may have letters"),
        ("poisson:rate=1,tenant=a,slo_ms=0", "poisson: slo_ms=0: must be > 0"),
        ("poisson:rate=1,tenant=a,slo_ms=1e300", r"poisson: slo_ms=1e\+300: must be <= 1e\+09"),
        ("poisson:rate=1,tenant=a,min_accuracy=101", "poisson: min_accuracy=101: must be <= 100"),
        ("poisson:rate=1,tenant=a,priority=0.5", "poisson: priority=0.5: must be a whole number"),
        ("poisson:rate=1,tenant=a,rows=0", "poisson: rows=0: must be > 0"),
    ],
)
def test_a_bad_spec_names_its_key_and_value(spec: str, message: str) -> None:
    """What cannot be used is named, with the reason."""
    with pytest.raises(InputError, match=message):
        make_arrivals(spec, duration_s=1)


def test_alone_a_component_draws_from_the_seed_itself() -> None:
    """What a SPEC of one component sends does not change with this package: the gaps of seed 5 over the rate."""
    gaps = np.random.default_rng(5).gamma(1.0, 1.0, 100)
    np.testing.assert_array_equal(make_arrivals("poisson", rate=50, duration_s=60, seed=5)[:100], np.cumsum(gaps) / 50)


def test_a_component_put_behind_others_leaves_them_alone() -> None:
    """Each draws from its own seed: two equal ones differ, and a third changes neither."""
    two = make_parts("poisson:rate=40+poisson:rate=40", duration_s=5, seed=3)
    three = make_parts("poisson:rate=40+poisson:rate=40+bursty:base=1,variant=9,cv2=4", duration_s=5, seed=3)
    assert not np.array_equal(two[0].times[:50], two[1].times[:50])
    for before, after in zip(two, three, strict=False):
        np.testing.assert_array_equal(before.times, after.times)
    np.testing.assert_array_equal(two[0].times, make_arrivals("poisson", rate=40, duration_s=5, seed=3))


def test_a_mix_sends_what_its_components_send() -> None:
    """Arrivals are those of the parts, in order of time."""
    spec = "bursty:base=100,variant=300,cv2=4+poisson:rate=50"
    parts = make_parts(spec, duration_s=5, seed=2)
    times = make_arrivals(spec, duration_s=5, seed=2)
    np.testing.assert_array_equal(times, np.sort(np.concatenate([part.times for part in parts])))
    assert [part.component.kind for part in parts] == ["bursty", "poisson"]


@pytest.mark.parametrize("rate", [50.0, 800.0])
def test_a_rate_scales_the_whole_mix_and_keeps_its_shares(minutes: Path, stamps: Path, rate: float) -> None:
    """Even components of 100, 200 for a quarter of the run, 15 and 1/2 q/s: the mean is the rate, the shares stay."""
    spec = (
        "constant:rate=100+bursty:base=100,variant=100,cv2=0,from=2,to=4"
        f"+minutes:{minutes},within=even+timestamps:{stamps}"
    )
    counts = [len(part.times) for part in make_parts(spec, rate=rate, duration_s=8)]
    share = rate * 8 / (800 + 400 + 15 * 8 + 4)
    np.testing.assert_allclose(counts, [800 * share, 400 * share, 120 * share, 4 * share], atol=2)


def test_every_kind_takes_a_rate_of_its_own(minutes: Path) -> None:
    """`rate` is what --rate would be to the component alone."""
    for kind in ("constant", BURSTY, RAMP, f"minutes:{minutes}"):
        own = f"{kind},rate=123" if ":" in kind else f"{kind}:rate=123"
        np.testing.assert_array_equal(make_arrivals(own, duration_s=4), make_arrivals(kind, rate=123, duration_s=4))


def test_a_component_sends_within_its_time(minutes: Path) -> None:
    """A burst of 0.2 s at 5,000 q/s is 1,000 queries there and none elsewhere; a file is shrunk to its part."""
    times = make_parts("constant:rate=10+constant:rate=5000,from=1,to=1.2", duration_s=3)[1].times
    assert (len(times), times[0]) == (1000, 1)
    assert times[-1] < 1.2
    times = make_arrivals(f"minutes:{minutes},within=even,rate=450,from=1,to=9", duration_s=10)
    np.testing.assert_allclose(np.histogram(times, bins=4, range=(1, 9))[0], [600, 1200, 1800, 0], atol=1)


def test_alone_a_component_of_a_part_of_the_run_has_the_rate_of_the_run() -> None:
    """100 q/s over 4 s, sent in the last second alone."""
    times = make_arrivals("constant:from=3", rate=100, duration_s=4)
    assert (len(times), times[0]) == (400, 3)


def test_a_files_name_may_hold_a_plus(tmp_path: Path, minutes: Path) -> None:
    """A SPEC is cut only where a known kind follows."""
    path = minutes.rename(tmp_path / "a+b+minute.csv")
    spec = f"minutes:{path},rate=5+constant:rate=5+constant:rate=1"
    assert split_spec(spec) == [f"minutes:{path},rate=5", "constant:rate=5", "constant:rate=1"]
    assert len(make_parts(spec, duration_s=4)) == 3


def test_a_mix_that_is_endless_is_refused() -> None:
    """Twenty million queries are the bound of the sum, too."""
    with pytest.raises(InputError, match=r"rate x duration=2\.2e\+07: is more than 20000000 queries"):
        make_arrivals("constant:rate=11e6+constant:rate=11e6", duration_s=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("minute,n\n", "needs a line of column names"),
        ("minute,n\n1,2,3\n", "line 2=1,2,3: has 3 cells, not 2"),
        ("minute,n\n1,two\n", "line 2=two: is no count"),
        ("minute,n\n1,0\n", "holds no requests"),
        ("minute,n\n1,1\n", "within=hourly: must be poisson or even"),
    ],
)
def test_a_bad_minutes_file_names_the_line(tmp_path: Path, content: str, message: str) -> None:
    """A file that cannot be used says where it goes wrong."""
    path = tmp_path / "minutes.csv"
    path.write_text(content)
    suffix = ",within=hourly" if "hourly" in message else ""
    with pytest.raises(InputError, match=message):
        make_arrivals(f"minutes:{path}{suffix}", rate=1, duration_s=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("t\nyesterday\nnow\n", "line 2=yesterday: is no ISO timestamp"),
        ("t\n5\n5\n", "needs at least two different stamps"),
        ("t\n5\ninf\n", "not finite"),
        ("t\n2023-01-01 00:00:00\nNaT\n", "no time"),
    ],
)
def test_a_bad_timestamps_file_names_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    """Stamps that are no times, or all the same, are refused."""
    path = tmp_path / "stamps.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        make_arrivals(f"timestamps:{path}", duration_s=1)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": 1e12}, "rate x duration"),
        ({"rate": 1e-9}, "trace"),
        ({"duration_s": 0.0}, "duration"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_runs_are_refused(changes: dict[str, float], key: str) -> None:
    """Rate, duration and seed are checked, and a trace that is endless or empty is refused."""
    values = {"rate": 10.0, "duration_s": 1.0, "seed": 0} | changes
    with pytest.raises(InputError) as caught:
        make_arrivals("poisson", rate=values["rate"], duration_s=values["duration_s"], seed=int(values["seed"]))
    assert caught.value.key == key


def test_a_trace_is_described_by_rate_peaks_and_cv() -> None:
    """Twenty even queries in 2 s, then ten at once: known mean, peaks and CV."""
    times = np.sort(np.concatenate((np.arange(20) / 10, np.full(10, 1.55))))
    stats = describe(times, 2.0)
    assert (stats.queries, stats.mean_qps, stats.peak_second_qps, stats.peak_100ms_qps) == (30, 15, 20, 110)
    assert stats.peak_to_mean == pytest.approx(20 / 15)
    assert stats.gap_cv == pytest.approx(np.diff(times).std() / np.diff(times).mean())


def test_dispersion_is_variance_over_mean_of_the_counts() -> None:
    """Windows of 1 s hold 2, 0, 1, ... of ten; the rest of the run that fills no window does not count."""
    times = np.concatenate(([0.0, 0.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], np.linspace(10, 10.4, 30)))
    counts = np.array([2, 0, 1, 1, 1, 1, 1, 1, 1, 1])
    assert describe(times, 10.5).dispersion[1.0] == pytest.approx(counts.var() / counts.mean())
    assert 1.0 not in describe(times[times < 9], 9.0).dispersion


def test_dispersion_tells_burstiness() -> None:
    """Over 200 s: Poisson is 1 in every window, gamma gaps come near their CV^2 in long ones, even ones are 0."""
    found = {
        kind: describe(make_arrivals(kind, rate=1000, duration_s=200, seed=1), 200.0).dispersion
        for kind in ("constant", "poisson", "bursty:base=0,variant=1,cv2=8")
    }
    assert found["constant"][0.01] == pytest.approx(0)
    np.testing.assert_allclose(list(found["poisson"].values()), 1, atol=0.35)
    assert found["bursty:base=0,variant=1,cv2=8"][0.1] == pytest.approx(8, rel=0.15)


def test_the_largest_window_counts_its_arrivals() -> None:
    """Of offsets 0, 1, 2, 2.5 and 9 a window of 1.5 s holds at most three."""
    assert largest_within(np.array([0, 1, 2, 2.5, 9]), 1.5) == 3
