"""What a client may ask for besides the result: SLO, least accuracy, priority."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

from common.errors import BadRequest

if TYPE_CHECKING:
    from services.gateway.model import Model

MAX_INTEGER = (2**31 - 1) * 1_000  # of priority and timeout


class Options(NamedTuple):
    """None: not said. ``timeout_ms`` is Triton's ``timeout``, which counts where ``slo_ms`` is not said."""

    slo_ms: float | None = None
    timeout_ms: float | None = None
    min_accuracy: float | None = None
    priority: int | None = None

    def or_else(self, other: Options) -> Options:
        """Return these options, and ``other``'s where these say nothing."""
        return other._replace(**{key: value for key, value in self._asdict().items() if value is not None})

    def deadline_ms(self, default_ms: float, max_ms: float) -> float:
        """Return the SLO that counts: ``slo_ms`` above ``max_ms`` is refused, Triton's timeout is cut to it."""
        if self.slo_ms is not None:
            if self.slo_ms > max_ms:
                raise BadRequest(f"parameter slo_ms: {self.slo_ms:g} exceeds the limit of {max_ms:g} (--max-slo-ms)")
            return self.slo_ms
        return default_ms if self.timeout_ms is None else min(self.timeout_ms, max_ms)


NOTHING_SAID = Options()


def parse_parameters(parameters: dict[str, Any], model: Model) -> Options:
    """Validate a request's ``parameters``; those that are not ours are ignored, as the protocol has it."""
    if not parameters:
        return NOTHING_SAID
    slo_ms = _number(parameters, "slo_ms")
    if slo_ms is not None and slo_ms <= 0:
        raise BadRequest(f"parameter slo_ms: expected milliseconds above 0, got {slo_ms:g}")
    timeout_us = _integer(parameters, "timeout", "microseconds")
    min_accuracy = _number(parameters, "min_accuracy")
    if min_accuracy is not None:
        if not 0 <= min_accuracy <= 100:
            raise BadRequest(f"parameter min_accuracy: expected percent from 0 to 100, got {min_accuracy:g}")
        if min_accuracy > model.best_accuracy:
            raise BadRequest(
                f"parameter min_accuracy: {min_accuracy:g} asked for, but the most accurate subnet of model "
                f"{model.name!r} reaches {model.best_accuracy:g}"
            )
    # Triton takes a timeout of 0 for none.
    return Options(
        slo_ms, timeout_us / 1_000 if timeout_us else None, min_accuracy, _integer(parameters, "priority", "a priority")
    )


def parse_query(query: str, model: Model) -> Options:
    """Validate options in a URL's query string; keys that are not ours are ignored."""
    parameters: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in ("slo_ms", "min_accuracy"):
            try:
                parameters[key] = float(value)
            except ValueError:
                raise BadRequest(f"query parameter {key}: expected a number, got {value[:40]!r}") from None
        elif key in ("priority", "timeout"):
            if not (value.isascii() and value.isdigit() and len(value) < 20):
                raise BadRequest(f"query parameter {key}: expected an integer of at least 0, got {value[:40]!r}")
            parameters[key] = int(value)
    return parse_parameters(parameters, model)


def _number(parameters: dict[str, Any], key: str) -> float | None:
    value = parameters.get(key)
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value):
        raise BadRequest(f"parameter {key}: expected a number, got {value!r:.40}")
    return float(value)


def _integer(parameters: dict[str, Any], key: str, what: str) -> int | None:
    value = parameters.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= MAX_INTEGER:
        raise BadRequest(f"parameter {key}: expected {what}, an integer of at least 0, got {value!r:.40}")
    return value
