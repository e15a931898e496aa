"""`superserve search` and `superserve profile` as a person runs them, on the model and the real images that ship."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import ConfigError
from common.supernet import artifact
from services.cli import command
from services.worker import library
from services.worker.datasets import find_data
from services.worker.engine import TorchEngine
from services.worker.start import build
from tests.worker.conftest import worker_settings

SEARCH = ("--screened", "5", "--hosted", "12", "--subnets", "4", "--runs", "2", "--precision", "fp32")


@pytest.fixture(scope="session")
def rows(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own folder of rows: the shipped images in two parts."""
    folder = tmp_path_factory.mktemp("rows")
    samples = load_file(shipped / "samples.safetensors")
    for name, part in (("train", slice(0, 400)), ("held_out", slice(400, 600)), ("test", slice(600, 700))):
        tensors = {"inputs": samples["images"][part].contiguous(), "labels": samples["labels"][part].contiguous()}
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="session")
def found(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a search of the shipped model wrote."""
    out = tmp_path_factory.mktemp("found") / "fashion-resnet"
    assert command(["search", *SEARCH, "--data", str(rows), "--out", str(out), "--test"]) == 0
    return out


def test_search_writes_a_model_that_serves(found: Path) -> None:
    """What was found is served by a worker with the profile that lies beside it, and the frontier is drawn."""
    names = {path.name for path in found.iterdir()}
    assert {"supernet.json", "weights.safetensors", "norms.safetensors", "pareto.json", "frontier.png"} <= names
    assert (found / "frontier.png").read_bytes().startswith(b"\x89PNG")
    (profile,) = (found / "profiles").glob("*.json")
    engine = build(worker_settings(model=str(found), device="cpu", profile=str(profile)))
    assert isinstance(engine, TorchEngine)
    loaded = artifact.load(found)
    assert [s.id for s in engine.profile.subnets] == [s.id for s in loaded.subnets]
    assert all(s.test_accuracy is not None for s in loaded.subnets)
    assert len(loaded.subnets) + len(loaded.hosted) >= 12
    assert len(engine.execute(loaded.subnets[0].id, [engine.example(2)], [2])) == 1


def test_search_goes_on_and_says_what_it_found(found: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run again, a search measures nothing anew that it knows, and prints its Pareto set, its fit and its time."""
    before = json.loads((found / "search.json").read_text())["screened"]
    assert command(["search", *SEARCH, "--data", str(rows), "--out", str(found), "--test", "--no-plot"]) == 0
    after = json.loads((found / "search.json").read_text())["screened"]
    assert {key: after[key] for key in before} == before
    out, err = capsys.readouterr()
    for subnet in artifact.load(found).subnets:
        assert f"{subnet.id} " in out
    assert "predictors, on subnets left out: accuracy" in out
    assert re.search(r"\d+ subnets hosted, in fp32, after \d+ s; written to", out)
    assert "host: " in err
    assert "screen: " not in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "nonesuch"], "model 'nonesuch'"),
        (["--model", "rated-text-tiny"], "--data='': model 'rated-text-tiny' needs a folder with train.safetensors"),
        (["--model", "rated-text-tiny", "--data", "/nowhere"], "hutto_ICWSM_2014.tar.gz is missing"),
        (["--data", "/nowhere"], "train-images-idx3-ubyte.gz is missing: apt-get install dataset-fashion-mnist"),
    ],
)
def test_search_without_its_rows_says_so(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A model or data that are not there are told on one line, with code 2."""
    assert command(["search", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_search_refuses_the_state_of_another(found: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another seed is another search: the folder of the first is not written over unasked."""
    flags = ["--data", str(rows), "--out", str(found), "--seed", "1"]
    assert command(["search", *SEARCH, *flags]) == 2
    assert "--fresh begins anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"inputs": torch.zeros(3, 28, 28)}, "has no tensor 'labels', but inputs"),
        ({"inputs": torch.zeros(3, 28, 28), "labels": torch.zeros(3)}, "labels of torch.float32"),
        ({"inputs": torch.zeros(3, 28, 28), "labels": torch.zeros(4, dtype=torch.int64)}, "one INT64 label per row"),
        (None, "is no safetensors file"),
    ],
)
def test_malformed_rows_are_refused(
    tmp_path: Path, shipped: Path, tensors: dict[str, torch.Tensor] | None, words: str
) -> None:
    """Rows that cannot be used are refused by file and fault, before anything is searched."""
    path = tmp_path / "train.safetensors"
    if tensors is None:
        path.write_bytes(b"no tensors")
    else:
        save_file(tensors, path)
    with pytest.raises(ConfigError, match=rf"train\.safetensors.* {words}"):
        find_data(shipped, tmp_path, test=False)


