"""A supernet ready to serve: what a worker holds, whatever the family.

Source: SuperServe section 3 (subnets are actuated in place) and section 5 (a worker actuates the subnet that its batch
names, then runs the batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.supernet.actuate import Actuator, Elastic
from common.supernet.spec import Control, TensorSpec

TORCH_TYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP32": torch.float32,
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What the outside needs to know of a supernet: its name, its tensors per row, and what the labels mean."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "name": self.name,
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
            "labels": list(self.labels),
        }


@dataclass(frozen=True, slots=True)
class Subnet:
    """One subnet of the Pareto set.

    accuracy: percent, on images held out of training, which chose it; test_accuracy: percent, on the test set, which
    chose nothing; None where it was not measured. macs: multiply-accumulates per row. params: weights in use.
    """

    control: Control
    accuracy: float
    test_accuracy: float | None
    macs: int
    params: int

    @property
    def id(self) -> str:
        """Canonical name, as in `Control.id`."""
        return self.control.id


class Supernet:
    """One weight-shared supernet on one device, and the subnets of it that may serve.

    subnets: by ascending accuracy; each is calibrated and its plan is built here, so that no query pays for it.
    Not thread-safe: one worker thread actuates and infers in turn.
    """

    def __init__(self, model: Elastic, spec: ModelSpec, subnets: Sequence[Subnet], device: str = "cpu") -> None:
        self.spec = spec
        self.subnets = tuple(sorted(subnets, key=lambda subnet: subnet.accuracy))
        self.device = torch.device(device)
        self._actuator = Actuator(model)
        self._ids = {subnet.id for subnet in self.subnets}
        (self.input,) = spec.inputs
        for subnet in self.subnets:
            self._actuator.actuate(subnet.id)

    @property
    def name(self) -> str:
        """The name under which the model is served."""
        return self.spec.name

    @property
    def model(self) -> Elastic:
        """The module itself: the shared weights and their operators."""
        return self._actuator.model

    def actuate(self, subnet_id: str) -> None:
        """Make a subnet the one that runs, in microseconds. Raises KeyError unless it is one of `subnets`."""
        if subnet_id not in self._ids:
            raise KeyError(f"model {self.name} has no subnet {subnet_id!r}; it has {', '.join(sorted(self._ids))}")
        self._actuator.actuate(subnet_id)

    def infer(self, rows: Tensor) -> dict[str, Tensor]:
        """Run the actuated subnet on a batch.

        rows: [B, *shape of the input], of its datatype, on any device.
        Returns label [B] int64 and scores [B, classes] float32 that add up to 1, on the supernet's device.
        Raises: ValueError when shape or datatype is another.
        """
        if rows.shape[1:] != self.input.shape or rows.dtype != TORCH_TYPES[self.input.datatype]:
            raise ValueError(
                f"input {self.input.name!r} takes {self.input.datatype} of shape [B, *{list(self.input.shape)}], "
                f"got {rows.dtype} of shape {list(rows.shape)}"
            )
        with torch.inference_mode():
            scores = self.model(rows.to(self.device)).softmax(1)  # [B, classes]
            return {"label": scores.argmax(1), "scores": scores}
