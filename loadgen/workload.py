"""What a run sends: when each query is due, and who sends it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadgen.traces import Times, make_arrivals


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
    """The workload of a SPEC, whose queries have `slo_ms` and `rows`. Raises as `make_arrivals` does."""
    times = make_arrivals(trace, rate=rate, duration_s=duration_s, seed=seed)
    return Workload.of_one(times, Tenant(slo_ms=slo_ms, rows=rows))