def test_profile_of_hosted_subnets(found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every hosted subnet is measured at the batch sizes asked for; median and p95 are told."""
    path = tmp_path / "deep" / "all.json"
    flags = ["--subnets", "hosted", "--batch-sizes", "1,4", "--runs", "2", "--precision", "fp32", "--out", str(path)]
    assert command(["profile", "--model", str(found), *flags]) == 0
    profile, loaded = library.read_profile(path), artifact.load(found)
    assert {s.id for s in profile.subnets} == {s.id for s in loaded.subnets} | set(loaded.hosted)
    assert (profile.batch_sizes, profile.runs, profile.model) == ((1, 4), 2, "fashion-resnet")
    accuracies = [s.accuracy for s in profile.subnets]
    assert accuracies == sorted(accuracies)
    out = capsys.readouterr().out
    assert f"{len(profile.subnets)} subnets in fp32" in out
    assert "median (p95), ms" in out


def test_profile_of_named_subnets(shipped: Path, tmp_path: Path) -> None:
    """Named subnets alone are measured, and the model that ships is left as it was."""
    before, path = sorted(shipped.rglob("*")), tmp_path / "two.json"
    flags = ["--batch-sizes", "2", "--runs", "1", "--precision", "bf16", "--out", str(path)]
    assert command(["profile", "--subnets", "d1-w12-e50,d2.3.3-w100-e100", *flags]) == 0
    profile = library.read_profile(path)
    assert [s.id for s in profile.subnets] == ["d1-w12-e50", "d2.3.3-w100-e100"]
    assert profile.precision == "bf16"
    assert sorted(shipped.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--subnets", "d1-w75-e25"], "model fashion-resnet hosts no subnet 'd1-w75-e25'"),
        (["--subnets", "d9-w100-e100"], "hosts no subnet 'd9-w100-e100'"),
        (["--model", "nonesuch"], "model 'nonesuch'"),
        (["--runs", "1", "--batch-sizes", "1", "--out", "/proc/no/file.json"], "--out='/proc/no/file.json'"),
    ],
)
def test_profile_refuses_what_it_cannot_measure(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A subnet that is not hosted, a model or a file that cannot be: told by flag and value, with code 2."""
    assert command(["profile", *flags]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("sizes", ["0", "2,1", "1,1", "x", ""])
def test_profile_takes_ascending_batch_sizes(sizes: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Batch sizes that are not ascending numbers are wrong usage, told by flag and value."""
    with pytest.raises(SystemExit) as caught:
        command(["profile", "--batch-sizes", sizes])
    assert caught.value.code == 2
    assert (
        f"--batch-sizes: expected ascending numbers from 1, separated by commas, got '{sizes}'"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many"])
def test_counts_are_at_least_one(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A count of nothing is wrong usage, told by flag and value."""
    with pytest.raises(SystemExit) as caught:
        command(["search", f"--hosted={value}"])
    assert caught.value.code == 2
    assert f"--hosted: expected a number of at least 1, got '{value}'" in capsys.readouterr().err
