"""A primary, its replica and three Sentinels: the services follow whoever is primary."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from common import keys
from common.streams import Outgoing, Streams, StreamsError
from tests.mesh.peer import until
from tests.servers.conftest import MeshOf, storm
from tests.servers.servers import HOST, Server, started, url

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

    async def ready(self) -> None:
        """Wait until the replica is in step and the Sentinels know it and one another."""
        for server in [*self.servers, *self.sentinels]:
            await server.ready()

        async def known() -> bool:
            states = []
            for watcher in self.sentinels:
                with redis.Redis(host=HOST, port=watcher.port, password=WATCH_PASSWORD) as sentinel:
                    states.append(sentinel.sentinel_master(SERVICE))
            return all(s["num-slaves"] == 1 and s["num-other-sentinels"] == 2 and s["is_master"] for s in states)

        async def in_step() -> bool:
            with self.primary().client() as client:
                return any(f"slave{i}" in client.info("replication") for i in range(2)) and client.wait(1, 100) == 1

        await until(known, 20)
        await until(in_step)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
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
    for _ in started([primary, replica, *sentinels]):
        yield Guarded([primary, replica], sentinels)


async def test_primary_killed_under_load(guarded: Guarded, mesh_of: MeshOf, model_folder: Path) -> None:
    """kill -9 of the primary: every query is answered in time, with a result or with 503 or 504; after the failover
    all go through the new primary, where nothing is left lying."""
    await guarded.ready()
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


async def _failed_over(guarded: Guarded, before: Server) -> bool:
    return guarded.primary() is not before


async def _empty(server: Server, model: str) -> bool:
    return not server.ask("XLEN", keys.ingress(model)) and not server.ask("XLEN", keys.events(model))


async def test_demoted_primary_is_left(guarded: Guarded) -> None:
    """A planned failover, in which the old primary lives on as a replica: what is written next goes to the new one,
    over connections that were made before."""
    await guarded.ready()
    streams, stream = Streams(guarded.url("admin")), "demoted"
    before = guarded.primary()
    await streams.make_group(stream, "readers")
    await streams.append(stream, b"before")
    assert before.ask("WAIT", 1, 1_000) == 1
    with guarded.sentinel() as sentinel:
        sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE)
    await until(lambda: _failed_over(guarded, before), 20)
    (after,) = (server for server in guarded.servers if server is not before)

    async def written() -> bool:
        try:
            return await streams.append_all([Outgoing(stream, b"after")]) == [True]
        except StreamsError:
            return False

    await until(written)
    first, *_ = await streams.read([stream], "readers", "me", count=9, block_ms=1)
    assert first.header == b"before"
    headers = [fields[1] for _, fields in after.ask("XRANGE", stream, "-", "+")]
    assert headers[-1] == b"after"
    await streams.close()


async def test_what_sentinel_cannot_tell(guarded: Guarded) -> None:
    """A service that Sentinel does not know, a wrong password of Sentinel, and Sentinels that are gone are errors that
    say so, without the password; one Sentinel that is gone is passed over."""
    await guarded.ready()
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
