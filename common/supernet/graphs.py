"""CUDA graphs of subnets: one launch for a whole forward pass. Written for GPUs and NOT VERIFIED on one.

Source: Nguyen et al., "Accelerating PyTorch with CUDA Graphs" (pytorch.org blog, 2021): capture on a side stream after
a warm-up, static tensors in and out, one memory pool shared by graphs that never run at the same time.

A graph replays the kernels of one subnet at one batch size, with the addresses that they had in capture: a plan's views
and folded copies, which must stay as they are. Batches are padded up to the next captured size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.supernet.actuate import Actuator

WARM_UP = 3


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: Any  # torch.cuda.CUDAGraph
    batch: Tensor
    scores: Tensor


class Graphs:
    """Runs the actuated subnet by a graph, captured at its first batch of a size.

    sizes: batch sizes to capture; larger batches run without a graph. Not thread-safe, like the actuator. Networks that
    look at values on the host, as TextClassifier does for its longest row, cannot be captured.
    """

    def __init__(self, actuator: Actuator, sizes: tuple[int, ...] = (1, 2, 4, 8, 16)) -> None:
        self._actuator, self._sizes = actuator, sorted(sizes)
        self._captured: dict[tuple[str, int], _Captured] = {}
        self._pool: Any = None

    def run(self, batch: Tensor) -> Tensor:
        """batch: [B, ...] on the GPU -> scores [B, classes]."""
        rows, subnet_id = len(batch), self._actuator.subnet_id
        size = next((size for size in self._sizes if size >= rows), None)
        if size is None or subnet_id is None:
            scores: Tensor = self._actuator.model(batch)
            return scores
        key = subnet_id, size
        captured = self._captured.get(key)
        if captured is None:
            captured = self._captured[key] = self._capture(batch, size)
        captured.batch[:rows].copy_(batch)
        captured.graph.replay()
        return captured.scores[:rows].clone()

    def _capture(self, batch: Tensor, size: int) -> _Captured:
        static = torch.zeros((size, *batch.shape[1:]), dtype=batch.dtype, device=batch.device)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._actuator.model(static)
        torch.cuda.current_stream().wait_stream(side)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            scores = self._actuator.model(static)
        return _Captured(graph, static, scores)
