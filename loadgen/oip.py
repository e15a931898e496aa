"""The Open Inference Protocol v2 as a client speaks it: binary tensor requests out, binary or JSON replies in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import orjson
from numpy.typing import NDArray

from common.tensors import BYTES, DTYPES, encode_elements
from loadgen.errors import InputError
from loadgen.workload import Tenant

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model; a dimension of -1 is free, the first one counts rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a server says of a model."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> ModelSpec:
        """Read the reply of GET /v2/models/{model}. KeyError, TypeError or ValueError when it is something else."""

        def tensors(key: str) -> tuple[TensorSpec, ...]:
            return tuple(
                TensorSpec(str(item["name"]), str(item["datatype"]), tuple(int(size) for size in item["shape"]))
                for item in metadata[key]
            )

        return cls(str(metadata["name"]), tensors("inputs"), tensors("outputs"))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the server is. `prefix` stands before `/v2`, without a slash at its end."""

    tls: bool
    host: str
    port: int
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Read an http or https URL; a missing scheme is http. InputError when it is no such URL."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError as error:
            raise InputError("url", url, str(error)) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError("url", url, "must look like http://host:port")
        tls = parts.scheme == "https"
        return cls(tls, parts.hostname, port or (443 if tls else 80), parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """`host:port` for the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def model_path(self, model: str) -> str:
        """The path of a model."""
        return f"{self.prefix}/v2/models/{quote(model, safe='')}"


def infer_request(endpoint: Endpoint, model: str, tensors: Tensors, output: str | None, tenant: Tenant) -> bytes:
    """One whole HTTP request of a tenant, ready for the socket.

    `output` is the only output asked for; None asks for all of them. Every tensor travels as raw bytes. A floor or a
    priority of 0 is not sent: it is what a server takes anyway.
    """
    parameters: dict[str, Any] = {"slo_ms": tenant.slo_ms}
    if tenant.min_accuracy:
        parameters["min_accuracy"] = tenant.min_accuracy
    if tenant.priority:
        parameters["priority"] = tenant.priority
    raw = {name: raw_bytes(array) for name, array in tensors.items()}
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": datatype_of(array),
            "parameters": {"binary_data_size": len(raw[name])},
        }
        for name, array in tensors.items()
    ]
    request: dict[str, Any] = {"inputs": inputs, "parameters": parameters}
    if output is None:
        parameters["binary_data_output"] = True
    else:
        request["outputs"] = [{"name": output, "parameters": {"binary_data": True}}]
    header = orjson.dumps(request)
    body = b"".join(raw.values())
    head = (
        f"POST {endpoint.model_path(model)}/infer HTTP/1.1\r\n"
        f"Host: {endpoint.authority}\r\n"
        "Content-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\n"
        f"Content-Length: {len(header) + len(body)}\r\n\r\n"
    )
    return head.encode() + header + body


def raw_bytes(array: NDArray[Any]) -> bytes:
    """An array as it travels; one of dtype object holds the elements of a BYTES tensor."""
    if array.dtype == np.object_:
        return encode_elements(array.ravel().tolist())
    return np.ascontiguousarray(array).tobytes()


def datatype_of(array: NDArray[Any]) -> str:
    """The protocol's name of an array's type. InputError when it has none."""
    if array.dtype == np.object_:
        return BYTES
    for datatype, dtype in DTYPES.items():
        if array.dtype == dtype:
            return datatype
    raise InputError("dtype", array.dtype, "has no name in the Open Inference Protocol")


def parse_reply(body: bytes, header_length: int, output: str) -> tuple[Mapping[str, Any], bytes | None]:
    """The `parameters` of a reply, and the INT64 values of its output `output` as raw bytes (None without it).

    `header_length` is 0 for a reply that is JSON alone. ValueError, KeyError or TypeError when it is no such reply.
    """
    reply = orjson.loads(body[:header_length] if header_length else body)
    parameters: Mapping[str, Any] = reply.get("parameters") or {}
    at = header_length
    for item in reply["outputs"]:
        size = item.get("parameters", {}).get("binary_data_size")
        if item["name"] == output and item["datatype"] == "INT64":
            if size is None:
                return parameters, np.asarray(item["data"], dtype=np.int64).tobytes()
            if len(body) < at + size:
                raise ValueError("reply is shorter than its tensors")
            return parameters, body[at : at + size]
        at += size or 0
    return parameters, None


def parse_error(body: bytes) -> str:
    """What an error reply says: its `error`, or the start of its text."""
    try:
        text = orjson.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        text = body[:200].decode(errors="replace")
    return " ".join(str(text).split())[:200]


def check_model_name(model: str) -> str:
    """Return `model`, which names a folder as well: InputError when it is empty or has a slash."""
    if not model or "/" in model or model in (".", ".."):
        raise InputError("model", model or "(empty)", "is no model name")
    return model
