"""The Open Inference Protocol's datatypes, as numpy has them: little-endian, as they travel."""

import math
from collections.abc import Sequence
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


def row_bytes(datatype: str, shape: Sequence[int]) -> int:
    """Return the bytes of one row of ``shape``; KeyError for a datatype that is not of ``DTYPES``."""
    return math.prod(shape) * DTYPES[datatype].itemsize
