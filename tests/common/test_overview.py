"""What is published joins to one document; what is missing, old or foreign leaves the rest as it is."""

from typing import Any

import msgpack
import pytest

from common import wire
from common.overview import Published, overview

MODEL: dict[str, Any] = {
    "name": "m",
    "subnets": [{"id": "small", "accuracy": 80.0}, {"id": "large", "accuracy": 90.0}],
}
BUSY: dict[str, Any] = {
    **{"name": "w1", "executor": "emulated", "device": "d", "draining": False, "state": "busy", "subnet": "small"},
    **{"peak_qps": 900.0, "queries": 40, "batches": 5, "idle_us": {"p50": 400, "p99": 1_500}},
}
LOST = {**BUSY, "name": "w2"}


def status(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        **{"scheduler": "s", "policy": "slackfit", "published_us": 5, "queued_rows": 12, "model": MODEL},
        **{"workers": [BUSY], "problems": ["w3: no such subnet"]},
    }
    return wire.encode(wire.Status(**{**fields, **changes}))


def gateway(name: str, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        **{"arrived": 10, "answered": 6, "late": 1, "failed": {"expired": 2}, "slo": 9, "accuracy": 540.0},
    }
    return wire.encode(wire.GatewayCounts(name, **{**fields, **changes}))


COUNTS = wire.encode(wire.SchedulerCounts(11, -1_500, [LOST], {"small": 30, "large": 10}, 5, 44, 90_000, 5))


def test_all_that_is_published_is_in_the_document() -> None:
    """Status, counts and two gateways' counts, added up; a worker that died lately stands after the live ones."""
    found = Published(status(), COUNTS, {"g1": gateway("g1"), "g2": gateway("g2", failed={"expired": 1, "failed": 3})})
    document = overview(1_000, {"m": found})
    worker = {
        **{"name": "w1", "state": "busy", "executor": "emulated", "device": "d", "subnet": "small"},
        **{"peak_qps": 900.0, "queries": 40, "batches": 5, "idle_ms": {"p50": 0.4, "p99": 1.5}},
    }
    model = {
        **{"name": "m", "ready": True, "reason": "", "scheduler": "s", "policy": "slackfit"},
        "subnets": MODEL["subnets"],
        "queue": {"queries": 11, "rows": 12},
        "head_slack_ms": -1.5,
        "workers": [worker, {**worker, "name": "w2", "state": "lost"}],
        "problems": ["w3: no such subnet"],
        "totals": {
            **{"arrived": 20, "answered": 12, "late": 2, "slo": 18, "failed": {"expired": 3, "failed": 3}},
            **{"accuracy_sum": 1_080.0, "subnets": {"small": 30, "large": 10}, "batches": 5, "rows": 44},
            **{"slack_us_sum": 90_000, "slack_count": 5},
        },
    }
    assert document == {"now_us": 1_000, "gateways": ["g1", "g2"], "models": [model]}


def test_gateway_that_is_gone_is_not_counted() -> None:
    """A name whose counts have lapsed is no gateway any more."""
    found = Published(status(), COUNTS, {"g1": gateway("g1"), "g2": None})
    document = overview(0, {"m": found})
    assert document["gateways"] == ["g1"]
    assert document["models"][0]["totals"]["arrived"] == 10


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Published(None, None, {}), "has no scheduler"),
        (Published(status(workers=[]), COUNTS, {}), "has no worker"),
        (Published(status(workers=[{**BUSY, "draining": True}]), COUNTS, {}), "has no worker"),
        (Published(status(model=None), COUNTS, {}), "has no worker"),
        (Published(COUNTS, COUNTS, {}), "cannot be read: WireError: SchedulerCounts in place of Status"),
        (Published(msgpack.packb([2, 10]), None, {}), "wire version 2"),
        (Published(status(workers=[{"executor": "torch"}]), COUNTS, {}), "cannot be read: KeyError: 'name'"),
        (Published(status(workers=[3]), COUNTS, {}), "cannot be read: AttributeError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_model_that_cannot_serve_says_why(found: Published, words: str) -> None:
    """Without scheduler, without worker, or of another version: not ready, for a reason, beside a model that is."""
    good, bad = overview(0, {"a": Published(status(), COUNTS, {}), "b": found})["models"]
    assert good["ready"]
    assert not bad["ready"]
    assert words in bad["reason"]


def test_problem_of_all_models_comes_first() -> None:
    """What keeps every model from being served is the reason, whatever is published."""
    (model,) = overview(0, {"m": Published(status(), COUNTS, {})}, "Redis cannot be used")["models"]
    assert (model["ready"], model["reason"]) == (False, "Redis cannot be used")


def test_scheduler_of_an_earlier_version_is_shown() -> None:
    """One that publishes no counts, and less of each worker, is shown with what it does say."""
    old = {key: BUSY[key] for key in ("name", "executor", "device", "draining", "peak_qps")}
    (model,) = overview(0, {"m": Published(status(workers=[old]), None, {})})["models"]
    (worker,) = model["workers"]
    assert (model["ready"], worker["state"], worker["subnet"], worker["queries"]) == (True, "idle", None, 0)
    assert (model["queue"], model["head_slack_ms"]) == ({"queries": 0, "rows": 12}, None)
