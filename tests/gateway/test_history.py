"""Samples of the overview: what they count, how many are kept, and ``GET /v2/overview/history``."""

from typing import Any

import orjson
import pytest

from common.errors import BadRequest
from services.gateway.history import KEPT, SECOND_US, History, sample
from tests.gateway.conftest import Client, binary_header, image
from tests.gateway.mesh import MODEL
from tests.mesh.peer import until

START_S = 1_000_000


def overview(at_s: float, arrived: int = 0, **changes: Any) -> dict[str, Any]:
    """A document of one model, with ``changes`` to it."""
    totals = {
        **dict.fromkeys(("arrived", "answered", "slo", "batches", "rows", "slack_count"), arrived),
        **{"late": 0, "failed": {}, "accuracy_sum": 90.0 * arrived, "slack_us_sum": 1_000 * arrived},
        "subnets": {"small": arrived, "large": 7},
    }
    worker = {"name": "worker-1", "state": "busy", "subnet": "small"}
    model = {"name": "m", "scheduler": "s", "queue": {"queries": 3, "rows": 3}, "workers": [worker], "totals": totals}
    return {"now_us": int(at_s * SECOND_US), "gateways": ["g"], "models": [{**model, **changes}]}


def seconds(history: History, query: str = "") -> list[int]:
    return [found["at_s"] for found in orjson.loads(history.after(query))["samples"]]


def test_sample_is_the_difference_of_two_documents() -> None:
    """Counts are those of the span between the two, subnets without a query left out; queue and workers are of now."""
    found = sample(overview(START_S, 10), overview(START_S + 2, 15))["m"]
    assert (found["span_s"], found["arrived"], found["answered"], found["slo"], found["late"]) == (2.0, 5, 5, 5, 0)
    assert (found["accuracy_sum"], found["subnets"]) == (450.0, {"small": 5})
    assert (found["slack_us_sum"], found["slack_count"]) == (5_000, 5)
    assert (found["queue"], found["workers"]) == (3, {"worker-1": ("busy", "small")})


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (None, overview(START_S)),
        (overview(START_S, name="other"), overview(START_S + 1)),
        (overview(START_S, scheduler="other"), overview(START_S + 1)),
        (overview(START_S) | {"gateways": ["g", "h"]}, overview(START_S + 1)),
    ],
    ids=["first", "another model", "another scheduler", "a gateway less"],
)
def test_no_counts_where_there_is_no_difference_to_take(before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """When who counts has changed, the state alone is told: a count would be of something else."""
    assert sample(before, now) == {"m": {"queue": 3, "workers": {"worker-1": ("busy", "small")}}}


def test_count_that_shrank_began_anew() -> None:
    """A process of the same name that was restarted counts from zero."""
    assert sample(overview(START_S, 10), overview(START_S + 1, 4))["m"]["arrived"] == 4


def test_history_is_bounded_and_read_from_a_second_on() -> None:
    """The latest ``KEPT`` seconds are kept, one sample each, and ``after`` names those that a client has."""
    history = History()
    for at_s in range(START_S, START_S + KEPT + 50):
        history.add(overview(at_s - 0.001))
        history.add(overview(at_s + 0.2))
    assert seconds(history) == list(range(START_S + 50, START_S + KEPT + 50))
    assert seconds(history, f"after={START_S + KEPT + 47}") == [START_S + KEPT + 48, START_S + KEPT + 49]


def test_clock_that_went_back_begins_anew() -> None:
    """After another Redis, with an earlier clock, only its own samples are told, and none is a difference."""
    history = History()
    for at_s in (START_S, START_S + 1, 50):
        history.add(overview(at_s))
    assert seconds(history) == [50]
    assert "arrived" not in orjson.loads(history.after(""))["samples"][0]["models"]["m"]


@pytest.mark.parametrize("given", ["", "x", "-1", "1.5", "9" * 30, "\u00b2"])
def test_after_that_is_no_second_is_refused(given: str) -> None:
    """The error names parameter and value."""
    with pytest.raises(BadRequest, match="query parameter after: expected a second"):
        History().after(f"after={given}")


async def test_gateway_serves_a_sample_a_second(client: Client) -> None:
    """A query shows in the counts of a second soon after it; seconds follow each other; a bad ``after`` is 400."""
    samples: list[Any] = []

    async def answered() -> int | None:
        """Queries in all samples; None while there is no difference yet."""
        reply = await client.get("/v2/overview/history")
        assert reply.status == 200
        samples[:] = reply.document["samples"]
        counts = [found["models"][MODEL]["answered"] for found in samples if "span_s" in found["models"].get(MODEL, {})]
        return sum(counts) if counts else None

    async def begun() -> bool:
        return await answered() == 0

    async def counted() -> bool:
        return await answered() == 1

    await until(begun)
    assert (await client.infer_binary(binary_header(), image())).status == 200
    await until(counted)
    at = [found["at_s"] for found in samples]
    assert at == list(range(at[0], at[0] + len(at)))
    assert samples[-1]["models"][MODEL]["workers"] == {"worker-1": ["idle", None]}
    last = (await client.get(f"/v2/overview/history?after={at[-1]}")).document["samples"]
    assert all(found["at_s"] > at[-1] for found in last)
    assert "got 'soon'" in (await client.get("/v2/overview/history?after=soon")).error
