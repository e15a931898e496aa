"""From settings to an engine: contradictions are refused, and a device is measured once."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch

from common.errors import ConfigError
from common.supernet import artifact
from services.worker.engine import EmulatedEngine
from services.worker.start import build
from tests.worker.conftest import brief_profile, worker_settings

PROFILE = "rtx2080ti-reconstructed"


def refusal(**settings: object) -> str:
    with pytest.raises(ConfigError) as caught:
        build(worker_settings(**settings))
    return caught.value.message


def test_emulation_needs_a_profile() -> None:
    """Nobody emulates a device that was not named."""
    assert "--profile" in refusal(executor="emulated")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "Some GPU"}, "was taken on the device 'Some GPU', not "),
        ({"executor": "emulated"}, "was taken with executor 'emulated', not 'torch'"),
        ({"model": "other"}, "was taken of the model 'other', not 'fashion-resnet'"),
        ({"threads": 8}, "was taken with as many threads as 8, not 1"),
        ({"precision": "bf16"}, "was taken in 'bf16', not 'fp32'"),
        ({"subnets": ["d9-w100-e100"]}, r"subnet d9-w100-e100: depth\[0\] is 9"),
        ({"subnets": ["d1-w75-e25"]}, "subnet d1-w75-e25 has no SubnetNorm statistics"),
    ],
)
def test_profile_that_does_not_fit_is_refused(
    shipped: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    """A torch worker takes a profile of this model on this device alone, and says in what another one differs."""
    taken = brief_profile(artifact.load(shipped))
    if "subnets" in change:
        (subnet_id,) = cast("list[str]", change["subnets"])
        change["subnets"] = [taken["subnets"][0] | {"id": subnet_id}]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(taken | change))
    assert re.search(f"--profile={str(path)!r}.* {message}", refusal(device="cpu", precision="fp32", profile=str(path)))


def test_profile_that_fits_is_served(shipped: Path, tmp_path: Path) -> None:
    """With a profile of this device nothing is measured, and its subnets alone serve, in its precision."""
    taken = brief_profile(artifact.load(shipped, precision="bf16"))
    taken["subnets"] = taken["subnets"][2:4]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(taken))
    engine = build(worker_settings(device="cpu", profile=str(path), cache_dir=str(tmp_path / "cache")))
    assert [subnet.id for subnet in engine.profile.subnets] == [entry["id"] for entry in taken["subnets"]]
    assert (engine.profile.precision, engine.profile.model) == ("bf16", "fashion-resnet")
    assert not (tmp_path / "cache").exists()
    assert len(engine.execute(taken["subnets"][0]["id"], [bytes(28 * 28)], [1])) == 1


def test_unknown_model_and_profile_are_named() -> None:
    """What is not there is told by its name."""
    assert "'nonesuch'" in refusal(model="nonesuch")
    assert "'nonesuch'" in refusal(executor="emulated", profile="nonesuch")


def test_emulated_engine_says_what_it_stands_for() -> None:
    """Whatever a profile says of itself, emulating it is called emulation, of a device with a name."""
    engine = build(worker_settings(executor="emulated", profile=PROFILE))
    assert isinstance(engine, EmulatedEngine)
    assert (engine.profile.executor, engine.profile.device) == ("emulated", f"emulated {PROFILE}")


def test_measured_profile_is_emulated_as_such(profile_file: Callable[..., Path]) -> None:
    """A profile that a torch worker measured can be emulated elsewhere and no longer calls itself torch's."""
    path = profile_file()
    path.write_text(json.dumps({**json.loads(path.read_text()), "executor": "torch"}))
    assert build(worker_settings(executor="emulated", profile=str(path))).profile.executor == "emulated"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test says is missing")
def test_cuda_without_a_device_is_refused() -> None:
    """--device cuda:0 without one is told by flag and value, with the torch that sees none."""
    message = refusal(device="cuda:0")
    assert "--device='cuda:0'" in message
    assert torch.__version__ in message


def test_model_without_weights_is_refused(model_folder: Path, tmp_path: Path) -> None:
    """A folder with a description alone can be emulated; torch refuses it by the file and the key it lacks."""
    assert str(model_folder / "supernet.json") in refusal(model=str(model_folder), cache_dir=str(tmp_path))


def test_cache_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """A cache folder below a file is told by its flag."""
    (tmp_path / "file").touch()
    assert "--cache-dir" in refusal(cache_dir=str(tmp_path / "file"), device="cpu")


def test_device_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first worker measures and keeps the profile, the second reads it, and --reprofile measures anew."""
    measured: list[str] = []

    def profile(supernet: artifact.Supernet) -> dict[str, object]:
        measured.append(supernet.name)
        return brief_profile(supernet)

    monkeypatch.setattr(artifact, "profile", profile)
    first = build(worker_settings(device="cpu", cache_dir=str(tmp_path)))
    (path,) = (tmp_path / "profiles").glob("*.json")
    written = path.stat()
    second = build(worker_settings(device="cpu", cache_dir=str(tmp_path)))
    assert measured == ["fashion-resnet"]
    assert second.profile == first.profile
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert first.profile.executor == "torch"

    os.utime(path, ns=(0, 0))
    build(worker_settings(device="cpu", cache_dir=str(tmp_path), reprofile=True))
    assert measured == ["fashion-resnet"] * 2
    assert path.stat().st_mtime_ns > 0
    assert list((tmp_path / "profiles").glob("*.tmp")) == []
