"""Measure what SuperServe's section 3 claims of SubNetAct, beside the paper's figures.

    scripts/bench-subnetact                         all three models: some ten minutes on one core
    scripts/bench-subnetact --quick                 fewer runs, small images: a minute or two
    scripts/bench-subnetact --model fashion-resnet --json out/subnetact.json --plot out/subnetact.png

fashion-resnet and the text model are taken from out/models where `superserve search` and `scripts/train` put them, else
the small ones that ship. ofa-resnet50 has random weights: memory and times are its own, accuracy it has none.
One thread. Times are medians of runs side by side; ratios travel, milliseconds do not.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from subnetact_report import PAPER, draw, table
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from common.supernet import artifact, ofa
from common.supernet.actuate import Actuator, extract
from common.supernet.calibrate import calibrate, statistics_bytes
from common.supernet.data import Rows
from common.supernet.layout import Layout
from common.supernet.measure import accuracy, cost, device_name
from common.supernet.operators import Operator, SubnetNorm, WeightSlice
from common.supernet.spec import Control
from common.supernet.supernet import Subnet, Supernet, fastest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED, TRAINED = ROOT / "services/worker/models", ROOT / "out/models"
FASHION, OFA, TEXT = "fashion-resnet", "ofa-resnet50", "rated-text"
EXTRACTED = 6  # subnets that the paper extracts
# Weights of torchvision's ResNet-18, 34, 50 and 101, as its documentation lists them.
IMAGENET_RESNETS = {"R18": 11_689_512, "R34": 21_797_672, "R50": 25_557_032, "R101": 44_549_160}
# Six subnets of once-for-all's ResNet50, smallest to largest: shares of the ranges of depth, width and expand.
OFA_SUBNETS = ((0, 0, 0), (0.5, 0, 0), (0.5, 0.5, 0), (0.5, 0.5, 0.5), (1, 1, 0.5), (1, 1, 1))
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """One model to measure. rows: labelled, None without accuracy; sizes: batch sizes; hand_sized: bytes by name."""

    name: str
    supernet: Supernet
    rows: Rows | None
    sizes: tuple[int, ...]
    hand_sized: dict[str, int]
    hosted: int

    @property
    def six(self) -> list[Subnet]:
        """Subnets of the Pareto set, evenly spread over it."""
        subnets = self.supernet.subnets
        count = min(EXTRACTED, len(subnets))
        return [subnets[round(i * (len(subnets) - 1) / max(count - 1, 1))] for i in range(count)]

    def batch(self, size: int) -> Tensor:
        """Rows to time with, as the network takes them."""
        rows = self.supernet.example(size)
        return rows if isinstance(rows, Tensor) else self.supernet.tokens(rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench-subnetact", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=(FASHION, OFA, TEXT), help="repeatable; default: all")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--plot", type=Path, default=ROOT / "out/subnetact.png", help="PNG to draw; %(default)s")
    parser.add_argument("--work", type=Path, default=ROOT / "out/bench", help="folder on the disk that loading is from")
    parser.add_argument("--hosted", type=int, default=500, help="subnets of ofa-resnet50 to calibrate")
    parser.add_argument("--quick", action="store_true", help="fewer runs, and small images for ofa-resnet50")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    makers = {FASHION: _fashion, OFA: _ofa, TEXT: _text}
    models = {}
    for name in args.model or makers:
        case = makers[name](args)
        print(f"measuring {case.name}")
        models[case.name] = measure(case, 5 if args.quick else 15, args.work)
    machine = {"device": device_name(torch.device("cpu")), "threads": 1, "torch": torch.__version__}
    report = {"date": datetime.date.today().isoformat(), **machine, "paper": PAPER, "models": models}
    Console(width=120).print(table(models))
    print(f"{report['date']}, {machine['device']}, one thread, torch {torch.__version__}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
        print(f"written to {args.json}")
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    draw(models, args.plot)
    print(f"drawn to {args.plot}")


# -- models -----------------------------------------------------------------------------------------------------------


def _fashion(args: argparse.Namespace) -> Case:
    folder = _found(FASHION, FASHION)
    supernet = artifact.load(folder)
    samples = load_file(folder / "samples.safetensors")
    count = 300 if args.quick else 1_000
    rows = Rows(samples["images"][:count], samples["labels"][:count])
    networks = json.loads((ROOT / "scripts/hand_sized.json").read_text())["networks"]
    hand = {f"{n['test_accuracy']:.1f} %": int(n["bytes"]) for n in networks}
    hosted = len(supernet.subnets) + len(supernet.hosted)
    return Case(f"{FASHION}", supernet, rows, (1, 2, 4, 8, 16), hand, hosted)


def _text(args: argparse.Namespace) -> Case:
    folder = _found("rated-text-minilm", "rated-text-tiny")
    supernet = artifact.load(folder)
    samples = json.loads((folder / "samples.json").read_text())
    count = 50 if args.quick else 300
    rows = Rows(supernet.tokens(samples["text"][:count]), torch.tensor(samples["labels"][:count]))
    return Case(folder.name, supernet, rows, (1, 2, 4, 8, 16), {}, supernet.model.space.size)


def _found(trained: str, shipped: str) -> Path:
    return TRAINED / trained if (TRAINED / trained / artifact.PARETO).is_file() else SHIPPED / shipped


def _ofa(args: argparse.Namespace) -> Case:
    side = 64 if args.quick else 224
    torch.manual_seed(0)
    model = ofa.build(ofa.Architecture(1_000, side)).channels_last()
    space, rng = model.space, random.Random(0)

    def at(share: float, part: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
        return tuple(values[round(share * (len(values) - 1))] for values in part)

    controls = [Control(at(d, space.depth), at(w, space.width), at(e, space.expand)) for d, w, e in OFA_SUBNETS]
    hosted = dict.fromkeys(controls)
    while len(hosted) < max(args.hosted, len(controls)):
        hosted[space.sample(rng)] = None
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)  # random weights: any statistics do
    for control in tqdm(hosted, desc="calibrating", mininterval=5):
        calibrate(model, control, [pixels])
    row = torch.zeros((1, side, side, 3), dtype=torch.uint8)
    subnets = [Subnet(c, float(i), None, *cost(model, c, row)) for i, c in enumerate(controls)]
    supernet = Supernet(model, ofa.model_spec(OFA, 1_000, side, ()), subnets)
    hand = {name: 4 * weights for name, weights in IMAGENET_RESNETS.items()}
    return Case(OFA, supernet, None, (1, 4) if args.quick else (1, 4, 16), hand, len(hosted))


# -- measurements -----------------------------------------------------------------------------------------------------


def measure(case: Case, runs: int, work: Path) -> dict[str, Any]:
    """All figures of one model; the keys are those of the JSON file."""
    figures: dict[str, Any] = {"subnets": [s.id for s in case.supernet.subnets], "extracted": [s.id for s in case.six]}
    figures |= _memory(case)
    figures["no_accuracy"] = "random weights: no accuracy" if case.rows is None else "no norms in this network"
    figures["actuation_ms"] = _actuation(case)
    figures |= _loading(case, max(runs, 5), work)
    figures["subnetnorm_gain_points"] = _norm_gain(case)
    few = max(2, runs // 5) if case.name == OFA else runs
    figures |= _execution(case, few)
    figures["load_over_inference"] = {
        kind: max(load / infer for load, infer in zip(loads, figures["batch1_ms"], strict=True))
        for kind, loads in figures["loads_ms"].items()
    }
    return figures


def _memory(case: Case) -> dict[str, Any]:
    supernet, norms = case.supernet, list(case.supernet.model.norms().values())
    ids = {subnet_id for norm in norms for subnet_id in norm.statistics}
    kept = [statistics_bytes(norms, subnet_id) for subnet_id in ids]
    total = supernet.weight_bytes + sum(kept) + supernet.actuator.bytes
    extracted = [_bytes(extract(supernet.model, subnet.control)) for subnet in case.six]
    hand = sum(case.hand_sized.values())
    everything = sum(_alone(supernet, subnet_id) for subnet_id in ids)
    return {
        "subnets_hosted": case.hosted,
        "memory_mib": {
            "weights": supernet.weight_bytes / MIB,
            "statistics": sum(kept) / MIB,
            "plans": supernet.actuator.bytes / MIB,
            "extracted": [size / MIB for size in extracted],
            "hand_sized": {name: size / MIB for name, size in case.hand_sized.items()},
        },
        "memory_ratio_hosted": everything / total if ids else None,
        "memory_ratio_extracted": sum(extracted) / total,
        "memory_ratio_extracted_views": sum(extracted) / (total - supernet.actuator.bytes),
        "memory_ratio_hand_sized": hand / total if hand else None,
        "weights_over_statistics": supernet.weight_bytes / statistics.fmean(kept) if kept else None,
    }


def _alone(supernet: Supernet, subnet_id: str) -> int:
    """Bytes that a subnet would take by itself: weights in use, and scale, shift, mean and variance of its norms."""
    bent = {id(p) for m in supernet.model.modules() if isinstance(m, Operator) for p in m.parameters(recurse=False)}
    size = sum(parameter.nbytes for parameter in supernet.model.parameters() if id(parameter) not in bent)
    for setting in supernet.model.settings(supernet.model.space.parse(subnet_id)):
        if isinstance(setting.module, WeightSlice):
            size += sum(tensor.nbytes for tensor in setting.value if tensor is not None)
        elif isinstance(setting.module, SubnetNorm):
            size += 4 * setting.value.scale.nbytes
    return size


def _actuation(case: Case, switches: int = 2_000) -> dict[str, float]:
    """Of random switches among the Pareto set."""
    rng, ids = random.Random(0), [subnet.id for subnet in case.supernet.subnets]
    took = []
    for _ in range(switches):
        subnet_id = rng.choice(ids)
        began = time.perf_counter()
        case.supernet.actuate(subnet_id)
        took.append(1e3 * (time.perf_counter() - began))
    p50, p99 = np.percentile(took, (50, 99))
    return {"p50": float(p50), "p99": float(p99)}


def _loading(case: Case, runs: int, work: Path) -> dict[str, Any]:
    """Of extracted subnets, into modules that are there already: from the page cache, and dropped from it."""
    loads: dict[str, list[float]] = {"warm": [], "cold": []}
    for subnet in case.six:
        static, path = extract(case.supernet.model, subnet.control), work / "subnet.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in static.state_dict().items()}, path)
        for kind, took in loads.items():
            times = []
            for _ in range(runs):
                _page_cache(path, keep=kind == "warm")
                began = time.perf_counter()
                static.load_state_dict(load_file(path))
                times.append(1e3 * (time.perf_counter() - began))
            took.append(statistics.median(times))
        path.unlink()
    return {"load_ms": {kind: took[-1] for kind, took in loads.items()}, "loads_ms": loads}


def _page_cache(path: Path, *, keep: bool) -> None:
    """Have a file in the page cache, or drop it: its pages must be on the disk for that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if keep:
            path.read_bytes()
        else:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _norm_gain(case: Case) -> dict[str, Any] | None:
    """Points of accuracy that SubnetNorm gains, mean over the Pareto set but its largest, and accuracies by subnet."""
    norms = case.supernet.model.norms()
    if case.rows is None or not norms:
        return None
    subnets = case.supernet.subnets
    found: dict[str, list[float]] = {}
    for kind, change in (
        ("subnetnorm", lambda norm: dict(norm.statistics)),
        ("shared", lambda norm: _shared(norm, [s.id for s in subnets])),
        ("largest", lambda norm: _largest(norm, case.supernet.model.space.largest.id)),
    ):
        with _statistics(norms.values(), change):
            actuator = Actuator(case.supernet.model)
            found[kind] = []
            for subnet in subnets:
                actuator.actuate(subnet.id)
                found[kind].append(accuracy(case.supernet.model, case.rows))
    own = statistics.fmean(found["subnetnorm"][:-1])
    return {kind: own - statistics.fmean(found[kind][:-1]) for kind in ("shared", "largest")} | {"accuracy": found}


