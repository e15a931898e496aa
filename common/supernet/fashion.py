"""The supernet that ships: an elastic ResNet for Fashion-MNIST, 28 x 28 grey images of ten kinds of clothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.supernet import artifact
from common.supernet.actuate import Actuator, Elastic
from common.supernet.data import FASHION_LABELS, Images
from common.supernet.measure import BATCH_SIZES, accuracy, cost
from common.supernet.resnet import Architecture, build
from common.supernet.search import Candidate, candidates, evaluate, pareto, spread
from common.supernet.spec import Space, TensorSpec
from common.supernet.supernet import ModelSpec, Subnet

NAME = "fashion-resnet"
HELD_OUT = 5_000  # training images that choose subnets and never train
SPLIT_SEED = 7
CALIBRATION = 2_000  # training images that SubnetNorm statistics are taken from
SAMPLES = 1_000  # test images that ship with the model
SUBNETS = 8

PREPROCESSING = (
    "none by the client: rows are the grey values 0..255; the model normalises them by architecture.mean, std"
)

SPEC = ModelSpec(
    name=NAME,
    inputs=(TensorSpec("image", "UINT8", (28, 28)),),
    outputs=(TensorSpec("label", "INT64", ()), TensorSpec("scores", "FP32", (10,))),
    labels=FASHION_LABELS,
)


def fashion_resnet() -> Elastic:
    """The untrained supernet: 32, 64 and 128 channels at 28 x 28, 14 x 14 and 7 x 7; up to 8 blocks."""
    architecture = Architecture(channels=(32, 64, 128), classes=10, image=(28, 28), mean=73.0, std=90.0)
    space = Space(depth=((1, 2), (1, 2, 3), (1, 2, 3)), width=((12, 25, 50, 75, 100),) * 3, expand=((25, 50, 100),) * 3)
    return build(architecture, space)


def choose(
    model: Elastic, train: Images, held_out: Images, tried: int, report: Callable[[str], None]
) -> list[Candidate]:
    """The Pareto set of a trained supernet: screen `tried` subnets roughly, then measure the best of them well.

    Accuracy is that on the held-out images. The chosen subnets stay calibrated on `CALIBRATION` training images.
    """
    controls = candidates(model.space, tried, seed=0)
    screened = evaluate(model, controls, train.part(0, 500), held_out.part(0, 1_500), (1, 16), 7, report)
    best = spread(pareto(screened), SUBNETS + 3)
    controls = [candidate.control for candidate in best]
    measured = evaluate(model, controls, train.part(0, CALIBRATION), held_out, BATCH_SIZES, 25, report)
    return spread(pareto(measured), SUBNETS)


def publish(
    folder: Path, model: Elastic, chosen: list[Candidate], test: Images, training: Mapping[str, Any], tried: int
) -> list[Subnet]:
    """Measure the chosen subnets on the test set, which chooses nothing, and write the artifact and its samples."""
    actuator = Actuator(model)
    subnets = []
    for candidate in chosen:
        actuator.actuate(candidate.control.id)
        macs, params = cost(model, candidate.control, test.inputs[:1])
        test_accuracy = round(accuracy(model, test), 2)
        subnets.append(Subnet(candidate.control, round(candidate.accuracy, 2), test_accuracy, macs, params))
    artifact.save(folder, model, SPEC, subnets, artifact.Notes(PREPROCESSING, training, _measured(tried)))
    samples = {"images": test.inputs[:SAMPLES].contiguous(), "labels": test.labels[:SAMPLES].contiguous()}
    artifact.write_tensors(folder / "samples.safetensors", samples)
    return subnets


def _measured(tried: int) -> dict[str, str]:
    """How the figures of pareto.json came about."""
    return {
        "accuracy": f"percent of {HELD_OUT} training images that were held out of training; they chose the subnets",
        "test_accuracy": "percent of the 10,000 test images, which chose nothing",
        "statistics": f"SubnetNorm statistics from {CALIBRATION} training images",
        "search": f"{tried} subnets tried, with their latency on the training machine, one thread",
    }
