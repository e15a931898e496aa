"""What is asked of a server before a run: is it there, is it ready, does it have the model."""

from __future__ import annotations

import http.client
from typing import Any

import orjson

from loadgen.errors import ModelNotFoundError, NotReadyError, UnreachableError
from loadgen.oip import Endpoint, ModelSpec, parse_error

_TIMEOUT_S = 5.0


def probe(endpoint: Endpoint, model: str) -> ModelSpec:
    """Ask a server for its readiness and a model's inputs; blocks for at most a few seconds a question.

    UnreachableError when nothing answers, NotReadyError when the server or the model is not ready,
    ModelNotFoundError when it does not have the model.
    """
    status, body = _ask(endpoint, f"{endpoint.prefix}/v2/health/ready")
    if status != 200:
        raise NotReadyError(f"{endpoint.authority} is not ready: {status} {parse_error(body)}")
    path = endpoint.model_path(model)
    status, body = _ask(endpoint, path)
    if status == 404:
        raise ModelNotFoundError(f"{endpoint.authority} has no model {model!r}{_others(endpoint, body)}")
    if status != 200:
        raise NotReadyError(f"model {model!r} is not ready: {status} {parse_error(body)}")
    try:
        spec = ModelSpec.from_metadata(orjson.loads(body))
    except (ValueError, KeyError, TypeError) as error:
        raise UnreachableError(f"{endpoint.authority}{path} is no model metadata: {error!r}") from None
    status, body = _ask(endpoint, f"{path}/ready")
    if status != 200:
        raise NotReadyError(f"model {model!r} is not ready: {status} {parse_error(body)}")
    return spec


def _others(endpoint: Endpoint, refusal: bytes) -> str:
    """The models that the server has, by Triton's repository index; else what it said itself."""
    try:
        status, body = _ask(endpoint, f"{endpoint.prefix}/v2/repository/index", method="POST")
        if status == 200:
            return f"; it has {', '.join(sorted(str(item['name']) for item in orjson.loads(body))) or 'none'}"
        status, body = _ask(endpoint, f"{endpoint.prefix}/v2/models/stats")
        if status == 200:
            found = {str(item["name"]) for item in orjson.loads(body)["model_stats"]}
            return f"; it has {', '.join(sorted(found)) or 'none'}"
    except (UnreachableError, ValueError, KeyError, TypeError):
        pass
    said = parse_error(refusal)
    return f"; it says: {said}" if said else ""


def _ask(endpoint: Endpoint, path: str, method: str = "GET") -> tuple[int, bytes]:
    kind: Any = http.client.HTTPSConnection if endpoint.tls else http.client.HTTPConnection
    connection: http.client.HTTPConnection = kind(endpoint.host, endpoint.port, timeout=_TIMEOUT_S)
    try:
        connection.request(method, path)
        reply = connection.getresponse()
        return reply.status, reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"{endpoint.authority} is not reachable: {error or type(error).__name__}") from None
    finally:
        connection.close()
