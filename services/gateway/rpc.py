"""The same protocol over gRPC, on a port of its own: ``GRPCInferenceService`` by grpc.aio.

A ModelInferRequest becomes the JSON part and the raw part that HTTP would have brought, and goes the same way from
there: one validation, one set of plans, one reply. The other methods answer what the HTTP path of the same meaning
answers. Outputs are always raw.

grpc would refuse by itself, and tell nobody, a method that there is not, a message that it cannot parse and one that
is too large. So every method is looked up here, and reads and parses its one message itself: it is served as one that
takes a stream, which on the wire is the same. Of a message beyond the limit grpc tells only that none came, as of a
client that left before its message was whole: both are counted as ``unread``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
import orjson
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from common import log
from common.errors import BadRequest, ConfigError, NotFound, SuperServeError
from common.tensors import BYTES
from services.gateway.http import Request
from services.gateway.messages import SERVICE, message_class
from services.gateway.model import VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from common.settings import GatewaySettings
    from services.gateway.inference import Inference
    from services.gateway.link import ModelLink
    from services.gateway.routes import Routes

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
CLOSE_TIMEOUT_S = 2.0
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
_PARAMETER = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}

_log = log.get(__name__)


class RpcServer:
    """Listens for gRPC, and answers by ``routes`` and ``inference`` as HTTP does.

    ``refused`` is told the reason why a call came to neither.
    """

    def __init__(
        self, settings: GatewaySettings, routes: Routes, inference: Inference, refused: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._routes = routes
        self._inference = inference
        self._refused = refused
        # A message is the tensors and a little around them.
        options = (
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.so_reuseport", int(settings.reuse_port)),
        )
        self._server = grpc.aio.server(options=options)
        read: dict[str, Callable[[Any], str]] = {
            "ServerLive": lambda _: "/v2/health/live",
            "ServerReady": lambda _: "/v2/health/ready",
            "ServerMetadata": lambda _: "/v2",
            "ModelReady": partial(self._path, "/ready"),
            "ModelMetadata": partial(self._path, ""),
            "ModelConfig": partial(self._path, "/config"),
            "ModelStatistics": lambda request: self._path("/stats", request) if request.name else "/v2/models/stats",
            "RepositoryIndex": lambda _: "/v2/models",
        }
        methods = {name: self._method(name, partial(self._read, name, path)) for name, path in read.items()}
        methods["ModelInfer"] = self._method("ModelInfer", self._infer)
        self._server.add_generic_rpc_handlers((_Methods(methods, refused),))

    async def listen(self) -> None:
        """Accept connections; ConfigError if the address cannot be had."""
        host, port = self._settings.host, self._settings.grpc_port
        try:
            self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on --host {host} --grpc-port {port}: {error}") from error
        await self._server.start()

    async def close(self) -> None:
        """Let the answers under way out, and close all connections."""
        await self._server.stop(CLOSE_TIMEOUT_S)

    async def _read(self, name: str, path: Callable[[Any], str], request: Any, _: grpc.aio.ServicerContext) -> Any:
        """Return the response of a method that HTTP has as a path to read."""
        document = orjson.loads(self._routes.answer(Request("GET", path(request), {}, b"")).body)
        if name == "ModelConfig":
            document = {"config": document}
        # HTTP tells more here and there: a model's name beside whether it is ready, batch statistics.
        return json_format.ParseDict(document, message_class(f"{name}Response")(), ignore_unknown_fields=True)

    def _path(self, verb: str, request: Any) -> str:
        """Return the HTTP path below the model that a request names; NotFound if there is none."""
        link = self._model(request.name, request.version)
        return f"/v2/models/{quote(link.name, safe='')}{verb}"

    async def _infer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        link = self._model(request.model_name, request.model_version)
        document, raw = await self._inference.ask(link, partial(_parts, request), context)
        return _response(document, raw)

    def _model(self, name: str, version: str) -> ModelLink:
        try:
            return self._routes.model(name, version or VERSION)
        except NotFound:
            self._refused("not_found")
            raise

    def _method(
        self, name: str, answer: Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]
    ) -> grpc.RpcMethodHandler:
        """Return the handler of a method, whose errors become statuses."""
        request_class = message_class(f"{name}Request")

        async def handle(_: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> Any:
            try:
                return await answer(await self._message(request_class, context), context)
            except SuperServeError as error:
                await context.abort(CODES.get(error.status, grpc.StatusCode.INTERNAL), error.message)
            except Exception as error:
                _log.error("request_failed", method=name, exc_info=error)
                await context.abort(grpc.StatusCode.INTERNAL, f"the gateway failed: {type(error).__name__}: {error}")

        serialise = message_class(f"{name}Response").SerializeToString
        return grpc.stream_unary_rpc_method_handler(handle, response_serializer=serialise)

    async def _message(self, kind: Any, context: grpc.aio.ServicerContext) -> Any:
        """Return the call's message; BadRequest if there is none, or none of this kind."""
        data = await context.read()
        if data is grpc.aio.EOF:
            self._refused("unread")
            raise BadRequest("the call brought no message")
        try:
            return kind.FromString(data)
        except DecodeError as error:
            self._refused("malformed")
            raise BadRequest(f"the message is no {kind.DESCRIPTOR.name}: {error}") from None


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Finds the handler of a method; one that there is not is refused with those that there are."""

    def __init__(self, methods: dict[str, grpc.RpcMethodHandler], refused: Callable[[str], None]) -> None:
        self._methods = {f"/{SERVICE}/{name}": method for name, method in methods.items()}
        self._known = ", ".join(methods)
        self._refused = refused
        self._unknown = grpc.stream_stream_rpc_method_handler(self._refuse)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Called by grpc for each call."""
        return self._methods.get(handler_call_details.method, self._unknown)

    async def _refuse(self, _: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        self._refused("unimplemented")
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"no such method; {SERVICE} has {self._known}")


