"""The gateway's HTTP surface as an OpenAPI 3.1 document, served at ``/openapi.json``."""

from __future__ import annotations

from typing import Any

from common.sched.types import REASONS_DEGRADED
from common.tensors import BYTES, DTYPES
from services.gateway.history import COUNTS
from services.gateway.model import VERSION
from services.gateway.options import MAX_INTEGER

Document = dict[str, Any]

_ERRORS = {
    400: "Malformed HTTP, JSON, tensor, image or parameter; or an accuracy out of reach.",
    404: "No such model, version or path.",
    408: "The body did not arrive in time.",
    413: "The body exceeds --max-body-bytes, compressed or uncompressed.",
    415: "A content type or coding that is not listed here, or an image or text for a model that takes none.",
    429: "Too many queries are in the mesh or queued at the scheduler.",
    500: "The worker failed; the message is its own.",
    503: "No worker, no scheduler or no Redis, or the gateway is shutting down.",
    504: "The SLO is out of reach, or no answer came in time.",
}
_RETRIED = (429, 503)
_OF_QUERIES = (400, 429, 500, 503, 504)  # may come when the query was in the mesh
_TEXT: Document = {"type": "string"}
_NAME: Document = {"type": "string", "minLength": 1}
_COUNT: Document = {"type": "integer", "minimum": 0}
_FLAG: Document = {"type": "boolean"}
_NUMBER: Document = {"type": "number"}
_BINARY: Document = {"type": "string", "format": "binary"}
_QUERY_ID: Document = {
    "description": "of a query that reached the mesh, as `superserve explain` takes it",
    "schema": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
}


