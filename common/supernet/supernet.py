"""A supernet ready to serve: what a worker holds, whatever the family.

Source: SuperServe section 3 (subnets are actuated in place) and section 5 (a worker actuates the subnet that its batch
names, then runs the batch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True, slots=True)
class Text:
    """How a supernet reads text.

    tokenise: B texts -> token ids [B, L] int64. profiled: length in tokens of the texts that latency is profiled with.
    """

    tokenise: Callable[[Sequence[str]], Tensor]
    profiled: int


class Supernet:
    """One weight-shared supernet on one device, and the subnets of it that may serve.

    subnets: by ascending accuracy; each is calibrated and its plan is built here, so that no query pays for it.
    text: where the input is text. plan_bytes: bound of the folded plans (`actuate.Actuator`); None: half as much as the
    shared weights take. Not thread-safe: one worker thread actuates and infers in turn.
    """

    def __init__(
        self,
        model: Elastic,
        spec: ModelSpec,
        subnets: Sequence[Subnet],
        device: str = "cpu",
        text: Text | None = None,
        plan_bytes: int | None = None,
    ) -> None:
        self.spec = spec
        self.subnets = tuple(sorted(subnets, key=lambda subnet: subnet.accuracy))
        self.device = torch.device(device)
        self.weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
        self.actuator = Actuator(model, self.weight_bytes // 2 if plan_bytes is None else plan_bytes)
        self._ids = {subnet.id for subnet in self.subnets}
        self._text = text
        (self.input,) = spec.inputs
        for subnet in sorted(self.subnets, key=lambda subnet: subnet.params):
            self.actuator.actuate(subnet.id)  # the small ones first: a fold gains them most, and many fit

    @property
    def name(self) -> str:
        """The name under which the model is served."""
        return self.spec.name

    @property
    def model(self) -> Elastic:
        """The module itself: the shared weights and their operators."""
        return self.actuator.model

    def actuate(self, subnet_id: str) -> None:
        """Make a subnet the one that runs, in microseconds. Raises KeyError unless it is one of `subnets`."""
        if subnet_id not in self._ids:
            raise KeyError(f"model {self.name} has no subnet {subnet_id!r}; it has {', '.join(sorted(self._ids))}")
        self.actuator.actuate(subnet_id)

    def example(self, rows: int) -> Tensor | list[str]:
        """A batch to time inference with: zeros, or texts of the profiled length."""
        if self._text is not None:
            return [" ".join(["the"] * (self._text.profiled - 2))] * rows  # and a token at either end
        return torch.zeros((rows, *self.input.shape), dtype=TORCH_TYPES[self.input.datatype])

    def infer(self, rows: Tensor | Sequence[str]) -> dict[str, Tensor]:
        """Run the actuated subnet on a batch.

        rows: [B, *shape of the input], of its datatype, on any device; or B texts, for a supernet that reads text.
        Returns label [B] int64 and scores [B, classes] float32 that add up to 1, on the supernet's device.
        Raises: ValueError when shape or datatype is another.
        """
        batch = rows if isinstance(rows, Tensor) else self._tokens(rows)
        with torch.inference_mode():
            scores = self.model(self._checked(batch).to(self.device)).softmax(1)  # [B, classes]
            return {"label": scores.argmax(1), "scores": scores}

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        if self._text is None:
            raise ValueError(f"input {self.input.name!r} takes {self.input.datatype}, got text")
        return self._text.tokenise(texts)

    def _checked(self, rows: Tensor) -> Tensor:
        if self._text is not None:
            if rows.ndim != 2 or rows.dtype != torch.int64:
                raise ValueError(f"token ids are INT64 of shape [B, L], got {rows.dtype} of shape {list(rows.shape)}")
            return rows
        if rows.shape[1:] != self.input.shape or rows.dtype != TORCH_TYPES[self.input.datatype]:
            raise ValueError(
                f"input {self.input.name!r} takes {self.input.datatype} of shape [B, *{list(self.input.shape)}], "
                f"got {rows.dtype} of shape {list(rows.shape)}"
            )
        return rows
