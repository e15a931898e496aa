"""Once-for-all's ResNet50: our supernet against the public implementation, subnet by subnet."""

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.supernet import ofa
from common.supernet.actuate import Actuator, Elastic
from common.supernet.data import DataError
from common.supernet.insert import insert
from common.supernet.layout import divisible
from common.supernet.operators import WeightSlice
from common.supernet.spec import Control
from tests.supernet.ofa_reference import enliven, ofa_resnet

CLASSES, SIDE = 5, 32
Config = dict[str, list[Any]]


@pytest.fixture(scope="module")
def reference() -> Any:
    torch.manual_seed(0)
    return ofa_resnet(CLASSES)


@pytest.fixture(scope="module")
def checkpoint(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ofa") / "published.pth"
    torch.save({"state_dict": reference.state_dict(), "epoch": 1}, path)
    return path


@pytest.fixture(scope="module")
def supernet(checkpoint: Path) -> Elastic:
    found = ofa.build(ofa.Architecture(CLASSES, SIDE))
    ofa.load(found, checkpoint)
    return found.channels_last()


def configs(count: int) -> Iterator[Config]:
    """Random arguments of once-for-all's set_active_subnet, the ends first."""
    yield {"d": [0] * 5, "e": [0.2] * 18, "w": [0] * 6}
    yield {"d": [2] * 5, "e": [0.35] * 18, "w": [2] * 6}
    rng = random.Random(0)
    for _ in range(count - 2):
        yield {
            "d": [rng.choice((0, 2)), *(rng.choice((0, 1, 2)) for _ in range(4))],
            "e": [rng.choice((0.2, 0.25, 0.35)) for _ in range(18)],
            "w": [rng.randrange(3) for _ in range(6)],
        }


def their_subnet(reference: Any, config: Config) -> nn.Module:
    """The static network that once-for-all cuts out, with norms that it alone has."""
    reference.set_active_subnet(**config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Conv2d, "reset_parameters", lambda self: None)  # its weights are those of the whole network
        subnet: nn.Module = reference.get_active_subnet(preserve_weight=True)
    enliven_statistics(subnet)
    return subnet.eval()


def enliven_statistics(subnet: nn.Module) -> None:
    with torch.no_grad():
        for module in subnet.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)


def scores(supernet: Elastic) -> Callable[[Tensor], Tensor]:
    """The network from normalised pixels on: what once-for-all's networks take."""
    assert isinstance(supernet.net, ofa.OfaResNet50)
    return supernet.net.scores


def running_norms(supernet: Elastic, control: Control) -> list[Any]:
    """The norms that a subnet runs, in the order of the modules."""
    skipped = tuple(f"{container}.{name}." for container, name in supernet._skipped(control))
    return [norm for name, norm in supernet.norms().items() if not name.startswith(skipped)]


def lend_statistics(supernet: Elastic, control: Control, subnet: nn.Module) -> None:
    """Give our subnet the statistics of theirs: both have their norms in the same order, but for shortcuts."""
    theirs = [module for name, module in subnet.named_modules() if isinstance(module, nn.BatchNorm2d)]
    ours = running_norms(supernet, control)
    assert len(ours) == len(theirs)
    for norm, module in zip(ours, theirs, strict=True):
        norm.statistics[control.id] = (module.running_mean, module.running_var)


def forget(supernet: Elastic, control: Control) -> None:
    for norm in supernet.norms().values():
        norm.statistics.pop(control.id, None)


def test_channels_are_rounded_alike(reference: Any) -> None:
    """Every width and expansion means the same number of channels as in once-for-all."""
    from ofa.utils import make_divisible

    for channels, percent in itertools.product((*ofa.STEM, *ofa.CHANNELS), ofa.WIDTHS):
        assert divisible(channels * percent / 100, 8) == make_divisible(channels * percent / 100, 8)
    for group in ofa.layout().expands:
        assert group.of is not None
        widths = ofa.layout().widths
        for width, expand in itertools.product(ofa.WIDTHS, ofa.EXPANDS):
            active = [w.active(width) for w in widths]
            theirs = make_divisible(round(active[group.of] * (expand / 100)), 8)
            assert group.active(expand, active) == theirs
    assert [reference.input_stem[i].out_channel_list for i in (0, 2)] == [
        [group.active(p) for p in ofa.WIDTHS] for group in ofa.layout().widths[:2]
    ]


def test_200_subnets_equal_the_public_implementation(reference: Any, supernet: Elastic) -> None:
    """Actuated in place, 200 random (d, e, w) give what once-for-all's own static subnets give."""
    image = torch.randn(2, 3, SIDE, SIDE)
    seen = set()
    for config in configs(200):
        control = ofa.from_ofa(**config)
        subnet = their_subnet(reference, config)
        lend_statistics(supernet, control, subnet)
        Actuator(supernet).actuate(control.id)
        with torch.inference_mode():
            expected, ours = subnet(image), scores(supernet)(image)
        assert (ours - expected).norm() <= 1e-4 * expected.norm(), control.id
        seen.add(control)
        forget(supernet, control)
    assert len(seen) == 200


