"""Models and profiles by name or path, and what a wrong one says."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import ConfigError
from services.worker import library

PROFILE = "rtx2080ti-reconstructed"


def test_shipped_model_is_found_by_name() -> None:
    """The model that ships is found by its name, under which it is served, too."""
    folder = library.find_model("fashion-resnet")
    assert folder.parent == library.MODELS
    assert library.model_name(folder) == "fashion-resnet"


def test_model_of_the_user_is_found_by_path(model_folder: Path) -> None:
    """A folder with a description is a model."""
    assert library.find_model(str(model_folder)) == model_folder


@pytest.mark.parametrize("name", ["resnet-50", "", ".", "../models", "/nowhere"])
def test_unknown_model_lists_the_shipped(name: str) -> None:
    """The error has what was asked for and what there is."""
    with pytest.raises(ConfigError) as caught:
        library.find_model(name)
    assert f"model {name!r}" in caught.value.message
    assert "(fashion-resnet" in caught.value.message


def test_shipped_profile_is_found_by_name() -> None:
    """The reconstructed profile is emulated, and says so wherever it goes."""
    name, profile = library.find_profile(PROFILE)
    assert (name, profile.executor, profile.device) == (PROFILE, "emulated", PROFILE)


def test_profile_of_the_user_is_found_by_path(profile_file: Callable[..., Path]) -> None:
    """A file is a profile under the name of the file."""
    path = profile_file(small_us=123)
    name, profile = library.find_profile(str(path))
    assert name == path.stem
    assert profile.latency_us("small", 1) == 138


def test_unknown_profile_lists_the_shipped() -> None:
    """The error has what was asked for and what there is."""
    with pytest.raises(ConfigError) as caught:
        library.find_profile("a100")
    assert "profile 'a100'" in caught.value.message
    assert PROFILE in caught.value.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "Expecting"),
        ("", "Expecting"),
        ("[]", "expected an object, got list"),
        ("3", "expected an object, got int"),
        ('{"name": "m"}', "no key 'inputs'"),
    ],
)
def test_broken_description_names_its_file(content: str, words: str, tmp_path: Path) -> None:
    """A description that is no JSON, no object, or lacks a key is refused by file and fault."""
    path = tmp_path / library.DESCRIPTION
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        library.read_description(tmp_path)
    assert caught.value.message.startswith(f"{path}: ")
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "Expecting"),
        (b"\xff\xfe\x00", "decode"),
        (b"[]", "expected an object, got list"),
        (json.dumps({"format": 2}).encode(), "format: expected 1, got 2"),
        (json.dumps({"format": 1, "executor": "gpu"}).encode(), "executor: expected torch or emulated, got 'gpu'"),
    ],
)
def test_broken_profile_names_its_file(content: bytes, words: str, tmp_path: Path) -> None:
    """A profile that cannot be read is refused by file, key and value."""
    path = tmp_path / "profile.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        library.find_profile(str(path))
    assert caught.value.message.startswith(f"{path}: ")
    assert words in caught.value.message
