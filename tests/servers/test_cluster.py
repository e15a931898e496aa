"""A Cluster of three nodes: a model lies on one shard, models spread over shards."""

import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from common import keys
from common.streams import Depth, Outgoing, Streams, StreamsError
from tests.conftest import TENSORS
from tests.mesh.peer import until
from tests.servers.conftest import MeshOf, storm
from tests.servers.servers import HOST, Server, form_cluster, free_port, started, url

GROUP, CONSUMER = "readers", "reader"


def node_of(nodes: list[Server], key: str) -> Server:
    """The node that serves a key's slot."""
    slot = key_slot(key.encode())
    for first, last, (_, port, *_), *_ in _ranges(nodes):
        if first <= slot <= last:
            return next(node for node in nodes if node.port == port)
    raise AssertionError(f"slot {slot} is nobody's")


def _ranges(nodes: list[Server]) -> list[list[Any]]:
    for node in nodes:
        try:
            found: list[list[Any]] = node.ask("CLUSTER", "SLOTS")
        except redis.ConnectionError:
            continue
        return found
    raise AssertionError("no node lives")


def model_on(nodes: list[Server], there: Server) -> str:
    """The name of a model whose keys lie on that node."""
    while node_of(nodes, keys.ingress(name := f"model-{secrets.token_hex(4)}")) is not there:
        pass
    return name


def folder_of(folder: Path, model: str) -> Path:
    (folder / model).mkdir()
    (folder / model / "supernet.json").write_text(json.dumps({"name": model, **TENSORS}))
    return folder / model


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[Server]]:
    options = {"cluster-enabled": "yes", "cluster-node-timeout": "1000", "cluster-require-full-coverage": "no"}
    nodes = [Server(tmp_path / f"node-{i}", {**options, "cluster-port": str(free_port())}) for i in range(3)]
    with started(nodes):
        for node in nodes:
            await node.ready()
        await form_cluster(nodes)
        yield nodes


def move(nodes: list[Server], key: str, source: Server, target: Server, *, only_begin: bool = False) -> None:
    """Move a key's slot with all that it holds, as `redis-cli --cluster reshard` does."""
    slot = key_slot(key.encode())
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", _id(source))
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", _id(target))
    if only_begin:
        return
    while names := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
        login = ("AUTH2", "admin", "change-admin")
        source.ask("MIGRATE", HOST, target.port, "", 0, 5_000, "REPLACE", *login, "KEYS", *names)
    for node in (target, source, *nodes):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", _id(target))


def _id(node: Server) -> str:
    return str(node.ask("CLUSTER", "MYID").decode())


async def test_shard_killed_takes_its_model_alone(nodes: list[Server], mesh_of: MeshOf, tmp_path: Path) -> None:
    """Two models on two shards: kill -9 of one shard has its model's queries answered 503 or 504, and the other's go
    on; when it is back, with its data, so is its model. A slot that moves to another node takes its model along, and
    the services follow without a restart."""
    first = node_of(nodes, keys.MODELS)
    second, third = (node for node in nodes if node is not first)
    one, two = model_on(nodes, first), model_on(nodes, second)
    folders = [folder_of(tmp_path, model) for model in (one, two)]
    # A service is told of one node and finds the others by itself.
    async with mesh_of(lambda kind: url("redis+cluster", kind, [third]), *folders) as mesh:
        assert {key.decode() for key in second.ask("KEYS", "*")} >= {keys.ingress(two), keys.events(two)}
        async with storm(mesh, one, 2) as seen_one, storm(mesh, two, 2) as seen_two:
            second.kill()
            await until(lambda: _last(seen_two, 503), 20)
            good = len(seen_one)
            await until(lambda: _longer(seen_one, good + 20), 20)
            second.start()
            await until(lambda: _last(seen_two, 200), 20)
        assert {status for status, _ in seen_one} == {200}, {body for status, body in seen_one if status != 200}
        assert {status for status, _ in seen_two} <= {200, 503, 504}, set(seen_two)

        async with storm(mesh, two, 2) as seen_two:
            move(nodes, keys.ingress(two), second, third)
            count = len(seen_two)
            await until(lambda: _longer(seen_two, count + 4), 20)
            await until(lambda: _last(seen_two, 200), 20)
        assert {status for status, _ in seen_two} <= {200, 503, 504}, set(seen_two)
        assert keys.ingress(two).encode() in third.ask("KEYS", "*")
        assert not second.ask("KEYS", f"*{two}*")


