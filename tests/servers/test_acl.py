"""The shipped users: each service can do its work as its own user, and nothing else."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from common import keys
from common.embedded import find_server
from common.streams import Outgoing, Streams, StreamsError
from services.checks import check_redis
from services.mesh import Mesh
from tests.common.processes import command_line
from tests.mesh.peer import until
from tests.servers.conftest import MeshOf
from tests.servers.servers import ROOT, USERS, Server, started, tls_server, url

MODEL = "some-model"
SERVICES = ("gateway", "scheduler", "worker", "monitor", "doctor")
INGRESS, EVENTS, STATUS = keys.ingress(MODEL), keys.events(MODEL), keys.status(MODEL)
WORK, REPLIES, PAYLOAD = keys.work(MODEL, "w"), keys.replies(MODEL, "g"), keys.payload(MODEL, 1)

# What the shipped file lets the services do, and of it what takes an operator or a Cluster.
GRANTED = {
    command
    for line in USERS.read_text().splitlines()
    if line.split()[1] in ("gateway", "scheduler", "worker")
    for command in re.findall(r"\+([a-z|]+)", line)
}
UNUSED_HERE = {"ping", "cluster|slots"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started([Server(tmp_path_factory.mktemp("acl") / "server")]) as (server,):
        yield server


async def test_mesh_of_least_privilege_serves_and_recovers(server: Server, mesh_of: MeshOf, model_folder: Path) -> None:
    """Each service under its own user: queries are answered, payloads travel apart, a killed worker's queries go to
    its successor, all drain. The server has refused no command of theirs, and no command is granted in vain."""
    await server.ready()
    server.ask("ACL", "LOG", "RESET")
    flags = ("--payload-threshold-bytes", "100", "--metrics-port", "0")
    async with mesh_of(lambda kind: url("redis", kind, [server]), model_folder, gateway=flags) as mesh:
        (victim,) = mesh.services["worker"]
        victim.process.kill()
        mesh.start_worker(model_folder)
        status, body = await mesh.post(model_folder.name, slo_ms=15_000)
        assert status == 200, body
        monitor = Streams(url("redis", "monitor", [server]))
        await until(lambda: _published(monitor, model_folder.name))
        await monitor.close()
        await until(lambda: _forgotten(server, model_folder.name))
    refusals = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in server.ask("ACL", "LOG")]
    assert [(entry[b"username"], entry[b"object"]) for entry in refusals] == []
    used = {line.removeprefix("cmdstat_").partition(":")[0] for line in _stats(server) if ":calls=0," not in line}
    assert sorted(GRANTED - used - UNUSED_HERE) == []


def _stats(server: Server) -> list[str]:
    """What the server has carried out, and for whom it has counted."""
    return str(server.ask("INFO", "commandstats").decode()).split()


async def _published(monitor: Streams, model: str) -> bool:
    """Whether the monitor sees what scheduler and gateway publish."""
    found = (await monitor.read_published())[model]
    return None not in (found.status, found.counts, *found.gateways.values()) and len(found.gateways) == 1


async def _forgotten(server: Server, model: str) -> bool:
    """Whether the killed worker's stream is gone, so that the scheduler has done all that it may have to."""
    return len(server.ask("SMEMBERS", keys.workers(model))) == 1


