"""What a subnet is worth and what it costs: accuracy, latency, multiply-accumulates.

Source: SuperServe section 5 (latency is profiled per subnet and batch size on the workers' own devices).
"""

from __future__ import annotations

import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.supernet.actuate import Elastic, extract
from common.supernet.data import Rows
from common.supernet.spec import Control
from common.supernet.supernet import Supernet

BATCH_SIZES = (1, 2, 4, 8, 16)

Latencies = dict[tuple[str, int], list[float]]


def accuracy(infer: Callable[[Tensor], Tensor], rows: Rows, batch: int = 125) -> float:
    """Percent of the rows whose highest score is at their label.

    infer: inputs [N, ...] -> scores [N, classes].
    """
    right = 0
    with torch.inference_mode():
        for part in rows.batches(batch):
            right += int((infer(part.inputs).argmax(1) == part.labels).sum())
    return 100 * right / len(rows)


def latencies(
    run: Callable[[str, int], object],
    cells: Sequence[tuple[str, int]],
    runs: int,
    warm_up: int = 2,
    progress: Callable[[float], None] | None = None,
) -> Latencies:
    """Time `run(subnet_id, batch_size)` for each cell, `runs` times after a warm-up.

    The cells take turns, in another order in each round: noise of a shared machine falls on all of them alike.
    Returns seconds per cell, one entry per run. `progress` is told the share that is done after each round.
    """
    seconds: Latencies = {cell: [] for cell in cells}
    order, rng = list(cells), random.Random(0)
    for round_ in range(warm_up + runs):
        rng.shuffle(order)
        for cell in order:
            began = time.perf_counter()
            run(*cell)
            took = time.perf_counter() - began
            if round_ >= warm_up:
                seconds[cell].append(took)
        if progress is not None:
            progress((round_ + 1) / (warm_up + runs))
    return seconds


def profile(
    supernet: Supernet,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    runs: int = 20,
    progress: Callable[[float], None] | None = None,
    subnet_ids: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure the latency of subnets at every batch size on this device.

    A run is what a worker does for a batch: actuate, infer, and have the outputs on the host.
    subnet_ids: which, else those of the Pareto set.
    Returns the JSON form of a profile, as `common.sched.profile.Profile.from_dict` takes it: microseconds, subnets by
    ascending accuracy, one median and one 95th percentile per batch size.
    """
    rows = supernet.example(max(batch_sizes))

    def run(subnet_id: str, batch: int) -> None:
        supernet.actuate(subnet_id)
        for output in supernet.infer(rows[:batch]).values():
            output.cpu()

    ids = [subnet.id for subnet in supernet.subnets] if subnet_ids is None else list(subnet_ids)
    cells = [(subnet_id, batch) for subnet_id in ids for batch in batch_sizes]
    measured = latencies(run, cells, runs, progress=progress)
    return {
        "format": 1,
        "device": device_name(supernet.device),
        "executor": "torch",
        "model": supernet.name,
        "precision": supernet.precision,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "runs": runs,
        "batch_sizes": list(batch_sizes),
        "subnets": [
            {
                "id": subnet_id,
                "accuracy": supernet.accuracy(subnet_id),
                "median_us": [_us(statistics.median(measured[subnet_id, b])) for b in batch_sizes],
                "p95_us": [_us(_p95(measured[subnet_id, b])) for b in batch_sizes],
            }
            for subnet_id in sorted(ids, key=supernet.accuracy)
        ],
    }


def device_name(device: torch.device) -> str:
    """What the device calls itself, such as a processor's model name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cost(model: Elastic, control: Control, row: Tensor) -> tuple[int, int]:
    """Multiply-accumulates of convolutions and linear layers for one row, and the number of weights, of a subnet.

    row: [1, *shape of the input]. Raises: as `extract`.
    """
    static = extract(model, control).float()
    macs = 0

    def count(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal macs
        assert isinstance(module, nn.Conv2d | nn.Linear)
        macs += output.numel() * module.weight[0].numel()

    for module in static.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.inference_mode():
        static(row)
    return macs, sum(parameter.numel() for parameter in static.parameters())


def _us(seconds: float) -> int:
    return max(1, round(seconds * 1e6))


def _p95(values: Sequence[float]) -> float:
    """Smallest value that 95 percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[-(-len(ordered) * 95 // 100) - 1]
