"""The `hand-sized` networks of `scripts/train`: four ResNets as a person sizes them, each trained by itself.

What a supernet replaces (SuperServe figure 5a): `scripts/bench-subnetact` compares its memory with theirs. Sizes and
accuracies go to scripts/hand_sized.json; the weights stay in the work folder.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.supernet import fashion
from common.supernet.actuate import Actuator
from common.supernet.calibrate import calibrate, statistics_bytes
from common.supernet.data import Images
from common.supernet.measure import accuracy, cost
from common.supernet.resnet import Architecture, build
from common.supernet.spec import Space
from common.supernet.train import Recipe, Trainer

NAME = "hand-sized"
RESULT = Path(__file__).parent / "hand_sized.json"
NETWORKS = (((8, 16, 32), (1, 1, 1)), ((16, 32, 64), (1, 2, 2)), ((32, 64, 128), (1, 2, 2)), ((32, 64, 128), (2, 3, 3)))
CALIBRATION = 2_000


def train(folder: Path, work: Path, epochs: float, fit: Callable[[Trainer, Path], None]) -> None:
    """Train the four networks for `epochs` each on Fashion-MNIST. Raises: DataError."""
    data = fashion.data(folder)
    assert isinstance(data.train, Images) and data.test is not None
    networks: list[dict[str, Any]] = []
    for channels, depths in NETWORKS:
        architecture = Architecture(channels=channels, classes=10, image=(28, 28), mean=73.0, std=90.0)
        whole = ((100,),) * len(channels)
        model = build(architecture, Space(depth=tuple((depth,) for depth in depths), width=whole, expand=whole))
        fit(Trainer(model, data.train, Recipe(epochs=epochs, random_subnets=None)), work / f"{NAME}-{len(networks)}.pt")
        control = model.space.largest
        calibrate(model, control, (part.inputs for part in data.train.part(0, CALIBRATION).batches(125)))
        Actuator(model).actuate(control.id)
        held_out, test = accuracy(model, data.held_out), accuracy(model, data.test)
        macs, params = cost(model, control, data.test.inputs[:1])
        statistics = statistics_bytes(model.norms().values(), control.id)
        networks.append(
            {
                "channels": channels,
                "depths": depths,
                "accuracy": round(held_out, 2),
                "test_accuracy": round(test, 2),
                "macs": macs,
                "params": params,
                "bytes": 4 * params + statistics,
            }
        )
        print(f"{channels} x {depths}: {held_out:.2f} % held out, {test:.2f} % test, {params:,} weights")
    result = {"trained": datetime.date.today().isoformat(), "epochs": epochs, "networks": networks}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {RESULT}")