@contextmanager
def _statistics(norms: Sequence[SubnetNorm] | Any, change: Callable[[SubnetNorm], dict[str, Any]]) -> Iterator[None]:
    """Other statistics for a while."""
    kept = [(norm, norm.statistics) for norm in norms]
    for norm, _ in kept:
        norm.statistics = change(norm)
    try:
        yield
    finally:
        for norm, own in kept:
            norm.statistics = own


def _shared(norm: SubnetNorm, subnet_ids: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """For every subnet, the mean over all subnets of each channel's statistics: one set that all of them share."""
    own = [norm.statistics[subnet_id] for subnet_id in subnet_ids if subnet_id in norm.statistics]
    count, sums = torch.zeros_like(norm.weight), [torch.zeros_like(norm.weight) for _ in range(2)]
    for pair in own:
        count[: len(pair[0])] += 1
        for total, values in zip(sums, pair, strict=True):
            total[: len(values)] += values
    mean, var = (total / count.clamp(min=1) for total in sums)
    return {key: (mean[: len(m)], var[: len(m)]) for key, (m, _) in norm.statistics.items()}


def _largest(norm: SubnetNorm, largest: str) -> dict[str, tuple[Tensor, Tensor]]:
    """For every subnet, the first channels of the largest subnet's statistics."""
    mean, var = norm.statistics[largest]
    return {key: (mean[: len(m)], var[: len(m)]) for key, (m, _) in norm.statistics.items()}


def _execution(case: Case, runs: int) -> dict[str, Any]:
    """Actuated against extracted with BatchNorm folded, side by side; throughput; and what half precision gains."""
    supernet, ratios, views = case.supernet, [], []
    throughput, single = [], []
    plain = Actuator(supernet.model)
    for subnet in tqdm(supernet.subnets, desc="running", mininterval=5):
        static = fold(extract(supernet.model, subnet.control), supernet.model.layout)
        for size in case.sizes:
            batch = case.batch(size)
            took: dict[str, list[float]] = {"actuated": [], "views": [], "static": []}
            with torch.inference_mode():
                for run in range(runs + 1):
                    for name in took:
                        if name != "static":
                            (supernet.actuator if name == "actuated" else plain).actuate(subnet.id)
                        network = static if name == "static" else supernet.model
                        began = time.perf_counter()
                        network(batch)
                        if run:
                            took[name].append(time.perf_counter() - began)
            median = {name: statistics.median(values) for name, values in took.items()}
            ratios.append(median["actuated"] / median["static"])
            views.append(median["views"] / median["static"])
            if size == 1 and subnet in case.six:
                single.append(1e3 * median["actuated"])
            if size == case.sizes[-1]:
                throughput.append(size / median["actuated"])
    supernet.actuate(supernet.subnets[-1].id)
    ends = [supernet.subnets[0].id, supernet.subnets[-1].id]
    return {
        "actuated_over_extracted": statistics.median(ratios),
        "actuated_over_extracted_quartiles": [float(q) for q in np.percentile(ratios, (25, 75))],
        "views_over_extracted": statistics.median(views),
        "throughput_range": max(throughput) / min(throughput),
        "throughput_rows_per_s": throughput,
        "batch1_ms": single,
        "fastest_precision": fastest(supernet.model, ends, case.batch(8)),
    }


def fold(static: nn.Module, layout: Layout) -> nn.Module:
    """Fold each BatchNorm of an extracted subnet into the convolution before it, by torch's own means."""
    modules = dict(static.named_modules())
    for norm, layer in layout.folds:
        if isinstance(modules.get(norm), nn.BatchNorm2d):
            fused = fuse_conv_bn_eval(modules[layer], modules[norm])
            for name, module in ((layer, fused), (norm, nn.Identity())):
                parent, _, leaf = name.rpartition(".")
                setattr(modules[parent], leaf, module)
    return static.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


if __name__ == "__main__":
    main()
