"""The bodies that a run sends: samples with true labels from a file, or random tensors of the model's shape."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from common.tensors import BYTES, DTYPES
from loadgen.errors import InputError
from loadgen.oip import Endpoint, ModelSpec, Tensors, TensorSpec, infer_request, raw_bytes
from loadgen.records import LABEL
from loadgen.workload import Tenant, Workload

_SAMPLES = ("samples.safetensors", "samples.json")
_LABELS = "labels"  # their name in a data file
_MAX_BYTES = 128 << 20  # of encoded requests: a bound on memory, not on the run
_RANDOM_REQUESTS = 16
_RANDOM_WORDS = 16  # of an invented text
_WORDS = np.array([b"the", b"film", b"was", b"not", b"good", b"bad", b"and", b"I", b"liked", b"it", b"very", b"much"])
_SAFETENSORS_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
}


@dataclass(frozen=True, slots=True)
class Payload:
    """Encoded requests of each tenant, used in turn: its k-th query sends `requests[k % len(requests)]`.

    `labels[k]` holds the true labels of the rows of request k as INT64 bytes; `labels` is None when none are known.
    """

    requests: Sequence[bytes]
    labels: Sequence[bytes] | None


@dataclass(frozen=True, slots=True)
class Payloads:
    """What each query of a workload sends: query i takes its turn `turn[i]` in the payload of its tenant."""

    of_tenant: Sequence[Payload]
    tenant: Sequence[int]
    turn: Sequence[int]
    data: str

    def request(self, query: int) -> bytes:
        """The whole HTTP request of a query."""
        requests = self.of_tenant[self.tenant[query]].requests
        return requests[self.turn[query] % len(requests)]

    @property
    def labels(self) -> Callable[[int], bytes] | None:
        """What gives the true labels of a query's rows as INT64 bytes; None when none are known."""
        of_tenant = [payload.labels for payload in self.of_tenant if payload.labels is not None]
        if len(of_tenant) != len(self.of_tenant):
            return None

        def labels_of(query: int) -> bytes:
            labels = of_tenant[self.tenant[query]]
            return labels[self.turn[query] % len(labels)]

        return labels_of


def make_payloads(
    endpoint: Endpoint, model: ModelSpec, workload: Workload, *, data: Path | None, seed: int
) -> Payloads:
    """Encode the requests of a run, for each tenant with its rows and parameters, in an order drawn from `seed`.

    `data` None looks for the samples shipped with the model, and falls back to random tensors without labels.
    InputError when the data does not fit the model's inputs.
    """
    path = data or shipped_data(model.name)
    arrays = None if path is None else load_arrays(path)
    bound = _MAX_BYTES // len(workload.tenants)
    of_tenant = [
        _random_payload(endpoint, model, tenant, seed)
        if path is None or arrays is None
        else _sample_payload(endpoint, model, tenant, path, arrays, seed, bound)
        for tenant in workload.tenants
    ]
    turn = np.empty(len(workload.tenant), np.int64)
    for code in range(len(workload.tenants)):
        own = np.flatnonzero(workload.tenant == code)
        turn[own] = np.arange(len(own))
    return Payloads(of_tenant, workload.tenant.tolist(), turn.tolist(), "random" if path is None else str(path))


def _random_payload(endpoint: Endpoint, model: ModelSpec, tenant: Tenant, seed: int) -> Payload:
    rng = np.random.default_rng(seed)
    batches = [_random_batch(model, tenant.rows, rng) for _ in range(_RANDOM_REQUESTS)]
    return Payload([_encode(endpoint, model, batch, tenant) for batch in batches], None)


