"""Requests of the Open Inference Protocol v2: bytes in, a ``Plan`` or a ClientError out. No I/O, no clock.

A request's JSON part says everything but the tensors, and one client sends the same one again and again. So it is
parsed and validated in full into a ``Plan``, which holds for every request with that JSON part: with the plan at hand,
a binary request costs a comparison of sizes. ``Planner`` keeps the plans of recent JSON parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from common.errors import BadRequest
from common.tensors import BYTES
from services.gateway.options import NOTHING_SAID, Options, parse_parameters
from services.gateway.tensors import check_texts, from_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.gateway.model import Model, Tensor

CACHED_HEADER_BYTES = 2_048  # a longer JSON part carries data, and will not come again
CACHED_PLANS = 512


class Wanted(NamedTuple):
    """An output that the client asks for: which of the model's, and whether as raw bytes."""

    position: int
    binary: bool


class Part(NamedTuple):
    """Where one input's bytes are: in the JSON part, decoded, or in the raw part from ``start`` to ``stop``.

    ``texts``: how many elements of BYTES the raw part holds there, to be checked with each request; 0: none.
    """

    inline: bytes | None
    start: int
    stop: int
    name: str
    texts: int = 0

    def of(self, raw: bytes) -> bytes:
        """Return the input's bytes; BadRequest for elements that are no text."""
        if self.inline is not None:
            return self.inline
        data = raw[self.start : self.stop]
        if self.texts:
            check_texts(data, self.texts, f"input {self.name!r}")
        return data


@dataclass(frozen=True, slots=True)
class Plan:
    """A validated request but for its raw part. ``parts``: None if the raw part is in wire order as it stands."""

    id: str | None
    rows: int
    options: Options
    outputs: tuple[Wanted, ...]
    raw_bytes: int
    parts: tuple[Part, ...] | None

    def tensors(self, raw: bytes) -> bytes:
        """Return the bytes of all inputs in wire order."""
        if len(raw) != self.raw_bytes:
            what = "truncated" if len(raw) < self.raw_bytes else "has trailing bytes"
            raise BadRequest(
                f"the body {what}: {len(raw)} bytes follow the JSON part, but the inputs' binary_data_size "
                f"sum up to {self.raw_bytes}"
            )
        if self.parts is None:
            return raw
        return b"".join(part.of(raw) for part in self.parts)


class Planner:
    """Makes the plans for one model and keeps recent ones."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._cached = lru_cache(CACHED_PLANS)(lambda header: parse(model, header))

    def plan(self, header: bytes) -> Plan:
        """Return the plan of a JSON part."""
        return self._cached(header) if len(header) <= CACHED_HEADER_BYTES else parse(self._model, header)


def split(body: bytes, header_length: str) -> tuple[bytes, bytes]:
    """Return JSON part and raw part of a body with the header ``Inference-Header-Content-Length``."""
    length = (
        int(header_length) if header_length.isascii() and header_length.isdigit() and len(header_length) < 12 else -1
    )
    if not 0 <= length <= len(body):
        raise BadRequest(
            f"Inference-Header-Content-Length {header_length[:40]!r}: "
            f"expected a length from 0 to {len(body)}, the body's"
        )
    return body[:length], body[length:]


def parse(model: Model, header: bytes) -> Plan:
    """Validate a JSON part against ``model``; ClientError names the field at fault."""
    document = _load(header)
    parameters = _object(document, "parameters", "the request")
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise BadRequest(f"id: expected a string, got {shown(request_id)}")
    rows, raw_bytes, parts = _inputs(model, document.get("inputs"))
    outputs = _outputs(model, document.get("outputs"), _flag(parameters, "binary_data_output", "parameters"))
    return Plan(request_id, rows, parse_parameters(parameters, model), outputs, raw_bytes, parts)


def row_plan(model: Model) -> Plan:
    """Return the plan of a body that is one row, an image or a text: all outputs as JSON, for a person to read."""
    outputs = tuple(Wanted(index, False) for index in range(len(model.outputs)))
    return Plan(None, 1, NOTHING_SAID, outputs, model.inputs[0].row_bytes, None)


def shown(value: object) -> str:
    """Return a client's value as a message may show it: JSON, cut short."""
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."


