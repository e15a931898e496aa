"""How live and simulated are held against each other, shown on runs that are known through and through."""

import json
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from common.sched import Scheduler, SchedulerOptions, parse_policy
from common.sched.eventlog import EventLog
from common.sched.profile import Profile
from loadgen.conditions import Conditions, Costs, Delays
from loadgen.errors import InputError, LoadgenError
from loadgen.evaluation.agreement import (
    MOST,
    Live,
    LiveOptions,
    Replayed,
    check_replay,
    compare,
    hold_against,
    measure,
    scaled,
)
from loadgen.evaluation.cases import Case, World
from loadgen.evaluation.mesh import MeshError, emulated_mesh, find_superserve
from loadgen.evaluation.plots import draw_agreement
from loadgen.evaluation.report import agreement_section
from loadgen.profiles import load_profile
from loadgen.report import Report, RunInfo, make_report
from loadgen.simulate import Simulation
from loadgen.workload import make_workload

COSTS = Costs(*(Delays((0,), (us,)) for us in (500, 1_000, 300, 2_000, 7_000, 900)))


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("rtx2080ti-reconstructed")


def played(profile: Profile, rate: float, slo_ms: float = 36.0, deaths: tuple[tuple[int, str], ...] = ()) -> Live:
    """A run as if live: what a simulated mesh of these costs answered, with the log of its scheduler."""
    lines: list[str] = []
    scheduler = Scheduler(parse_policy("slackfit"), SchedulerOptions(reply_margin_us=3_000))
    log = EventLog(lines.append, scheduler)
    workers = dict.fromkeys(("w0", "w1"), profile)
    workload = make_workload("poisson", rate=rate, duration_s=2.0, slo_ms=slo_ms)
    records = Simulation(scheduler, workers, Conditions(costs=COSTS, deaths=deaths), log=log).run(workload)
    ids = ["" if i in records.errors else f"{i:x}" for i in range(len(records.done_s))]
    errors = {i: f"504: the SLO was out of reach: {reason}" for i, reason in records.errors.items()}
    records = replace(records, ids=ids, errors=errors)
    info = RunInfo(
        url="", model="", trace="poisson", rate=rate, duration_s=2.0, slo_ms=slo_ms, seed=0, data="", started_at=""
    )
    return Live(records, make_report(records, info), lines)


def test_costs_are_measured_as_they_were(profile: Profile) -> None:
    """From log and records of a light load, where no query waits for company, come the costs that the mesh had."""
    found = measure(played(profile, 20), profile)
    taken = [set(delays.us) for delays in (found.ingress, found.dispatches, found.overheads, found.reports)]
    assert taken == [{500}, {1_000}, {300}, {2_000}]
    assert set(found.replies.us) == {7_000}
    assert all(delays.at_us == tuple(sorted(delays.at_us)) for delays in (found.ingress, found.replies))


def test_nothing_served_has_no_costs(profile: Profile) -> None:
    """Where every query was rejected nothing can be measured, and that is said."""
    with pytest.raises(LoadgenError, match="served nothing"):
        measure(played(profile, 50, slo_ms=2.0), profile)


def test_log_replays_to_what_was_done(profile: Profile) -> None:
    """An overloaded run: every batch and every rejection is found again."""
    live = played(profile, 8_000)
    found = check_replay(live)
    assert found.differences == 0
    assert found.rejections == live.report.errors > 100
    assert found.batches > 100


def test_batches_of_a_lost_worker_need_no_report(profile: Profile) -> None:
    """A worker that dies with its batches leaves nothing to be explained: others answer, as commanded."""
    live = played(profile, 2_000, deaths=((1_000_000, "w1"),))
    found = check_replay(live)
    assert found.differences == 0
    assert found.batches > sum('"done"' in line for line in live.log)


def tamper_with_subnet(live: Live) -> Live:
    records = live.records
    return replace(live, records=replace(records, subnet=records.subnet[::-1].copy(), ids=records.ids))


def tamper_with_done(live: Live) -> Live:
    lines = [line.replace('"worker":"w0"', '"worker":"w1"') if '"done"' in line else line for line in live.log]
    return replace(live, log=lines)


def tamper_with_header(live: Live) -> Live:
    header = json.loads(live.log[0])
    header["policy"] = "maxbatch"
    return replace(live, log=[json.dumps(header), *live.log[1:]])


def lose_a_report(live: Live) -> Live:
    last = max(i for i, line in enumerate(live.log) if '"done"' in line)
    return replace(live, log=[line for i, line in enumerate(live.log) if i != last])


@pytest.mark.parametrize("tamper", [tamper_with_subnet, tamper_with_done, tamper_with_header, lose_a_report])
def test_other_commands_are_found(profile: Profile, tamper: Callable[[Live], Live]) -> None:
    """Answers of another subnet, reports of another worker, another policy, a batch without a report: all count."""
    assert check_replay(tamper(played(profile, 3_000))).differences > 0


