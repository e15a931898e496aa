"""The search as a whole, on a small supernet with real forward passes: what it writes, and how it goes on."""

import itertools
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from common.sched.profile import Profile
from common.supernet import artifact
from common.supernet.explore import STATE, STATISTICS, Budget, Data, Found, Progress, Search, SearchError, profile_file
from common.supernet.measure import accuracy
from common.supernet.spec import Space
from common.supernet.train import Recipe, Trainer
from tests.supernet.conftest import Build, pictures
from tests.supernet.test_artifact import NOTES, SPEC, subnet

pytestmark = pytest.mark.timeout(300)  # the first trains, slowly where the processor has no bfloat16
BUDGET = Budget(
    screened=10, refined=4, hosted=30, finalists=5, baselines=2, subnets=4,
    screen_rows=100, calibration_rows=64, final_calibration_rows=64, screen_runs=3, runs=7,
)  # fmt: skip
STAGES = {"screen", "refine", "host", "calibrate", "measure", "profile"}


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(pictures(300, seed=1), pictures(200, seed=2), pictures(100, seed=3))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, build: Build, space: Space) -> Path:
    """A model that was trained a little, so that its subnets differ in accuracy."""
    trainer = Trainer(build(), pictures(300, seed=1), Recipe(epochs=15, batch=50, learning_rate=1e-2))
    while trainer.progress < 1:
        trainer.step()
    model = trainer.model
    calibrated = build(space.smallest)  # statistics are made anew by a search; the file needs one subnet
    for name, norm in model.norms().items():
        norm.statistics = dict(calibrated.norms()[name].statistics)
    folder = tmp_path_factory.mktemp("trained") / "small"
    artifact.save(folder, model, SPEC, [subnet(space.smallest, 50.0)], NOTES)
    return folder


@pytest.fixture
def source(trained: Path, tmp_path: Path) -> Path:
    """A copy of that model for one test."""
    return Path(shutil.copytree(trained, tmp_path / "small"))


@dataclass(frozen=True)
class Searched:
    """A search that ended well: where it wrote, what it found, and how far each stage was told to have come."""

    out: Path
    found: Found
    told: dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def searched(trained: Path, tmp_path_factory: pytest.TempPathFactory, data: Data) -> Searched:
    out, told = tmp_path_factory.mktemp("searched") / "out", dict[str, tuple[int, int]]()
    found = search(trained, out, data, progress=lambda stage, done, total: told.update({stage: (done, total)}))
    return Searched(out, found, told)


def search(
    source: Path,
    out: Path,
    data: Data,
    budget: Budget = BUDGET,
    fresh: bool = False,
    progress: Progress = lambda *_: None,
) -> Found:
    return Search(source, out, data, budget, precision="fp32", fresh=fresh, progress=progress).run()


def test_what_is_found_is_served(searched: Searched, trained: Path, data: Data) -> None:
    """A search leaves a model that loads: all it hosts can be actuated, and accuracies are those of its rows."""
    found = searched.found
    assert searched.told.keys() == STAGES
    assert all(done == total for done, total in searched.told.values())
    loaded = artifact.load(searched.out)
    assert loaded.subnets == found.subnets
    assert 2 <= len(found.subnets) <= BUDGET.subnets
    assert len(loaded.hosted) + len(loaded.subnets) >= BUDGET.hosted
    for subnet_id in loaded.hosted:
        loaded.actuate(subnet_id)
    for chosen in loaded.subnets:
        loaded.actuate(chosen.id)
        for rows, value in ((data.held_out, chosen.accuracy), (data.test, chosen.test_accuracy)):
            assert rows is not None and value is not None
            assert accuracy(lambda x: loaded.infer(x)["scores"], rows) == pytest.approx(value, abs=0.51)
    assert json.loads((trained / "pareto.json").read_text())["subnets"][0]["accuracy"] == 50.0  # left as it was


