"""A primary, its replica and three Sentinels: the services follow whoever is primary."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from common import keys
from common.streams import Streams, StreamsError
from tests.mesh.peer import until
from tests.servers.conftest import MeshOf, storm
from tests.servers.servers import HOST, Server, free_port, started, url

SERVICE = "mesh"
WATCH_PASSWORD = "watch"  # of the Sentinels themselves
REPLICATION = {"masteruser": "replica", "masterauth": "change-replica"}
OUTCOMES = {200, 503, 504}


@dataclass(frozen=True)
class Guarded:
    """The servers, and the Sentinels that watch them."""

    servers: list[Server]
    sentinels: list[Server]

    def url(self, user: str) -> str:
        return url("redis+sentinel", user, self.sentinels, f"/{SERVICE}?sentinel_password={WATCH_PASSWORD}")

    def sentinel(self) -> "redis.Redis":
        return redis.Redis(host=HOST, port=self.sentinels[0].port, password=WATCH_PASSWORD, decode_responses=True)

    def primary(self) -> Server:
        with self.sentinel() as sentinel:
            _, port = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def failover(self) -> bool:
        """Ask for a planned failover; False if Sentinel does not know the replica well enough yet."""
        with self.sentinel() as sentinel:
            try:
                sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE, "COORDINATED")
            except redis.ResponseError as error:
                if not str(error).startswith("NOGOODSLAVE"):
                    raise
                return False
        return True

    async def known(self) -> bool:
        """Whether every Sentinel knows the replica and the other two."""
        states = []
        for watcher in self.sentinels:
            with redis.Redis(host=HOST, port=watcher.port, password=WATCH_PASSWORD) as sentinel:
                states.append(sentinel.sentinel_master(SERVICE))
        return all(state["num-slaves"] == 1 and state["num-other-sentinels"] == 2 for state in states)


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    """Sentinels that watch a primary whose replica is in step."""
    primary = Server(tmp_path / "one", REPLICATION)
    replica = Server(tmp_path / "two", {**REPLICATION, "replicaof": f"{HOST} {primary.port}"})
    lines = [
        f"requirepass {WATCH_PASSWORD}",
        f"sentinel sentinel-pass {WATCH_PASSWORD}",
        f"sentinel monitor {SERVICE} {HOST} {primary.port} 2",
        f"sentinel auth-user {SERVICE} sentinel",
        f"sentinel auth-pass {SERVICE} change-sentinel",
        f"sentinel down-after-milliseconds {SERVICE} 800",
        f"sentinel failover-timeout {SERVICE} 4000",
    ]
    sentinels = [Server(tmp_path / f"sentinel-{i}", sentinel="\n".join(lines) + "\n") for i in range(3)]

    async def in_step() -> bool:
        return bool(primary.ask("WAIT", 1, 100) == 1)

    # Only now the Sentinels: what is not there when they first look, they find ten seconds later.
    with started([primary, replica]):
        for server in (primary, replica):
            await server.ready()
        await until(in_step)
        with started(sentinels):
            guarded = Guarded([primary, replica], sentinels)
            for sentinel in sentinels:
                await sentinel.ready()
            await until(guarded.known, 20)
            yield guarded


async def test_primary_killed_under_load(guarded: Guarded, mesh_of: MeshOf, model_folder: Path) -> None:
    """kill -9 of the primary: every query is answered in time, with a result or with 503 or 504; after the failover
    all go through the new primary, where nothing is left lying."""
    before = guarded.primary()
    model = model_folder.name
    async with mesh_of(guarded.url, model_folder) as mesh:
        async with storm(mesh, model) as seen:
            await until(lambda: _many_good(seen))
            before.kill()
            await until(lambda: _failed_over(guarded, before), 20)
            await until(lambda: _many_good(seen), 20)
        assert {status for status, _ in seen} <= OUTCOMES, set(seen)
        after = guarded.primary()
        assert after is not before
        assert await mesh.answers(model)
        await until(lambda: _empty(after, model))


async def _many_good(seen: list[tuple[int, str]]) -> bool:
    return len(seen) >= 40 and all(status == 200 for status, _ in seen[-40:])


async def _asked(guarded: Guarded) -> bool:
    return guarded.failover()


async def _failed_over(guarded: Guarded, before: Server) -> bool:
    return guarded.primary() is not before


async def _empty(server: Server, model: str) -> bool:
    return not server.ask("XLEN", keys.ingress(model)) and not server.ask("XLEN", keys.events(model))


async def test_planned_failover_loses_nothing(guarded: Guarded) -> None:
    """A coordinated failover, in which the old primary lives on as a replica: what is written meanwhile, over
    connections made before, is on the new primary, once and in order, but for what was refused."""
    streams, stream = Streams(guarded.url("admin")), "planned"
    before = guarded.primary()
    if b"valkey_version:9" not in before.ask("INFO", "server"):
        pytest.skip("the Sentinel of this server knows no coordinated failover; Valkey's does from 9 on")
    await streams.make_group(stream, "readers")
    written: list[bytes] = []

    async def write() -> bool:
        with contextlib.suppress(StreamsError):
            await streams.append(stream, b"%d" % len(written))
            written.append(b"%d" % len(written))
        return guarded.primary() is not before and len(written) > count

    count = 0
    await until(lambda: _asked(guarded))
    await until(write, 20)
    count = len(written) + 3
    await until(write)
    after = guarded.primary()
    headers = [fields[1] for _, fields in after.ask("XRANGE", stream, "-", "+")]
    assert list(dict.fromkeys(headers)) == written  # one that was cut off halfway may be there twice
    assert [entry.header for entry in await streams.read([stream], "readers", "me", count=999, block_ms=1)] == headers
    await streams.close()


async def test_server_that_is_no_primary_any_more(tmp_path: Path) -> None:
    """Writing to a server that became a replica is an error and ends the connection, with all that waits on it."""
    with started([Server(tmp_path / "server")]) as (server,):
        await server.ready()
        streams = Streams(url("redis", "admin", [server]))
        await streams.append("stream", b"before")
        server.ask("REPLICAOF", HOST, free_port())
        writes = [asyncio.create_task(streams.append("stream", b"refused")) for _ in range(3)]
        errors = await asyncio.gather(*writes, return_exceptions=True)
        assert all(isinstance(error, StreamsError) and "READONLY" in str(error) for error in errors), errors
        server.ask("REPLICAOF", "NO", "ONE")
        await streams.append("stream", b"after")
        assert [entry.header for entry in await streams.outstanding("stream")] == [b"before", b"after"]
        await streams.close()


async def test_what_sentinel_cannot_tell(guarded: Guarded) -> None:
    """A service that Sentinel does not know, a wrong password of Sentinel, and Sentinels that are gone are errors that
    say so, without the password; one Sentinel that is gone is passed over."""
    ports = [sentinel.port for sentinel in guarded.sentinels]
    hosts = ",".join(f"{HOST}:{port}" for port in ports)

    async def error(rest: str) -> str:
        streams = Streams(f"redis+sentinel://admin:change-admin@{rest}")
        with pytest.raises(StreamsError) as caught:
            await streams.ping()
        await streams.close()
        return str(caught.value)

    assert "Sentinel knows no service 'other'" in await error(f"{hosts}/other?sentinel_password={WATCH_PASSWORD}")
    refused = await error(f"{hosts}/{SERVICE}?sentinel_password=guess-me")
    assert "WRONGPASS" in refused
    assert "guess-me" not in refused
    guarded.sentinels[0].kill()
    streams = Streams(guarded.url("admin"))
    await streams.ping()
    await streams.close()
    for sentinel in guarded.sentinels[1:]:
        sentinel.kill()
    assert f"{HOST}:{ports[2]}" in await error(f"{hosts}/{SERVICE}?sentinel_password={WATCH_PASSWORD}")
