"""Where a trained network can bend, found by its structure: stages of skippable blocks, groups of channels.

Source: SuperServe appendix A.1 walks stages, blocks and layers whose kinds it knows; here the walk is over the graph of
operations that torch.export records from one forward pass, so that no class or attribute name is relied upon.

- Channels. Each layer's output channels start as a group of their own. Following the tensors, groups that are added,
  multiplied or attended to one another become one; a layer that reads a tensor joins its group as a reader. An
  operation that fixes a channel count (a normalisation over channels, a concatenation, the network's output, one
  unknown here) fixes the group, with the reason. What remains can be cut.
- Blocks. A child of an nn.Sequential or nn.ModuleList that passes a tensor on unchanged in shape, along a path without
  layers (its residual connection), can be skipped. Neighbours of that kind are a stage.

Nothing is believed untried: the smallest subnet must run on the example.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node

from common.supernet.insert import Example, InsertError, is_norm, sliceable
from common.supernet.layout import Group, Heads, Layout, Left, Stage

# Operations that treat every channel alike and leave the shape of the channel dimension be.
_CHANNELWISE = {
    *("relu", "relu_", "gelu", "silu", "silu_", "sigmoid", "tanh", "elu", "leaky_relu", "leaky_relu_", "mish"),
    *("hardtanh", "hardtanh_", "hardswish", "hardswish_", "hardsigmoid", "relu6", "softplus"),
    *("dropout", "dropout_", "feature_dropout", "contiguous", "clone", "detach", "alias", "to", "_to_copy"),
    *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d"),
}
_ELEMENTWISE = {"add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_"}
_RESHAPE = {"view", "reshape", "flatten", "_unsafe_view", "unsqueeze", "squeeze"}
# What stands between a block's input and output on a residual connection.
_RESIDUAL = _CHANNELWISE | _ELEMENTWISE | {"layer_norm", "batch_norm"}


@dataclass(eq=False, slots=True)
class _Channels:
    """A group in the making; `merged` points to the one that it became part of."""

    size: int
    outputs: dict[str, None] = field(default_factory=dict)  # an ordered set
    inputs: dict[str, None] = field(default_factory=dict)
    norms: dict[str, None] = field(default_factory=dict)
    unit: int = 1  # features of a head
    attention: str | None = None  # the module whose forward splits the heads
    fixed: str | None = None  # why it cannot be cut
    merged: _Channels | None = None

    def root(self) -> _Channels:
        return self if self.merged is None else self.merged.root()


class _Axis(NamedTuple):
    """The dimension of a tensor that holds the channels of a group, or only its heads."""

    channels: _Channels
    dim: int


def detect(model: nn.Module, example: Example) -> Layout:
    """Find the layout of a network.

    example: an input of at least two rows, as a tensor or as keyword arguments.
    Raises: InsertError when torch cannot trace the network, or when nothing in it is elastic; with the reason.
    """
    graph = _Graph(model, example)
    tracer = _Channelling(graph)
    tracer.run()
    blocks = _Blocks(graph)
    layout = tracer.layout(tuple(blocks.stages()), blocks.left)
    if not layout.stages and not layout.groups:
        reasons = "; ".join(f"{left.module}: {left.reason}" for left in layout.left[:5])
        raise InsertError(f"nothing in {type(model).__name__} is elastic: {reasons or 'it has no layers'}")
    return layout


class _Graph:
    """The operations of one forward pass, with the modules that they belong to."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        args, kwargs = ((example,), {}) if isinstance(example, Tensor) else ((), dict(example))
        training = model.training
        try:
            with torch.no_grad():
                program = torch.export.export(model.eval(), args, kwargs, strict=False)
        except Exception as error:  # whatever a model's forward raises under tracing
            raise InsertError(f"torch.export cannot trace {type(model).__name__}: {error}") from error
        finally:
            model.train(training)
        self.modules = dict(model.named_modules())
        self._places = {name: place for place, name in enumerate(self.modules)}
        self.nodes = [node for node in program.graph.nodes if node.op == "call_function"]
        self.outputs = [n for node in program.graph.nodes if node.op == "output" for n in node.all_input_nodes]
        signature = program.graph_signature
        self._tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}

    def place(self, name: str) -> int:
        """Where a module stands among all."""
        return self._places[name]

    def layer(self, node: Node) -> str | None:
        """Name of the module whose weight an operation multiplies or normalises by."""
        for argument in node.args[1:2]:
            if isinstance(argument, Node) and argument.name in self._tensors:
                return str(self._tensors[argument.name]).rpartition(".")[0]
        return None

    @staticmethod
    def inside(node: Node) -> str:
        """Name of the innermost module whose forward an operation is part of."""
        stack = node.meta.get("nn_module_stack") or {}
        return str(list(stack.values())[-1][0]) if stack else ""