def test_the_whole_network_is_the_checkpoint(reference: Any, supernet: Elastic, checkpoint: Path) -> None:
    """A published checkpoint gives the whole network its weights and its tracked statistics."""
    ofa.load(supernet, checkpoint)
    reference.set_max_net()
    image = torch.randn(2, 3, SIDE, SIDE)
    Actuator(supernet).actuate(supernet.space.largest.id)
    with torch.inference_mode():
        torch.testing.assert_close(scores(supernet)(image), reference(image), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in supernet.parameters()) == sum(p.numel() for p in reference.parameters())


def test_detection_finds_their_network(reference: Any) -> None:
    """Inserted by structure alone into once-for-all's largest static network, subnets equal the reference too."""
    reference.set_max_net()
    plain = reference.get_active_subnet(preserve_weight=True).eval()
    where = {name: p.data_ptr() for name, p in plain.named_parameters()}
    image = torch.randn(2, 3, SIDE, SIDE)
    supernet = insert(plain, example=image)
    assert {name: p.data_ptr() for name, p in supernet.net.named_parameters()} == where
    stages = [(stage.container, len(stage.blocks)) for stage in supernet.layout.stages]
    assert stages == [("input_stem", 1), ("blocks", 4), ("blocks", 4), ("blocks", 6), ("blocks", 4)]
    assert [left.module for left in supernet.layout.left] == ["classifier.linear"]
    for config in list(configs(30)):
        control = Control(ofa.from_ofa(**config).depth, (100,) * 6, (100,) * len(supernet.layout.expands))
        whole = {"d": config["d"], "e": [0.35] * 18, "w": [2] * 6}
        subnet = their_subnet(reference, whole)
        lend_statistics(supernet, control, subnet)
        Actuator(supernet).actuate(control.id)
        with torch.inference_mode():
            expected, ours = subnet(image), supernet(image)
        assert (ours - expected).norm() <= 1e-4 * expected.norm(), control.id
        forget(supernet, control)


def test_actuation_copies_nothing(supernet: Elastic, reference: Any) -> None:
    """48.1 M weights stay where they are while subnets change: every slice is a view of the shared storage."""
    ends = (supernet.space.smallest, supernet.space.largest)
    for control, config in zip(ends, configs(2), strict=True):
        lend_statistics(supernet, control, their_subnet(reference, config))
    actuator, layers = Actuator(supernet), [m for m in supernet.modules() if isinstance(m, WeightSlice)]
    where, active = [layer.weight.data_ptr() for layer in layers], []
    for control in (*ends, *ends):
        actuator.actuate(control.id)
        assert [layer.weight.data_ptr() for layer in layers] == where
        assert [layer.active.weight.data_ptr() for layer in layers] == where
        active.append([tuple(layer.active.weight.shape) for layer in layers])
    assert active[0] == active[2] != active[1] == active[3]


def test_both_published_spellings_are_read(reference: Any, tmp_path: Path) -> None:
    """Checkpoints name wrapped layers once or twice, with or without `module.`: all name the same tensors."""
    state: dict[str, Tensor] = reference.state_dict()
    short = {
        "module."
        + key.replace("linear.linear", "linear").replace("bn.bn", "bn").replace("conv.conv.w", "conv.w"): tensor
        for key, tensor in state.items()
    }
    for name, tensors in (("long", state), ("short", short)):
        torch.save(tensors, tmp_path / name)
    long = ofa.read_checkpoint(tmp_path / "long")
    other = ofa.read_checkpoint(tmp_path / "short")
    assert long.keys() == other.keys()
    assert all(torch.equal(long[key], other[key]) for key in long)


def test_foreign_and_damaged_checkpoints_are_refused(checkpoint: Path, supernet: Elastic, tmp_path: Path) -> None:
    """Each refusal names the file and the first thing that is wrong with it."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    cases: list[tuple[object, str]] = [
        ({"layer1.0.conv1.weight": torch.zeros(1)}, "layer1.0.conv1.weight is no tensor of an OFAResNet50"),
        ({"blocks.99.conv1.conv.weight": torch.zeros(1)}, "blocks.99.conv1.conv.weight is no tensor"),
        ([1, 2], "holds no state_dict"),
        ({key: tensor for key, tensor in state.items() if "classifier" not in key}, "classifier.bias is missing"),
        (
            {**state, "classifier.linear.linear.bias": torch.zeros(7)},
            r"classifier.bias has shape \[7\], expected \[5\]",
        ),
    ]
    for content, message in cases:
        torch.save(content, tmp_path / "wrong.pth")
        with pytest.raises(DataError, match=rf"wrong.pth.*{message}"):
            ofa.load(supernet, tmp_path / "wrong.pth")
    (tmp_path / "noise.pth").write_bytes(b"\x80\x04no checkpoint")
    with pytest.raises(DataError, match=r"noise.pth is no checkpoint"):
        ofa.load(supernet, tmp_path / "noise.pth")
    with pytest.raises(DataError, match="is missing"):
        ofa.load(supernet, tmp_path / "none.pth")


def test_enliven_reaches_every_norm(reference: Any) -> None:
    """The reference's norms differ from channel to channel, so that equality with them says something."""
    enliven(reference)
    norms = [module for module in reference.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 3 + 18 * 3 + 4
    assert all(norm.weight.std() > 0.1 for norm in norms)
