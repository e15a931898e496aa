"""In-place actuation against the same subnet copied out, on a small supernet with random weights."""

import random
from collections.abc import Iterator

import pytest
import torch

from common.supernet.actuate import Actuator, Elastic, apply, extract
from common.supernet.operators import (
    LayerSelect,
    MissingStatisticsError,
    Setting,
    SubnetNorm,
    WeightSliceConv2d,
    WeightSliceLinear,
)
from common.supernet.resnet import Architecture, ResNet
from common.supernet.spec import Control, Space, SpecError
from tests.supernet.conftest import Build, pictures


def test_actuated_equals_extracted(build: Build, space: Space) -> None:
    """Any subnet gives in place what its own weights give in ordinary modules, at any batch size."""
    rng = random.Random(1)
    controls = [space.smallest, space.largest, *(space.sample(rng) for _ in range(60))]
    model = build(*controls)
    actuator = Actuator(model)
    with torch.inference_mode():
        for control in controls:
            static = extract(model, control)
            actuator.actuate(control.id)
            for batch in (1, 3, 16):
                images = pictures(batch, seed=batch).inputs
                torch.testing.assert_close(model(images), static(images), rtol=1e-5, atol=1e-5)


def test_actuated_equals_a_network_built_small(build: Build, space: Space) -> None:
    """A subnet is the plain network of its widths and depths, filled with the leading part of each shared weight."""
    rng = random.Random(4)
    controls = [space.smallest, *(space.sample(rng) for _ in range(20))]
    model = build(*controls)
    assert model.origin is not None
    architecture = Architecture.from_json(model.origin.architecture)
    shared = dict(model.net.named_parameters())
    actuator, images = Actuator(model), pictures(5).inputs
    for control in controls:
        active = model.layout.active(control)
        small = ResNet(architecture, active[:3], active[3:], control.depth).eval()
        with torch.inference_mode():
            for name, parameter in small.named_parameters():
                parameter.copy_(shared[name][tuple(slice(extent) for extent in parameter.shape)])
            for name, norm in model.norms().items():
                if control.id in norm.statistics:
                    reference = small.get_submodule(name)
                    assert isinstance(reference, torch.nn.BatchNorm2d)
                    reference.running_mean, reference.running_var = norm.statistics[control.id]
            actuator.actuate(control.id)
            torch.testing.assert_close(model(images), small(images), rtol=1e-5, atol=1e-5)


def test_extracted_holds_only_its_own_weights(build: Build, space: Space) -> None:
    """An extracted subnet has no elastic operator, shares no memory with the supernet and is smaller than it."""
    model = build(space.smallest)
    static = extract(model, space.smallest)
    elastic = LayerSelect | SubnetNorm | WeightSliceConv2d | WeightSliceLinear
    assert not any(isinstance(module, elastic) for module in static.modules())
    memory = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert all(parameter.untyped_storage().data_ptr() not in memory for parameter in static.parameters())
    assert sum(p.numel() for p in static.parameters()) < sum(p.numel() for p in model.parameters()) / 4


def test_actuation_copies_no_weight(build: Build, space: Space) -> None:
    """Whatever is actuated, operators use views of the parameters where they lie, and the parameters stay there."""
    rng = random.Random(2)
    controls = [space.sample(rng) for _ in range(20)]
    model = build(*controls)
    where = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    actuator = Actuator(model)
    for control in controls:
        actuator.actuate(control.id)
        for operator in model.modules():
            if isinstance(operator, WeightSliceConv2d | WeightSliceLinear):
                assert operator.active.weight.data_ptr() == operator.weight.data_ptr()
                assert operator.active.weight.untyped_storage().nbytes() == operator.weight.numel() * 4
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == where


def test_slice_is_the_leading_part(build: Build, space: Space) -> None:
    """WeightSlice takes the first channels of both sides; LayerSelect the first blocks of the stage."""
    control = space.parse("d1-w50-e50.50.100")
    model = build(control)
    Actuator(model).actuate(control.id)
    stage = model.net.get_submodule("stages.1")
    assert isinstance(stage, LayerSelect)
    assert stage.active == (stage.get_submodule("0"),)
    conv = model.net.get_submodule("stages.1.0.conv1")
    assert isinstance(conv, WeightSliceConv2d)
    assert torch.equal(conv.active.weight, conv.weight[:4, :4])  # 8 of 16 channels at half expansion, from 4 of 8