def _parts(request: Any) -> tuple[bytes, bytes]:
    """Return the JSON part and the raw part that HTTP would have brought."""
    return orjson.dumps(_document(request)), b"".join(request.raw_input_contents)


def _document(request: Any) -> dict[str, Any]:
    """Return the JSON part that says the same; tensors in ``raw_input_contents`` follow it in their order."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(f"raw_input_contents: {len(raw)} tensors, but there are {len(request.inputs)} inputs")
    inputs = []
    for position, tensor in enumerate(request.inputs):
        item = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if raw:
            item["parameters"] = {"binary_data_size": len(raw[position])}
        if not raw or tensor.HasField("contents"):
            item["data"] = _typed(tensor)
        inputs.append(item)
    outputs = [
        {"name": output.name, "parameters": {**_parameters(output.parameters), "binary_data": True}}
        for output in request.outputs
    ]
    parameters = {**_parameters(request.parameters), "binary_data_output": True}
    return {"id": request.id or None, "inputs": inputs, "outputs": outputs, "parameters": parameters}


def _typed(tensor: Any) -> list[Any]:
    """Return an input's typed contents: those of its datatype, as JSON has them."""
    elements = getattr(tensor.contents, _CONTENTS[tensor.datatype]) if tensor.datatype in _CONTENTS else ()
    if tensor.datatype != BYTES:
        return list(elements)
    try:
        return [element.decode() for element in elements]
    except UnicodeDecodeError as error:
        raise BadRequest(f"input {tensor.name!r}: bytes_contents are no UTF-8: {error.reason}") from None


def _parameters(parameters: Any) -> dict[str, Any]:
    return {
        key: getattr(value, choice)
        for key, value in parameters.items()
        if (choice := value.WhichOneof("choice")) is not None
    }


def _response(document: dict[str, Any], raw: list[bytes]) -> Any:
    """Return the ModelInferResponse of a reply's JSON part and its raw part."""
    response = message_class("ModelInferResponse")(
        model_name=document["model_name"],
        model_version=document["model_version"],
        id=document.get("id", ""),
        raw_output_contents=raw,
    )
    for key, value in document["parameters"].items():
        setattr(response.parameters[key], _PARAMETER[type(value)], value)
    for output in document["outputs"]:
        response.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
    return response
