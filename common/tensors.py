"""The Open Inference Protocol's datatypes, as numpy has them: little-endian, as they travel.

BYTES is the one without a size: each element travels as its length, four bytes, and then its bytes.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}


BYTES = "BYTES"
_LENGTH = 4  # bytes before each element of a BYTES tensor


def encode_elements(elements: Iterable[bytes]) -> bytes:
    """Return the elements of a BYTES tensor as they travel."""
    return b"".join(len(element).to_bytes(_LENGTH, "little") + element for element in elements)


def decode_elements(data: bytes | memoryview, count: int) -> list[bytes]:
    """Return the `count` elements of a BYTES tensor; ValueError says which of them does not fit into the data."""
    elements, at = [], 0
    for position in range(count):
        if at + _LENGTH > len(data):
            raise ValueError(f"element {position} of {count}: {len(data) - at} bytes are left, its length takes 4")
        size = int.from_bytes(data[at : at + _LENGTH], "little")
        at += _LENGTH
        if at + size > len(data):
            raise ValueError(f"element {position} of {count}: {size} bytes long, but {len(data) - at} are left")
        elements.append(bytes(data[at : at + size]))
        at += size
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes are left after {count} elements")
    return elements


def row_bytes(datatype: str, shape: Sequence[int]) -> int:
    """Return the bytes of one row of ``shape``; KeyError for a datatype that is not of ``DTYPES``."""
    return math.prod(shape) * DTYPES[datatype].itemsize
