"""In-place actuation: any subnet of the one supernet in memory runs next, for microseconds and without a copy.

Source: SuperServe section 3. A plan is the list of operator settings of one subnet, views of the shared weights; it is
built once, kept, and assigned on each actuation. Plans exist for calibrated subnets only, which bounds their number.
`extract` is the opposite, for reference: one subnet copied out into an ordinary module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from common.supernet.operators import MissingStatisticsError, Setting, SubnetNorm, assign
from common.supernet.spec import Control, Space


class JsonForm(Protocol):
    """What can be written as JSON."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""


class Elastic(nn.Module, ABC):
    """A supernet: a module whose operators take their settings from a control tuple. A family derives from it."""

    family: ClassVar[str]
    architecture: JsonForm
    space: Space

    @classmethod
    @abstractmethod
    def from_json(cls, architecture: Mapping[str, Any], space: Space) -> Elastic:
        """The untrained supernet that `architecture.to_json()` describes. Raises SpecError naming what is wrong."""

    @abstractmethod
    def settings(self, control: Control) -> Iterator[Setting]:
        """The settings that actuate a subnet, of the operators that it uses.

        Raises: SpecError when the control is not in the space; MissingStatisticsError, see SubnetNorm.
        """

    @abstractmethod
    def static(self, control: Control) -> nn.Module:
        """An ordinary module of one subnet's shape, whose parameters bear the names of those they are cut from."""

    def channels_last(self) -> Elastic:
        """Lay the weights out in memory by pixel, then channel: faster on CPU than the default, most so in batches."""
        return self.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def norms(self) -> dict[str, SubnetNorm]:
        """Every SubnetNorm by its name in the module tree: the paper's layer id."""
        return {name: module for name, module in self.named_modules() if isinstance(module, SubnetNorm)}


class Actuator:
    """Actuates subnets of a supernet for inference, and keeps their plans.

    The supernet is put into inference mode and no longer asks for gradients. Not thread-safe: one actuator, one thread.
    """

    def __init__(self, model: Elastic) -> None:
        self.model = model.eval().requires_grad_(False)
        self.subnet_id: str | None = None  # the actuated subnet
        self._plans: dict[str, tuple[Setting, ...]] = {}

    def actuate(self, subnet_id: str) -> None:
        """Make a subnet the one that runs. The first call for a subnet builds its plan; others assign it.

        Raises: SpecError for an id that is not in the space; MissingStatisticsError for a subnet not calibrated. The
        subnet actuated before then stays.
        """
        plan = self._plans.get(subnet_id)
        if plan is None:
            plan = tuple(self.model.settings(self.model.space.parse(subnet_id)))
            self._plans[subnet_id] = plan
        assign(plan)
        self.subnet_id = subnet_id

    def forget(self, subnet_id: str) -> None:
        """Drop a subnet's plan: its statistics have changed."""
        self._plans.pop(subnet_id, None)


def apply(model: Elastic, control: Control) -> None:
    """Actuate once, without a plan: in training, where views belong to one step's graph, and in calibration."""
    assign(tuple(model.settings(control)))


def extract(model: Elastic, control: Control) -> nn.Module:
    """Copy one subnet out of a supernet, into a module without elastic operators, in inference mode.

    Raises: SpecError; MissingStatisticsError when the subnet is not calibrated.
    """
    model.space.validate(control)
    static = model.static(control)
    shared, norms = dict(model.named_parameters()), model.norms()
    with torch.no_grad():
        for name, parameter in static.named_parameters():
            parameter.copy_(shared[name][tuple(slice(extent) for extent in parameter.shape)])
        for name, module in static.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                if control.id not in norms[name].statistics:
                    raise MissingStatisticsError(
                        f"subnet {control.id} has no statistics for {name}: calibrate it first"
                    )
                mean, var = norms[name].statistics[control.id]
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.copy_(mean)
                module.running_var.copy_(var)
    return static.eval()
