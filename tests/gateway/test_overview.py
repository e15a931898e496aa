"""``GET /v2/overview``: what schedulers publish, and what every gateway counts."""

from collections.abc import Callable
from typing import Any

from common import keys, wire
from tests.gateway.conftest import Client, binary_header, image
from tests.gateway.mesh import MODEL, SUBNETS, WORKER, FakeMesh
from tests.mesh.peer import until


async def overview(client: Client) -> Any:
    reply = await client.get("/v2/overview")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    return reply.document


async def shown(client: Client, condition: Callable[[Any], bool]) -> Any:
    """Return the first overview of which this is true."""
    document: Any = None

    async def true() -> bool:
        nonlocal document
        document = await overview(client)
        return condition(document)

    await until(true)
    return document


async def test_scheduler_s_side(mesh: FakeMesh, client: Client) -> None:
    """Policy, subnets, queue, workers and batches are the scheduler's, a worker that it has lost among them."""
    lost = {**WORKER, "name": "worker-2", "state": "busy", "subnet": "large"}
    mesh.counts = wire.SchedulerCounts(4, 7_250, [lost], {"large": 9}, 3, 12, 30_000, 3)
    await mesh.publish()
    document = await shown(client, lambda found: found["models"][0]["head_slack_ms"] == 7.25)
    (model,) = document["models"]
    assert (model["name"], model["ready"], model["reason"]) == (MODEL, True, "")
    assert (model["scheduler"], model["policy"], model["subnets"]) == ("scheduler-1", "slackfit", SUBNETS)
    assert (model["queue"], model["problems"]) == ({"queries": 4, "rows": 0}, [])
    assert [(worker["name"], worker["state"]) for worker in model["workers"]] == [
        ("worker-1", "idle"),
        ("worker-2", "lost"),
    ]
    totals = model["totals"]
    assert (totals["subnets"], totals["batches"], totals["rows"]) == ({"large": 9}, 3, 12)
    assert (totals["slack_us_sum"], totals["slack_count"]) == (30_000, 3)


async def test_all_gateways_counts_are_added_up(mesh: FakeMesh, connect: Callable[..., Any]) -> None:
    """Queries at either gateway show at both; an error is no answer, and an invalid query counts for no SLO."""
    del mesh
    first, second = await connect(name="one"), await connect(name="two")
    for client, count in ((first, 2), (second, 1)):
        for _ in range(count):
            assert (await client.infer_binary(binary_header(), image())).status == 200
    await second.infer(b"nonsense")
    for client in (first, second):
        document = await shown(client, lambda found: found["models"][0]["totals"]["arrived"] == 4)
        assert document["gateways"] == ["one", "two"]
        totals = document["models"][0]["totals"]
        assert (totals["answered"], totals["late"], totals["slo"]) == (3, 0, 3)
        assert (totals["failed"]["invalid"], totals["failed"]["expired"]) == (1, 0)
        assert totals["accuracy_sum"] == 3 * 93.5


async def test_gateway_that_is_gone_is_forgotten(mesh: FakeMesh, connect: Callable[..., Any]) -> None:
    """One that died leaves a name without counts; those that live remove it."""
    await mesh.streams.publish_counts("dead", {MODEL: wire.encode(wire.GatewayCounts("dead", 5, 5, 0, {}, 5, 9.0))})
    client = await connect(name="alive")
    assert (await shown(client, lambda found: len(found["gateways"]) == 2))["models"][0]["totals"]["arrived"] == 5
    await mesh.streams.delete(keys.gateway_counts(MODEL, "dead"))
    document = await shown(client, lambda found: found["gateways"] == ["alive"])
    assert document["models"][0]["totals"]["arrived"] == 0

    async def forgotten() -> bool:
        return set((await mesh.streams.read_published())[MODEL].gateways) == {"alive"}

    await until(forgotten)


async def test_gateway_that_leaves_takes_its_counts_along(mesh: FakeMesh, connect: Callable[..., Any]) -> None:
    """After a shutdown nothing of a gateway's counts is left in Redis."""
    client = await connect(name="leaving")
    await shown(client, lambda found: found["gateways"] == ["leaving"])
    await client.gateway.shutdown()
    assert (await mesh.streams.read_published())[MODEL].gateways == {}


async def test_without_scheduler_its_side_is_empty(mesh: FakeMesh, client: Client) -> None:
    """A model whose scheduler is gone is shown without workers and for that reason, its gateways' counts as before."""
    assert (await client.infer_binary(binary_header(), image())).status == 200
    await mesh.stop()
    document = await shown(client, lambda found: not found["models"][0]["ready"])
    (model,) = document["models"]
    assert "has no scheduler" in model["reason"]
    assert (model["workers"], model["scheduler"], model["policy"]) == ([], "", "")
    assert model["totals"]["answered"] == 1


async def test_before_any_scheduler_there_is_no_model(connect: Callable[..., Any]) -> None:
    """A gateway that knows no model shows none."""
    client = await connect()
    assert (await overview(client))["models"] == []
