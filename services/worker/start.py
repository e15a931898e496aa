"""From settings to an engine: find the model, load it, and know how fast it is on this device.

A torch worker measures its profile at its first start and keeps it in a cache folder, under a name made of all that a
latency depends on: model files, device, threads, torch version. Workers that start together take turns at a lock, so
that one measures on a quiet device and the others read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from common import log
from common.errors import ConfigError
from common.sched.profile import Profile
from services.worker import library
from services.worker.engine import EmulatedEngine, Engine, TorchEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.settings import WorkerSettings
    from common.supernet.artifact import Supernet

_log = log.get(__name__)
WARM_UP_RUNS = 3


def build(settings: WorkerSettings) -> Engine:
    """Return the engine that ``settings`` ask for; ConfigError says what is missing or contradictory."""
    folder = library.find_model(settings.model)
    if settings.executor == "emulated":
        return _emulated(settings, folder)
    return _torch(settings, folder)


def _emulated(settings: WorkerSettings, folder: Path) -> Engine:
    if settings.profile is None:
        raise ConfigError("--executor emulated needs --profile NAME or FILE: the device that it stands for")
    name, profile = library.find_profile(settings.profile)
    emulated = Profile.from_dict({**profile.to_dict(), "executor": "emulated", "device": f"emulated {name}"})
    return EmulatedEngine(library.read_description(folder), emulated)


def _torch(settings: WorkerSettings, folder: Path) -> Engine:
    try:
        import torch

        from common.supernet import artifact, measure
    except ModuleNotFoundError as error:
        raise ConfigError(f"--executor torch: {error}; pip install 'superserve-mesh[worker]'") from error
    torch.set_num_threads(1)  # one worker, one core: more threads per process are slower on a shared machine
    device = find_device(settings.device)
    if settings.cuda_graphs and device == "cpu":
        raise ConfigError("--cuda-graphs needs a CUDA device, this worker runs on the CPU")
    name = measure.device_name(torch.device(device))

    def load(precision: str) -> Supernet:
        plan_bytes = None if settings.plan_mib is None else round(settings.plan_mib * (1 << 20))
        try:
            return artifact.load(folder, device, plan_bytes, precision, settings.cuda_graphs)
        except artifact.ArtifactError as error:
            raise ConfigError(str(error)) from error

    if settings.profile is not None:
        _, profile = library.find_profile(settings.profile)
        library.check_fit(settings.profile, profile, library.model_name(folder), name, 1, settings.precision)
        supernet = load(profile.precision)
        for subnet in profile.subnets:
            _known(supernet, subnet.id, settings.profile)
    else:
        path = cache_path(settings, folder, name, torch.__version__)
        with _locked(path.with_suffix(".lock")):
            if path.is_file() and not settings.reprofile:
                profile = library.read_profile(path)
                supernet = load(profile.precision)
                _log.info("profile_cached", path=str(path))
            else:
                supernet = load(settings.precision)
                profile = _measure(supernet, path)
    engine = TorchEngine(supernet, library.read_description(folder), profile)
    _warm_up(engine)
    return engine


def find_device(name: str) -> str:
    """Return the device that a setting means; ConfigError if this torch has none of that name."""
    import torch

    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device={name!r}: this torch ({torch.__version__}) sees no CUDA device")
    if name.startswith("cuda") and int(name.removeprefix("cuda:")) >= torch.cuda.device_count():
        raise ConfigError(f"--device={name!r}: there are {torch.cuda.device_count()} CUDA devices")
    return name


def _known(supernet: Supernet, subnet_id: str, profile: str) -> None:
    try:
        supernet.actuate(subnet_id)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"--profile={profile!r}: {error}") from error


def _measure(supernet: Supernet, path: Path) -> Profile:
    from common.supernet import artifact

    _log.info("profile_measuring", model=supernet.name, note="first start on this device; takes some seconds")
    profile = Profile.from_dict(artifact.profile(supernet))
    if profile.repairs:
        _log.warning("profile_repaired", repairs=profile.repairs)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(profile.to_dict(), indent=1))
    temporary.replace(path)
    _log.info("profile_measured", path=str(path))
    return profile


def _warm_up(engine: TorchEngine) -> None:
    """Run each subnet at the smallest and the largest batch, so that no query pays for first-call set-up."""
    for subnet in engine.profile.subnets:
        for rows in (1, engine.profile.max_batch):
            for _ in range(WARM_UP_RUNS):
                engine.execute(subnet.id, [engine.example(rows)], [rows])


def cache_path(settings: WorkerSettings, folder: Path, device: str, torch_version: str) -> Path:
    """Return where the profile measured on this device is kept, and make its folder; ConfigError if that cannot be."""
    base = Path(settings.cache_dir) if settings.cache_dir else _user_cache()
    key = hashlib.sha256()
    for name in ("supernet.json", "weights.safetensors", "norms.safetensors", "pareto.json", "tokenizer.json"):
        if (folder / name).is_file():  # what is missing and should not be is told when the model is read
            key.update((folder / name).read_bytes())
    flags = (settings.precision, settings.plan_mib, settings.cuda_graphs)
    key.update(repr((device, torch_version, platform.python_version(), flags)).encode())
    path = base / "profiles" / f"{library.model_name(folder)}-{key.hexdigest()[:12]}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--cache-dir: cannot make {path.parent}: {error}") from error
    return path


def _user_cache() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("superserve"))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
