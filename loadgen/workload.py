"""What a run sends: when each query is due, and who sends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadgen.errors import InputError
from loadgen.spec import Component
from loadgen.traces import Part, Times, make_parts


@dataclass(frozen=True, slots=True)
class Tenant:
    """What the queries of one sender have in common. `min_accuracy` is in percent; lower `priority` goes first."""

    name: str = ""
    slo_ms: float = 50.0
    rows: int = 1
    min_accuracy: float = 0.0
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """Queries in order of their intended send time, in seconds from the start; `tenant[i]` indexes `tenants`."""

    intended_s: Times
    tenant: NDArray[np.int32]
    tenants: tuple[Tenant, ...]

    @classmethod
    def of_one(cls, intended_s: Times, tenant: Tenant) -> Workload:
        """Return the workload whose queries are all of one tenant."""
        return cls(intended_s, np.zeros(len(intended_s), np.int32), (tenant,))

    @property
    def arrival_us(self) -> NDArray[np.int64]:
        """The intended send time of each query in whole microseconds, as the scheduler counts."""
        return np.rint(self.intended_s * 1e6).astype(np.int64)

    @property
    def slo_ms(self) -> NDArray[np.float64]:
        """The SLO of each query."""
        return np.array([tenant.slo_ms for tenant in self.tenants])[self.tenant]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows of each query."""
        return np.array([tenant.rows for tenant in self.tenants])[self.tenant]


def make_workload(
    trace: str, *, rate: float | None = None, duration_s: float, seed: int = 0, slo_ms: float = 50.0, rows: int = 1
) -> Workload:
    """The workload of a SPEC; `slo_ms` and `rows` are those of tenants that have none of their own.

    Raises as `make_parts` does, and an InputError when components of one tenant differ in a key.
    """
    return merge(make_parts(trace, rate=rate, duration_s=duration_s, seed=seed), slo_ms=slo_ms, rows=rows)


def merge(parts: Sequence[Part], *, slo_ms: float = 50.0, rows: int = 1) -> Workload:
    """The workload of a SPEC's parts, as `make_workload` makes it."""
    tenants = _tenants([part.component for part in parts], slo_ms, rows)
    code = {tenant.name: position for position, tenant in enumerate(tenants)}
    times = np.concatenate([part.times for part in parts])
    codes = np.concatenate([np.full(len(part.times), code[part.component.tenant], np.int32) for part in parts])
    order = np.argsort(times, kind="stable")
    return Workload(times[order], codes[order], tenants)


def _tenants(components: Sequence[Component], slo_ms: float, rows: int) -> tuple[Tenant, ...]:
    """The tenants in the order in which they are first named; a key holds for all components of its tenant."""
    found: dict[str, dict[str, float]] = {}
    for component in components:
        settings = found.setdefault(component.tenant, {})
        for key, value in component.settings.items():
            if settings.setdefault(key, value) != value:
                name = f"{component.kind}: {key}"
                raise InputError(name, f"{value:g}", f"tenant {component.tenant} has {settings[key]:g} elsewhere")
    return tuple(
        Tenant(
            name,
            settings.get("slo_ms", slo_ms),
            int(settings.get("rows", rows)),
            settings.get("min_accuracy", 0.0),
            int(settings.get("priority", 0)),
        )
        for name, settings in found.items()
    )
