"""Traces by OpenTelemetry, sent as OTLP over HTTP. Spans are made when a query has ended: its times are known then.

A sampled query is a server span with a child per stage; the request's ``traceparent`` and ``tracestate`` are continued.

===========  =====================  ===================================================================================
stage        from                   to
===========  =====================  ===================================================================================
admit        body read              validated, decoded and stamped
queue        stamped                dispatched by the scheduler
dispatch     dispatched             begun by the worker: the way there, and the batch that ran before
inference    begun                  ended; linked to the batch's span
reply        ended                  answered by this gateway
===========  =====================  ===================================================================================

A batch is a span of a trace of its own, from dispatch to end, with a link to each sampled query of this gateway in it:
a batch with queries of two gateways is told by both, each its part, under the same ``superserve.batch.id``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import random
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common import address, log
from common.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from common.wire import Answers
    from services.gateway.watch import Call, Ending

PATH = "/v1/traces"
LINGER_S = 0.1  # a batch's span waits so long for the rest of its queries
FLUSH_S = 2.0  # for the last spans, when the gateway ends
ROUTE = "/v2/models/{model}/infer"
RPC_SERVICE, RPC_METHOD = "inference.GRPCInferenceService", "ModelInfer"
_GRPC_CODES = {200: 0, 499: 1, 400: 3, 504: 4, 404: 5, 429: 8, 503: 14}  # others: 13, INTERNAL

_log = log.get(__name__)


class Traces:
    """Makes spans of a share ``ratio`` of queries, and of those whose ``traceparent`` says sampled; of no others.

    Raises ConfigError for an endpoint that is no URL of http or https.
    """

    def __init__(self, endpoint: str, ratio: float, gateway: str) -> None:
        url = urlsplit(endpoint)
        if url.scheme not in ("http", "https") or not url.netloc:
            raise ConfigError(f"--otlp-endpoint={address.shown(endpoint)!r}: expected a URL as http://collector:4318")
        _log_as_we_do()
        version = importlib.metadata.version("superserve-mesh")
        names = {"service.name": "superserve-gateway", "service.instance.id": gateway, "service.version": version}
        # What is not sampled is not even begun: the decision is `_sampled`.
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource.create(names), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint.removesuffix("/") + PATH)))
        self._tracer = self._provider.get_tracer("superserve.gateway", version)
        self._propagator = TraceContextTextMapPropagator()
        self._ratio = ratio
        self._batches: dict[int, tuple[Answers, Span]] = {}  # by id(), begun and not ended

    def ended(self, call: Call, ending: Ending, facts: dict[str, Any]) -> str | None:
        """Make the spans of a call that has ended, and return its trace id; None if it is not sampled."""
        parent = self._propagator.extract(call.headers) if "traceparent" in call.headers else None
        if not self._sampled(parent):
            return None
        now_us = ending.link.now_us()
        name, attributes = _server(call, ending, facts)
        span = self._tracer.start_span(
            name, parent, SpanKind.SERVER, attributes, start_time=call.received_us * 1_000, record_exception=False
        )
        if ending.status >= 500:
            span.set_status(StatusCode.ERROR, ending.error)
        context = trace.set_span_in_context(span)
        end_us = now_us
        for stage, (from_us, to_us) in _stages(call, ending, now_us).items():
            links = None
            if stage == "inference" and ending.result is not None:
                links = [Link(self._batch(ending.result.batch, span).get_span_context())]
            child = self._tracer.start_span(stage, context, links=links, start_time=from_us * 1_000)
            child.end(max(from_us, to_us) * 1_000)
            end_us = max(end_us, to_us)  # clocks may disagree a little
        span.end(end_us * 1_000)
        return f"{span.get_span_context().trace_id:032x}"

    async def close(self) -> None:
        """Send what has not been sent, for a while."""
        for key in list(self._batches):
            self._end(key)
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def send() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(sent.set)

        # The end of the loop, hence of the process, would wait for a thread of the loop's own pool.
        threading.Thread(target=send, name="last spans", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_S):
                await sent.wait()
        except TimeoutError:
            _log.warning("spans_left_behind", note="the receiver did not take them in time")

    def _sampled(self, parent: Context | None) -> bool:
        """As the caller decided, if there is one; else by chance."""
        context = trace.get_current_span(parent).get_span_context() if parent is not None else None
        if context is not None and context.is_valid:
            return context.trace_flags.sampled
        return random.random() < self._ratio

    def _batch(self, batch: Answers, query: Span) -> Span:
        """Return the span of a batch, linked to a query's; it ends when its queries have had time to come."""
        key = id(batch)
        if key not in self._batches:
            attributes: dict[str, str | int | float] = {
                "superserve.batch.id": batch.batch,
                "superserve.batch.rows": batch.batch_rows,
                "superserve.worker": batch.worker,
                "superserve.executor": batch.executor,
                "superserve.policy": batch.policy,
                "superserve.subnet": batch.subnet,
                "superserve.accuracy": batch.accuracy,
            }
            if batch.degraded:
                attributes["superserve.degraded_reason"] = batch.degraded
            start_us = batch.dispatched_us or batch.started_us
            # A context of its own: not a child of the first query that came.
            span = self._tracer.start_span(
                "batch", trace.set_span_in_context(trace.INVALID_SPAN), attributes=attributes,
                start_time=start_us * 1_000,
            )  # fmt: skip
            self._batches[key] = (batch, span)
            asyncio.get_running_loop().call_later(LINGER_S, self._end, key)
        span = self._batches[key][1]
        span.add_link(query.get_span_context())
        return span

    def _end(self, key: int) -> None:
        if (begun := self._batches.pop(key, None)) is not None:
            batch, span = begun
            span.end(max(batch.finished_us, batch.dispatched_us) * 1_000)


