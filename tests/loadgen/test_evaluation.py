"""The evaluation: every experiment runs, its figures are consistent, and `equal` means what the report says."""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from common.sched.policies import available
from loadgen.bounds import Bound
from loadgen.conditions import Conditions
from loadgen.errors import InputError, MissingExtraError
from loadgen.evaluation import evaluate as evaluation
from loadgen.evaluation.cases import Case, Result, Results, World, bound_world, run_all, run_case, run_rules
from loadgen.evaluation.evaluate import EvaluateOptions, evaluate
from loadgen.evaluation.experiments import FULL, Cell, Lengths, experiments
from loadgen.evaluation.report import ratio
from loadgen.evaluation.summary import gain

TINY = Lengths(maf=0.4, steady=0.3, ramp=0.3, jitter=0.3, faults=1, way_back=6, mixed=1, overloaded=1, small=3)
WORLD = World(trace="poisson:rate=1000", duration_s=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What an evaluation of very short traces writes."""
    out = tmp_path_factory.mktemp("evaluation") / "new" / "folder"
    told: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "QUICK", TINY)
        evaluate(EvaluateOptions(out=out, quick=True), lambda done, total: told.append((done, total)))
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1]
    assert told == sorted(told)
    yield out


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads((folder / "summary.json").read_bytes())
    return found


@pytest.mark.timeout(600)
def test_summary_has_every_experiment(summary: dict[str, Any]) -> None:
    """Each experiment has its policies with attainment, accuracy and share of the optimum; and most of them gains."""
    for key in ("maf_cnn", "maf_transformer", "bursty", "time_varying", "policies", "faults", "actuation_delay"):
        for name, figures in summary[key]["policies"].items():
            assert 0 <= figures["slo_attainment"] <= 1, (key, name)
            assert figures["bound_share"] >= 0, (key, name)
            assert figures["serving_accuracy"] is None or 70 < figures["serving_accuracy"] < 90, (key, name)
    for key in ("maf_cnn", "maf_transformer", "bursty", "time_varying"):
        assert {"accuracy_gain_points", "attainment_ratio"} <= set(summary[key])
    assert len(summary["bursty"]["cells"]) == len(summary["time_varying"]["cells"]) == 9
    assert summary["maf_cnn"]["paper"]["accuracy_gain_points"] == 4.67
    assert summary["run"]["quick"] is True


def test_no_policy_exceeds_the_bound(summary: dict[str, Any]) -> None:
    """Without jitter no share of the optimum is above 1, of the fluid bound or of the exact optimum."""
    for key in ("maf_cnn", "maf_transformer", "bursty", "time_varying", "policies", "faults", "small"):
        for name, figures in summary[key]["policies"].items():
            assert figures["bound_share"] <= 1 + 1e-9, (key, name)
    for name, shares in summary["small"]["optimum_shares"].items():
        assert 0 <= shares["least"] <= shares["mean"] <= 1 + 1e-9, name
    assert summary["small"]["fluid_above_optimum"]["least"] >= -0.0005 - 1e-9


def test_floors_hold_and_every_tenant_is_served(summary: dict[str, Any]) -> None:
    """In the mixed trace no answer is below its tenant's floor, and the class behind all others is served too."""
    for policy, tenants in summary["mixed"]["tenants"].items():
        assert set(tenants) == {"interactive", "accurate", "background"}, policy
        assert all(one["floor_violations"] == 0 for one in tenants.values()), policy
        assert tenants["accurate"]["least_accuracy"] >= 79, policy
        assert tenants["background"]["slo_attainment"] > 0.9, policy


def test_overload_breaks_no_floor_and_priority_starves_nobody(folder: Path, summary: dict[str, Any]) -> None:
    """At 120 % every policy misses some and answers nobody below a floor; two classes that differ in priority alone
    attain alike; who demands accuracy attains least; and the report says so."""
    by_policy = summary["overloaded"]["tenants"]
    assert set(by_policy) == {"foresight", "slackfit", "maxbatch", "fixed:smallest"}
    for policy, tenants in by_policy.items():
        assert summary["overloaded"]["policies"][policy]["slo_attainment"] < 0.97, policy
        assert sum(one["floor_violations"] for one in tenants.values()) == 0, policy
        assert tenants["accurate"]["least_accuracy"] >= 79, policy
        attained = {name: one["slo_attainment"] for name, one in tenants.items()}
        assert attained["behind"] == pytest.approx(attained["interactive"], abs=0.1), policy
        assert min(attained, key=attained.__getitem__) == "accurate", policy
    _, _, section = (folder / "report.md").read_text().partition("## Tenants and floors, overloaded\n")
    assert "0 answers were below their tenant's floor" in section
    first = by_policy["foresight"]
    assert (
        f"`foresight` {first['interactive']['slo_attainment']:.4f} and {first['behind']['slo_attainment']:.4f}"
        in section
    )


def test_way_back_is_told_per_policy(summary: dict[str, Any]) -> None:
    """A policy that bends in the burst is back at its accuracy of before within seconds."""
    for name in ("foresight", "slackfit", "maxbatch"):
        one = summary["way_back"]["back"]["0"][name]
        assert one["accuracy_in_burst"] < one["accuracy_before"]
        assert 0 <= one["back_after_ms"] <= 3_000


def test_report_has_a_section_and_a_plot_of_each_experiment(folder: Path, summary: dict[str, Any]) -> None:
    """report.md names every policy of every experiment, and each plot that it shows is a PNG beside it."""
    text = (folder / "report.md").read_text()
    shown = experiments("minutes:synthetic-day", TINY)
    for experiment in shown:
        _, _, section = text.partition(f"## {experiment.title}\n")
        section = section.partition("\n## ")[0]
        assert all(f"`{name}`" in section for cell in experiment.cells for name in cell.policies if name != "infaas")
        assert f"({experiment.key}.png)" in section
        assert "hare of the optimum" in section, experiment.key
    for experiment in shown:
        assert (folder / f"{experiment.key}.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "dynamics.png").stat().st_size > 10_000
    assert "(dynamics.png)" in text
    assert f"{summary['maf_cnn']['policies']['foresight']['serving_accuracy']:.2f}" in text
    assert "+4.67" in text


def test_nothing_missed_gives_no_ratio(summary: dict[str, Any]) -> None:
    """Misses at the longest delay are told over those without, and by themselves where there were none."""
    ratios = summary["actuation_delay"]["miss_ratios"]
    for one in ratios.values():
        without, longest = one["misses_without"], one["misses_longest"]
        assert one["ratio"] == (pytest.approx(longest / without) if without else None)
    assert ratio({"misses_without": 0, "misses_longest": 32_998, "ratio": None}) == "0 to 32,998"
    assert ratio({"misses_without": 704, "misses_longest": 7_040, "ratio": 10.0}) == "10x (704 to 7,040)"


def test_who_never_bent_is_not_back_at_once(folder: Path, summary: dict[str, Any]) -> None:
    """A policy as accurate in the burst as before it has no way back, and the report says so."""
    back = summary["way_back"]["back"]
    assert back["0"]["foresight"]["bent"] is True
    assert back["100"]["coarse:slackfit"]["bent"] is False
    text = (folder / "report.md").read_text().partition("## The way back\n")[2].partition("\n## ")[0]
    assert re.search(r"\| `coarse:slackfit` \| 100 ms \|.*\| never left \|", text)


def test_every_kind_of_policy_is_evaluated() -> None:
    """No registered policy is left out of the full evaluation."""
    named = {
        name.partition(":")[0]
        for experiment in experiments("minutes:synthetic-day", FULL)
        for cell in experiment.cells
        for name in cell.policies
    }
    assert named == set(available())


def test_equal_is_determined_as_documented() -> None:
    """Equal attainment: within .001; equal accuracy: at least as accurate; the best baseline counts in each case."""
    figures = {
        "foresight": (0.9995, 78.5),
        "fixed:73.82": (1.0, 73.82),
        "fixed:76.69": (0.9986, 76.69),  # within .001 of foresight
        "fixed:77.64": (0.9984, 77.64),  # not
        "fixed:79.44": (0.4, 79.44),
        "fixed:80.16": (0.3, 80.16),
    }
    cell = Cell("maf", WORLD, list(figures))
    found = gain(made(figures), cell, "foresight")
    assert found.accuracy_gain_points == pytest.approx(78.5 - 76.69)
    assert found.at_attainment_of == "fixed:76.69"
    assert found.attainment_ratio == pytest.approx(0.9995 / 0.4)
    assert found.at_accuracy_of == "fixed:79.44"
    alone = {name: figures[name] for name in ("foresight", "fixed:77.64")}
    without = gain(made(alone), Cell("maf", WORLD, list(alone)), "foresight")
    assert without.accuracy_gain_points is None
    assert without.attainment_ratio is None


def test_share_is_utility_over_the_bound() -> None:
    """Attainment times accuracy times queries over the bound's utility."""
    results = made({"foresight": (0.5, 80.0)})
    one = results.of(WORLD, "foresight")
    results.bounds[WORLD] = Bound.of(80.0 * one.report.queries, one.report.queries, one.report.queries)
    assert results.share(one) == pytest.approx(0.5)


def test_rules_differ_only_where_something_is_late() -> None:
    """Under overload each rule has a run of its own; where all is met, the run of the one is that of the other."""
    light, heavy = (Case(world=replace(WORLD, trace=f"poisson:rate={rate}"), policy="maxacc") for rate in (500, 40_000))
    met, too_much = run_rules(light, ("serve", "drop")), run_rules(heavy, ("serve", "drop"))
    assert [one.case.late for one in met] == [one.case.late for one in too_much] == ["drop", "serve"]
    assert met[0].report == met[1].report == run_case(replace(light, late="serve")).report
    assert too_much[0].report != too_much[1].report == run_case(replace(heavy, late="serve")).report


def test_bounds_ignore_what_can_only_cost() -> None:
    """Worlds that differ in hops, actuation or deaths have one bound: that of the world without."""
    harsh = Conditions(hop_us=500, actuation_us=10_000, deaths=((1, "worker-0"),), overhead_us=100, seed=3)
    assert bound_world(replace(WORLD, conditions=harsh)) == replace(WORLD, conditions=Conditions(overhead_us=100))


def test_unreadable_day_is_told_before_anything_runs(tmp_path: Path) -> None:
    """A day that is not there is an InputError, and no folder is made."""
    with pytest.raises(InputError, match=r"no-such\.csv"):
        evaluate(EvaluateOptions(out=tmp_path / "out", maf="minutes:no-such.csv"), lambda done, total: None)
    assert not (tmp_path / "out").exists()


def test_missing_extra_is_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scipy the evaluation says so at once, and no folder is made."""
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtraError, match=r"superserve-mesh\[evaluate\]"):
        evaluate(EvaluateOptions(out=tmp_path / "out", quick=True), lambda done, total: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(60)
def test_an_error_of_a_run_reaches_who_asked() -> None:
    """What a process of the pool cannot do ends the whole with that error, instead of waiting for ever."""
    wrong = Case(world=replace(WORLD, profile="no-such"), policy="maxacc")
    with pytest.raises(InputError, match="profile=no-such") as caught:
        run_all([wrong], lambda done, total: None)
    assert (caught.value.key, caught.value.value) == ("profile", "no-such")


def made(figures: dict[str, tuple[float, float]]) -> Results:
    """Results of given attainment and accuracy."""
    report = run_case(Case(world=WORLD, policy="fixed:smallest")).report
    cases = {}
    for name, (attainment, accuracy) in figures.items():
        case = Case(world=WORLD, policy=name)
        cases[case] = Result(case, replace(report, slo_attainment=attainment, serving_accuracy=accuracy))
    return Results(cases, {}, {})
