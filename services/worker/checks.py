"""Can a worker run on this machine? Device, model files and profile, for ``superserve doctor``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from common.diagnosis import Finding
from common.errors import ConfigError
from services.worker import library, start

if TYPE_CHECKING:
    from common.settings import WorkerSettings

NVIDIA = Path("/dev/nvidia0")


def check_device(settings: WorkerSettings) -> Finding:
    """Look for torch and the device that the settings name."""
    check = "torch device"
    try:
        import torch

        from common.supernet import measure
    except ModuleNotFoundError as error:
        return Finding(check, "warn", f"{error}: no worker can run here", "pip install 'superserve-mesh[worker]'")
    try:
        device = start.find_device(settings.device)
    except ConfigError as error:
        return Finding(check, "fail", error.message, "install a torch built for this device, or --device cpu")
    cores = len(os.sched_getaffinity(0))
    name = measure.device_name(torch.device(device))
    found = f"torch {torch.__version__} on {device} ({name}); {cores} cores, 1 thread per worker"
    if device == "cpu" and NVIDIA.exists():
        advice = "install a torch built for CUDA, and let the container see the GPU"
        return Finding(check, "warn", f"{found}; there is a GPU that this torch does not see", advice)
    return Finding(check, "ok", found)


def check_model(settings: WorkerSettings) -> list[Finding]:
    """Load the model that the settings name, and look for its profile on this device."""
    check = f"model {settings.model}"
    try:
        folder = library.find_model(settings.model)
    except ConfigError as error:
        advice = "nothing, if no worker of it is to run here; else give --model its folder"
        return [Finding(check, "warn", error.message, advice)]
    try:
        import torch

        from common.supernet import artifact, measure
    except ModuleNotFoundError:
        return [Finding(check, "ok", f"{folder} is described; without torch it was not loaded")]
    try:
        name = library.model_name(folder)
        device = start.find_device(settings.device)
        supernet = artifact.load(folder, device, precision="fp32")
    except (ConfigError, artifact.ArtifactError) as error:
        return [Finding(check, "fail", str(error), "copy the model's folder anew, all of its files")]
    subnets = supernet.subnets
    loaded = f"{name} loads: {len(subnets)} subnets, {subnets[0].accuracy:.2f} to {subnets[-1].accuracy:.2f} %"
    findings = [Finding(check, "ok", loaded)]
    check = f"profile of {settings.model}"
    if settings.profile is not None:
        return [*findings, _profile_given(check, settings, name, measure.device_name(torch.device(device)))]
    try:
        path = start.cache_path(settings, folder, measure.device_name(torch.device(device)), torch.__version__)
        if not path.is_file():
            unmeasured = "not measured on this device yet: the first worker does, before it says hello"
            advice = f"nothing, or beforehand: superserve worker --model {settings.model}"
            return [*findings, Finding(check, "warn", unmeasured, advice)]
        profile = library.read_profile(path)
    except ConfigError as error:
        return [*findings, Finding(check, "fail", error.message, "superserve worker --reprofile measures it anew")]
    fastest, best = (profile.latency_us(subnet, 1) / 1e3 for subnet in (profile.smallest, profile.subnets[-1].id))
    measured = f"measured here in {profile.precision}: one row takes {fastest:.2f} to {best:.2f} ms ({path})"
    return [*findings, Finding(check, "ok", measured)]


def _profile_given(check: str, settings: WorkerSettings, model: str, device: str) -> Finding:
    """Look at the profile that the settings name in place of one measured here."""
    assert settings.profile is not None
    try:
        name, profile = library.find_profile(settings.profile)
        if settings.executor == "torch":
            library.check_fit(settings.profile, profile, model, device, 1, settings.precision)
    except ConfigError as error:
        return Finding(check, "fail", error.message, "superserve profile makes one of this device; or give none")
    return Finding(check, "ok", f"{name}, of {profile.device or 'no device named'}, as --profile says")
