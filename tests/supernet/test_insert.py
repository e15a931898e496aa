"""Operators inserted into networks of others, against the same networks cut down by their own means."""

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.pytorch_utils import prune_linear_layer

from common.supernet.actuate import Actuator, Elastic, extract
from common.supernet.calibrate import calibrate
from common.supernet.importance import order_by_importance
from common.supernet.insert import InsertError, insert
from common.supernet.layout import Group, Layout, Stage
from common.supernet.operators import LayerSelect, SubnetNorm, WeightSlice
from common.supernet.spec import Control, SpecError

LAYERS, HEADS, HEAD, NEURONS = 5, 4, 8, 48
Inputs = Mapping[str, Tensor]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def bert() -> Any:
    config = BertConfig(
        vocab_size=50,
        hidden_size=HEADS * HEAD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=NEURONS,
        max_position_embeddings=16,
    )
    return lively(BertModel(config).eval())


def vit() -> Any:
    config = ViTConfig(
        hidden_size=HEADS * HEAD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=NEURONS,
        image_size=16,
        patch_size=4,
        num_labels=3,
    )
    return lively(ViTForImageClassification(config).eval())


def resnet(kind: str) -> Any:
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 48], depths=[2, 3, 2], layer_type=kind, num_labels=3)
    return lively(ResNetForImageClassification(config).eval())


def lively(model: Any) -> Any:
    """The model with weights large enough that each layer shows in the output, and statistics as if it was trained."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("running_var", "normalization.weight")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(1)
            elif tensor.ndim < 2 and tensor.is_floating_point() and "LayerNorm.weight" not in name:
                tensor.normal_(std=0.1)
            elif tensor.ndim == 2 and tensor.is_floating_point():
                tensor.mul_(8)
    return model


def tokens() -> Inputs:
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": torch.randint(0, 50, (3, 9)), "attention_mask": mask}


def pixels() -> Inputs:
    return {"pixel_values": torch.randn(2, 3, 16, 16)}


def run(model: nn.Module, inputs: Inputs) -> Tensor:
    with torch.inference_mode():
        out: Tensor = model(**inputs)[0]
    return out


def actuated(supernet: Elastic, control: Control, inputs: Inputs) -> Tensor:
    Actuator(supernet).actuate(control.id)
    return run(supernet, inputs)


def kept(depth: int) -> list[int]:
    """DynaBERT's rule for dropping layers, written down anew."""
    return [int(i * LAYERS / depth) for i in range(depth)]


