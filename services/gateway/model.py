"""A model as the gateway knows it: tensors, limits and accuracies, from the status that its scheduler publishes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.tensors import BYTES, DTYPES, row_bytes

VERSION = "1"  # the protocol wants one; a supernet's subnets are not versions


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output; ``shape`` is that of one row. BYTES has no size of its own: ``row_bytes`` is 0 there."""

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
        if datatype == BYTES:
            return cls(name, datatype, shape, np.dtype(np.object_), 0)
        return cls(name, datatype, shape, DTYPES[datatype], row_bytes(datatype, shape))

    @property
    def row_elements(self) -> int:
        """Number of elements of one row."""
        return math.prod(self.shape)

    def metadata(self) -> dict[str, Any]:
        """Return the protocol's metadata; -1 stands for any number of rows."""
        return {"name": self.name, "datatype": self.datatype, "shape": [-1, *self.shape]}

    def config(self) -> dict[str, Any]:
        """Return Triton's way of telling the same: without the rows, which ``max_batch_size`` implies."""
        triton = "TYPE_STRING" if self.datatype == BYTES else "TYPE_" + self.datatype
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
            outputs=tuple(_of_fixed_size(Tensor.from_dict(tensor)) for tensor in document["outputs"]),
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


def _of_fixed_size(output: Tensor) -> Tensor:
    """Return an output; ValueError for one of BYTES, which no worker sends."""
    if output.datatype == BYTES:
        raise ValueError(f"output {output.name!r} is BYTES")
    return output