REFUSED: list[tuple[str, tuple[Any, ...]]] = [
    *((user, command) for user in SERVICES for command in [
        ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("SCAN", 0), ("CONFIG", "GET", "*"), ("ACL", "LIST"),
        ("CLIENT", "LIST"), ("SHUTDOWN",), ("REPLICAOF", "NO", "ONE"), ("MONITOR",),
        ("SUBSCRIBE", "any"), ("SET", "superserve:other", 1), ("GET", "other"), ("SCRIPT", "FLUSH"), ("SAVE",),
        ("XTRIM", INGRESS, "MAXLEN", 0), ("RENAME", INGRESS, EVENTS), ("DEL", INGRESS), ("DEL", keys.MODELS),
    ]),
    ("gateway", ("XREADGROUP", "GROUP", "scheduler", "active", "STREAMS", INGRESS, ">")),
    ("gateway", ("XRANGE", INGRESS, "-", "+")),
    ("gateway", ("XADD", WORK, "*", "h", "", "p", "")),
    ("gateway", ("XADD", EVENTS, "*", "h", "", "p", "")),
    ("gateway", ("XADD", REPLIES, "*", "h", "", "p", "")),
    ("gateway", ("SET", STATUS, "")),
    ("gateway", ("GET", PAYLOAD)),
    ("gateway", ("SET", keys.scheduler_counts(MODEL), "")),
    ("gateway", ("SET", keys.leader(MODEL), "me")),
    ("gateway", ("EVAL", "return 1", 0)),
    ("scheduler", ("XADD", INGRESS, "*", "h", "", "p", "")),
    ("scheduler", ("XREADGROUP", "GROUP", "worker", "worker", "STREAMS", WORK, ">")),
    ("scheduler", ("XREADGROUP", "GROUP", "gateway", "gateway", "STREAMS", REPLIES, ">")),
    ("scheduler", ("DEL", REPLIES)),
    ("scheduler", ("SET", keys.gateway_counts(MODEL, "g"), "")),
    ("scheduler", ("GET", PAYLOAD)),
    ("scheduler", ("EVAL", "return redis.call('del', KEYS[1])", 1, INGRESS)),
    ("scheduler", ("EVAL", "return redis.call('flushall')", 1, keys.leader(MODEL))),
    ("worker", ("XREADGROUP", "GROUP", "scheduler", "active", "STREAMS", INGRESS, ">")),
    ("worker", ("XRANGE", INGRESS, "-", "+")),
    ("worker", ("XADD", INGRESS, "*", "h", "", "p", "")),
    ("worker", ("XADD", WORK, "*", "h", "", "p", "")),
    ("worker", ("XREADGROUP", "GROUP", "gateway", "gateway", "STREAMS", REPLIES, ">")),
    ("worker", ("SET", PAYLOAD, "")),
    ("worker", ("DEL", WORK)),
    ("worker", ("SET", STATUS, "")),
    ("worker", ("SMEMBERS", keys.MODELS)),
    ("worker", ("SET", keys.gateway_counts(MODEL, "g"), "")),
    ("monitor", ("XADD", INGRESS, "*", "h", "", "p", "")),
    ("monitor", ("XRANGE", INGRESS, "-", "+")),
    ("monitor", ("XREADGROUP", "GROUP", "scheduler", "active", "STREAMS", INGRESS, ">")),
    ("monitor", ("GET", PAYLOAD)),
    ("monitor", ("SET", STATUS, "")),
    ("monitor", ("SADD", keys.MODELS, "x")),
    ("doctor", ("XADD", INGRESS, "*", "h", "", "p", "")),
    ("doctor", ("DEL", WORK)),
    ("doctor", ("EVAL", "return redis.call('del', KEYS[1])", 1, INGRESS)),
]  # fmt: skip


@pytest.mark.parametrize(("user", "command"), REFUSED, ids=lambda part: part if isinstance(part, str) else part[0])
async def test_user_may_not_do_what_it_need_not(server: Server, user: str, command: tuple[Any, ...]) -> None:
    """Whatever its work does not take is refused to a service's user."""
    await server.ready()
    with server.client(user) as client, pytest.raises(redis.ResponseError, match=r"permission|can't run this command"):
        client.execute_command(*command)


async def test_doctor_examines_as_its_own_user(server: Server) -> None:
    """All that the doctor looks at in Redis it may look at, and it leaves nothing behind."""
    await server.ready()
    before = server.ask("DBSIZE")
    address = url("redis", "doctor", [server])
    streams = Streams(address)
    findings = await check_redis(streams, address)
    await streams.close()
    assert {finding.check for finding in findings} >= {"redis", "redis memory", "redis role", "streams"}
    assert [finding for finding in findings if finding.verdict == "fail"] == []
    assert server.ask("DBSIZE") == before