def prune_encoder(model: Any, layers: Any, control: Control, supernet: Elastic) -> nn.ModuleList:
    """The layers that a subnet keeps, their heads pruned by transformers' own means and their neurons likewise."""
    active = supernet.layout.active(control)
    heads = {i: set(range(active[i] // HEAD, HEADS)) for i in range(LAYERS)}
    model._prune_heads({i: gone for i, gone in heads.items() if gone})
    for i, layer in enumerate(layers):
        neurons = torch.arange(active[LAYERS + i])
        layer.intermediate.dense = prune_linear_layer(layer.intermediate.dense, neurons)
        layer.output.dense = prune_linear_layer(layer.output.dense, neurons, dim=1)
    return nn.ModuleList(layers[i] for i in kept(control.depth[0]))


def test_bert_is_found_and_equals_transformers_pruning() -> None:
    """60 subnets of an inserted BERT equal the same BERT with heads pruned by transformers and layers removed."""
    plain, inputs, rng = bert(), tokens(), random.Random(0)
    supernet = insert(copy.deepcopy(plain), example=inputs)
    assert supernet.layout.stages == (Stage("encoder.layer", tuple("01234"), "every_other"),)
    assert [group.unit for group in supernet.layout.widths] == [HEAD] * LAYERS
    assert [group.size for group in supernet.layout.expands] == [NEURONS] * LAYERS
    for control in (supernet.space.smallest, supernet.space.largest, *(supernet.space.sample(rng) for _ in range(58))):
        reference = copy.deepcopy(plain)
        reference.encoder.layer = prune_encoder(reference, reference.encoder.layer, control, supernet)
        torch.testing.assert_close(actuated(supernet, control, inputs), run(reference, inputs), rtol=1e-4, atol=1e-5)


def test_eager_attention_is_followed_too() -> None:
    """An attention written as two products and a softmax gives up its heads like a fused one."""
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=50)
    config._attn_implementation = "eager"
    supernet = insert(BertModel(config).eval(), example=tokens())
    assert [group.unit for group in supernet.layout.widths] == [8, 8]
    assert supernet.layout.stages[0].rule == "every_other"


def test_vit_equals_transformers_pruning() -> None:
    """30 subnets of an inserted ViT equal the same ViT with heads and neurons pruned and layers removed."""
    plain, inputs, rng = vit(), pixels(), random.Random(1)
    supernet = insert(copy.deepcopy(plain), example=inputs)
    for control in (supernet.space.smallest, *(supernet.space.sample(rng) for _ in range(29))):
        reference = copy.deepcopy(plain)
        encoder = reference.vit.encoder
        encoder.layer = prune_encoder(reference.vit, encoder.layer, control, supernet)
        torch.testing.assert_close(actuated(supernet, control, inputs), run(reference, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_resnet_equals_layers_cut_by_hand(kind: str) -> None:
    """20 subnets of an inserted ResNet equal the same ResNet with modules removed and weights cut by hand.

    In float64: outputs reach 440 beside ones of 0.2, of which float32 leaves fewer digits than are compared.
    """
    plain, inputs, rng = resnet(kind).double(), {"pixel_values": pixels()["pixel_values"].double()}, random.Random(2)
    supernet = insert(copy.deepcopy(plain), example=inputs)
    assert [(stage.container, len(stage.blocks)) for stage in supernet.layout.stages] == [
        ("resnet.encoder.stages.0.layers", 2),
        ("resnet.encoder.stages.1.layers", 3),
        ("resnet.encoder.stages.2.layers", 2),
    ]
    assert [left.module for left in supernet.layout.left] == ["classifier.1"]
    for control in (supernet.space.smallest, *(supernet.space.sample(rng) for _ in range(19))):
        calibrate_keywords(supernet, control, inputs)
        reference = cut_by_hand(copy.deepcopy(plain), supernet, control)
        torch.testing.assert_close(actuated(supernet, control, inputs), run(reference, inputs), rtol=1e-9, atol=1e-9)


def calibrate_keywords(supernet: Elastic, control: Control, inputs: Inputs) -> None:
    calibrate(supernet, control, [inputs["pixel_values"], torch.randn(4, 3, 16, 16, dtype=torch.float64)])
    for norm in supernet.norms().values():
        if control.id in norm.statistics:
            mean, var = norm.statistics[control.id]
            norm.statistics[control.id] = mean.double(), var.double()


def cut_by_hand(model: Any, supernet: Elastic, control: Control) -> Any:
    """Cut each tensor by the groups' channel counts, and drop blocks, without any of the library's operators."""
    for group, count in zip(supernet.layout.groups, supernet.layout.active(control), strict=True):
        for name in group.outputs:
            layer = model.get_submodule(name)
            layer.weight = nn.Parameter(layer.weight[:count])
        for name in group.inputs:
            layer = model.get_submodule(name)
            layer.weight = nn.Parameter(layer.weight[:, :count])
        for name in group.norms:
            norm = model.get_submodule(name)
            norm.weight, norm.bias = nn.Parameter(norm.weight[:count]), nn.Parameter(norm.bias[:count])
    for name, norm in supernet.norms().items():
        if control.id in norm.statistics:
            reference = model.get_submodule(name)
            reference.running_mean, reference.running_var = norm.statistics[control.id]
    for stage, depth in zip(supernet.layout.stages, control.depth, strict=True):
        parent, _, child = stage.container.rpartition(".")
        blocks = model.get_submodule(stage.container)
        setattr(model.get_submodule(parent), child, nn.Sequential(*list(blocks)[:depth]))
    return model


@pytest.mark.parametrize("make", [bert, vit, lambda: resnet("basic")])
def test_insertion_keeps_function_and_storage(make: Callable[[], Any]) -> None:
    """The whole network computes what it did before, from the very same parameter objects, and actuation moves none."""
    model = make()
    inputs = tokens() if isinstance(model, BertModel) else pixels()
    before, where = run(model, inputs), {name: p.data_ptr() for name, p in model.named_parameters()}
    supernet = insert(model, example=inputs)
    assert {name: p.data_ptr() for name, p in supernet.net.named_parameters()} == where
    torch.testing.assert_close(run(supernet, inputs), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actuated(supernet, supernet.space.largest, inputs), before, rtol=1e-5, atol=1e-5)
    for operator in supernet.modules():
        if isinstance(operator, WeightSlice):
            assert operator.active.weight.data_ptr() == operator.weight.data_ptr()


def test_norm_free_supernet_needs_no_calibration_and_extracts() -> None:
    """Any subnet of an inserted BERT can be actuated, and extracted into ordinary modules that give the same."""
    supernet, inputs, rng = insert(bert(), example=tokens()), tokens(), random.Random(3)
    for _ in range(5):
        control = supernet.space.sample(rng)
        static = extract(supernet, control)
        assert not any(isinstance(module, LayerSelect | WeightSlice) for module in static.modules())
        torch.testing.assert_close(run(static, inputs), actuated(supernet, control, inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [bert, vit])
def test_ordering_keeps_the_whole_network(make: Callable[[], Any]) -> None:
    """Heads and neurons sorted by importance change nothing in the whole network."""
    model = make()
    inputs = tokens() if isinstance(model, BertModel) else pixels()
    supernet = insert(model, example=inputs)
    before, weights = run(supernet, inputs), copy.deepcopy(dict(supernet.net.named_parameters()))
    order_by_importance(supernet, [inputs, inputs], lambda m, batch: m(**batch)[0].square().mean())
    torch.testing.assert_close(actuated(supernet, supernet.space.largest, inputs), before, rtol=1e-4, atol=1e-5)
    cut = {name for group in supernet.layout.groups for name in (*group.outputs, *group.inputs)}
    moved = {n.removesuffix(".weight") for n, p in supernet.net.named_parameters() if not torch.equal(p, weights[n])}
    assert {name for name in moved if not name.endswith(".bias")} <= cut
    assert len(moved) > len(cut) / 2


def test_ordering_puts_the_important_neurons_first() -> None:
    """Neurons that the output hardly hears end up last: the half that is kept then holds nearly all of the output."""
    model = bert()
    quiet = torch.arange(NEURONS) % 2 == 0
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.output.dense.weight[:, quiet] *= 1e-3
    inputs = tokens()
    supernet = insert(model, example=inputs)
    whole = run(supernet, inputs)
    half = replace(supernet.space.largest, expand=(50,) * LAYERS)
    before = (actuated(supernet, half, inputs) - whole).abs().mean()
    order_by_importance(supernet, [inputs], lambda m, batch: m(**batch)[0].square().mean())
    after = (actuated(supernet, half, inputs) - whole).abs().mean()
    assert after < before / 10


def test_ordering_keeps_a_network_with_norms() -> None:
    """Channels of a convolutional network move with their norms and statistics."""
    supernet, inputs = insert(resnet("bottleneck"), example=pixels()), pixels()
    before = actuated(supernet, supernet.space.largest, inputs)
    order_by_importance(supernet, [inputs], lambda m, batch: m(**batch)[0].square().mean())
    torch.testing.assert_close(actuated(supernet, supernet.space.largest, inputs), before, rtol=1e-3, atol=1e-4)


class Flat(nn.Module):
    """Convolution, norm and linear layer in a row, nothing residual: width alone can bend."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x).mean((2, 3)))


def test_a_network_without_blocks_bends_in_width_alone() -> None:
    """Without residual blocks there is no stage; the convolution's channels are one group, its bias cut with them."""
    model, images = Flat(), torch.randn(4, 3, 8, 8)
    supernet = insert(model, example=images)
    assert supernet.layout.stages == ()
    assert [(group.size, group.outputs, group.inputs) for group in supernet.layout.widths] == [
        (16, ("body.0",), ("head",))
    ]
    control = supernet.space.parse("w50")
    calibrate(supernet, control, [images])
    Actuator(supernet, plan_bytes=10_000).actuate(control.id)
    with torch.inference_mode():
        small = extract(supernet, control)(images)
        Actuator(supernet, plan_bytes=10_000).actuate(control.id)
        torch.testing.assert_close(supernet(images), small, rtol=1e-5, atol=1e-5)


class Fixed(nn.Module):
    """A depthwise convolution fixes its channels, and a fused attention keeps its heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.neurons = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, x: Tensor) -> Any:
        x = self.depthwise(self.stem(x)).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.neurons(x).mean(1)


def test_what_stays_is_listed_with_the_reason() -> None:
    """Layers that cannot be cut are left as they are, and each says why; what can be cut beside them is."""
    supernet = insert(Fixed().eval(), example=torch.randn(2, 3, 8, 8))
    assert [group.outputs for group in supernet.layout.groups] == [("neurons.0",)]
    left = {entry.module: entry.reason for entry in supernet.layout.left}
    assert "one group" in left["depthwise"]
    assert "depthwise reads all of it" in left["stem"]
    assert "attention" in left
    assert "network's output" in left["neurons.2"]


def test_nothing_elastic_is_refused() -> None:
    """A network with nothing to bend is refused with the reason, and stays as it was."""
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(InsertError, match="nothing in Sequential is elastic: 0: it is the network's output"):
        insert(model, example=torch.randn(2, 4))
    assert isinstance(model[0], nn.Linear)


class Branching(nn.Module):
    """Its way depends on its input's values, which a traced graph cannot say."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x) if x.sum() > 0 else x


def test_an_untraceable_network_is_refused() -> None:
    """A network that torch.export cannot trace is refused by name."""
    with pytest.raises(InsertError, match="cannot trace Branching"):
        insert(Branching(), example=torch.randn(2, 4))


class Stubborn(nn.Module):
    """Reshapes its features to a constant: it can be traced, and cannot be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Any:
        return self.second(self.first(x).view(-1, 16))


def test_a_network_that_cannot_run_smaller_is_put_back() -> None:
    """Where the smallest subnet fails on the example, the error says so and the network is as it was before."""
    model, x = Stubborn(), torch.randn(2, 4)
    before = model(x)
    with pytest.raises(InsertError, match="subnet w50 does not run: RuntimeError: mat1 and mat2"):
        insert(model, example=x)
    assert type(model.first) is nn.Linear
    assert torch.equal(model(x), before)


def layouts() -> Iterator[tuple[Layout, str]]:
    group = Group(16, ("body.0",), ("head",), ("body.1",))
    yield Layout((Stage("tail", ("0",)),), (group,)), "stage 'tail' is no nn.Sequential"
    yield Layout((Stage("body", ("7",)),), (group,)), "stage 'body' has no block '7'"
    yield Layout((), (replace(group, outputs=("body.2",)),)), "'body.2' is no linear layer"
    yield Layout((), (replace(group, norms=("head",)),)), "'head' is no BatchNorm2d"
    yield Layout((), (replace(group, size=24),)), "'body.0' has 16 channels, its group in the layout 24"
    yield Layout(()), "bends nowhere"


@pytest.mark.parametrize(("layout", "message"), list(layouts()))
def test_a_layout_that_does_not_fit_is_refused(layout: Layout, message: str) -> None:
    """A layout by hand is checked against the network, module by module, before anything is changed."""
    model = Flat()
    with pytest.raises(InsertError, match=message):
        insert(model, layout)
    assert not any(isinstance(module, SubnetNorm | WeightSlice) for module in model.modules())


def test_neither_layout_nor_example_is_refused() -> None:
    """Without a layout, detection needs an example of the input."""
    with pytest.raises(InsertError, match="needs a layout, or an example"):
        insert(Flat())


def test_control_outside_the_space_is_refused() -> None:
    """A control tuple outside the space is refused by part, place and value."""
    supernet = insert(bert(), example=tokens())
    with pytest.raises(SpecError, match=r"depth\[0\] is 9, legal are \(1, 2, 3, 4, 5\)"):
        Actuator(supernet).actuate("d9-w100-e100")


def test_classifier_with_a_pooler_is_elastic() -> None:
    """A BERT with a classifier on its first token is found like a bare one; its pooler's features bend too."""
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=50)
    supernet = insert(BertForSequenceClassification(config).eval(), example=tokens())
    assert supernet.space.lengths == (1, 3, 2)
    assert supernet.layout.widths[2].outputs == ("bert.pooler.dense",)