def _sample_payload(
    endpoint: Endpoint, model: ModelSpec, tenant: Tenant, path: Path, arrays: Tensors, seed: int, bound: int
) -> Payload:
    """Requests of at most about `bound` bytes in all, whose rows are the samples of a data file."""
    rows = tenant.rows
    samples = {spec.name: _matching(path, arrays, spec, single=len(model.inputs) == 1) for spec in model.inputs}
    labels = arrays.get(_LABELS)
    counts = {len(array) for array in (*samples.values(), *(() if labels is None else (labels,)))}
    if len(counts) != 1 or 0 in counts:
        raise InputError("data", path, f"its arrays need the same number of rows, at least one; found {sorted(counts)}")
    total = counts.pop()
    order = np.random.default_rng(seed).permutation(total)
    row_bytes = sum(len(raw_bytes(array)) // total for array in samples.values())
    count = max(1, min(total // math.gcd(total, rows), bound // (rows * row_bytes + 512)))
    picks = [order[np.arange(k * rows, (k + 1) * rows) % total] for k in range(count)]
    return Payload(
        [_encode(endpoint, model, {name: array[pick] for name, array in samples.items()}, tenant) for pick in picks],
        None if labels is None else [labels[pick].astype(np.int64).tobytes() for pick in picks],
    )


def shipped_data(model: str) -> Path | None:
    """The samples that an installed worker package ships for `model`, found without importing the worker."""
    try:
        services = importlib.resources.files("services")
    except ModuleNotFoundError:
        return None
    folder = Path(str(services / "worker" / "models" / model))
    return next((path for name in _SAMPLES if (path := folder / name).is_file()), None)


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Named arrays of a .safetensors, .npz or .json file; texts are of dtype object. InputError when it is unreadable.

    The JSON is an object of lists.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        if path.suffix == ".safetensors":
            return _load_safetensors(path.read_bytes())
        if path.suffix == ".json":
            return {str(name): _of_json(name, values) for name, values in orjson.loads(path.read_bytes()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("data", path, f"cannot be read: {error}") from None
    raise InputError("data", path, "must be a .safetensors, .npz or .json file")


def _of_json(name: object, values: object) -> NDArray[Any]:
    if not isinstance(values, list):
        raise ValueError(f"{name} is no list")
    if all(isinstance(value, str) for value in values):
        return np.array([value.encode() for value in values], dtype=np.object_).reshape(-1, 1)
    return np.array(values)


def _load_safetensors(raw: bytes) -> dict[str, NDArray[Any]]:
    """Read the format without its package, which the load generator would need for this alone.

    Eight bytes of little-endian header length, a JSON header of dtype, shape and offsets by name, then the bytes.
    """
    start = 8 + int.from_bytes(raw[:8], "little")
    header = orjson.loads(raw[8:start])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(raw[start + begin : start + end], dtype=_SAFETENSORS_DTYPES[entry["dtype"]])
        arrays[name] = values.reshape(entry["shape"])
    return arrays


def _matching(path: Path, arrays: Tensors, spec: TensorSpec, *, single: bool) -> NDArray[Any]:
    """The array of a data file that fits an input: the one of its name, else the only one beside the labels."""
    others = [name for name in arrays if name != _LABELS]
    name = others[0] if single and spec.name not in arrays and len(others) == 1 else spec.name
    if name not in arrays:
        raise InputError("data", path, f"has {', '.join(arrays) or 'no array'}, but the model wants {spec.name}")
    array = arrays[name]
    fits = array.ndim == len(spec.shape) and all(
        want in (-1, have) for want, have in zip(spec.shape[1:], array.shape[1:], strict=True)
    )
    if not fits or array.dtype != (np.dtype(np.object_) if spec.datatype == BYTES else DTYPES.get(spec.datatype)):
        raise InputError(
            "data",
            path,
            f"{name} is {array.dtype} {list(array.shape)}, but {spec.name} is {spec.datatype} {list(spec.shape)}",
        )
    return array


def _random_batch(model: ModelSpec, rows: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    batch = {}
    for spec in model.inputs:
        shape = (rows, *spec.shape[1:])
        if spec.datatype == BYTES and -1 not in shape:
            words = rng.choice(_WORDS, (math.prod(shape), _RANDOM_WORDS))
            texts = [b" ".join(row) for row in words.tolist()]
            batch[spec.name] = np.array(texts, dtype=np.object_).reshape(shape)
            continue
        if spec.datatype not in DTYPES or -1 in shape:
            raise InputError("data", "(missing)", f"cannot invent {spec.name}: {spec.datatype} {list(spec.shape)}")
        dtype = DTYPES[spec.datatype]
        integers = rng.integers(0, 2 if dtype == np.bool_ else 128, shape)
        batch[spec.name] = (rng.random(shape) if dtype.kind == "f" else integers).astype(dtype)
    return batch


def _encode(endpoint: Endpoint, model: ModelSpec, batch: Tensors, tenant: Tenant) -> bytes:
    for spec in model.inputs:
        rows = len(batch[spec.name])
        if spec.shape[0] not in (-1, rows):
            raise InputError("rows", rows, f"the model's {spec.name} takes {spec.shape[0]} rows")
    output = LABEL if LABEL in {spec.name for spec in model.outputs} else None
    return infer_request(endpoint, model.name, batch, output, tenant)