def test_answers_count_against_the_rejections(profile: Profile) -> None:
    """A rejection that no client was told of is a difference, and nothing else is."""
    live = played(profile, 8_000)
    report = replace(live.report, errors_by_status={"504: out of reach": live.report.errors - 1, "504: no answer": 1})
    assert check_replay(replace(live, report=report)) == replace(check_replay(live), differences=1)
    assert isinstance(check_replay(live), Replayed)


def told(report: Report, attainment: float, accuracy: float, **subnets: float) -> Report:
    return replace(report, slo_attainment=attainment, serving_accuracy=accuracy, subnets=subnets)


def test_a_run_is_compared_with_the_mean(profile: Profile) -> None:
    """Differences are those from the mean of the simulations; the spread is that among them."""
    report = played(profile, 100).report
    live = told(report, 0.99, 78.0, a=0.5, b=0.5)
    found = compare(live, [told(report, 1.0, 78.1, a=0.5, b=0.5), told(report, 0.98, 78.3, a=0.6, c=0.4)])
    assert found["attainment_difference"] == pytest.approx(0.0)
    assert found["accuracy_difference"] == pytest.approx(0.2)
    assert found["share_difference"] == pytest.approx(0.25)
    assert found["simulated"]["subnets"] == pytest.approx({"a": 0.55, "b": 0.25, "c": 0.2})
    assert found["simulated_spread"] == pytest.approx(0.25)
    assert not found["agree"]
    assert compare(live, [live])["agree"]
    assert not compare(live, [told(report, 0.979, 78.0, a=0.5, b=0.5)])["agree"]
    assert not compare(live, [told(report, 0.99, 78.31, a=0.5, b=0.5)])["agree"]


def test_section_and_plot_tell_of_every_run(profile: Profile, tmp_path: Path) -> None:
    """A run whose costs are known agrees with its simulations; the report says so, and a log that differs is told."""
    world = World(trace="poisson", rate=1_000, duration_s=2.0, workers=2)
    run = {"trace": "even", "policy": "slackfit", **hold_against(played(profile, 1_000), Case(world=world, policy=""))}
    assert run["agree"], run
    assert run["simulated_spread"] == pytest.approx(0.0, abs=1e-9)
    found = {
        **{"scale": 4.0, "duration_s": 2.0, "workers": 2, "slo_ms": 144.0, "profile": "p", "simulations": 9},
        **{"most": MOST, "runs": {"even, slackfit": run}},
    }
    text = "\n".join(agreement_section(found))
    assert f"| even | `slackfit` | {run['queries']:,} |" in text
    assert "| 1.0 / 1.0 | 2.0 / 2.0 | 0.3 / 0.3 | 7.0 / 7.0 |" in text
    assert text.rstrip().endswith("all are.")
    run["replayed"]["differences"] = 7
    assert "**7 are not**" in "\n".join(agreement_section(found))
    draw_agreement(found, tmp_path / "agreement.png")
    with Image.open(tmp_path / "agreement.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50


def test_scaled_profile_takes_as_many_times_as_long(profile: Profile) -> None:
    """Every latency is multiplied, nothing else changes."""
    slow = scaled(profile, 8)
    for subnet, slower in zip(profile.subnets, slow.subnets, strict=True):
        assert slower.median_us == tuple(8 * us for us in subnet.median_us)
        assert slower.p95_us == tuple(8 * us for us in subnet.p95_us)
    assert replace(slow, subnets=profile.subnets) == profile


def test_scale_stretches_traces_as_profile_and_slo(tmp_path: Path) -> None:
    """At twice the scale a trace of the same length has half of the queries, and the SLO is twice as long."""
    for name, cases in LiveOptions(maf="minutes:synthetic-day", scale=8).cases(tmp_path / "p.json").items():
        twice = LiveOptions(maf="minutes:synthetic-day", scale=16).cases(tmp_path / "p.json")[name]
        assert [case.policy for case in cases] == ["foresight", "slackfit", "maxbatch"]
        few, many = (len(case.world.workload().intended_s) for case in (twice[0], cases[0]))
        assert few / many == pytest.approx(0.5, abs=0.05)
        assert (cases[0].world.slo_ms, twice[0].world.slo_ms) == (288, 576)


@pytest.mark.parametrize("scale", [0.5, float("nan"), float("inf")])
def test_scale_that_cannot_be(scale: float) -> None:
    """A scale that speeds up, or is no number, is refused by its key."""
    with pytest.raises(InputError, match="scale="):
        LiveOptions(maf="poisson", scale=scale)


def test_superserve_must_be_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the script in this environment nothing is run, and its place is named."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match=rf"live={tmp_path}/superserve: no such program"):
        find_superserve()


def test_mesh_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    """A policy that there is not ends the mesh, and the error has the mesh's own words."""
    with (
        pytest.raises(MeshError, match="no-such-policy"),
        emulated_mesh(Path("rtx2080ti-reconstructed"), "no-such-policy", 1, tmp_path),
    ):
        pytest.fail("it is not there")