def test_the_pareto_set_is_monotone(searched: Searched) -> None:
    """Along the Pareto set accuracy grows, and with it latency at every batch size; the profile says so too."""
    found = searched.found
    entries = found.profile["subnets"]
    assert [entry["id"] for entry in entries] == [chosen.id for chosen in found.subnets]
    for a, b in itertools.pairwise(entries):
        assert a["accuracy"] < b["accuracy"]
        assert all(fast < slow for fast, slow in zip(a["median_us"], b["median_us"], strict=True))
    path = searched.out / "profiles" / profile_file(found.profile)
    read = Profile.from_dict(json.loads(path.read_text()))
    assert (read.model, read.runs, read.precision) == (SPEC.name, BUDGET.runs, "fp32")
    assert [s.accuracy for s in read.subnets] == [s.accuracy for s in found.subnets]


def test_what_people_would_pick_is_measured_too(searched: Searched, space: Space) -> None:
    """Baselines bend everything alike; they and both ends of the space are measured like the finalists."""
    found = searched.found
    measured = {candidate.control.id for candidate in found.candidates}
    assert {space.smallest.id, space.largest.id, *found.baselines} <= measured
    assert len(set(found.baselines)) == BUDGET.baselines


class EndedError(Exception):
    """Somebody ended the search."""


@pytest.mark.parametrize("at", ["refine", "host", "measure"])
def test_a_search_that_was_ended_goes_on(source: Path, tmp_path: Path, data: Data, at: str) -> None:
    """What was screened before the end is not screened again, and the search ends with a model that loads."""

    def end(stage: str, done: int, total: int) -> None:
        if stage == at:
            raise EndedError

    out = tmp_path / "out"
    with pytest.raises(EndedError):
        search(source, out, data, progress=end)
    before = json.loads((out / STATE).read_text())["screened"]
    assert len(before) >= BUDGET.screened
    told: list[str] = []
    search(source, out, data, progress=lambda stage, *_: told.append(stage))
    after = json.loads((out / STATE).read_text())["screened"]
    assert {key: after[key] for key in before} == before
    assert "screen" not in told
    assert not (out / STATISTICS).exists()
    assert artifact.load(out).hosted


def test_the_state_of_another_search_is_refused(searched: Searched, source: Path, tmp_path: Path, data: Data) -> None:
    """Other rows, another budget of rows or another precision: named, and begun anew by `fresh` alone."""
    out = Path(shutil.copytree(searched.out, tmp_path / "out"))
    for other, budget in ((replace(data, held_out=pictures(150)), BUDGET), (data, replace(BUDGET, screen_rows=50))):
        with pytest.raises(SearchError, match=r"search\.json is of another model, data or budget; --fresh"):
            search(source, out, other, budget)
    with pytest.raises(SearchError, match="--fresh"):
        Search(source, out, data, BUDGET, precision="bf16")
    for content in ("{", "[]", '{"key": 1}'):
        (out / STATE).write_text(content)
        with pytest.raises(SearchError, match=r"search\.json is no state of a search"):
            search(source, out, data)
    assert search(source, out, data, fresh=True).subnets


def test_a_search_in_place_keeps_the_weights(source: Path, data: Data) -> None:
    """Searched into its own folder, a model keeps its weights and gets a Pareto set."""
    weights = (source / artifact.WEIGHTS).read_bytes()
    found = search(source, source, data)
    assert (source / artifact.WEIGHTS).read_bytes() == weights
    assert artifact.load(source).subnets == found.subnets


def test_what_is_predicted_of_hosted_subnets_is_near_the_truth(source: Path, tmp_path: Path, data: Data) -> None:
    """Measured on all held-out rows, hosted subnets are about as good as told, and the better ones are better."""
    out = tmp_path / "out"
    search(source, out, data, replace(BUDGET, screened=24, screen_rows=200))
    loaded = artifact.load(out)
    told, truth = [], []
    for subnet_id, value in loaded.hosted.items():
        loaded.actuate(subnet_id)
        told.append(value)
        truth.append(accuracy(lambda x: loaded.infer(x)["scores"], data.held_out))
    assert abs(np.mean(told) - np.mean(truth)) < 10
    assert np.corrcoef(told, truth)[0, 1] > 0.4
    assert max(told) <= 100
