"""Every query is answered exactly once, whatever becomes of mesh, Redis or client."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis

from common import embedded, keys
from common.streams import Outgoing, Streams
from tests.gateway.conftest import Client, Reply, binary_header, image
from tests.gateway.mesh import DESCRIPTION, MODEL, FakeMesh, Pairs, answer, ignore, outputs_of, reject

Connect = Callable[..., Any]


async def eventually(check: Callable[[], Any], seconds: float = 10.0) -> None:
    """Poll ``check``, a coroutine function, until it is true."""
    async with asyncio.timeout(seconds):
        while not await check():  # noqa: ASYNC110 - what is awaited happens in another process
            await asyncio.sleep(0.02)


async def ready(client: Client) -> bool:
    return (await client.get("/v2/health/ready")).status == 200


async def test_queries_at_the_same_time_share_entries(client: Client, mesh: FakeMesh) -> None:
    """Many queries travel in few entries, each gets its own answer; the mesh asserts checksums and sizes."""
    replies = await asyncio.gather(*(client.infer_binary(binary_header(), image(1, n)) for n in range(64)))
    assert [reply.document["outputs"][1]["data"] for reply in replies] == [[n % 10] for n in range(64)]
    assert len(mesh.packs) < 32
    assert len({record.id for pack in mesh.packs for record, _ in pack}) == 64


async def test_large_payloads_go_under_their_own_key(mesh: FakeMesh, connect: Connect) -> None:
    """Tensors above the threshold are stored beside the pack, and removed once the query is answered."""
    client = await connect(payload_threshold_bytes=1_000)
    large, small = await asyncio.gather(
        client.infer_binary(binary_header(2), image(2)), client.infer_binary(binary_header(1), image(1))
    )
    assert (large.status, small.status) == (200, 200)
    stored = {record.rows: record for pack in mesh.packs for record, _ in pack}
    assert (stored[2].stored, stored[1].stored) == (True, False)

    async def gone() -> bool:
        return await mesh.streams.get_payloads([keys.payload(MODEL, stored[2].id)]) == [None]

    await eventually(gone)


async def test_answers_that_come_twice_are_ignored(client: Client, mesh: FakeMesh) -> None:
    """A query that is answered twice gets the first answer; the entry is acked all the same."""

    def twice(mesh: FakeMesh, gateway: str, pairs: Pairs) -> list[Outgoing]:
        return answer(mesh, gateway, pairs) * 2

    mesh.behaviour = twice
    for n in range(3):
        reply = await client.infer_binary(binary_header(), image(1, n))
        assert reply.document["outputs"][1]["data"] == [n]

    async def drained() -> bool:
        return not await mesh.streams.outstanding(keys.replies(MODEL, client.gateway.name))

    await eventually(drained)


@pytest.mark.parametrize(
    ("reason", "status", "words"),
    [
        ("late", 504, "SLO of 10000 ms"),
        ("queue_full", 429, "queue"),
        ("no_worker", 503, "no worker"),
        ("poison", 503, "died"),
        ("min_accuracy", 400, "best is 93.5"),
        ("novelty", 503, "novelty"),
    ],
)
async def test_rejections(client: Client, mesh: FakeMesh, reason: str, status: int, words: str) -> None:
    """Each reason of the scheduler has its status, its words, and Retry-After where trying again helps."""
    mesh.behaviour = reject(reason)
    reply = await client.infer_binary(binary_header(), image())
    assert reply.status == status
    assert words in reply.error
    assert ("Retry-After" in reply.headers) == (status in (429, 503))


@pytest.mark.parametrize(("payload", "error"), [(b"", "out of memory"), (b"short", "")])
async def test_failed_work_is_a_500(client: Client, mesh: FakeMesh, payload: bytes, error: str) -> None:
    """A worker's error, or outputs of the wrong size, are answered 500 and name the worker."""

    def failing(mesh: FakeMesh, gateway: str, pairs: Pairs) -> list[Outgoing]:
        return [mesh.answers(gateway, [(record, payload) for record, _ in pairs], error)]

    mesh.behaviour = failing
    reply = await client.infer_binary(binary_header(), image())
    assert reply.status == 500
    assert "worker-1" in reply.error