def test_switching_back_changes_nothing(build: Build, space: Space) -> None:
    """A, then B, then A again: the second A gives the same bits as the first."""
    rng = random.Random(3)
    controls = [space.sample(rng) for _ in range(6)]
    model = build(*controls)
    actuator, images = Actuator(model), pictures(4).inputs

    def run(subnet_id: str) -> torch.Tensor:
        actuator.actuate(subnet_id)
        with torch.inference_mode():
            return torch.as_tensor(model(images))

    first = {control.id: run(control.id) for control in controls}
    for _ in range(30):
        subnet_id = rng.choice(controls).id
        assert torch.equal(run(subnet_id), first[subnet_id])


def test_uncalibrated_subnet_is_refused(build: Build, space: Space) -> None:
    """A subnet without statistics fails on actuation, by name, and the subnet before it stays actuated."""
    model = build(space.smallest)
    actuator, images = Actuator(model), pictures(4).inputs
    actuator.actuate(space.smallest.id)
    before = model(images)
    for wrong, error in (("d1-w50-e50.50.100", MissingStatisticsError), ("d1-w33-e100", SpecError)):
        with pytest.raises(error, match=wrong):
            actuator.actuate(wrong)
        assert actuator.subnet_id == space.smallest.id
        assert torch.equal(model(images), before)
    with pytest.raises(MissingStatisticsError, match="calibrate it first"):
        extract(model, space.largest)


def test_statistics_of_another_width_are_refused(build: Build, space: Space) -> None:
    """Statistics for another number of channels than the subnet has are no statistics of it."""
    model = build(space.smallest)
    model.norms()["norm"].statistics[space.smallest.id] = (torch.zeros(3), torch.ones(3))
    with pytest.raises(MissingStatisticsError, match="for 4 channels"):
        Actuator(model).actuate(space.smallest.id)


def test_folded_plans_compute_the_same_within_their_bound(build: Build, space: Space) -> None:
    """A folded plan gives what views give; all folded plans together stay within the bound, and views fill the rest."""
    rng = random.Random(5)
    controls = [space.smallest, space.largest, *(space.sample(rng) for _ in range(10))]
    model, images = build(*controls), pictures(6).inputs
    views, expected = Actuator(model), {}
    with torch.inference_mode():
        for control in controls:
            views.actuate(control.id)
            expected[control.id] = model(images)
    bound = sum(parameter.nbytes for parameter in model.parameters())
    actuator = Actuator(model, plan_bytes=bound)
    for _ in range(2):
        for control in controls:
            actuator.actuate(control.id)
            with torch.inference_mode():
                torch.testing.assert_close(model(images), expected[control.id], rtol=1e-5, atol=1e-5)
    folded = [plan for plan in actuator.plans.values() if plan.folded]
    assert 0 < len(folded) < len(actuator.plans)
    assert 0 < sum(plan.bytes for plan in folded) <= bound
    assert all(plan.bytes < bound / 50 for plan in actuator.plans.values() if not plan.folded)
    assert not any(plan.folded for plan in views.plans.values())


def test_plan_is_built_once(build: Build, space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a subnet's first actuation, and the first after `forget`, asks the model for settings."""
    model = build(space.smallest, space.largest)
    asked: list[str] = []
    settings = Elastic.settings

    def counted(self: Elastic, control: Control) -> Iterator[Setting]:
        asked.append(control.id)
        return settings(self, control)

    monkeypatch.setattr(Elastic, "settings", counted)
    actuator = Actuator(model)
    for _ in range(3):
        actuator.actuate(space.smallest.id)
        actuator.actuate(space.largest.id)
    assert asked == [space.smallest.id, space.largest.id]
    actuator.forget(space.largest.id)
    actuator.actuate(space.largest.id)
    assert asked[2:] == [space.largest.id]


def test_gradients_reach_the_active_part_only(build: Build, space: Space) -> None:
    """In training the slices are part of the graph: gradients fall on active channels and nowhere else."""
    model = build()
    apply(model, space.parse("d1-w50-e50.50.100"))
    model(pictures(6).inputs).square().sum().backward()
    stem = model.net.get_parameter("stem.weight").grad
    assert stem is not None
    assert stem[:4].abs().sum() > 0
    assert stem[4:].abs().sum() == 0
    assert model.net.get_parameter("stages.1.1.conv1.weight").grad is None
