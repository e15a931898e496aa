"""A supernet ready to serve: what a worker holds, whatever the family.

Source: SuperServe section 3 (subnets are actuated in place) and section 5 (a worker actuates the subnet that its batch
names, then runs the batch).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.supernet.actuate import Actuator, Elastic
from common.supernet.graphs import Graphs
from common.supernet.spec import Control, TensorSpec

TORCH_TYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP32": torch.float32,
}

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTO = "auto"  # half precision where it gains
GAIN = 1.1  # how much faster half precision must be
TRIED, ROUNDS, RUNS = (1, 8), 3, 3  # batch sizes, rounds and runs by which that is measured


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

    def example(self, rows: int) -> list[str]:
        """Texts of the profiled length."""
        return [" ".join(["the"] * (self.profiled - 2))] * rows  # and a token at either end


class Supernet:
    """One weight-shared supernet on one device, and the subnets of it that may serve.

    subnets: by ascending accuracy; each is calibrated and its plan is built here, so that no query pays for it.
    hosted: other subnets that are calibrated, with what accuracy is predicted for them; `actuate` takes them as well.
    text: where the input is text. plan_bytes: bound of the folded plans (`actuate.Actuator`); None: half as much as the
    shared weights take. precision: what weights are held and computed with, one of PRECISIONS; `auto` measures which is
    faster here. cuda_graphs: run by CUDA graphs (`graphs`). These and fp16 are for GPUs, and not verified on one.
    Not thread-safe: one worker thread actuates and infers in turn.
    """

    def __init__(
        self,
        model: Elastic,
        spec: ModelSpec,
        subnets: Sequence[Subnet],
        device: str = "cpu",
        text: Text | None = None,
        plan_bytes: int | None = None,
        precision: str = "fp32",
        hosted: Mapping[str, float] | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self.spec = spec
        self.subnets = tuple(sorted(subnets, key=lambda subnet: subnet.accuracy))
        self.device = torch.device(device)
        self.hosted = dict(hosted or {})
        self._text = text
        (self.input,) = spec.inputs
        model.eval().requires_grad_(False)
        if precision == AUTO:
            rows = self.example(TRIED[-1])
            batch = (rows if isinstance(rows, Tensor) else self.tokens(rows)).to(self.device)
            precision = fastest(model, [self.subnets[0].id, self.subnets[-1].id], batch)
        self.precision = precision
        model.cast(PRECISIONS[self.precision])
        self.weight_bytes = model.bytes
        self.actuator = Actuator(model, self.weight_bytes // 2 if plan_bytes is None else plan_bytes)
        self._run = Graphs(self.actuator).run if cuda_graphs else model
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
        """Make a subnet the one that runs, in microseconds; one of `hosted` takes longer the first time.

        Raises: SpecError for an id that is not in the space; MissingStatisticsError for a subnet not calibrated.
        """
        self.actuator.actuate(subnet_id)

    def accuracy(self, subnet_id: str) -> float:
        """Percent: measured for one of `subnets`, predicted for one of `hosted`. Raises KeyError for any other."""
        known = self.hosted | {subnet.id: subnet.accuracy for subnet in self.subnets}
        if subnet_id not in known:
            raise KeyError(f"model {self.name} hosts no subnet {subnet_id!r}")
        return known[subnet_id]

    def example(self, rows: int) -> Tensor | list[str]:
        """A batch to time inference with: zeros, or texts of the profiled length."""
        if self._text is not None:
            return self._text.example(rows)
        return torch.zeros((rows, *self.input.shape), dtype=TORCH_TYPES[self.input.datatype])

    def infer(self, rows: Tensor | Sequence[str]) -> dict[str, Tensor]:
        """Run the actuated subnet on a batch.

        rows: [B, *shape of the input], of its datatype, on any device; or B texts, for a supernet that reads text.
        Returns label [B] int64 and scores [B, classes] float32 that add up to 1, on the supernet's device.
        Raises: ValueError when shape or datatype is another.
        """
        batch = rows if isinstance(rows, Tensor) else self.tokens(rows)
        with torch.inference_mode():
            scores = self._run(self._checked(batch).to(self.device)).float().softmax(1)  # [B, classes]
            return {"label": scores.argmax(1), "scores": scores}

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Token ids of texts, [B, L] int64. Raises: ValueError when the supernet reads no text."""
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


def fastest(model: Elastic, subnet_ids: Sequence[str], batch: Tensor) -> str:
    """The precision in which these subnets run fastest, taken together: float32 unless another one gains clearly.

    batch: [TRIED[-1], ...], on the model's device. The model is in inference mode and is left in float32.
    """
    names = [name for name in PRECISIONS if batch.device.type != "cpu" or name != "fp16"]  # no fp16 units on CPUs
    held = [parameter.data for parameter in model.parameters()]
    took: dict[tuple[str, str, int], list[float]] = {}
    for name in names * ROUNDS:  # in turn: what disturbs the machine disturbs them alike
        trial = Actuator(model.cast(PRECISIONS[name]), model.bytes)
        with torch.inference_mode():
            for subnet_id, size in [(i, size) for i in subnet_ids for size in TRIED] * RUNS:
                trial.actuate(subnet_id)
                began = time.perf_counter()
                trial.model(batch[:size]).float().cpu()
                took.setdefault((name, subnet_id, size), []).append(time.perf_counter() - began)
        for parameter, data in zip(model.parameters(), held, strict=True):
            parameter.data = data
        model.cast(torch.float32)
    cost = {
        name: statistics.fmean(math.log(statistics.median(values)) for key, values in took.items() if key[0] == name)
        for name in names
    }
    best = min(names, key=lambda name: cost[name])
    return best if cost[best] < cost["fp32"] - math.log(GAIN) else "fp32"
