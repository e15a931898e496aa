"""The last minutes of the overview, one sample a second: a page that opens now has its charts drawn already.

Samples stand at whole seconds of the common clock, so gateways that share an address have them for the same seconds.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import orjson

from common.errors import BadRequest
from common.overview import comparable, gained, of_model
from services.gateway.options import MAX_INTEGER

if TYPE_CHECKING:
    from common.overview import Document

KEPT = 300
SECOND_US = 1_000_000
COUNTS = ("arrived", "answered", "late", "slo", "accuracy_sum", "slack_us_sum", "slack_count")


class History:
    """The latest ``KEPT`` samples, each as the JSON that it is served as."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, bytes]] = deque(maxlen=KEPT)
        self._before: Document | None = None

    def add(self, document: Document) -> None:
        """Take a sample of an overview, unless its second has one. A clock that went back begins anew."""
        at_s = round(document["now_us"] / SECOND_US)
        last_s = self._samples[-1][0] if self._samples else -1
        if at_s == last_s:
            return
        if at_s < last_s:
            self._samples.clear()
            self._before = None
        self._samples.append((at_s, orjson.dumps({"at_s": at_s, "models": sample(self._before, document)})))
        self._before = document

    def after(self, query: str) -> bytes:
        """Return the samples as JSON: those after the second that a query string names by ``after``, else all.

        BadRequest if that is no second.
        """
        given = parse_qs(query, keep_blank_values=True).get("after", ["0"])[-1]
        if not (given.isascii() and given.isdigit() and len(given) < 20 and int(given) <= MAX_INTEGER):
            raise BadRequest(f"query parameter after: expected a second, an integer of at least 0, got {given[:40]!r}")
        wanted = [orjson.Fragment(encoded) for at_s, encoded in self._samples if at_s > int(given)]
        return orjson.dumps({"samples": wanted})


def sample(before: Document | None, document: Document) -> dict[str, Any]:
    """Return what is drawn of each model: its state, and what was counted since the document before, if comparable."""
    models = {}
    for model in document["models"]:
        name = model["name"]
        found = models[name] = {
            "queue": model["queue"]["queries"],
            "workers": {worker["name"]: (worker["state"], worker["subnet"]) for worker in model["workers"]},
        }
        if before is None or not comparable(before, document, name):
            continue
        known = of_model(before, name)
        assert known is not None
        counts = gained(known["totals"], model["totals"])
        found |= {key: counts[key] for key in COUNTS}
        found["subnets"] = {subnet: count for subnet, count in counts["subnets"].items() if count}
        found["span_s"] = (document["now_us"] - before["now_us"]) / SECOND_US
    return models
