"""A supernet on disk: a folder of JSON and safetensors, nothing pickled.

    supernet.json         format, name, family, architecture, space, inputs, outputs, labels, preprocessing, training
    weights.safetensors   the shared weights, by parameter name
    norms.safetensors     SubnetNorm statistics, active channels only: `<subnet id>/<norm>/mean` and `.../var`
    pareto.json           the subnets that serve: control, accuracies, cost, and how they were measured; under `hosted`
                          the others that are calibrated, with what accuracy is predicted for them
    profiles/*.json       latencies by device, as `superserve search` and `superserve profile` write them
    tokenizer.json        of a supernet that reads text

Every error names the file, and the key in it where there is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.supernet.actuate import Elastic
from common.supernet.families import builder
from common.supernet.measure import profile
from common.supernet.operators import MissingStatisticsError
from common.supernet.spec import Space, SpecError, TensorSpec
from common.supernet.supernet import ModelSpec, Subnet, Supernet, Text

__all__ = [
    "FORMAT",
    "ArtifactError",
    "Notes",
    "Parts",
    "Subnet",
    "Supernet",
    "fill_statistics",
    "load",
    "profile",
    "read",
    "save",
    "write_json",
    "write_pareto",
    "write_statistics",
]

FORMAT = 1
DESCRIPTION, WEIGHTS, NORMS, PARETO = "supernet.json", "weights.safetensors", "norms.safetensors", "pareto.json"


class ArtifactError(RuntimeError):
    """A model folder is incomplete, damaged or of another format; the message names file and key."""


@dataclass(frozen=True, slots=True)
class Notes:
    """How a supernet came about, for people: written to the JSON files and not read back."""

    preprocessing: str
    training: Mapping[str, Any]
    measured: Mapping[str, Any]


def save(
    folder: Path,
    model: Elastic,
    spec: ModelSpec,
    subnets: Sequence[Subnet],
    notes: Notes,
    tokens: Mapping[str, int] | None = None,
    stored: torch.dtype = torch.float32,
) -> None:
    """Write a supernet with the statistics of its subnets; files that are there are replaced.

    tokens: of a supernet that reads text, `max`, the length in tokens beyond which texts are cut off, and `profiled`,
    that of the texts that latency is profiled with; tokenizer.json in the folder is the caller's. stored: the type of
    the weights in the file; they are read back as float32.

    Raises: MissingStatisticsError when a subnet is not calibrated; ValueError when no family
    builds this supernet.
    """
    if model.origin is None:
        raise ValueError("only supernets of a family can be saved and read again: set `origin`")
    builder(model.origin.family)
    weights = {name: tensor.detach().to(stored).contiguous() for name, tensor in model.net.named_parameters()}
    statistics = _statistics(model, [subnet.id for subnet in subnets])
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, weights)
    write_tensors(folder / NORMS, statistics)
    description = {
        "format": FORMAT,
        **spec.to_json(),
        "family": model.origin.family,
        "architecture": dict(model.origin.architecture),
        "space": model.space.to_json(),
        "preprocessing": notes.preprocessing,
        "training": dict(notes.training),
        **({} if tokens is None else {"tokens": dict(tokens)}),
    }
    write_json(folder / DESCRIPTION, description)
    write_pareto(folder, subnets, {}, notes.measured)


def write_pareto(
    folder: Path, subnets: Sequence[Subnet], hosted: Mapping[str, float], measured: Mapping[str, Any]
) -> None:
    """Write pareto.json. hosted: subnet id -> predicted accuracy in percent; measured: see Notes."""
    pareto = {
        "format": FORMAT,
        "measured": dict(measured),
        "subnets": [_subnet_json(subnet) for subnet in subnets],
        "hosted": {subnet_id: round(accuracy, 2) for subnet_id, accuracy in hosted.items()},
    }
    write_json(folder / PARETO, pareto)


def write_statistics(folder: Path, model: Elastic, subnet_ids: Sequence[str], name: str = NORMS) -> None:
    """Write the statistics of subnets. Raises: MissingStatisticsError when one of them is not calibrated."""
    write_tensors(folder / name, _statistics(model, subnet_ids))


@dataclass(frozen=True, slots=True)
class Parts:
    """What a folder holds, read and checked: see Supernet."""

    model: Elastic
    spec: ModelSpec
    subnets: tuple[Subnet, ...]
    hosted: Mapping[str, float]
    text: Text | None


def read(folder: Path, device: str = "cpu") -> Parts:
    """Read a supernet's parts, its weights onto a device. Raises: ArtifactError."""
    model, spec, tokens = _read_description(folder / DESCRIPTION)
    _fill_weights(model, folder / WEIGHTS)
    subnets, hosted = _read_pareto(folder / PARETO, model.space)
    fill_statistics(model, folder / NORMS, device)
    model.channels_last().to(device)
    return Parts(model, spec, subnets, hosted, None if tokens is None else _read_text(folder, tokens))