class _Channelling:
    """Follows the channels through the graph."""

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph
        self._axes: dict[Node, _Axis] = {}
        self._made: dict[str, _Channels] = {}  # by the layer whose output it is
        self._left: dict[str, str] = {}
        self._folds: dict[str, str] = {}

    def run(self) -> None:
        """Follow every operation, in order."""
        for node in self._graph.nodes:
            name = _name(node)
            if name in ("conv2d", "linear"):
                self._layer(node)
            elif name == "batch_norm":
                self._batch_norm(node)
            elif name in _CHANNELWISE:
                self._pass(node, self._axis(node.args[0]))
            elif name in _ELEMENTWISE:
                self._join(node)
            elif name in _RESHAPE:
                self._reshape(node)
            elif name in ("transpose", "permute"):
                self._permute(node)
            elif name in ("softmax", "_softmax", "mean", "select", "slice", "layer_norm"):
                self._dimensions(node, name)
            elif name in ("matmul", "bmm", "scaled_dot_product_attention"):
                self._attend(node, name)
            else:
                self._fix(node, f"{name} fixes its channels")
        for node in self._graph.outputs:
            self._fix_axis(self._axis(node), "it is the network's output")

    def layout(self, stages: tuple[Stage, ...], left: list[Left]) -> Layout:
        """The groups that can be cut, as a layout with these stages."""
        widths, expands = [], []
        blocks = [f"{stage.container}.{name}." for stage in stages for name in stage.blocks]
        made = {channels.root() for channels in self._made.values()}
        for channels in sorted(made, key=lambda channels: min(map(self._graph.place, channels.outputs))):
            names = [*channels.outputs, *channels.inputs]
            if channels.fixed is None and not channels.inputs:
                channels.fixed = "nothing reads its channels"
            if channels.fixed is not None:
                left += [Left(name, channels.fixed) for name in channels.outputs]
            elif channels.attention is not None or not any(all(n.startswith(b) for n in names) for b in blocks):
                widths.append(self._group(channels))
            else:
                expands.append(self._group(channels))
        left += [Left(name, reason) for name, reason in self._left.items()]
        folds = tuple((norm, layer) for norm, layer in self._folds.items())
        return Layout(stages, tuple(widths), tuple(expands), folds, tuple(left))

    def _group(self, channels: _Channels) -> Group:
        heads = tuple(self._heads(channels)) if channels.attention is not None else ()
        place = self._graph.place
        outputs, inputs, norms = (
            tuple(sorted(names, key=place)) for names in (channels.outputs, channels.inputs, channels.norms)
        )
        if channels.attention is not None:
            return Group(channels.size, outputs, inputs, norms, heads, unit=channels.unit)
        return Group(channels.size, outputs, inputs, norms, divisor=min(8, channels.size))

    def _heads(self, channels: _Channels) -> Iterator[Heads]:
        """Attributes of the attention that count its heads, or all their features."""
        assert channels.attention is not None
        for attribute, value in vars(self._graph.modules[channels.attention]).items():
            if type(value) is int and "head" in attribute:
                if value == channels.size:
                    yield Heads(channels.attention, attribute, 1)
                elif value == channels.size // channels.unit and not attribute.endswith(("size", "dim")):
                    yield Heads(channels.attention, attribute, channels.unit)

    def _layer(self, node: Node) -> None:
        read, name = self._axis(node.args[0]), self._graph.layer(node)
        module = self._graph.modules.get(name or "", nn.Identity())
        if name is None or not sliceable(module):
            where = name or self._graph.inside(node)
            reason = "its weight is not cut: no linear layer or zero-padded convolution in one group"
            self._left.setdefault(where, reason)
            self._fix_axis(read, f"{where} reads all of it")
            return
        outputs, inputs = module.weight.shape[:2]
        dim = 1 if isinstance(module, nn.Conv2d) else _rank(node) - 1
        if read is not None:
            if read.dim == dim and read.channels.root().size == inputs:
                read.channels.root().inputs[name] = None
            else:
                self._fix_axis(read, f"{name} reads it along another dimension")
        made = self._made.setdefault(name, _Channels(outputs))
        made.root().outputs[name] = None
        self._axes[node] = _Axis(made, dim)

    def _batch_norm(self, node: Node) -> None:
        axis, name = self._axis(node.args[0]), self._graph.layer(node)
        source = node.args[0]
        if name is None or not is_norm(self._graph.modules[name]):
            self._fix_axis(axis, f"{name} keeps no statistics per subnet: no affine, tracking BatchNorm2d")
            return
        if axis is not None:
            axis.channels.root().norms[name] = None
            assert isinstance(source, Node)
            layer = self._graph.layer(source) if _name(source) == "conv2d" else None
            if layer is not None and len(source.users) == 1 and sliceable(self._graph.modules[layer]):
                self._folds[name] = layer
        self._pass(node, axis)

    def _join(self, node: Node) -> None:
        """Elementwise: channels that meet are one group; they must not meet what is not of a group."""
        operands = [a for a in node.args[:2] if isinstance(a, Node)]
        axes = [(operand, self._axis(operand)) for operand in operands]
        known = [(operand, axis) for operand, axis in axes if axis is not None]
        if not known:
            return
        first = known[0][1]
        place = _rank(known[0][0]) - first.dim  # from the right, as broadcasting aligns
        for operand, axis in axes:
            rank = _rank(operand)
            if axis is None:
                if rank >= place and _shape(operand)[rank - place] != 1:
                    self._fix_axis(first, f"{_name(node)} with a tensor of a fixed size")
            elif rank - axis.dim == place and axis.channels.root().size == first.channels.root().size:
                self._merge(first.channels, axis.channels)
            else:
                self._fix_axis(first, f"{_name(node)} along different dimensions")
                self._fix_axis(axis, f"{_name(node)} along different dimensions")
        self._axes[node] = _Axis(first.channels, _rank(node) - place)

    def _reshape(self, node: Node) -> None:
        axis = self._axis(node.args[0])
        if axis is None:
            return None
        before, after, channels = _shape(node.args[0]), _shape(node), axis.channels.root()
        lead = _product(before[: axis.dim])
        for dim, extent in enumerate(after):
            if _product(after[:dim]) != lead:
                continue
            tail = after[dim + 1 : dim + 2]
            if extent == before[axis.dim]:
                return self._pass(node, _Axis(channels, dim))
            if tail and extent * tail[0] == channels.size == before[axis.dim]:  # features to heads
                channels.unit, channels.attention = max(channels.unit, tail[0]), self._graph.inside(node)
                return self._pass(node, _Axis(channels, dim))
            if extent == channels.size == before[axis.dim] * channels.unit == _product(before[axis.dim : axis.dim + 2]):
                return self._pass(node, _Axis(channels, dim))  # heads to features
        return self._fix_axis(axis, f"{_name(node)} mixes its channels with another dimension")

    def _permute(self, node: Node) -> None:
        axis = self._axis(node.args[0])
        if axis is not None:
            rank = _rank(node)
            order = list(range(rank))
            if _name(node) == "permute":
                order = [int(dim) % rank for dim in node.args[1]]  # type: ignore[union-attr, arg-type]
            else:
                a, b = (int(dim) % rank for dim in node.args[1:3])  # type: ignore[arg-type]
                order[a], order[b] = order[b], order[a]
            self._axes[node] = _Axis(axis.channels, order.index(axis.dim))

    def _dimensions(self, node: Node, name: str) -> None:
        """Operations over some dimensions: fine for channels that lie along another one."""
        axis = self._axis(node.args[0])
        if axis is None:
            return
        rank = _rank(node.args[0])
        if name == "layer_norm":
            dims = set(range(rank - len(node.args[1]), rank))  # type: ignore[arg-type]
        else:
            given = node.args[1] if len(node.args) > 1 else 0
            dims = {int(dim) % rank for dim in (given if isinstance(given, list | tuple) else [given])}  # type: ignore[arg-type]
        if axis.dim in dims:
            self._fix_axis(axis, f"{name} works over all its channels")
            return
        gone = sum(dim < axis.dim for dim in dims) if _rank(node) < rank else 0
        self._axes[node] = _Axis(axis.channels, axis.dim - gone)

    def _attend(self, node: Node, name: str) -> None:
        """Products of heads with heads: the head dimension is one of the batch."""
        operands = [a for a in node.args[: 3 if name.startswith("scaled") else 2] if isinstance(a, Node)]
        axes = [self._axis(operand) for operand in operands]
        known = [axis for axis in axes if axis is not None and axis.dim < _rank(node) - 2]
        if len(known) == len(axes) and len({(axis.dim, axis.channels.root().size) for axis in known}) == 1:
            for axis in known:
                self._merge(known[0].channels, axis.channels)
            self._axes[node] = known[0]
            return
        self._fix(node, f"{name} is no product of heads")

    def _axis(self, value: Any) -> _Axis | None:
        return self._axes.get(value) if isinstance(value, Node) else None

    def _pass(self, node: Node, axis: _Axis | None) -> None:
        if axis is not None:
            self._axes[node] = axis

    def _fix(self, node: Node, reason: str) -> None:
        for source in node.all_input_nodes:
            self._fix_axis(self._axis(source), reason)

    @staticmethod
    def _fix_axis(axis: _Axis | None, reason: str) -> None:
        if axis is not None and axis.channels.root().fixed is None:
            axis.channels.root().fixed = reason

    @staticmethod
    def _merge(a: _Channels, b: _Channels) -> None:
        a, b = a.root(), b.root()
        if a is not b:
            for mine, others in ((a.outputs, b.outputs), (a.inputs, b.inputs), (a.norms, b.norms)):
                mine.update(others)
            a.unit, a.attention = max(a.unit, b.unit), a.attention or b.attention
            a.fixed, b.merged = a.fixed or b.fixed, a


