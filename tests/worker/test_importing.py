"""`superserve import`: a checkpoint as once-for-all publishes it, with random weights, to a model that serves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common.errors import ConfigError
from common.supernet import artifact
from services.cli import command
from services.worker.importing import read_images
from tests.supernet.ofa_reference import ofa_resnet

CLASSES, SIDE, PER_CLASS = ("bird", "cat", "dog"), 32, 8
SIZE = ("--classes", str(len(CLASSES)), "--side", str(SIDE))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("published") / "ofa_resnet50"
    torch.save({"state_dict": ofa_resnet(len(CLASSES)).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of pictures per class, of sizes and kinds as they come, and a file that is no picture."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir()
        (folder / name / "licence.txt").write_text("not a picture")
        for index in range(PER_CLASS):
            shape = (40 + index, 90) if index % 2 else (64, 48, 3)  # grey and wide, or coloured and high
            pixels = rng.integers(60 * label, 60 * label + 40, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}{'.png' if index % 2 else '.JPEG'}")
    return folder


@pytest.fixture(scope="module")
def imported(checkpoint: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "ofa"
    flags = ["--images", str(images), "--calibration", "10", "--held-out", "9", "--out", str(out), *SIZE]
    assert command(["import", "ofa-resnet50", str(checkpoint), *flags]) == 0
    return out


def test_the_whole_network_serves(imported: Path) -> None:
    """The imported model loads, and its one subnet has the accuracy that the held-out images give."""
    supernet = artifact.load(imported)
    (whole,) = supernet.subnets
    assert whole.control == supernet.model.space.largest
    held_out = load_file(imported / "data/held_out.safetensors")
    supernet.actuate(whole.id)
    right = (supernet.infer(held_out["inputs"])["label"] == held_out["labels"]).double().mean()
    assert whole.accuracy == pytest.approx(100 * float(right), abs=0.01)
    assert supernet.spec.labels == CLASSES


def test_the_rows_are_two_parts(imported: Path) -> None:
    """Images that calibrate and images that measure are different ones, as many as asked for, in the input's form."""
    train, held_out = (load_file(imported / f"data/{name}.safetensors") for name in ("train", "held_out"))
    assert (len(train["labels"]), len(held_out["labels"])) == (10, 9)
    rows = torch.cat([train["inputs"], held_out["inputs"]])
    assert (rows.shape, rows.dtype) == ((19, SIDE, SIDE, 3), torch.uint8)
    assert len({row.numpy().tobytes() for row in rows}) == 19
    labels = torch.cat([train["labels"], held_out["labels"]])
    for row, label in zip(rows, labels, strict=True):  # brightness tells the class
        assert 60 * label <= float(row.double().mean()) < 60 * label + 40


def test_search_makes_subnets_of_it(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the import says to do next works: a search hosts subnets of the published network, which then serve."""
    flags = ["--screened", "4", "--hosted", "6", "--runs", "1", "--precision", "fp32", "--no-plot"]
    where = ["--model", str(imported), "--data", str(imported / "data"), "--out", str(tmp_path)]
    assert command(["search", *where, *flags]) == 0
    assert "subnets hosted, in fp32" in capsys.readouterr().out
    supernet = artifact.load(tmp_path)
    for subnet_id in (*(subnet.id for subnet in supernet.subnets), *supernet.hosted):
        supernet.actuate(subnet_id)
        assert supernet.infer(supernet.example(1))["scores"].shape == (1, len(CLASSES))
    assert len(supernet.hosted) >= 4


def test_without_images_the_accuracy_is_told(checkpoint: Path, tmp_path: Path) -> None:
    """Without images the whole network serves with the accuracy that the user states, and says where it is from."""
    names = tmp_path / "labels.txt"
    names.write_text("\n".join(CLASSES))
    flags = ["--accuracy", "79.8", "--labels", str(names), "--out", str(tmp_path / "out"), *SIZE]
    assert command(["import", "ofa-resnet50", str(checkpoint), *flags]) == 0
    supernet = artifact.load(tmp_path / "out")
    assert [subnet.accuracy for subnet in supernet.subnets] == [79.8]
    assert supernet.spec.labels == CLASSES
    assert "as told to" in (tmp_path / "out/pareto.json").read_text()
    assert not (tmp_path / "out/data").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "one of --images and --accuracy is needed"),
        (("--accuracy", "101"), "--accuracy=101.0: expected percent, 0 to 100"),
        (("--images", "/nowhere"), "--images='/nowhere': 0 images"),
        (("--accuracy", "80", "--classes", "7"), r"has shape [3, 2048], expected [7, 2048]"),
        (("--accuracy", "80", "--labels", "/nowhere"), "--labels='/nowhere'"),
        (("--accuracy", "80", "--labels", __file__), "class names for --classes 3: name them with --labels FILE"),
    ],
)
def test_wrong_flags_are_told(
    checkpoint: Path, tmp_path: Path, flags: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing or contradicts the checkpoint is told by its flag, with code 2, and nothing is written."""
    out = tmp_path / "out"
    assert command(["import", "ofa-resnet50", str(checkpoint), *SIZE, *flags, "--out", str(out)]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_a_foreign_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is no such checkpoint is refused by its name and its first foreign tensor; none is unpickled."""
    torch.save({"state_dict": {"layer1.0.conv1.weight": torch.zeros(1)}}, tmp_path / "resnet50.pth")
    (tmp_path / "noise.pth").write_bytes(b"noise")
    for name, words in (("resnet50.pth", "layer1.0.conv1.weight is no tensor"), ("noise.pth", "is no checkpoint")):
        path = tmp_path / name
        assert command(["import", "ofa-resnet50", str(path), "--accuracy", "80", "--out", str(tmp_path / "out")]) == 2
        assert f"{path}" in (err := capsys.readouterr().err)
        assert words in err
    assert not (tmp_path / "out").exists()


def test_a_damaged_picture_is_named(images: Path, tmp_path: Path) -> None:
    """A picture that cannot be read ends the import by its path."""
    (tmp_path / "cat").mkdir()
    for source in (images / "cat").glob("*.png"):
        (tmp_path / "cat" / source.name).write_bytes(source.read_bytes()[:60])
    with pytest.raises(ConfigError, match=r"cat/\d\.png: "):
        read_images(tmp_path, 2, 2, SIDE, lambda *_: None)
