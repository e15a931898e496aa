"""What is told of a query beside its answer, if asked for: a line in the log, a trace. Else nothing of it is made."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

from common import log
from common.errors import ConfigError
from services.gateway.metrics import ANSWERED, LATE, LEFT, OUTCOMES
from services.gateway.replies import account, id_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from common.settings import GatewaySettings
    from services.gateway.link import ModelLink
    from services.gateway.pending import Query, Result
    from services.gateway.tracing import Traces

CLIENT_LEFT = 499  # as nginx has it: nobody was there to be answered

_log = log.get(__name__)


class Call(NamedTuple):
    """How a query came: the headers beside it, when it was read (common clock), and by which protocol."""

    headers: Mapping[str, str]
    received_us: int
    grpc: bool = False


class Ending(NamedTuple):
    """What became of a call. ``query`` None: it was refused before there was one; ``result`` None: no answer."""

    link: ModelLink
    query: Query | None
    status: int
    error: str = ""
    result: Result | None = None

    @property
    def outcome(self) -> str:
        """The outcome as metrics count it."""
        if self.result is not None and self.query is not None:
            return ANSWERED if self.result.now_us <= self.query.record.deadline_us else LATE
        return LEFT if self.status == CLIENT_LEFT else OUTCOMES.get(self.status, "invalid")

    def told(self) -> dict[str, Any]:
        """Return all that is known, flat."""
        facts: dict[str, Any] = {"model": self.link.name, "outcome": self.outcome, "status": self.status}
        if self.query is not None:
            record = self.query.record
            facts["query_id"] = id_of(self.query)
            facts |= {"rows": record.rows, "slo_ms": (record.deadline_us - record.arrival_us) / 1_000}
            if record.min_accuracy:
                facts["min_accuracy"] = record.min_accuracy
            if self.result is not None:
                facts |= account(self.query, self.result)
        if self.error:
            facts["error"] = self.error
        return facts


class Watch:
    """Tells of every query, or of a share; see the module. Made by ``watch_for``."""

    def __init__(self, logged: float, traces: Traces | None) -> None:
        self._logged = logged
        self._traces = traces

    def ended(self, call: Call, ending: Ending) -> None:
        """Tell what became of a call, once it has been answered."""
        logged = self._logged > 0.0 and random.random() < self._logged
        facts = ending.told() if logged or self._traces is not None else {}
        if self._traces is not None and (trace_id := self._traces.ended(call, ending, facts)) is not None:
            facts["trace_id"] = trace_id
        if logged:
            _log.info("query", **facts)

    async def close(self) -> None:
        """Send what has not been sent."""
        if self._traces is not None:
            await self._traces.close()


def watch_for(settings: GatewaySettings, gateway: str) -> Watch | None:
    """Return what ``settings`` ask for, None for nothing; ConfigError if traces are wanted and cannot be made."""
    traces = None
    if settings.otlp_endpoint is not None:
        try:
            from services.gateway.tracing import Traces
        except ModuleNotFoundError as error:
            raise ConfigError(f"--otlp-endpoint: {error.msg}; install the extra: superserve-mesh[otel]") from error
        traces = Traces(settings.otlp_endpoint, settings.trace_ratio, gateway)
    return Watch(settings.log_queries, traces) if traces is not None or settings.log_queries else None
