"""A supernet on disk: what is written reads back, and what is damaged is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.supernet import artifact
from common.supernet.actuate import Actuator, Origin
from common.supernet.artifact import ArtifactError, Notes
from common.supernet.operators import MissingStatisticsError
from common.supernet.spec import Control, Space, SpecError, TensorSpec
from common.supernet.supernet import ModelSpec, Subnet
from tests.supernet.conftest import Build, pictures

SPEC = ModelSpec(
    name="small",
    inputs=(TensorSpec("image", "UINT8", (14, 14)),),
    outputs=(TensorSpec("label", "INT64", ()), TensorSpec("scores", "FP32", (5,))),
    labels=("a", "b", "c", "d", "e"),
)
NOTES = Notes(preprocessing="none", training={"epochs": 0}, measured={"accuracy": "invented"})


def subnet(control: Control, accuracy: float) -> Subnet:
    return Subnet(control, accuracy, test_accuracy=None, macs=1000, params=100)


@pytest.fixture
def folder(tmp_path: Path, build: Build, space: Space) -> Path:
    model = build(space.smallest, space.largest)
    artifact.save(tmp_path / "small", model, SPEC, [subnet(space.largest, 90.0), subnet(space.smallest, 80.0)], NOTES)
    return tmp_path / "small"


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_round_trip(folder: Path, build: Build, space: Space) -> None:
    """A loaded supernet has the spec and subnets that were saved, by accuracy, and computes the same bits."""
    loaded = artifact.load(folder, plan_bytes=0)
    assert loaded.spec == SPEC
    assert [s.id for s in loaded.subnets] == [space.smallest.id, space.largest.id]
    assert loaded.subnets[1] == subnet(space.largest, 90.0)
    model, images = build(space.smallest, space.largest), pictures(7).inputs
    actuator = Actuator(model)
    for control in (space.smallest, space.largest):
        actuator.actuate(control.id)
        loaded.actuate(control.id)
        with torch.inference_mode():
            assert torch.equal(loaded.infer(images)["scores"], model(images).softmax(1))


def test_outputs_are_as_declared(folder: Path) -> None:
    """Labels are the places of the highest scores, scores are probabilities, datatypes and shapes those of the spec."""
    loaded = artifact.load(folder)
    for batch in (1, 16):
        outputs = loaded.infer(pictures(batch).inputs)
        assert outputs["label"].shape == (batch,)
        assert outputs["label"].dtype == torch.int64
        assert outputs["scores"].shape == (batch, 5)
        assert outputs["scores"].dtype == torch.float32
        assert torch.equal(outputs["label"], outputs["scores"].argmax(1))
        torch.testing.assert_close(outputs["scores"].sum(1), torch.ones(batch))


@pytest.mark.parametrize("rows", [torch.zeros(2, 14, 14), torch.zeros(2, 28, 28, dtype=torch.uint8)])
def test_wrong_rows_are_refused(folder: Path, rows: torch.Tensor) -> None:
    """Rows of another datatype or shape are refused by what the input takes, before anything runs."""
    with pytest.raises(ValueError, match=r"'image' takes UINT8 of shape \[B, \*\[14, 14\]\]"):
        artifact.load(folder).infer(rows)


def test_unknown_subnet_is_refused(folder: Path) -> None:
    """A subnet without statistics, or outside the space, is refused by name, and the one before it stays actuated."""
    loaded = artifact.load(folder)
    before = loaded.actuator.subnet_id
    with pytest.raises(MissingStatisticsError, match=r"subnet d1-w50-e50\.50\.100 has no SubnetNorm statistics"):
        loaded.actuate("d1-w50-e50.50.100")
    with pytest.raises(SpecError, match=r"subnet d9-w50-e50: depth\[0\] is 9"):
        loaded.actuate("d9-w50-e50")
    assert loaded.actuator.subnet_id == before


def test_uncalibrated_subnet_is_not_saved(tmp_path: Path, build: Build, space: Space) -> None:
    """An artifact whose subnet could not run is not written in the first place."""
    with pytest.raises(MissingStatisticsError, match="calibrate it first"):
        artifact.save(tmp_path / "small", build(), SPEC, [subnet(space.smallest, 80.0)], NOTES)
    assert not (tmp_path / "small").exists()


def test_files_are_readable_by_all(folder: Path) -> None:
    """A service under another user than the one who wrote the model can read it; nothing else is in the folder."""
    files = sorted(folder.iterdir())
    assert [path.name for path in files] == ["norms.safetensors", "pareto.json", "supernet.json", "weights.safetensors"]
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in files)


def test_family_of_ones_own(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may name a module that can be imported, if that says of itself that it is a family; what such a module
    builds can be saved again."""
    code = "from common.supernet import resnet\nfrom_json, FAMILY = resnet.from_json, 'own_family'\n"
    (tmp_path / "own_family.py").write_text(code)
    (tmp_path / "failing_family.py").write_text("raise OSError('no disk')")
    monkeypatch.syspath_prepend(tmp_path)
    edit(folder / "supernet.json", lambda d: d.update(family="own_family"))
    parts = artifact.read(folder)
    assert parts.model.origin is not None
    parts.model.origin = Origin("own_family", parts.model.origin.architecture)
    artifact.save(tmp_path / "again", parts.model, parts.spec, parts.subnets, NOTES)
    assert artifact.load(tmp_path / "again").subnets == artifact.load(folder).subnets
    for family, reason in (
        ("json", "the module of that name has no from_json beside FAMILY = 'json'"),
        ("no_such_family", "it is no module: ModuleNotFoundError: No module named 'no_such_family'"),
        ("failing_family", "it is no module: OSError: no disk"),
    ):
        edit(folder / "supernet.json", lambda d, family=family: d.update(family=family))  # type: ignore[misc]
        with pytest.raises(ArtifactError, match=f"family '{family}' is unknown here.*{reason}"):
            artifact.load(folder)
    parts.model.origin = Origin("json", {})
    with pytest.raises(ValueError, match="family 'json' is unknown here"):
        artifact.save(tmp_path / "refused", parts.model, parts.spec, parts.subnets, NOTES)