async def test_silence_is_a_504(mesh: FakeMesh, connect: Connect) -> None:
    """A query without an answer by its deadline and the grace is answered 504 with the figures."""
    mesh.behaviour = ignore
    client = await connect(reply_grace_ms=50)
    reply = await client.infer_binary({**binary_header(), "parameters": {"timeout": 40_000}}, image())
    assert reply.status == 504
    assert "the SLO was 40 ms" in reply.error


async def test_late_answers_within_the_grace_say_so(mesh: FakeMesh, connect: Connect) -> None:
    """An answer after the deadline but within the grace is a 200 with deadline_met false."""
    client = await connect(reply_grace_ms=20_000)
    reply = await client.infer_binary({**binary_header(), "parameters": {"slo_ms": 0.001}}, image())
    assert reply.status == 200
    assert reply.document["parameters"]["deadline_met"] is False


async def test_a_full_gateway_says_429(mesh: FakeMesh, connect: Connect) -> None:
    """Beyond --max-queue queries in the mesh the answer is 429 at once, with Retry-After."""
    mesh.behaviour = ignore
    client = await connect(max_queue=2)
    waiting = [asyncio.create_task(client.infer_binary(binary_header(), image())) for _ in range(2)]
    pairs = await mesh.until_read(2)
    reply = await client.infer_binary(binary_header(), image())
    assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
    assert "2 queries" in reply.error
    await release(mesh, client, pairs)
    assert [(await task).status for task in waiting] == [200, 200]


async def release(mesh: FakeMesh, client: Client, pairs: Pairs) -> None:
    """Answer what the mesh has held back."""
    results = [(record, outputs_of(record, tensors)) for record, tensors in pairs]
    await mesh.streams.append_all([mesh.answers(client.gateway.name, results)])


async def test_clients_that_leave_free_their_place(mesh: FakeMesh, connect: Connect) -> None:
    """When a client leaves, its query no longer counts against --max-queue, and is counted as such."""
    mesh.behaviour = ignore
    client = await connect(max_queue=1)
    leaving = asyncio.create_task(client.infer_binary(binary_header(), image()))
    await mesh.until_read(1)
    leaving.cancel()
    mesh.behaviour = answer

    async def served() -> bool:
        reply: Reply = await client.infer_binary(binary_header(), image())
        return reply.status == 200

    await eventually(served)
    assert 'outcome="client_left"} 1.0' in (await client.get("/metrics")).body.decode()


async def test_draining_answers_what_is_under_way(mesh: FakeMesh, connect: Connect) -> None:
    """On shutdown a query in the mesh is still answered, new ones are refused with 503, and the port closes."""
    mesh.behaviour = ignore
    client = await connect()
    await asyncio.gather(client.get("/v2"), client.get("/v2"))  # two connections, of which one stays idle
    waiting = asyncio.create_task(client.infer_binary(binary_header(), image()))
    pairs = await mesh.until_read(1)
    stopping = asyncio.create_task(client.gateway.shutdown())
    reply = await client.infer_binary(binary_header(), image())  # over the idle connection, which is still open
    assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
    assert "shutting down" in reply.error
    await release(mesh, client, pairs)
    assert (await waiting).status == 200
    await stopping
    assert not await mesh.streams.outstanding(keys.replies(MODEL, client.gateway.name))


async def test_without_a_scheduler(url: str, connect: Connect) -> None:
    """Nobody has ever served a model: not ready, alive, and no model is known."""
    client = await connect()
    assert (await client.get("/v2/health/live")).document == {"live": True}
    ready = await client.get("/v2/health/ready")
    assert (ready.status, ready.document) == (503, {"ready": False})
    reply = await client.infer_binary(binary_header(), image())
    assert reply.status == 404
    assert "known models: none" in reply.error