class _Blocks:
    """Finds the blocks that can be skipped, and groups neighbours into stages."""

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph
        self.left: list[Left] = []

    def stages(self) -> Iterator[Stage]:
        """Stages of every container, innermost containers first; a block that holds a stage is none itself."""
        found: list[str] = []
        containers = [n for n, m in self._graph.modules.items() if isinstance(m, nn.Sequential | nn.ModuleList)]
        stages: list[Stage] = []
        for container in sorted(containers, key=lambda name: -name.count(".")):
            if not any(inner.startswith(f"{container}.") for inner in found):
                here = list(self._stages_of(container))
                found += [f"{container}.{name}" for stage in here for name in stage.blocks]
                stages += here
        return iter(sorted(stages, key=lambda stage: self._graph.place(f"{stage.container}.{stage.blocks[0]}")))

    def _stages_of(self, container: str) -> Iterator[Stage]:
        children = [(name, m) for name, m in self._graph.modules[container].named_children()]
        skippable = [self._skippable(f"{container}.{name}" if container else name) for name, _ in children]
        index = 0
        while index < len(children):
            stop = index
            while stop < len(children) and skippable[stop]:
                stop += 1
            if stop > index:
                lead = index > 0 and type(children[index - 1][1]) is type(children[index][1])
                blocks = tuple(name for name, _ in children[index - lead : stop])
                attends = self._attends(f"{container}.{blocks[0]}")
                least = 1 if len(blocks) > 1 else 0
                yield Stage(container, blocks, "every_other" if attends else "first", least)
            index = stop + 1

    def _skippable(self, name: str) -> bool:
        """Whether a module only adds to what it gets: its output is reached from its input without any layer."""
        prefix = f"{name}."
        inside = {node for node in self._graph.nodes if f"{self._graph.inside(node)}.".startswith(prefix)}
        if not any(_name(node) in ("conv2d", "linear") for node in inside):
            return False
        outputs = [node for node in inside if any(user not in inside for user in node.users)]
        if len(outputs) != 1:
            return False
        (output,) = outputs
        waiting, seen = [output] if _name(output) in _RESIDUAL else [], set[Node]()
        while waiting:
            node = waiting.pop()
            for source in node.all_input_nodes:
                if source not in inside and source.op == "call_function" and _shape(source) == _shape(output):
                    return True
                if source in inside and source not in seen and _name(source) in _RESIDUAL:
                    seen.add(source)
                    waiting.append(source)
        return False

    def _attends(self, name: str) -> bool:
        attention = ("scaled_dot_product_attention", "softmax", "_softmax")
        return any(
            _name(node) in attention and f"{self._graph.inside(node)}.".startswith(f"{name}.")
            for node in self._graph.nodes
        )


def without_heads(layout: Layout, reason: str) -> Layout:
    """The layout less its groups of heads, with the reason why they are left."""
    left = tuple(Left(name, reason) for group in layout.groups if group.unit > 1 for name in group.outputs)
    widths = tuple(group for group in layout.widths if group.unit == 1)
    return replace(layout, widths=widths, left=layout.left + left)


def _name(node: Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).partition(".")[0]


def _shape(value: Any) -> tuple[int, ...]:
    found = value.meta.get("val") if isinstance(value, Node) else None
    return tuple(found.shape) if isinstance(found, Tensor) else ()


def _rank(value: Any) -> int:
    return len(_shape(value))


def _product(extents: tuple[int, ...]) -> int:
    result = 1
    for extent in extents:
        result *= extent
    return result