def _stages(call: Call, ending: Ending, now_us: int) -> dict[str, tuple[int, int]]:
    """Return the stages that a call went through, each with its beginning and its end."""
    query, result = ending.query, ending.result
    if query is None:
        return {"admit": (call.received_us, now_us)}
    arrival_us = query.record.arrival_us
    stages = {"admit": (call.received_us, arrival_us)}
    if result is None:
        return stages | {"queue": (arrival_us, now_us)}
    batch = result.batch
    dispatched_us = batch.dispatched_us or batch.started_us
    return stages | {
        "queue": (arrival_us, dispatched_us),
        "dispatch": (dispatched_us, batch.started_us),
        "inference": (batch.started_us, batch.finished_us),
        "reply": (batch.finished_us, now_us),
    }


def _server(call: Call, ending: Ending, facts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return name and attributes of a call's span: by the semantic conventions, and ours."""
    attributes = {f"superserve.{key}": value for key, value in facts.items() if key not in ("status", "error")}
    if ending.status >= 400:
        attributes["error.type"] = str(ending.status)
    if call.grpc:
        code = _GRPC_CODES.get(ending.status, 13)
        attributes |= {
            "rpc.system": "grpc",
            "rpc.service": RPC_SERVICE,
            "rpc.method": RPC_METHOD,
            "rpc.grpc.status_code": code,
        }
        return f"{RPC_SERVICE}/{RPC_METHOD}", attributes
    attributes |= {
        "http.request.method": "POST",
        "http.route": ROUTE,
        "url.path": ROUTE.format(model=ending.link.name),
        "http.response.status_code": ending.status,
    }
    return f"POST {ROUTE}", attributes


class _Handler(logging.Handler):
    """Passes on what the SDK has to say, for one when the receiver is not there."""

    def emit(self, record: logging.LogRecord) -> None:
        _log.warning("tracing", message=record.getMessage())


def _log_as_we_do() -> None:
    logger = logging.getLogger("opentelemetry")
    if not logger.handlers:
        logger.addHandler(_Handler())
        logger.propagate = False