@pytest.mark.parametrize("change", ["no workers", "draining", "no model", "gone"])
async def test_without_a_worker(mesh: FakeMesh, connect: Connect, change: str) -> None:
    """A model without a usable worker, or whose scheduler went, is 503 with Retry-After and not ready."""
    client = await connect()
    assert await ready(client)
    mesh.workers = [] if change == "no workers" else mesh.workers
    if change == "draining":
        mesh.workers = [{**mesh.workers[0], "draining": True}]
    if change == "no model":
        mesh.description, mesh.workers = None, []
    if change == "gone":
        await mesh.stop()
    else:
        await mesh.publish()

    async def unready() -> bool:
        return not await ready(client)

    await eventually(unready)
    reply = await client.infer_binary(binary_header(), image())
    assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
    model_ready = await client.get(f"/v2/models/{MODEL}/ready")
    assert (model_ready.status, model_ready.document) == (503, {"name": MODEL, "ready": False})


async def test_redis_dies_and_comes_back(tmp_path: Path, connect: Connect) -> None:
    """With Redis gone every query is answered 503 and none hangs; with Redis back the gateway serves by itself."""
    first = tmp_path / "redis"
    first.mkdir()
    with embedded.server(folder=first) as url:
        mesh = FakeMesh(url, DESCRIPTION)
        await mesh.start()
        client = await connect(redis=url)
        mesh.behaviour = ignore
        lost = asyncio.create_task(client.infer_binary({**binary_header(), "parameters": {"slo_ms": 30_000}}, image()))
        await mesh.until_read(1)
        await mesh.stop()
    async with asyncio.timeout(5):
        reply = await client.infer_binary(binary_header(), image())
    assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
    assert "Redis" in reply.error
    shutil.rmtree(first)
    first.mkdir()
    with embedded.server(folder=first) as again:
        assert again == url
        mesh = FakeMesh(again, DESCRIPTION)
        await mesh.start()

        async def served() -> bool:
            reply: Reply = await client.infer_binary(binary_header(), image())
            return reply.status == 200

        await eventually(served)
        async with asyncio.timeout(5):
            gone = await lost
        assert gone.status == 503
        assert "lost its streams" in gone.error
        await client.gateway.shutdown()
        await mesh.stop()


async def test_answers_delivered_into_a_broken_connection(client: Client, mesh: FakeMesh, url: str) -> None:
    """An answer that Redis gave to this gateway's consumer, and that never arrived, is read back after the break."""
    mesh.behaviour = ignore
    waiting = asyncio.create_task(client.infer_binary({**binary_header(), "parameters": {"slo_ms": 30_000}}, image()))
    pairs = await mesh.until_read(1)
    await mesh.stop()
    streams, other = Streams(url), redis.Redis.from_url(url)
    (stream,) = [name.decode() async for name in other.scan_iter("*:replies:*")]
    gateway = stream.rpartition(":")[2]
    await streams.append_all(answer(mesh, gateway, []))  # connects, so that the next one is quick
    await other.client_kill_filter(_type="normal", skipme=True)
    await streams.append_all(answer(mesh, gateway, pairs))
    await streams.read([stream], keys.GATEWAY_GROUP, keys.GATEWAY_CONSUMER, count=9, block_ms=1)  # seen by us alone
    async with asyncio.timeout(10):
        reply = await waiting
    assert reply.status == 200
    await streams.close()
    await other.aclose()


async def test_redis_that_was_never_there(tmp_path: Path, connect: Connect) -> None:
    """A gateway starts without Redis, says 503, and is not ready."""
    client = await connect(redis=f"unix://{tmp_path}/none.sock")
    assert not await ready(client)
    assert (await client.infer_binary(binary_header(), image())).status == 404
