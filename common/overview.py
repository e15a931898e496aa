"""What the mesh is doing, as one document: what schedulers and gateways publish, joined. Pure: no Redis, no clock.

``superserve status`` prints it and the gateway serves it at ``/v2/overview``. Under ``totals`` are counts since the
processes started: ``gained`` is what came in between two documents, as far as ``comparable`` lets them be compared.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from common import wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Document = dict[str, Any]
Kind = TypeVar("Kind", wire.Status, wire.SchedulerCounts, wire.GatewayCounts)

LOST = "lost"


class Published(NamedTuple):
    """What is published of one model: status and counts of its scheduler, counts by gateway; None where one is gone."""

    status: bytes | None
    counts: bytes | None
    gateways: Mapping[str, bytes | None]


def read(kind: type[Kind], document: bytes | None) -> Kind | None:
    """Return a published message, None if there is none; WireError if it is of another kind."""
    if document is None:
        return None
    message = wire.decode(document)
    if not isinstance(message, kind):
        raise wire.WireError(f"{type(message).__name__} in place of {kind.__name__}")
    return message


def unavailable(model: str, status: wire.Status | None) -> str | None:
    """Return why no query of the model would be served, or None. No status: its scheduler has said nothing lately."""
    if status is None:
        return f"model {model!r} has no scheduler at the moment"
    working = any(not worker.get("draining") for worker in status.workers)
    return None if working and status.model else f"model {model!r} has no worker at the moment"


def overview(now_us: int, published: Mapping[str, Published], problem: str | None = None) -> Document:
    """Return the document; ``problem``: why no query of any model would be served.

    A model of which something cannot be read is shown as one that nothing is published of, for that reason.
    """
    gateways = {name for found in published.values() for name, document in found.gateways.items() if document}
    models = []
    for name, found in sorted(published.items()):
        try:
            models.append(_model(name, found, problem))
        except (wire.WireError, AttributeError, KeyError, TypeError, ValueError) as error:
            unread = f"model {name!r}: what is published of it cannot be read: {type(error).__name__}: {error}"
            models.append(_model(name, Published(None, None, {}), problem or unread))
    return {"now_us": now_us, "gateways": sorted(gateways), "models": models}


def comparable(before: Document, after: Document, model: str) -> bool:
    """Whether both documents count the same processes: a process that came or went brought or took its counts."""
    then, now = of_model(before, model), of_model(after, model)
    if then is None or now is None or before["gateways"] != after["gateways"]:
        return False
    return bool(then["scheduler"] == now["scheduler"])


def of_model(document: Document, name: str) -> Document | None:
    """Return a model's part of the document; None if there is no such model."""
    return next((model for model in document["models"] if model["name"] == name), None)


def gained(before: Document, after: Document) -> Document:
    """Return the differences of two ``totals``; a count that fell began anew at zero."""
    found: Document = {}
    for key, now in after.items():
        then = before.get(key, {} if isinstance(now, dict) else 0)
        found[key] = gained(then, now) if isinstance(now, dict) else now - then if now >= then else now
    return found


def _model(name: str, found: Published, problem: str | None) -> Document:
    status = read(wire.Status, found.status)
    counts = read(wire.SchedulerCounts, found.counts)
    gateways = [read(wire.GatewayCounts, document) for document in found.gateways.values()]
    reason = problem or unavailable(name, status)
    return {
        "name": name,
        "ready": reason is None,
        "reason": reason or "",
        "scheduler": status.scheduler if status else "",
        "policy": status.policy if status else "",
        "subnets": _subnets(status),
        "queue": {"queries": counts.queries if counts else 0, "rows": status.queued_rows if status else 0},
        "head_slack_ms": counts.head_slack_us / 1e3 if counts and counts.head_slack_us is not None else None,
        "workers": [
            *(_worker(worker) for worker in (status.workers if status else ())),
            *({**_worker(worker), "state": LOST} for worker in (counts.lost if counts else ())),
        ],
        "problems": list(status.problems) if status else [],
        "totals": {**_gateway_totals(filter(None, gateways)), **_scheduler_totals(counts)},
    }


def _subnets(status: wire.Status | None) -> list[Document]:
    subnets = (status.model or {}).get("subnets", ()) if status else ()
    return [{"id": subnet["id"], "accuracy": subnet["accuracy"]} for subnet in subnets]


def _worker(worker: Document) -> Document:
    """Return a worker of a status; a scheduler of an earlier version says less of it."""
    idle_us = worker.get("idle_us") or {}
    return {
        "name": worker["name"],
        "state": worker.get("state", "draining" if worker.get("draining") else "idle"),
        "executor": worker.get("executor", ""),
        "device": worker.get("device", ""),
        "subnet": worker.get("subnet"),
        "peak_qps": worker.get("peak_qps", 0.0),
        "queries": worker.get("queries", 0),
        "batches": worker.get("batches", 0),
        "idle_ms": {quantile: idle_us.get(quantile, 0) / 1e3 for quantile in ("p50", "p99")},
    }


def _gateway_totals(gateways: Iterable[wire.GatewayCounts]) -> Document:
    totals: Counter[str] = Counter(dict.fromkeys(("arrived", "answered", "late", "slo"), 0))
    failed: Counter[str] = Counter()
    accuracy = 0.0
    for counts in gateways:
        totals.update({key: getattr(counts, key) for key in totals})
        failed.update(counts.failed)
        accuracy += counts.accuracy
    return {**totals, "failed": dict(failed), "accuracy_sum": accuracy}


def _scheduler_totals(counts: wire.SchedulerCounts | None) -> Document:
    return {
        "subnets": dict(counts.dispatched) if counts else {},
        "batches": counts.batches if counts else 0,
        "rows": counts.rows if counts else 0,
        "slack_us_sum": counts.slack_us if counts else 0,
        "slack_count": counts.slack_count if counts else 0,
    }
