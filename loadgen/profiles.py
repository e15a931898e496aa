"""Latency profiles for simulations: shipped with the package by name, or a file of the user's."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import orjson

from common.sched.profile import Profile, ProfileError
from loadgen.errors import InputError


def load_profile(name: str) -> Profile:
    """The shipped profile of that name, or the JSON file at that path. InputError names what is wrong."""
    shipped = _shipped()
    path = shipped.get(name, Path(name))
    if not path.is_file():
        raise InputError("profile", name, f"no such shipped profile ({', '.join(sorted(shipped))}) and no such file")
    try:
        return Profile.from_dict(orjson.loads(path.read_bytes()))
    except (OSError, ValueError, AttributeError) as error:
        kind = "" if isinstance(error, ProfileError) else "cannot be read: "
        raise InputError("profile", path, f"{kind}{error}") from None


def _shipped() -> dict[str, Path]:
    """Profiles by name, found without importing the worker, as `payloads.shipped_data` finds samples."""
    try:
        services = importlib.resources.files("services")
    except ModuleNotFoundError:
        return {}
    folder = Path(str(services / "worker" / "profiles"))
    return {path.stem: path for path in folder.glob("*.json")}