def _load(header: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(header)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the request is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadRequest(f"the request must be a JSON object, got {shown(document)}")
    return document


def _object(parent: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"{key} of {where}: expected an object, got {shown(value)}")
    return value


def _flag(parameters: dict[str, Any], key: str, where: str) -> bool:
    value = parameters.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise BadRequest(f"{where}.{key}: expected true or false, got {shown(value)}")


def _named(items: object, what: str, known: Sequence[Tensor]) -> dict[str, dict[str, Any]]:
    """Return a list of tensors by name, in its order; none twice and none unknown."""
    names = [tensor.name for tensor in known]
    if not isinstance(items, list):
        raise BadRequest(f"{what}s: expected a list, got {shown(items)}")
    by_name: dict[str, dict[str, Any]] = {}
    for position, item in enumerate(items):
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise BadRequest(f"{what}s[{position}]: expected an object with a name, got {shown(item)}")
        if name not in names:
            raise BadRequest(f"{what} {shown(name)}: the model has no such {what}, only {', '.join(names)}")
        if name in by_name:
            raise BadRequest(f"{what} {name!r} is given twice")
        by_name[name] = item
    return by_name


def _inputs(model: Model, items: object) -> tuple[int, int, tuple[Part, ...] | None]:
    """Return rows, bytes of the raw part, and where each input is."""
    if items is None:
        raise BadRequest(f"inputs: missing; the model takes {', '.join(tensor.name for tensor in model.inputs)}")
    given = _named(items, "input", model.inputs)
    tensors = {tensor.name: tensor for tensor in model.inputs}
    if missing := [name for name in tensors if name not in given]:
        raise BadRequest(f"inputs: {', '.join(missing)} missing, {len(given)} of {len(tensors)} given")
    rows, offset = 0, 0
    parts: dict[str, Part] = {}
    for name, item in given.items():
        tensor = tensors[name]
        count = _rows(tensor, item, model.max_batch)
        if rows and count != rows:
            raise BadRequest(f"input {name!r}: {count} rows, but the inputs before it have {rows}")
        rows = count
        parts[name] = part = _part(tensor, item, rows, offset)
        offset = part.stop
    in_order = list(given) == list(tensors) and all(p.inline is None and not p.texts for p in parts.values())
    return rows, offset, None if in_order else tuple(parts[name] for name in tensors)


def _rows(tensor: Tensor, item: dict[str, Any], max_batch: int) -> int:
    """Check datatype and shape of an input and return its number of rows."""
    where = f"input {tensor.name!r}"
    datatype, shape = item.get("datatype"), item.get("shape")
    if datatype != tensor.datatype:
        raise BadRequest(f"{where}: expected datatype {tensor.datatype}, got {shown(datatype)}")
    expected = shown([-1, *tensor.shape])
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise BadRequest(f"{where}: expected shape {expected}, got {shown(shape)}")
    if len(shape) != 1 + len(tensor.shape) or tuple(shape[1:]) != tensor.shape:
        raise BadRequest(f"{where}: expected shape {expected}, got {shown(shape)}")
    rows: int = shape[0]
    if not 1 <= rows <= max_batch:
        raise BadRequest(
            f"{where}: shape {shown(shape)} has {rows} rows; the model takes 1 to {max_batch} in one request"
        )
    return rows


def _part(tensor: Tensor, item: dict[str, Any], rows: int, offset: int) -> Part:
    """Return where the bytes of an input are; those of the raw part begin at ``offset``."""
    where = f"input {tensor.name!r}"
    size = _object(item, "parameters", where).get("binary_data_size")
    data = item.get("data")
    if size is None:
        if data is None:
            raise BadRequest(f"{where}: neither data nor parameters.binary_data_size")
        return Part(from_json(tensor, data, rows), offset, offset, tensor.name)
    if data is not None:
        raise BadRequest(f"{where}: both data and parameters.binary_data_size")
    if tensor.datatype == BYTES:
        if type(size) is not int or size < 0:
            raise BadRequest(f"{where}: parameters.binary_data_size is {shown(size)}, expected a number of bytes")
        return Part(None, offset, offset + size, tensor.name, texts=rows * tensor.row_elements)
    expected = rows * tensor.row_bytes
    if type(size) is not int or size != expected:
        shape = "x".join(str(n) for n in (rows, *tensor.shape))
        raise BadRequest(
            f"{where}: parameters.binary_data_size is {shown(size)}, "
            f"but {shape} of {tensor.datatype} is {expected} bytes"
        )
    return Part(None, offset, offset + size, tensor.name)


def _outputs(model: Model, items: object, default_binary: bool) -> tuple[Wanted, ...]:
    if items is None or items == []:
        return tuple(Wanted(index, default_binary) for index in range(len(model.outputs)))
    index = {tensor.name: position for position, tensor in enumerate(model.outputs)}
    wanted = []
    for name, item in _named(items, "output", model.outputs).items():
        parameters = _object(item, "parameters", f"output {name!r}")
        if parameters.get("classification"):
            raise BadRequest(f"output {name!r}: parameters.classification is not supported")
        own = parameters.get("binary_data") is not None
        binary = _flag(parameters, "binary_data", f"output {name!r}: parameters") if own else default_binary
        wanted.append(Wanted(index[name], binary))
    return tuple(wanted)