def document(version: str, max_slo_ms: float) -> Document:
    """Return the document of the distribution's ``version``; ``max_slo_ms`` is the longest SLO that may be stated."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "SuperServe gateway",
            "version": version,
            "description": "The Open Inference Protocol v2 with Triton's binary tensors, bodies that are images or "
            "texts, and an SLO and a least accuracy per query.",
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(),
        "components": {
            "schemas": _schemas(max_slo_ms),
            "parameters": _parameters(max_slo_ms),
            "responses": {f"Error{status}": _error(status) for status in _ERRORS},
        },
    }


def _paths() -> Document:
    paths: Document = {
        "/v2": _get("server", "Name, version and extensions of the server", _ref("Server")),
        "/v2/health/live": _get("live", "Whether the process answers at all", _ref("Live")),
        "/v2/health/ready": _get("ready", "Whether some model has a worker", _ref("Ready"), unready=_ref("Ready")),
        "/v2/overview": _get("overview", "What the mesh is doing: gateways, models, workers, counts", _ref("Overview")),
        "/v2/overview/history": _history_path(),
        "/v2/models": _get("models", "The models known", _record({"models": _list(_ref("ModelState"))})),
        "/v2/models/stats": _get("allStatistics", "Triton's statistics of all models", _ref("Statistics")),
        "/v2/repository/index": {
            "post": _operation("index", "The models known, as Triton lists them", _list(_ref("ModelState")), {})
        },
        "/": _get("page", "A live page of the same, for people", _TEXT, kind="text/html"),
        "/metrics": _get("metrics", "Prometheus", _TEXT, kind="text/plain"),
        "/openapi.json": _get("openapi", "This document", {"type": "object"}),
    }
    for prefix, suffix, parameters in (
        ("/v2/models/{model}", "", ["Model"]),
        ("/v2/models/{model}/versions/{version}", "OfVersion", ["Model", "Version"]),
    ):
        of_model = {
            "": _get(f"model{suffix}", "Inputs, outputs and platform", _ref("Model"), errors=(404, 503)),
            "/ready": _get(
                f"modelReady{suffix}", "Whether the model has a worker", _ref("ModelReady"),
                unready=_ref("ModelReady"), errors=(404,),
            ),
            "/config": _get(
                f"config{suffix}", "Part of Triton's configuration", _ref("ModelConfig"), errors=(404, 503)
            ),
            "/stats": _get(f"statistics{suffix}", "Triton's statistics", _ref("Statistics"), errors=(404,)),
            "/infer": {"post": _infer(f"infer{suffix}")},
        }  # fmt: skip
        for path, item in of_model.items():
            paths[prefix + path] = {"parameters": [_parameter(name) for name in parameters], **item}
    return paths


def _history_path() -> Document:
    path = _get("overviewHistory", "The last minutes of the overview, one sample a second", _ref("History"))
    path["get"]["parameters"] = [_parameter("After")]
    return path


def _infer(name: str) -> Document:
    operation = _operation(
        name,
        "Inference on 1 to max_batch_size rows, which are never split",
        _ref("InferResponse"),
        {status: _errors(status) for status in _ERRORS},
    )
    operation["parameters"] = [
        _parameter(key)
        for key in ("SloMs", "MinAccuracy", "Priority", "Timeout", "HeaderLength", "ContentEncoding", "AcceptEncoding")
    ]
    operation["requestBody"] = {
        "required": True,
        "description": "With the header Inference-Header-Content-Length, that many bytes of JSON and then the raw "
        "tensors in the order of `inputs`. Without it, JSON; or by its type an image or a text, which is one row.",
        "content": {
            "application/json": {"schema": _ref("InferRequest")},
            **{kind: {"schema": _BINARY} for kind in ("application/octet-stream", "image/png", "image/jpeg")},
            "text/plain": {"schema": _TEXT},
        },
    }
    success = operation["responses"]["200"]
    success["content"]["application/octet-stream"] = {"schema": _BINARY}
    success["headers"] = {
        "Inference-Header-Content-Length": {"schema": _COUNT},
        "Server-Timing": {"description": "queue, inference, reply and total, in milliseconds", "schema": _TEXT},
        "X-Superserve-Query-Id": _QUERY_ID,
        "X-Superserve-Subnet": {"schema": _TEXT},
        "X-Superserve-Accuracy": {"description": "percent", "schema": _ref("Percent")},
        "X-Superserve-Degraded": {"description": "why no better", "schema": {"enum": ["no", *REASONS_DEGRADED]}},
    }
    return operation


def _get(
    name: str,
    summary: str,
    schema: Document,
    *,
    kind: str = "application/json",
    errors: tuple[int, ...] = (),
    unready: Document | None = None,
) -> Document:
    """Return a path item that is read; ``unready``: the schema of a 503 that is no error."""
    responses = {status: _errors(status) for status in errors}
    if unready is not None:
        responses[503] = _answer("Not ready", unready, "application/json")
    return {"get": _operation(name, summary, schema, responses, kind)}


def _operation(
    name: str, summary: str, schema: Document, responses: dict[int, Document], kind: str = "application/json"
) -> Document:
    by_status = {200: _answer("Done", schema, kind), 400: _errors(400), **responses}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {str(status): by_status[status] for status in sorted(by_status)},
    }


def _answer(description: str, schema: Document, kind: str) -> Document:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _error(status: int) -> Document:
    response = _answer(_ERRORS[status], _ref("Error"), "application/json")
    headers: Document = {}
    if status in _RETRIED:
        headers["Retry-After"] = {"description": "seconds", "schema": _COUNT}
    if status in _OF_QUERIES:
        headers["X-Superserve-Query-Id"] = _QUERY_ID
    if headers:
        response["headers"] = headers
    return response


def _parameters(max_slo_ms: float) -> Document:
    def query(name: str, schema: str, description: str) -> Document:
        return {"name": name, "in": "query", "description": description, "schema": _ref(schema)}

    def header(name: str, schema: Document, description: str) -> Document:
        return {"name": name, "in": "header", "description": description, "schema": schema}

    def path(name: str, schema: Document) -> Document:
        return {"name": name, "in": "path", "required": True, "schema": schema}

    return {
        "Model": path("model", _NAME),
        "Version": path("version", {"const": VERSION}),
        "SloMs": query("slo_ms", "SloMs", f"Milliseconds from arrival to answer, up to {max_slo_ms:g}."),
        "MinAccuracy": query("min_accuracy", "Percent", "No subnet below this accuracy."),
        "Priority": query("priority", "Priority", "Lower numbers first among equal deadlines."),
        "Timeout": query("timeout", "Timeout", "Triton's: microseconds; the SLO if slo_ms is not given; 0: none."),
        "After": query("after", "Second", "Only samples of later seconds than this one."),
        "HeaderLength": header("Inference-Header-Content-Length", _COUNT, "Bytes of JSON before the raw tensors."),
        "ContentEncoding": header("Content-Encoding", {"enum": ["identity", "gzip", "deflate"]}, "Of the body."),
        "AcceptEncoding": header("Accept-Encoding", _TEXT, "gzip and deflate are known."),
    }


def _schemas(max_slo_ms: float) -> Document:
    tensor = {"name": _NAME, "datatype": _ref("Datatype"), "shape": _list({"type": "integer"})}
    data = {"type": "array", "description": "Flat, or nested as the shape."}
    count = _record({"count": _COUNT, "ns": _COUNT})
    config = _record({"name": _NAME, "data_type": _TEXT, "dims": _list(_COUNT)})
    stages = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    flags = {"type": ["boolean", "null"]}
    return {
        "Error": {**_record({"error": _NAME}), "additionalProperties": False},
        "Datatype": {"enum": [*DTYPES, BYTES]},
        "SloMs": {"type": "number", "exclusiveMinimum": 0, "maximum": max_slo_ms},
        "Percent": {"type": "number", "minimum": 0, "maximum": 100},
        "Priority": {"type": "integer", "minimum": 0, "maximum": MAX_INTEGER},
        "Timeout": {"type": "integer", "minimum": 0, "maximum": MAX_INTEGER},
        "Server": _record({"name": _NAME, "version": _TEXT, "extensions": _list(_TEXT)}),
        "Live": _record({"live": _FLAG}),
        "Ready": _record({"ready": _FLAG}),
        "ModelReady": _record({"name": _NAME, "ready": _FLAG}),
        "ModelState": _record(
            {"name": _NAME, "version": _TEXT, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": _TEXT}
        ),
        "Tensor": _record(tensor),
        "Model": _record(
            {
                "name": _NAME,
                "versions": _list(_TEXT),
                "platform": _TEXT,
                "inputs": _list(_ref("Tensor")),
                "outputs": _list(_ref("Tensor")),
            }
        ),
        "ModelConfig": _record(
            {
                "name": _NAME,
                "platform": _TEXT,
                "backend": _TEXT,
                "max_batch_size": _COUNT,
                "input": _list(config),
                "output": _list(config),
            }
        ),
        "Statistics": _record(
            {
                "model_stats": _list(
                    _record(
                        {
                            "name": _NAME,
                            "version": _TEXT,
                            "last_inference": _COUNT,
                            "inference_count": _COUNT,
                            "execution_count": _COUNT,
                            "inference_stats": _record(dict.fromkeys(stages, count)),
                            "batch_stats": _list({"type": "object"}),
                        }
                    )
                )
            }
        ),
        "Overview": _overview(),
        "History": _history(),
        "Second": {"type": "integer", "minimum": 0, "maximum": MAX_INTEGER},
        "Parameters": {
            "type": ["object", "null"],
            "description": "Those that are not listed are ignored. They win over the query string.",
            "properties": {
                "slo_ms": _or_null("SloMs"),
                "min_accuracy": _or_null("Percent"),
                "priority": _or_null("Priority"),
                "timeout": _or_null("Timeout"),
                "binary_data_output": flags,
            },
        },
        "InferRequest": _record(
            {
                "inputs": {
                    "type": "array",
                    "minItems": 1,
                    "items": _record(
                        tensor,
                        data=data,
                        parameters={"type": ["object", "null"], "properties": {"binary_data_size": _COUNT}},
                    ),
                }
            },
            id={"type": ["string", "null"]},
            parameters=_ref("Parameters"),
            outputs={
                "type": ["array", "null"],
                "items": _record(
                    {"name": _NAME},
                    parameters={"type": ["object", "null"], "properties": {"binary_data": flags}},
                ),
            },
        ),
        "InferResponse": _record(
            {
                "model_name": _NAME,
                "model_version": _TEXT,
                "parameters": _record(
                    {
                        "subnet": _TEXT,
                        "accuracy": _ref("Percent"),
                        "batch_size": _COUNT,
                        "queue_ms": _NUMBER,
                        "inference_ms": _NUMBER,
                        "total_ms": _NUMBER,
                        "deadline_met": _FLAG,
                        "executor": _TEXT,
                        "policy": _TEXT,
                        "worker": _TEXT,
                        "query_id": _TEXT,
                    },
                    degraded=_FLAG,
                    degraded_reason={"enum": list(REASONS_DEGRADED)},
                    label_name=_TEXT,
                ),
                "outputs": _list(
                    _record(tensor, data=data, parameters=_record({"binary_data_size": _COUNT})),
                ),
            },
            id=_TEXT,
        ),
    }


def _overview() -> Document:
    counts = {"type": "object", "additionalProperties": _COUNT}
    worker = {
        "name": _NAME,
        "state": {"enum": ["idle", "busy", "draining", "lost"]},
        "executor": _TEXT,
        "device": _TEXT,
        "subnet": {"type": ["string", "null"]},
        "peak_qps": _NUMBER,
        "queries": _COUNT,
        "batches": _COUNT,
        "idle_ms": _record({"p50": _NUMBER, "p99": _NUMBER}),
    }
    totals = {
        **dict.fromkeys(
            ("arrived", "answered", "late", "slo", "batches", "rows", "slack_us_sum", "slack_count"), _COUNT
        ),
        "accuracy_sum": _NUMBER,
        "failed": counts,
        "subnets": counts,
    }
    model = {
        **{"name": _NAME, "ready": _FLAG, "reason": _TEXT, "scheduler": _TEXT, "policy": _TEXT},
        "subnets": _list(_record({"id": _TEXT, "accuracy": _ref("Percent")})),
        "queue": _record({"queries": _COUNT, "rows": _COUNT}),
        "head_slack_ms": {"type": ["number", "null"]},
        "workers": _list(_record(worker)),
        "problems": _list(_TEXT),
        "totals": _record(totals),
    }
    return _record({"now_us": _COUNT, "gateways": _list(_NAME), "models": _list(_record(model))})


def _history() -> Document:
    state = {"type": "array", "description": "Its state, and the subnet of its latest batch."}
    workers = {"type": "object", "additionalProperties": state}
    subnets = {"type": "object", "additionalProperties": _COUNT}
    counts = dict.fromkeys((*COUNTS, "span_s"), _NUMBER)
    model = _record({"queue": _COUNT, "workers": workers}, subnets=subnets, **counts)
    models = {"type": "object", "additionalProperties": model}
    return _record({"samples": _list(_record({"at_s": _COUNT, "models": models}))})


def _record(required: Document, **optional: Document) -> Document:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _list(items: Document) -> Document:
    return {"type": "array", "items": items}


def _or_null(schema: str) -> Document:
    return {"anyOf": [_ref(schema), {"type": "null"}]}


def _ref(schema: str) -> Document:
    return {"$ref": f"#/components/schemas/{schema}"}


def _parameter(name: str) -> Document:
    return {"$ref": f"#/components/parameters/{name}"}


def _errors(status: int) -> Document:
    return {"$ref": f"#/components/responses/Error{status}"}