async def test_without_a_user_nothing_is_possible(server: Server) -> None:
    """The default user is off: a URL without user, or with a wrong password, gets nowhere, and neither the error nor
    the settings that are logged tell the password."""
    await server.ready()
    for login in ("", ":guess-me@", "gateway:guess-me@"):
        streams = Streams(f"redis://{login}127.0.0.1:{server.port}")
        with pytest.raises(StreamsError) as caught:
            await streams.append_all([Outgoing(INGRESS, b"x")])
        assert "guess-me" not in str(caught.value)
        await streams.close()


@pytest.mark.parametrize("find", [find_server, tls_server], ids=["embedded", "debian"])
async def test_restart_keeps_transactions(find: Callable[[], Path | None], tmp_path: Path) -> None:
    """What was written in a transaction is read back from the append-only file: older servers do so as the default
    user, which is off."""
    if (program := find()) is None:
        pytest.skip("no other server is here")
    with started([Server(tmp_path / "server", program=program)]) as (server,):
        await server.ready()
        with server.client() as client:
            client.pipeline(transaction=True).set("kept", "yes").xadd("stream", {"h": "x"}).execute()
        server.kill()
        server.start()
        await server.ready()
        assert server.ask("GET", "kept") == b"yes"
        assert server.ask("XLEN", "stream") == 1
        assert server.ask("ACL", "LOG") == []


async def test_password_is_in_no_command_line(server: Server, model_folder: Path) -> None:
    """Services that `superserve up` starts get the URL where only their user can read it, and reach Redis by it."""
    await server.ready()
    mesh = Mesh(url("redis", "scheduler", [server]))
    child = await mesh.start("scheduler", "--model", model_folder.name)
    await until(lambda: _led(server, model_folder.name))
    assert "change-scheduler" not in command_line(child.process.pid)
    await mesh.stop(child)
    assert child.process.returncode == 0


async def _led(server: Server, model: str) -> bool:
    return bool(server.ask("EXISTS", keys.leader(model)))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl, which docs/redis.md makes passwords by")
async def test_passwords_are_changed_as_the_document_says(tmp_path: Path) -> None:
    """The commands of docs/redis.md give each user a password of its own, of which the file has the hash alone."""
    text = (ROOT / "docs" / "redis.md").read_text()
    (block,) = re.findall(r"```sh\n(cp deploy/redis/users.acl .*?done\n)", text, re.DOTALL)
    block = block.replace("/etc/redis", str(tmp_path)).replace(">> passwords", f">> {tmp_path}/passwords")
    await asyncio.to_thread(subprocess.run, ["bash", "-euc", block], cwd=ROOT, check=True)
    passwords = dict(line.split() for line in (tmp_path / "passwords").read_text().splitlines())
    users = tmp_path / "users.acl"
    assert "change-" not in users.read_text()
    with started([Server(tmp_path / "server", {"aclfile": str(users)})]) as (server,):
        await until(lambda: _admitted(server, "admin", passwords["admin"]))
        assert sorted(passwords) == sorted(line.split()[1] for line in USERS.read_text().splitlines()[1:])
        for user in SERVICES:
            assert await _admitted(server, user, passwords[user])
            assert not await _admitted(server, user, f"change-{user}")


async def _admitted(server: Server, user: str, password: str) -> bool:
    with server.client(user, password) as client:
        try:
            return bool(client.ping())
        except redis.ConnectionError:  # AuthenticationError is one
            return False


def test_every_user_has_a_password_to_change() -> None:
    """Each user of the shipped file but the default one has the placeholder that the documentation names."""
    lines = USERS.read_text().splitlines()
    assert lines[0] == "user default off ~* &* +@all"  # off, and without a password or `nopass`
    for line in lines[1:]:
        _, name, state, password, *_ = line.split()
        assert (state, password) == ("on", f">change-{name}")