@pytest.mark.parametrize("name", ["supernet.json", "weights.safetensors", "norms.safetensors", "pareto.json"])
def test_missing_or_damaged_file_is_named(folder: Path, name: str) -> None:
    """Without one of its files, or with half of it, a model does not load, and the error names the file."""
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=name):
        artifact.load(folder)
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        artifact.load(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("supernet.json", lambda d: d.update(format=2), "supernet.json: format is 2, this version reads 1"),
        ("pareto.json", lambda d: d.pop("format"), "pareto.json: format is None"),
        ("supernet.json", lambda d: d.update(family="vit"), "family 'vit' is unknown here, which knows resnet"),
        ("supernet.json", lambda d: d.pop("labels"), "labels is missing or no list"),
        ("supernet.json", lambda d: d["architecture"].pop("std"), "supernet.json: architecture.std is missing"),
        ("supernet.json", lambda d: d["architecture"].update(image=[14]), "supernet.json: architecture is malformed"),
        ("supernet.json", lambda d: d["space"].pop("width"), "supernet.json: space.width is missing"),
        ("supernet.json", lambda d: d["inputs"][0].pop("shape"), "supernet.json: a tensor needs"),
        ("pareto.json", lambda d: d.update(subnets=[]), "pareto.json: subnets is empty"),
        ("pareto.json", lambda d: d["subnets"][1].pop("macs"), r"pareto.json: subnets\[1\].macs is missing"),
        ("pareto.json", lambda d: d["subnets"][0].update(id="d9-w100-e100"), r"subnets\[0\]: subnet d9-w100-e100"),
        ("pareto.json", lambda d: d["subnets"][0].update(id="d1-w50-e50.50.100"), "norms.safetensors: subnet d1-w50"),
    ],
)
def test_wrong_key_is_named(
    folder: Path, name: str, change: Callable[[dict[str, object]], object], message: str
) -> None:
    """A wrong or missing value is reported with its file and key."""
    edit(folder / name, change)
    with pytest.raises(ArtifactError, match=message):
        artifact.load(folder)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("weights.safetensors", "head.bias", None, "weights.safetensors: head.bias is missing"),
        ("weights.safetensors", "tail.bias", torch.zeros(2), "tail.bias is no weight of this model"),
        ("weights.safetensors", "head.bias", torch.zeros(3), r"head.bias has shape \[3\], the model's \[5\]"),
        ("norms.safetensors", "d2.3.2-w100-e100/norm/var", None, "d2.3.2-w100-e100/norm/var is missing"),
        ("norms.safetensors", "d2.3.2-w100-e100/normal/mean", torch.zeros(8), "belongs to no SubnetNorm"),
    ],
)
def test_wrong_tensor_is_named(folder: Path, name: str, key: str, value: torch.Tensor | None, message: str) -> None:
    """A missing, foreign or misshapen tensor is reported with its file and name."""
    tensors = load_file(folder / name)
    if value is None:
        del tensors[key]
    else:
        tensors[key] = value
    save_file(tensors, folder / name)
    with pytest.raises(ArtifactError, match=message):
        artifact.load(folder)
