"""Models and profiles by name: those shipped with the package, or a path that the user gives."""

import json
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.sched.profile import Profile, ProfileError

HERE = Path(__file__).parent
MODELS = HERE / "models"
PROFILES = HERE / "profiles"
DESCRIPTION = "supernet.json"


def find_model(name: str) -> Path:
    """Return the folder of a model; ConfigError lists the shipped ones if there is none of that name."""
    for folder in (MODELS / name, Path(name)):
        if (folder / DESCRIPTION).is_file():
            return folder
    shipped = ", ".join(shipped_models())
    raise ConfigError(f"model {name!r}: no such shipped model ({shipped}) and no folder with {DESCRIPTION}")


def shipped_models() -> list[str]:
    """Return the names of the models that come with the package."""
    return sorted(path.parent.name for path in MODELS.glob(f"*/{DESCRIPTION}"))


def shipped_profiles() -> list[str]:
    """Return the names of the profiles that come with the package."""
    return sorted(path.stem for path in PROFILES.glob("*.json"))


def model_name(folder: Path) -> str:
    """Return the name under which a model folder is served."""
    return str(read_description(folder)["name"])


def read_description(folder: Path) -> dict[str, Any]:
    """Return a model's ``supernet.json``; ConfigError if it cannot be read."""
    path = folder / DESCRIPTION
    try:
        description: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(description, dict):
        raise ConfigError(f"{path}: expected an object, got {type(description).__name__}")
    for key in ("name", "inputs", "outputs"):
        if key not in description:
            raise ConfigError(f"{path}: no key {key!r}")
    return description


def find_profile(name: str) -> tuple[str, Profile]:
    """Return name and content of a shipped profile or of a profile file; ConfigError names what is wrong with it."""
    for path in (PROFILES / f"{name}.json", Path(name)):
        if path.is_file():
            return path.stem, read_profile(path)
    shipped = ", ".join(shipped_profiles())
    raise ConfigError(f"profile {name!r}: no such shipped profile ({shipped}) and no such file")


def check_fit(name: str, profile: Profile, model: str, device: str, threads: int, precision: str) -> None:
    """Raise ConfigError unless a profile, given as `name`, tells of this model on this device.

    precision: what the worker is to use; auto takes the profile's.
    """
    for what, taken, here in (
        ("with executor", profile.executor, "torch"),
        ("of the model", profile.model or model, model),
        ("on the device", profile.device, device),
        ("with as many threads as", profile.threads, threads),
        ("in", profile.precision, profile.precision if precision == "auto" else precision),
    ):
        if taken != here:
            raise ConfigError(
                f"--profile={name!r} was taken {what} {taken!r}, not {here!r}: "
                "take one here with `superserve profile`, or leave the flag out to have the worker measure"
            )


def read_profile(path: Path) -> Profile:
    """Read a profile; ConfigError names file, key and value."""
    try:
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: expected an object, got {type(data).__name__}")
        return Profile.from_dict(data)
    except (OSError, ValueError, ProfileError) as error:
        raise ConfigError(f"{path}: {error}") from error
