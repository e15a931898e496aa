"""Tensors written as JSON: numbers or texts, flat or nested, into the bytes of their datatype. Nothing is rounded."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import BadRequest
from common.tensors import BYTES, decode_elements, encode_elements

if TYPE_CHECKING:
    from services.gateway.model import Tensor

# Exact types: a bool is an int to isinstance, and no number to the protocol.
_ALLOWED: dict[str, tuple[frozenset[type], str]] = {
    "b": (frozenset((bool,)), "true or false"),
    "i": (frozenset((int,)), "an integer"),
    "u": (frozenset((int,)), "an integer"),
    "f": (frozenset((int, float)), "a number"),
    "O": (frozenset((str,)), "a string"),
}


def from_json(tensor: Tensor, data: object, rows: int) -> bytes:
    """Return the bytes of ``data``, a list of ``rows`` rows; BadRequest says which element is wrong."""
    where = f"input {tensor.name!r}"
    if tensor.datatype == "FP16":
        raise BadRequest(f"{where}: FP16 has no JSON form in the protocol; send it with parameters.binary_data_size")
    if not isinstance(data, list):
        raise BadRequest(f"{where}: expected data as a list, got {type(data).__name__}")
    shape = (rows, *tensor.shape)
    flat = _flatten(data, shape, where)
    expected = tensor.row_elements * rows
    if len(flat) != expected:
        raise BadRequest(f"{where}: data has {len(flat)} elements, but shape {list(shape)} has {expected}")
    allowed, words = _ALLOWED[tensor.dtype.kind]
    if not allowed.issuperset(map(type, flat)):
        position, value = next((i, v) for i, v in enumerate(flat) if type(v) not in allowed)
        raise BadRequest(f"{where}: data[{position}] is {value!r:.40}, expected {words} for {tensor.datatype}")
    if tensor.datatype == BYTES:
        return encode_elements(_utf8(text, position, where) for position, text in enumerate(flat))
    return _convert(tensor, flat, where)


def text_row(tensor: Tensor, body: bytes) -> bytes:
    """Return a body that is one text, in UTF-8, as the row of a BYTES input; BadRequest when it is not UTF-8."""
    data = encode_elements([body])
    check_texts(data, 1, f"input {tensor.name!r}")
    return data


def check_texts(data: bytes, count: int, where: str) -> None:
    """Raise BadRequest unless ``data`` holds so many elements of BYTES, each of them UTF-8."""
    try:
        elements = decode_elements(data, count)
    except ValueError as error:
        raise BadRequest(f"{where}: {error}") from None
    for position, element in enumerate(elements):
        try:
            element.decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"{where}: element {position} is no UTF-8: {error.reason} at byte {error.start}") from None


def _utf8(text: str, position: int, where: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise BadRequest(f"{where}: data[{position}] is no Unicode text: {error.reason}") from None


def _flatten(data: list[Any], shape: tuple[int, ...], where: str) -> list[Any]:
    """Return nested rows as one list; the nesting must be that of ``shape``."""
    for depth, size in enumerate(shape):
        if not data or type(data[0]) is not list:
            if 0 < depth < len(shape) - 1:
                raise BadRequest(
                    f"{where}: data is nested {depth + 1} deep; expected a flat list, or shape {list(shape)}"
                )
            return data
        if depth == len(shape) - 1 or set(map(type, data)) != {list}:
            raise BadRequest(f"{where}: data is not nested as shape {list(shape)} says, at depth {depth + 1}")
        if depth == 0 and len(data) != size:
            raise BadRequest(f"{where}: data has {len(data)} rows, but shape {list(shape)} has {size}")
        if set(map(len, data)) != {shape[depth + 1]}:
            raise BadRequest(f"{where}: data has lists of other lengths than shape {list(shape)} at depth {depth + 2}")
        data = list(chain.from_iterable(data))
    return data


def _convert(tensor: Tensor, flat: list[Any], where: str) -> bytes:
    if tensor.dtype.kind == "f":
        wide = np.array(flat, np.float64)
        limit = float(np.finfo(tensor.dtype).max)
        outside = np.flatnonzero(np.abs(wide) > limit)
        if outside.size:
            raise BadRequest(f"{where}: data[{outside[0]}] is {wide[outside[0]]:g}, outside of {tensor.datatype}")
        return wide.astype(tensor.dtype).tobytes()
    try:
        return np.array(flat, tensor.dtype).tobytes()
    except OverflowError:
        limits = np.iinfo(tensor.dtype)
        low, high = int(limits.min), int(limits.max)
        position, value = next((i, v) for i, v in enumerate(flat) if not low <= v <= high)
        raise BadRequest(
            f"{where}: data[{position}] is {value}, outside of {tensor.datatype} ({low} to {high})"
        ) from None