def load(
    folder: Path | str,
    device: str = "cpu",
    plan_bytes: int | None = None,
    precision: str = "fp32",
    cuda_graphs: bool = False,
) -> Supernet:
    """Read a supernet from a folder, onto a device, with every subnet of its Pareto set ready to be actuated.

    plan_bytes, precision, cuda_graphs: as in Supernet.

    Raises: ArtifactError.
    """
    folder = Path(folder)
    parts = read(folder, device)
    try:
        return Supernet(
            parts.model,
            parts.spec,
            parts.subnets,
            device,
            parts.text,
            plan_bytes,
            precision,
            parts.hosted,
            cuda_graphs,
        )
    except MissingStatisticsError as error:
        raise ArtifactError(f"{folder / NORMS}: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that everybody may read, as the other files of a model: its writer leaves mode 600."""
    save_file(dict(tensors), path)
    path.chmod(0o644)


def _statistics(model: Elastic, subnet_ids: Sequence[str]) -> dict[str, Tensor]:
    statistics: dict[str, Tensor] = {}
    for subnet_id in subnet_ids:
        found = {
            name: norm.statistics[subnet_id] for name, norm in model.norms().items() if subnet_id in norm.statistics
        }
        if model.norms() and not found:
            raise MissingStatisticsError(f"subnet {subnet_id} has no SubnetNorm statistics: calibrate it first")
        for name, (mean, var) in found.items():
            statistics[f"{subnet_id}/{name}/mean"] = mean
            statistics[f"{subnet_id}/{name}/var"] = var
    return statistics


def _read_description(path: Path) -> tuple[Elastic, ModelSpec, Mapping[str, Any] | None]:
    """The untrained model, its spec, and for one that reads text its `tokens`, from supernet.json."""
    data = _read_json(path)
    family = _get(data, "family", str, path)
    try:
        spec = ModelSpec(
            name=_get(data, "name", str, path),
            inputs=tuple(TensorSpec.from_json(tensor) for tensor in _get(data, "inputs", list, path)),
            outputs=tuple(TensorSpec.from_json(tensor) for tensor in _get(data, "outputs", list, path)),
            labels=tuple(map(str, _get(data, "labels", list, path))),
        )
        space = Space.from_json(_get(data, "space", dict, path))
        model = builder(family)(_get(data, "architecture", dict, path), space)
    except SpecError as error:
        raise ArtifactError(f"{path}: {error}") from error
    reads_text = any(tensor.datatype == "BYTES" for tensor in spec.inputs)
    return model, spec, _get(data, "tokens", dict, path) if reads_text else None


def _read_text(folder: Path, tokens: Mapping[str, Any]) -> Text:
    """How a supernet reads text, from its folder and the `tokens` of its description."""
    from common.supernet.tokenise import Tokeniser, TokeniserError  # only where text is read: needs tokenizers

    longest = _get(tokens, "max", int, folder / DESCRIPTION)
    profiled = _get(tokens, "profiled", int, folder / DESCRIPTION)
    try:
        return Text(Tokeniser.load(folder, longest), profiled)
    except TokeniserError as error:
        raise ArtifactError(str(error)) from error


def _fill_weights(model: Elastic, path: Path) -> None:
    """Copy the shared weights from the file into the model; names and shapes must agree exactly."""
    tensors, parameters = _read_tensors(path), dict(model.net.named_parameters())
    for name in sorted(tensors.keys() ^ parameters.keys()):
        what = "is missing" if name in parameters else "is no weight of this model"
        raise ArtifactError(f"{path}: {name} {what}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if tensors[name].shape != parameter.shape:
                shapes = f"{list(tensors[name].shape)}, the model's {list(parameter.shape)}"
                raise ArtifactError(f"{path}: {name} has shape {shapes}")
            parameter.copy_(tensors[name])


def fill_statistics(model: Elastic, path: Path, device: str = "cpu") -> None:
    """Give each SubnetNorm its statistics of every subnet in the file. Raises: ArtifactError."""
    tensors, norms = _read_tensors(path), model.norms()
    for key in tensors:
        subnet_id, _, rest = key.partition("/")
        name, _, moment = rest.rpartition("/")
        if name not in norms or moment not in ("mean", "var"):
            raise ArtifactError(f"{path}: {key} belongs to no SubnetNorm of this model")
        if moment == "mean":
            var = tensors.get(f"{subnet_id}/{name}/var")
            if var is None or var.shape != tensors[key].shape:
                raise ArtifactError(f"{path}: {subnet_id}/{name}/var is missing or of another shape than the mean")
            norms[name].statistics[subnet_id] = (tensors[key].to(device), var.to(device))


def _read_pareto(path: Path, space: Space) -> tuple[tuple[Subnet, ...], dict[str, float]]:
    data = _read_json(path)
    subnets = []
    for index, entry in enumerate(_get(data, "subnets", list, path)):
        where = f"subnets[{index}]"
        try:
            test = entry["test_accuracy"]
            subnet = Subnet(
                control=space.parse(entry["id"]),
                accuracy=float(entry["accuracy"]),
                test_accuracy=None if test is None else float(test),
                macs=int(entry["macs"]),
                params=int(entry["params"]),
            )
        except KeyError as error:
            raise ArtifactError(f"{path}: {where}.{error.args[0]} is missing") from error
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"{path}: {where}: {error}") from error
        subnets.append(subnet)
    if not subnets:
        raise ArtifactError(f"{path}: subnets is empty")
    try:
        hosted = {space.parse(key).id: float(value) for key, value in data.get("hosted", {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: hosted: {error}") from error
    return tuple(subnets), hosted


def _subnet_json(subnet: Subnet) -> dict[str, Any]:
    control = subnet.control
    return {
        "id": subnet.id,
        "control": {"depth": control.depth, "width": control.width, "expand": control.expand},
        "accuracy": subnet.accuracy,
        "test_accuracy": subnet.test_accuracy,
        "macs": subnet.macs,
        "params": subnet.params,
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is no JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise ArtifactError(f"{path}: format is {found!r}, this version reads {FORMAT}")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file of a model."""
    path.write_text(json.dumps(data, indent=1) + "\n")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing") from error
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is no safetensors file: {error}") from error


def _get(data: Mapping[str, Any], key: str, kind: type, path: Path) -> Any:
    if not isinstance(data.get(key), kind):
        raise ArtifactError(f"{path}: {key} is missing or no {kind.__name__}")
    return data[key]
