"""Results as responses of the Open Inference Protocol v2, with the account of how they came about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from common.errors import SuperServeError
from services.gateway.http import JSON, Response
from services.gateway.model import VERSION

if TYPE_CHECKING:
    from services.gateway.model import Model
    from services.gateway.pending import Query, Result
    from services.gateway.protocol import Plan

QUERY_ID = "X-Superserve-Query-Id"
# Once per query: four numbers in an f-string take half as long again.
_TIMING = "queue;dur=%.3f, inference;dur=%.3f, reply;dur=%.3f, total;dur=%.3f"
Reply = tuple[dict[str, Any], list[bytes]]  # JSON part and raw parts


def encode(model: Model, plan: Plan, query: Query, result: Result, *, name_label: bool = False) -> Response:
    """Return the HTTP response; otherwise as ``describe``."""
    document, raw = describe(model, plan, query, result, name_label=name_label)
    header = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = _headers(document["parameters"])
    if not raw:
        return Response(200, header, {**JSON, **headers})
    headers |= {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    return Response(200, b"".join((header, *raw)), headers)


def describe(model: Model, plan: Plan, query: Query, result: Result, *, name_label: bool = False) -> Reply:
    """Return JSON part and raw parts of a reply; SuperServeError if the worker's bytes are not the model's outputs.

    ``name_label``: a person asked; tell the class by name as well.
    """
    batch, payload, _ = result
    expected = plan.rows * model.output_row_bytes
    if len(payload) != expected:
        raise SuperServeError(f"worker {batch.worker} answered {len(payload)} bytes, expected {expected}")
    parameters = account(query, result)
    if name_label and (label := label_name(model, payload)) is not None:
        parameters["label_name"] = label
    outputs, raw = _outputs(model, plan, payload)
    document: dict[str, Any] = {"model_name": model.name, "model_version": VERSION}
    if plan.id is not None:
        document["id"] = plan.id
    document["parameters"] = parameters
    document["outputs"] = outputs
    return document, raw


def id_of(query: Query) -> str:
    """Return a query's id as users see it, in parameters, headers and the log."""
    return f"{query.record.id:016x}"


def account(query: Query, result: Result) -> dict[str, Any]:
    """Return which subnet answered, how accurate it is, why no better, where the time went, and if it was in time."""
    batch, _, now_us = result
    record = query.record
    told: dict[str, Any] = {
        "subnet": batch.subnet,
        "accuracy": batch.accuracy,
        "batch_size": batch.batch_rows,
        "queue_ms": (batch.started_us - record.arrival_us) / 1_000,
        "inference_ms": (batch.finished_us - batch.started_us) / 1_000,
        "total_ms": (now_us - record.arrival_us) / 1_000,
        "deadline_met": now_us <= record.deadline_us,
        "executor": batch.executor,
        "policy": batch.policy,
        "worker": batch.worker,
        "query_id": id_of(query),
    }
    if batch.degraded is not None:
        told["degraded"] = batch.degraded != ""
        if batch.degraded:
            told["degraded_reason"] = batch.degraded
    return told


def _headers(told: dict[str, Any]) -> dict[str, str]:
    """Return what proxies, browsers and curl can read of an account without the body."""
    queue_ms, inference_ms, total_ms = told["queue_ms"], told["inference_ms"], told["total_ms"]
    reply_ms = max(0.0, total_ms - queue_ms - inference_ms)  # clocks may disagree a little
    headers = {
        QUERY_ID: told["query_id"],
        "X-Superserve-Subnet": told["subnet"],
        "X-Superserve-Accuracy": f"{told['accuracy']:g}",
        "Server-Timing": _TIMING % (queue_ms, inference_ms, reply_ms, total_ms),
    }
    if "degraded" in told:
        headers["X-Superserve-Degraded"] = told.get("degraded_reason", "no")
    return headers


def label_name(model: Model, payload: bytes) -> str | None:
    """Return the name of the first row's class: output ``label`` (INT64), an index into the model's labels."""
    offset, rows = 0, len(payload) // model.output_row_bytes
    for tensor in model.outputs:
        if tensor.name == "label" and tensor.datatype == "INT64":
            index = int.from_bytes(payload[offset : offset + 8], "little", signed=True)
            return model.labels[index] if 0 <= index < len(model.labels) else None
        offset += tensor.row_bytes * rows
    return None


def _outputs(model: Model, plan: Plan, payload: bytes) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return the ``outputs`` of the JSON part, and the raw parts that follow it."""
    starts = [0]
    for tensor in model.outputs:
        starts.append(starts[-1] + tensor.row_bytes * plan.rows)
    documents, raw = [], []
    for index, binary in plan.outputs:
        tensor = model.outputs[index]
        start, stop = starts[index], starts[index + 1]
        document: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": [plan.rows, *tensor.shape],
        }
        if binary:
            document["parameters"] = {"binary_data_size": stop - start}
            raw.append(payload[start:stop])
        else:
            document["data"] = np.frombuffer(payload[start:stop], tensor.dtype)
        documents.append(document)
    return documents, raw
