"""In-place actuation: any subnet of the one supernet in memory runs next, for microseconds and without a copy.

Source: SuperServe section 3. A plan is the list of operator settings of one subnet; it is built once, kept, and
assigned on each actuation. By itself a plan holds views of the shared weights, and two numbers per channel for each
SubnetNorm. A *folded* plan holds copies instead, weights with the norm behind them multiplied in: as fast as a static
network, and as large. `Actuator` folds within a bound of bytes. `extract` copies one subnet out into ordinary modules.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.supernet.layout import Layout
from common.supernet.operators import (
    LayerSelect,
    RunningStatistics,
    Setting,
    SubnetNorm,
    Weights,
    WeightSlice,
    WeightSliceConv2d,
    assign,
)
from common.supernet.spec import Control, Space


@dataclass(frozen=True, slots=True)
class Origin:
    """What a network was built by, so that it can be built again when an artifact is read (`families`)."""

    family: str
    architecture: Mapping[str, Any]


class Elastic(nn.Module):
    """A supernet: a network with operators in it, which take their settings from a control tuple.

    `insert.insert` makes one. net: the network, under whose names the layout speaks; called, it is called. origin: set
    by the families, whose supernets can be written as artifacts.
    """

    origin: Origin | None = None

    def __init__(self, net: nn.Module, layout: Layout, space: Space) -> None:
        super().__init__()
        self.net, self.layout, self.space = net, layout, space
        self.training = net.training
        modules = dict(net.named_modules())
        self._selects = {name: m for name, m in modules.items() if isinstance(m, LayerSelect)}
        self._slices = {name: m for name, m in modules.items() if isinstance(m, WeightSlice)}
        self._norms = {name: m for name, m in modules.items() if isinstance(m, SubnetNorm)}
        self._heads = [(modules[h.module], h, i) for i, group in enumerate(layout.groups) for h in group.heads]
        self._inputs = {name: i for i, group in enumerate(layout.groups) for name in group.inputs}
        self._outputs = {name: i for i, group in enumerate(layout.groups) for name in (*group.outputs, *group.norms)}
        self._folds = {self._norms[norm]: self._slices[layer] for norm, layer in layout.folds}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the actuated subnet: whatever the network takes and gives."""
        return self.net(*args, **kwargs)

    def settings(self, control: Control) -> Iterator[Setting]:
        """The settings that actuate a subnet, of the operators that it uses.

        Norms in training mode normalise by the batch, others by the subnet's statistics.
        Raises: SpecError when the control is not in the space; MissingStatisticsError, see SubnetNorm.
        """
        self.space.validate(control)
        active, skipped = self.layout.active(control), self._skipped(control)
        for container, select in self._selects.items():
            yield select.setting(frozenset(name for at, name in skipped if at == container))
        outside = tuple(f"{container}.{name}." for container, name in skipped)
        for name, layer in self._slices.items():
            if not name.startswith(outside):
                cut = layer.cut(_count(self._inputs, name, active), _count(self._outputs, name, active))
                yield Setting(layer, "active", cut)
        for name, norm in self._norms.items():
            if not name.startswith(outside):
                yield norm.setting(control.id, _count(self._outputs, name, active))
        for module, heads, group in self._heads:
            yield Setting(module, heads.attribute, active[group] // heads.per)

    def folded(self, settings: Iterable[Setting]) -> Iterator[Setting]:
        """The same settings with each norm multiplied into a copy of the convolution before it, for inference."""
        settings = tuple(settings)
        folding = {
            self._folds[setting.module]: setting.value
            for setting in settings
            if isinstance(setting.module, SubnetNorm) and setting.module in self._folds
        }
        for setting in settings:
            if isinstance(setting.module, SubnetNorm) and setting.module in self._folds:
                yield Setting(setting.module, "active", None)
            elif isinstance(setting.module, WeightSlice) and setting.module in folding:
                yield Setting(setting.module, "active", _fold(setting.value, folding[setting.module]))
            else:
                yield setting

    @property
    def bytes(self) -> int:
        """Bytes of the shared weights."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def cast(self, dtype: torch.dtype) -> Elastic:
        """Hold the weights in another precision, in place; those of SubnetNorms, and statistics, stay in float32."""
        kept = {id(parameter) for norm in self._norms.values() for parameter in norm.parameters()}
        for parameter in self.net.parameters():
            if id(parameter) not in kept:
                parameter.data = parameter.data.to(dtype)
        for norm in self._norms.values():
            norm.dtype = dtype
        return self

    def channels_last(self) -> Elastic:
        """Lay the weights out in memory by pixel, then channel: faster on CPU than the default, most so in batches."""
        return self.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def norms(self) -> dict[str, SubnetNorm]:
        """Every SubnetNorm by its name in the network: the paper's layer id."""
        return self._norms

    def _skipped(self, control: Control) -> set[tuple[str, str]]:
        """Container and name of each block that a subnet does not run."""
        stages = zip(self.layout.stages, control.depth, strict=True)
        return {(s.container, name) for s, depth in stages for name in s.blocks if name not in s.active(depth)}


def _count(groups: dict[str, int], name: str, active: list[int]) -> int | None:
    """Active channels of a module, by its group; None where it is in none and all channels run."""
    return active[groups[name]] if name in groups else None


def _fold(layer: Weights, norm: RunningStatistics) -> Weights:
    """The weights of a convolution that does what a convolution and the norm behind it do: a copy."""
    scale, shift, dtype = norm.scale.float(), norm.shift.float().flatten(), layer.weight.dtype
    if layer.bias is not None:
        shift = shift + layer.bias * scale.flatten()
    return Weights((layer.weight * scale.unsqueeze(1)).to(dtype), shift.to(dtype))


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings of one subnet; bytes: what they hold beside the shared weights."""

    settings: tuple[Setting, ...]
    folded: bool
    bytes: int


class Actuator:
    """Actuates subnets of a supernet for inference, and keeps their plans.

    The supernet is put into inference mode and no longer asks for gradients. Not thread-safe: one actuator, one thread.
    plan_bytes: bound of what folded plans hold together. A subnet whose plan no longer fits gets one of views.
    """

    def __init__(self, model: Elastic, plan_bytes: int = 0) -> None:
        self.model = model.eval().requires_grad_(False)
        self.plan_bytes = plan_bytes
        self.plans: dict[str, Plan] = {}
        self.subnet_id: str | None = None  # the actuated subnet
        self._shared = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    @property
    def bytes(self) -> int:
        """Bytes that all plans hold beside the shared weights."""
        return sum(plan.bytes for plan in self.plans.values())

    def actuate(self, subnet_id: str) -> None:
        """Make a subnet the one that runs. The first call for a subnet builds its plan; others assign it.

        Raises: SpecError for an id that is not in the space; MissingStatisticsError for a subnet not calibrated. The
        subnet actuated before then stays.
        """
        plan = self.plans.get(subnet_id)
        if plan is None:
            plan = self.plans[subnet_id] = self._plan(self.model.space.parse(subnet_id))
        assign(plan.settings)
        self.subnet_id = subnet_id

    def forget(self, subnet_id: str) -> None:
        """Drop a subnet's plan: its statistics have changed."""
        self.plans.pop(subnet_id, None)

    def _plan(self, control: Control) -> Plan:
        views = tuple(self.model.settings(control))
        room = self.plan_bytes - sum(plan.bytes for plan in self.plans.values() if plan.folded)
        if 0 < sum(s.value.weight.nbytes for s in views if isinstance(s.module, WeightSliceConv2d)) <= room:
            folded = tuple(self.model.folded(views))
            held = self._held(folded)
            if held <= room:
                return Plan(folded, folded=True, bytes=held)
        return Plan(views, folded=False, bytes=self._held(views))

    def _held(self, settings: Iterable[Setting]) -> int:
        """Bytes of the tensors that are no views of the shared weights."""
        tensors = (t for s in settings if isinstance(s.value, tuple) for t in s.value if isinstance(t, Tensor))
        return sum(t.nbytes for t in tensors if t.untyped_storage().data_ptr() not in self._shared)


def apply(model: Elastic, control: Control) -> None:
    """Actuate once, without a plan: in training, where views belong to one step's graph, and in calibration."""
    assign(tuple(model.settings(control)))


def extract(model: Elastic, control: Control) -> nn.Module:
    """Copy one subnet out of a supernet, into a network of ordinary modules, in inference mode.

    The supernet is left in inference mode, with that subnet actuated.
    Raises: SpecError; MissingStatisticsError when the subnet is not calibrated.
    """
    with torch.no_grad():
        apply(model.eval(), control)
        return _static(model.net, control.id)


def _static(module: nn.Module, subnet_id: str) -> nn.Module:
    """A copy of a module that does what it does for the actuated subnet, without operators."""
    static: nn.Module
    if isinstance(module, WeightSlice):
        outputs, inputs = module.active.weight.shape[:2]
        bias = module.bias is not None
        if isinstance(module, WeightSliceConv2d):
            kernel = module.active.weight.shape[2:]
            shape = (kernel, module.stride, module.padding, module.dilation)
            static = nn.Conv2d(inputs, outputs, *shape, bias=bias)  # type: ignore[arg-type] # tuples of two
        else:
            static = nn.Linear(inputs, outputs, bias=bias)
        state = dict(zip(("weight", "bias"), module.active, strict=True))
    elif isinstance(module, SubnetNorm):
        mean, var = module.statistics[subnet_id]
        static = nn.BatchNorm2d(len(mean), module.eps)
        state = {"weight": module.weight[: len(mean)], "bias": module.bias[: len(mean)]}
        state |= {"running_mean": mean, "running_var": var}
    else:
        return _copied(module, subnet_id)
    static.load_state_dict({name: tensor for name, tensor in state.items() if tensor is not None}, strict=False)
    if isinstance(module, WeightSliceConv2d) and module.weight.is_contiguous(memory_format=torch.channels_last):
        static.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return static.eval()


def _copied(module: nn.Module, subnet_id: str) -> nn.Module:
    """A copy of a module that is no operator itself, or a LayerSelect, with its active children."""
    static: nn.Module
    if isinstance(module, LayerSelect):
        children = dict(zip(map(str, range(len(module))), module, strict=True))
        static = module.kind()
    else:
        children = dict(module.named_children())
        static = copy.copy(module)
        static._parameters = {name: _clone(p) for name, p in module._parameters.items()}
        static._buffers = {name: b if b is None else b.clone() for name, b in module._buffers.items()}
        static._modules = {}
    for name, child in children.items():
        static.add_module(name, _static(child, subnet_id))
    return static.eval()


def _clone(parameter: nn.Parameter | None) -> nn.Parameter | None:
    return None if parameter is None else nn.Parameter(parameter.clone())