async def _last(seen: list[tuple[int, str]], status: int) -> bool:
    return bool(seen) and all(found == status for found, _ in seen[-4:])


async def _longer(seen: list[tuple[int, str]], count: int) -> bool:
    return len(seen) >= count


async def test_commands_on_several_models_reach_every_shard(nodes: list[Server]) -> None:
    """One call may concern several models: each command goes to its own shard, and the replies keep their order. A
    shard that is away leaves its models out of the statuses and spoils no other's."""
    first = node_of(nodes, keys.MODELS)
    second, third = (node for node in nodes if node is not first)
    models = [model_on(nodes, node) for node in (third, first, second)]
    streams = Streams(url("redis+cluster", "admin", nodes))
    ingresses = [keys.ingress(model) for model in models]
    for number, model in enumerate(models):
        await streams.make_group(keys.ingress(model), GROUP)
        await streams.append_all([Outgoing(keys.ingress(model), b"%d" % i) for i in range(number + 1)])
        await streams.publish_status(model, model.encode(), b"counts")
    await streams.publish_counts("g", dict.fromkeys(models, b"of g"))
    assert await streams.depths([(ingress, GROUP) for ingress in ingresses]) == [Depth(1, 0), Depth(2, 0), Depth(3, 0)]
    made = await streams.append_all([Outgoing(name, b"more") for name in [*ingresses, "nobody's"]])
    assert made == [True, True, True, False]
    assert await streams.read_statuses() == {model: model.encode() for model in models}
    before = await streams.server_time_us()
    second.kill()
    assert await streams.read_statuses() == {model: model.encode() for model in models[:2]}
    await streams.publish_counts("g", dict.fromkeys(models, b"of g"))
    of_g = {"g": b"of g"}
    assert await streams.read_published() == {model: (model.encode(), b"counts", of_g) for model in models[:2]}
    with pytest.raises(StreamsError):
        await streams.append(ingresses[2], b"lost")
    await streams.append(ingresses[0], b"kept")
    assert await streams.server_time_us() >= before
    await streams.delete(*ingresses[:2])
    assert await streams.append_all([Outgoing(name, b"gone") for name in ingresses[:2]]) == [False, False]
    await streams.close()


async def test_slot_that_moves_is_followed(nodes: list[Server]) -> None:
    """While a slot is under way what it does not hold any more is an error to retry; once it has moved, connections
    that were made before write and read on at the new node, groups and pending entries included."""
    source, target = node_of(nodes, keys.MODELS), next(n for n in nodes if n is not node_of(nodes, keys.MODELS))
    model = model_on(nodes, source)
    stream, other = keys.ingress(model), keys.events(model)
    streams = Streams(url("redis+cluster", "admin", [source]))
    for name in (stream, other):
        await streams.make_group(name, GROUP)
    await streams.append_all([Outgoing(stream, b"pending"), Outgoing(stream, b"new")])
    (entry,) = await streams.read([stream, other], GROUP, CONSUMER, count=1, block_ms=1)
    move(nodes, stream, source, target, only_begin=True)
    with pytest.raises(StreamsError, match="ASK"):
        await streams.append(keys.status(model), b"not there yet")
    move(nodes, stream, source, target)
    await streams.append(stream, b"later")
    with pytest.raises(StreamsError):  # what was blocked or sent meanwhile: the caller reads back what is pending
        await streams.read([stream, other], GROUP, CONSUMER, count=9, block_ms=1)
    assert [e.id for e in await streams.pending(stream, GROUP, CONSUMER)] == [entry.id]
    found = await streams.read([stream, other], GROUP, CONSUMER, count=9, block_ms=1)
    assert [e.header for e in found] == [b"new", b"later"]
    await streams.close()
