"""The one endpoint that matters: a request for inference, from its body to its response."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from common import log
from common.errors import SuperServeError, UnsupportedMediaType
from common.tensors import BYTES
from services.gateway import images
from services.gateway.bodies import IDENTITY, deflate, inflate
from services.gateway.options import parse_query
from services.gateway.protocol import Plan, row_plan, split
from services.gateway.replies import QUERY_ID, describe, encode, id_of
from services.gateway.server import fail
from services.gateway.tensors import text_row
from services.gateway.watch import CLIENT_LEFT, Call, Ending

if TYPE_CHECKING:
    from collections.abc import Callable

    from grpc.aio import ServicerContext as Context

    from common.settings import GatewaySettings
    from services.gateway.http import Request
    from services.gateway.link import Done, ModelLink
    from services.gateway.metrics import Metrics
    from services.gateway.model import Model, Tensor
    from services.gateway.options import Options
    from services.gateway.pending import Query, Result
    from services.gateway.replies import Reply
    from services.gateway.server import Server
    from services.gateway.watch import Watch

    Outcome = Result | SuperServeError

# What is read as JSON without an Inference-Header-Content-Length. The last two are what aiohttp and curl -d put there
# when nobody told them anything.
TEXT = "text/plain"
JSON_TYPES = ("", "application/json", "application/octet-stream", "application/x-www-form-urlencoded")

_log = log.get(__name__)


class Inference:
    """Answers ``POST /v2/models/{model}/infer``, and what asks for the same in another way."""

    def __init__(self, settings: GatewaySettings, server: Server, metrics: Metrics, watch: Watch | None) -> None:
        self._settings = settings
        self._server = server
        self._metrics = metrics
        self._watch = watch

    def start(self, request: Request, link: ModelLink) -> None:
        """Send the query on its way; the response follows when the mesh has answered."""
        if self._watch is not None:
            request.watched = Call(request.headers, link.now_us())
        try:
            model = link.admit()
            kind = _kind(request)
            if kind in images.FORMATS or request.headers.get("Content-Encoding", "") not in IDENTITY:
                self._server.spawn(request, self._start_slowly(request, link, kind))
            else:
                self._start(request, link, model, request.body, kind)
        except Exception as error:  # whatever it is, it is counted and answered
            self._refuse(request, link, error)

    async def ask(self, link: ModelLink, parts: Callable[[], tuple[bytes, bytes]], context: Context) -> Reply:
        """Return the reply to a JSON part and a raw part that came by gRPC; SuperServeError if none.

        Cancelled, it withdraws the query.
        """
        call = Call(dict(context.invocation_metadata()), link.now_us(), grpc=True) if self._watch is not None else None
        query: Query | None = None
        answered: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def done(_: Query, outcome: Outcome) -> None:
            if not answered.done():
                answered.set_result(outcome)

        try:
            model = link.admit()
            assert link.planner is not None
            header, raw = parts()
            plan = link.planner.plan(header)
            query = self._send(link, plan.rows, plan.options, plan.tensors(raw), done)
            context.set_trailing_metadata(((QUERY_ID.lower(), id_of(query)),))
            try:
                outcome = await answered
            except asyncio.CancelledError:
                self._left(link, query, call)
                raise
            if isinstance(outcome, SuperServeError):
                raise outcome
            reply = describe(model, plan, query, outcome)
            self._metrics.of(link.name).answered(query, outcome)
        except Exception as error:
            self._count(link, error, query, call)
            raise
        self._tell(call, link, query, 200, result=outcome)
        return reply

    async def _start_slowly(self, request: Request, link: ModelLink, kind: str) -> None:
        """Decode in a thread what takes long; both zlib and Pillow let the loop go on meanwhile."""
        try:
            body, encoding = request.body, request.headers.get("Content-Encoding", "")
            if encoding not in IDENTITY:
                body = await asyncio.to_thread(inflate, body, encoding, self._settings.max_body_bytes)
            model = link.admit()
            if kind not in images.FORMATS:
                self._start(request, link, model, body, kind)
            else:
                tensors = await asyncio.to_thread(images.decode, body, kind, images.frame_of(model))
                self._submit(request, link, link.admit(), row_plan(model), tensors, name_label=True)
        except Exception as error:
            self._refuse(request, link, error)

    def _start(self, request: Request, link: ModelLink, model: Model, body: bytes, kind: str) -> None:
        assert link.planner is not None
        if kind == TEXT:
            tensors = text_row(_text_input(model), body)
            self._submit(request, link, model, row_plan(model), tensors, name_label=True)
            return
        header_length = request.headers.get("Inference-Header-Content-Length")
        header, raw = (body, b"") if header_length is None else split(body, header_length)
        plan = link.planner.plan(header)
        self._submit(request, link, model, plan, plan.tensors(raw))

    def _submit(
        self, request: Request, link: ModelLink, model: Model, plan: Plan, tensors: bytes, *, name_label: bool = False
    ) -> None:
        options = plan.options
        if request.query:
            options = options.or_else(parse_query(request.query, model))
        done = partial(self._finish, request, link, model, plan, name_label)
        query = self._send(link, plan.rows, options, tensors, done)
        request.on_left = partial(self._left, link, query, request.watched)

    def _send(self, link: ModelLink, rows: int, options: Options, tensors: bytes, done: Done) -> Query:
        slo_ms = options.deadline_ms(self._settings.default_slo_ms, self._settings.max_slo_ms)
        return link.submit(tensors, rows, slo_ms, options.min_accuracy or 0.0, options.priority or 0, done)

    def _finish(
        self,
        request: Request,
        link: ModelLink,
        model: Model,
        plan: Plan,
        name_label: bool,
        query: Query,
        outcome: Outcome,
    ) -> None:
        """Respond to a query that was answered, rejected or given up."""
        try:
            if isinstance(outcome, SuperServeError):
                raise outcome
            response = encode(model, plan, query, outcome, name_label=name_label)
            self._metrics.of(model.name).answered(query, outcome)
            accepted = request.headers.get("Accept-Encoding")
            request.respond(deflate(response, accepted) if accepted else response)
        except Exception as error:
            self._refuse(request, link, error, query)
        else:
            self._tell(request.watched, link, query, 200, result=outcome)

    def _refuse(self, request: Request, link: ModelLink, error: Exception, query: Query | None = None) -> None:
        self._count(link, error, query, request.watched)
        fail(request, error, {QUERY_ID: id_of(query)} if query is not None else None)

    def _count(self, link: ModelLink, error: Exception, query: Query | None, call: Call | None) -> None:
        status = error.status if isinstance(error, SuperServeError) else 500
        self._metrics.of(link.name).refused(status)
        self._tell(call, link, query, status, str(error))

    def _left(self, link: ModelLink, query: Query, call: Call | None) -> None:
        link.withdraw(query)
        self._metrics.of(link.name).left()
        self._tell(call, link, query, CLIENT_LEFT)

    def _tell(
        self,
        call: Call | None,
        link: ModelLink,
        query: Query | None,
        status: int,
        error: str = "",
        result: Result | None = None,
    ) -> None:
        if call is None or self._watch is None:
            return
        try:
            self._watch.ended(call, Ending(link, query, status, error, result))
        except Exception as problem:  # it must not cost the answers that come behind
            _log.error("watch_failed", exc_info=problem)


def _kind(request: Request) -> str:
    """Return the content type of an image or a text, else "", which is JSON or binary tensors.

    UnsupportedMediaType if it can be nothing of ours.
    """
    if "Inference-Header-Content-Length" in request.headers:
        return ""  # binary tensors, whatever the content type: tritonclient sends none
    content_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if content_type in images.FORMATS or content_type == TEXT:
        return content_type
    if content_type in JSON_TYPES:
        return ""
    raise UnsupportedMediaType(
        f"Content-Type {content_type[:80]!r}: expected application/json, text/plain, image/png or image/jpeg, or "
        "binary tensors with the header Inference-Header-Content-Length"
    )


def _text_input(model: Model) -> Tensor:
    """Return a model's input if it is a single text per row; UnsupportedMediaType if not."""
    tensor = model.inputs[0]
    if len(model.inputs) == 1 and tensor.datatype == BYTES and tensor.row_elements == 1:
        return tensor
    inputs = ", ".join(f"{tensor.name} {tensor.datatype}{list(tensor.shape)}" for tensor in model.inputs)
    raise UnsupportedMediaType(f"model {model.name!r} takes no {TEXT}: its inputs are {inputs}")
