"""The supernet that ships: what its files promise holds here too."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.supernet import artifact
from common.supernet.actuate import Actuator, extract
from common.supernet.calibrate import statistics_bytes
from common.supernet.data import Images
from common.supernet.measure import accuracy, cost
from common.supernet.operators import SubnetNorm
from common.supernet.supernet import Supernet


@pytest.fixture(scope="module")
def samples(shipped_folder: Path) -> Images:
    tensors = load_file(shipped_folder / "samples.safetensors")
    return Images(tensors["images"], tensors["labels"])


@pytest.fixture(scope="module")
def measured(shipped: Supernet, samples: Images) -> dict[str, float]:
    """Accuracy of each subnet on the samples."""
    found = {}
    for subnet in shipped.subnets:
        shipped.actuate(subnet.id)
        found[subnet.id] = accuracy(lambda images: shipped.infer(images)["scores"], samples)
    return found


def test_samples_are_real_test_images(samples: Images) -> None:
    """A thousand images with labels of all ten classes."""
    assert samples.inputs.shape == (1000, 28, 28)
    assert samples.inputs.dtype == torch.uint8
    assert set(samples.labels.tolist()) == set(range(10))


def test_accuracy_is_as_stated(shipped: Supernet, measured: dict[str, float]) -> None:
    """On the samples each subnet comes within three points of its accuracy on the whole test set."""
    for subnet in shipped.subnets:
        assert subnet.test_accuracy is not None
        assert measured[subnet.id] == pytest.approx(subnet.test_accuracy, abs=3)


def test_accuracy_bends(shipped: Supernet, measured: dict[str, float]) -> None:
    """There is something to trade: the largest subnet beats the smallest by four points or more."""
    assert len(shipped.subnets) >= 6
    assert measured[shipped.subnets[-1].id] - measured[shipped.subnets[0].id] >= 4


def test_subnets_ascend(shipped: Supernet) -> None:
    """Subnets are listed by strictly ascending accuracy, and the last one does many times the work of the first."""
    for small, large in itertools.pairwise(shipped.subnets):
        assert small.accuracy < large.accuracy
    assert shipped.subnets[-1].macs > 20 * shipped.subnets[0].macs


def test_stated_cost_is_the_model_s(shipped: Supernet) -> None:
    """The numbers of multiply-accumulates and weights in pareto.json are those of the extracted subnets."""
    for subnet in shipped.subnets:
        row = torch.zeros(1, 28, 28, dtype=torch.uint8)
        assert cost(shipped.model, subnet.control, row) == (subnet.macs, subnet.params)


def test_actuated_equals_extracted(shipped: Supernet, samples: Images) -> None:
    """With the learned weights too, each subnet in place gives what it gives in ordinary modules."""
    images = samples.inputs[:40]
    for subnet in shipped.subnets:
        shipped.actuate(subnet.id)
        with torch.inference_mode():
            expected = extract(shipped.model, subnet.control)(images).softmax(1)
        torch.testing.assert_close(shipped.infer(images)["scores"], expected, rtol=1e-5, atol=1e-5)


def test_without_subnetnorm_accuracy_collapses(shipped_folder: Path, samples: Images) -> None:
    """The smallest subnet under the largest one's statistics loses ten points or more: the reason for SubnetNorm."""
    shipped = artifact.load(shipped_folder)
    smallest, largest = shipped.subnets[0].id, shipped.subnets[-1].id
    actuator = Actuator(shipped.model)

    def right() -> float:
        actuator.forget(smallest)
        actuator.actuate(smallest)
        return accuracy(shipped.model, samples)

    own = right()
    for norm in shipped.model.norms().values():
        if smallest in norm.statistics:
            mean, var = norm.statistics[largest]
            channels = len(norm.statistics[smallest][0])
            norm.statistics[smallest] = mean[:channels], var[:channels]
    assert right() <= own - 10


def test_statistics_are_small(shipped: Supernet) -> None:
    """SubnetNorm costs little: all subnets' statistics together are below a tenth of the shared weights."""
    norms: list[SubnetNorm] = list(shipped.model.norms().values())
    statistics = sum(statistics_bytes(norms, subnet.id) for subnet in shipped.subnets)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in shipped.model.parameters())
    assert statistics < weights / 10
