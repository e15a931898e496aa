"""SubnetNorm statistics: the mean and variance that each norm of a subnet sees on training images.

Source: SuperServe section 3 (SubnetNorm: statistics precomputed by forward passes over training data). The supernet
runs without gradients and its norms in training mode, so that every norm normalises by its batch, as it did when the
weights were learned; the moments that it took of its batches are added up.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from common.supernet.actuate import Elastic, apply
from common.supernet.operators import Moments, SubnetNorm
from common.supernet.spec import Control


def calibrate(model: Elastic, control: Control, batches: Iterable[Tensor]) -> None:
    """Set the SubnetNorm statistics of one subnet from batches of training images.

    batches: each as the model takes it. A few thousand images do: 256 come within half a point of accuracy of 4,096.
    A model without norms needs none. The model is back in the mode it was in; an Actuator must `forget` the subnet if
    it had a plan.

    Raises: SpecError when the subnet is not in the space; ValueError when there is no batch.
    """
    if not model.norms():
        return
    norms, training = model.norms(), model.training
    try:
        model.eval()
        for norm in norms.values():
            norm.train().moments = Moments()
        with torch.no_grad():
            apply(model, control)
            for batch in batches:
                model(batch)
        seen = {name: norm.moments for name, norm in norms.items() if norm.moments and norm.moments.count}
        if not seen:
            raise ValueError(f"no images to calibrate subnet {control.id} with")
        for name, moments in seen.items():
            norms[name].statistics[control.id] = moments.result()
    finally:
        model.train(training)
        for norm in norms.values():
            norm.moments = None


def statistics_bytes(norms: Iterable[SubnetNorm], subnet_id: str) -> int:
    """Bytes of one subnet's statistics."""
    kept = (norm.statistics.get(subnet_id, ()) for norm in norms)
    return sum(tensor.numel() * tensor.element_size() for pair in kept for tensor in pair)
