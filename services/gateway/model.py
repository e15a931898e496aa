"""A model as the gateway knows it: tensors, limits and accuracies, from the status that its scheduler publishes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

VERSION = "1"  # the protocol wants one; a supernet's subnets are not versions
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


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output; ``shape`` is that of one row."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    row_bytes: int

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Tensor:
        """Read a tensor of a status; KeyError, TypeError or ValueError if it is none."""
        name, datatype, shape = document["name"], document["datatype"], tuple(document["shape"])
        if not isinstance(name, str) or not all(isinstance(size, int) and size > 0 for size in shape):
            raise ValueError(f"tensor {name!r} of shape {shape}")
        dtype = DTYPES[datatype]
        return cls(name, datatype, shape, dtype, math.prod(shape) * dtype.itemsize)

    def metadata(self) -> dict[str, Any]:
        """Return the protocol's metadata; -1 stands for any number of rows."""
        return {"name": self.name, "datatype": self.datatype, "shape": [-1, *self.shape]}

    def config(self) -> dict[str, Any]:
        """Return Triton's way of telling the same: without the rows, which ``max_batch_size`` implies."""
        triton = "TYPE_" + self.datatype
        return {"name": self.name, "data_type": triton, "dims": list(self.shape)}


@dataclass(frozen=True, slots=True)
class Model:
    """See the module. ``accuracies`` are those of its subnets in percent, ascending; ``max_batch`` counts rows."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    labels: tuple[str, ...]
    max_batch: int
    accuracies: tuple[float, ...]

    @classmethod
    def from_dict(cls, name: str, document: dict[str, Any]) -> Model:
        """Read the model of a status; KeyError, TypeError or ValueError if it is none."""
        return cls(
            name=name,
            inputs=tuple(Tensor.from_dict(tensor) for tensor in document["inputs"]),
            outputs=tuple(Tensor.from_dict(tensor) for tensor in document["outputs"]),
            labels=tuple(str(label) for label in document.get("labels") or ()),
            max_batch=int(document["max_batch"]),
            accuracies=tuple(sorted(float(subnet["accuracy"]) for subnet in document["subnets"])),
        )

    @property
    def best_accuracy(self) -> float:
        """What the most accurate subnet reaches."""
        return self.accuracies[-1] if self.accuracies else 0.0

    @property
    def output_row_bytes(self) -> int:
        """Bytes of one row over all outputs."""
        return sum(tensor.row_bytes for tensor in self.outputs)

    def metadata(self) -> dict[str, Any]:
        """Return the protocol's model metadata."""
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": "superserve_supernet",
            "inputs": [tensor.metadata() for tensor in self.inputs],
            "outputs": [tensor.metadata() for tensor in self.outputs],
        }

    def config(self) -> dict[str, Any]:
        """Return as much of Triton's model configuration as its tools read."""
        return {
            "name": self.name,
            "platform": "superserve_supernet",
            "backend": "superserve",
            "max_batch_size": self.max_batch,
            "input": [tensor.config() for tensor in self.inputs],
            "output": [tensor.config() for tensor in self.outputs],
        }
