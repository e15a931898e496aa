"""What a run was like: one flat report, the same for replay and simulation, written and read as JSON.

The definitions are those of the paper's section 6. A query meets its SLO when its whole answer came within its tenant's
`slo_ms` of its INTENDED send time, so that a late sender or a stalled server is never hidden. Attainment counts all
queries; serving accuracy and label accuracy are means over the queries that met their SLO.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from loadgen.errors import InputError
from loadgen.records import ROUNDING_MS, Column, Records
from loadgen.workload import Tenant

Number = float | None  # None: not known, or no query to take it of

CDF_PERCENT = [*range(100), 99.5, 99.9, 100.0]
EMULATED = "emulated"  # the executor that answers in a model's time without running it: its labels mean nothing
_BIN_S = (0.1, 0.2, 0.25, 0.5)
_BINS = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What was asked for, beside what came of it."""

    url: str
    model: str
    trace: str
    rate: float | None
    duration_s: float
    slo_ms: float
    seed: int
    data: str
    started_at: str
    sender_cpu_us: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The run over time, in bins of `bin_s` seconds by intended send time."""

    bin_s: float
    arrivals_qps: list[float]
    slo_attainment: list[Number]
    serving_accuracy: list[Number]  # percent
    batch_size_mean: list[Number]
    latency_p99_ms: list[Number]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantReport:
    """What became of one tenant's queries; definitions and units as in `Report`."""

    slo_ms: float
    rows: int
    min_accuracy: float
    priority: int
    queries: int
    answered: int
    errors: int
    errors_by_status: dict[str, int]
    slo_attainment: Number
    serving_accuracy: Number
    latency_ms: dict[str, Number]
    least_accuracy: Number  # of the answered that told theirs
    floor_violations: int  # answered by less than `min_accuracy`


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run. Accuracies are percent; shares and attainment lie in [0, 1]; latencies count from intended times."""

    url: str
    model: str
    trace: str
    rate: float | None  # asked for
    duration_s: float
    slo_ms: float  # of the queries whose tenant has none of its own
    seed: int
    rows: float  # per query, the mean
    data: str
    started_at: str
    version: str
    policy: str  # as the answers named it; several are joined by a comma
    executor: str
    queries: int
    answered: int  # status 200; `answered + errors == queries`
    errors: int
    errors_by_status: dict[str, int]
    slo_attainment: float
    serving_accuracy: Number
    label_accuracy: Number
    latency_ms: dict[str, Number]  # p50, p95, p99, max over the answered
    latency_cdf_ms: list[float]  # over the answered, at `CDF_PERCENT`; empty without an answer
    offered_qps: float
    goodput_qps: float  # queries that met their SLO
    goodput_rows_per_s: float
    deadline_met_share: Number  # as the server saw it, of the answered that told
    subnets: dict[str, float]  # share of the answered that told their subnet
    workers: dict[str, float]
    batch_size_mean: Number  # rows of the batch that a query rode in, mean over queries
    queue_ms_mean: Number
    inference_ms_mean: Number
    sender_lag_ms: dict[str, Number]  # actual minus intended send: p50, p99, max over the sent
    unsent: int  # ended by an error before they could be sent
    sender_cpu_us: float | None  # CPU of the sending process per query
    series: Series
    tenants: dict[str, TenantReport] = field(default_factory=dict)  # empty when there is but one, without a name

    @property
    def slos_ms(self) -> list[float]:
        """Every SLO that a query was held to."""
        return sorted({tenant.slo_ms for tenant in self.tenants.values()}) or [self.slo_ms]

    def save(self, path: Path) -> None:
        """Write the report as JSON. OSError when it cannot be written."""
        path.write_bytes(self.to_json() + b"\n")

    def to_json(self) -> bytes:
        """The report as indented JSON; what is not known is null."""
        return orjson.dumps(self, option=orjson.OPT_INDENT_2)

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what `save` wrote. InputError when it is something else."""
        try:
            values = orjson.loads(path.read_bytes())
            values["series"] = Series(**values["series"])
            tenants = values.get("tenants", {})  # older files have none
            values["tenants"] = {name: TenantReport(**tenant) for name, tenant in tenants.items()}
            return cls(**values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError("report", path, f"cannot be read: {error}") from None


def met_slo(records: Records) -> NDArray[np.bool_]:
    """Which queries met their SLO; one without an answer did not."""
    within: NDArray[np.bool_] = (
        records.done_s - records.workload.intended_s
    ) * 1e3 <= records.workload.slo_ms + ROUNDING_MS
    return within


def attained(records: Records) -> tuple[float, float]:
    """SLO attainment, and serving accuracy in percent, NaN if no query met its SLO: a report's two headline figures."""
    met = met_slo(records)
    return float(met.mean()), float(records.accuracy[met].mean()) if met.any() else math.nan


def make_report(records: Records, info: RunInfo) -> Report:
    """Do the arithmetic over the records of a run that has ended."""
    workload = records.workload
    answered = ~np.isnan(records.done_s)
    latency_ms = (records.done_s - workload.intended_s) * 1000
    met = met_slo(records)
    lag_ms = (records.sent_s - workload.intended_s) * 1000
    queries, met_count, rows = len(answered), int(met.sum()), workload.rows
    asked = {each.name: getattr(info, each.name) for each in fields(info)}
    return Report(
        **asked,
        rows=float(rows.mean()),
        version=package_version(),
        policy=", ".join(records.policies),
        executor=", ".join(records.executors),
        queries=queries,
        answered=int(answered.sum()),
        errors=len(records.errors),
        errors_by_status=_counts(records.errors.values()),
        slo_attainment=met_count / queries,
        serving_accuracy=_mean(records.accuracy[met]),
        label_accuracy=None if EMULATED in records.executors else _mean((records.correct_rows * 100 / rows)[met]),
        latency_ms=_quantiles(latency_ms[answered], (50, 95, 99)),
        latency_cdf_ms=_percentiles(latency_ms[answered], CDF_PERCENT),
        offered_qps=queries / info.duration_s,
        goodput_qps=met_count / info.duration_s,
        goodput_rows_per_s=int(rows[met].sum()) / info.duration_s,
        deadline_met_share=_mean(records.deadline_met[answered]),
        subnets=_shares(records.subnet[answered], records.subnets),
        workers=_shares(records.worker[answered], records.workers),
        batch_size_mean=_mean(records.batch_size[answered]),
        queue_ms_mean=_mean(records.queue_ms[answered]),
        inference_ms_mean=_mean(records.inference_ms[answered]),
        sender_lag_ms=_quantiles(lag_ms[~np.isnan(lag_ms)], (50, 99)),
        unsent=int(np.isnan(lag_ms).sum()),
        series=_series(records, met, latency_ms, info.duration_s),
        tenants=_tenants(records, met, latency_ms),
    )


def _tenants(records: Records, met: NDArray[np.bool_], latency_ms: Column) -> dict[str, TenantReport]:
    """One report per tenant, by name; none when all queries are of one without a name."""
    workload = records.workload
    if len(workload.tenants) == 1 and not workload.tenants[0].name:
        return {}
    reasons: list[list[str]] = [[] for _ in workload.tenants]
    for query, reason in records.errors.items():
        reasons[workload.tenant[query]].append(reason)
    found = {}
    for code, (tenant, errors) in enumerate(zip(workload.tenants, reasons, strict=True)):
        own = workload.tenant == code
        found[tenant.name] = _tenant(tenant, errors, met[own], latency_ms[own], records.accuracy[own])
    return found


def _tenant(
    tenant: Tenant, errors: Sequence[str], met: NDArray[np.bool_], latency_ms: Column, accuracy: Column
) -> TenantReport:
    answered = ~np.isnan(latency_ms)
    served = accuracy[answered & ~np.isnan(accuracy)]
    return TenantReport(
        slo_ms=tenant.slo_ms,
        rows=tenant.rows,
        min_accuracy=tenant.min_accuracy,
        priority=tenant.priority,
        queries=len(met),
        answered=int(answered.sum()),
        errors=len(errors),
        errors_by_status=_counts(errors),
        slo_attainment=_mean(met.astype(np.float64)),
        serving_accuracy=_mean(accuracy[met]),
        latency_ms=_quantiles(latency_ms[answered], (50, 95, 99)),
        least_accuracy=float(served.min()) if len(served) else None,
        floor_violations=int((served < tenant.min_accuracy).sum()),
    )


def _series(records: Records, met: NDArray[np.bool_], latency_ms: Column, duration_s: float) -> Series:
    """Cut the run into about 240 bins of 0.1 to 0.5 s; a run of more than an hour gets longer ones."""
    bin_s = next((bin_s for bin_s in _BIN_S if duration_s <= bin_s * _BINS), max(0.5, duration_s / 7200))
    count = max(1, int(np.ceil(duration_s / bin_s - 1e-9)))
    edges = np.searchsorted(records.workload.intended_s, np.arange(count + 1) * bin_s)
    edges[-1] = len(latency_ms)
    bins = [slice(first, last) for first, last in itertools.pairwise(edges.tolist())]
    widths = [min(bin_s, duration_s - k * bin_s) for k in range(count)]
    answered = ~np.isnan(latency_ms)
    return Series(
        bin_s=bin_s,
        arrivals_qps=[(b.stop - b.start) / width for b, width in zip(bins, widths, strict=True)],
        slo_attainment=[_mean(met[b].astype(np.float64)) for b in bins],
        serving_accuracy=[_mean(records.accuracy[b][met[b]]) for b in bins],
        batch_size_mean=[_mean(records.batch_size[b][answered[b]]) for b in bins],
        latency_p99_ms=[_quantiles(latency_ms[b][answered[b]], (99,))["p99"] for b in bins],
    )


def _counts(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason was given, the most frequent first."""
    return dict(Counter(reasons).most_common())


def _mean(values: Column) -> Number:
    """The mean of what is known, or None."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _quantiles(values: Column, percent: Sequence[int]) -> dict[str, Number]:
    names = [*(f"p{p}" for p in percent), "max"]
    if not len(values):
        return dict.fromkeys(names)
    return dict(zip(names, _percentiles(values, [*percent, 100]), strict=True))


def _percentiles(values: Column, percent: Sequence[float]) -> list[float]:
    return [float(value) for value in np.percentile(values, percent)] if len(values) else []


def _shares(codes: NDArray[np.int32], names: Sequence[str]) -> dict[str, float]:
    """The share of each name among the codes that have one, largest first; code 0 is a name not told."""
    counts = np.bincount(codes[codes > 0], minlength=len(names))
    total = int(counts.sum())
    order = np.argsort(-counts, kind="stable")
    return {names[code]: float(counts[code]) / total for code in order if counts[code]}


def package_version() -> str:
    """The version of the installed distribution."""
    try:
        return importlib.metadata.version("superserve-mesh")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
