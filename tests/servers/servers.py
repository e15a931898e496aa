"""Real servers as operators run them: on ports, with users and certificates, as replicas, Sentinels and Clusters."""

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.embedded import die_with_parent, find_server
from tests.mesh.peer import until

ROOT = Path(__file__).parents[2]
USERS = ROOT / "deploy" / "redis" / "users.acl"
HOST = "127.0.0.1"


def free_port() -> int:
    with socket.create_server((HOST, 0)) as found:
        return int(found.getsockname()[1])


def tls_server() -> Path | None:
    """A server program with TLS: one on PATH, or Debian's redis-tools, whose checker is the server by another name."""
    for name in ("valkey-server", "redis-server", "redis-check-rdb"):
        if (found := shutil.which(name)) and b"OPENSSL_init_ssl" in Path(found).resolve().read_bytes():
            return Path(found)
    return None


@dataclass
class Server:
    """One process, in a folder of its own, that a test may kill and start again."""

    folder: Path
    options: dict[str, str] = field(default_factory=dict)
    sentinel: str = ""  # a Sentinel's configuration beside the port
    program: Path = field(default_factory=find_server)
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start the process; ``ready`` says when it serves."""
        self.folder.mkdir(exist_ok=True)
        # The name decides what Debian's program is.
        command = ["redis-server", *self._arguments()]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, executable=self.program, stdout=log, stderr=log, preexec_fn=die_with_parent
            )

    def _arguments(self) -> list[str]:
        if self.sentinel:
            path = self.folder / "sentinel.conf"
            if not path.exists():  # a Sentinel rewrites it
                port = "" if "tls-port" in self.sentinel else f"port {self.port}\n"
                path.write_text(f"{port}dir {self.folder}\n{self.sentinel}")
            return [str(path), "--sentinel"]
        options = {
            "port": str(self.port),
            "bind": HOST,
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes",
            "repl-diskless-sync-delay": "0",
            "aclfile": str(USERS),
            **self.options,
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def kill(self) -> None:
        """End the process with -9, if it lives."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def client(self, user: str = "admin", password: str | None = None, **options: Any) -> "redis.Redis":
        """A client of the user, by default with the password that the shipped file gives it, that tries once."""
        once = Retry(NoBackoff(), 0)
        password = password or f"change-{user}"
        return redis.Redis(host=HOST, port=self.port, username=user, password=password, retry=once, **options)

    def ask(self, *command: Any) -> Any:
        """Put one command as the operator; the reply as it is on the wire."""
        with self.client(protocol=2) as client:
            client.response_callbacks.clear()
            return client.execute_command(*command)

    async def ready(self) -> None:
        """Wait until it serves; its log tells why not."""

        async def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex((HOST, self.port)) == 0 and (bool(self.sentinel) or await self._pong())

        await until(answers)

    async def _pong(self) -> bool:
        if self.options.get("port") == "0":
            return True  # TLS, where clients want certificates
        try:
            return bool(self.ask("PING"))
        except redis.RedisError:
            return False


def url(scheme: str, user: str, servers: list[Server], rest: str = "") -> str:
    """A URL for one of the shipped file's users."""
    hosts = ",".join(f"{HOST}:{server.port}" for server in servers)
    return f"{scheme}://{user}:change-{user}@{hosts}{rest}"


@contextlib.contextmanager
def started(servers: list[Server]) -> Iterator[list[Server]]:
    """Servers that run while the block does."""
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.kill()


async def form_cluster(nodes: list[Server]) -> None:
    """Share all slots out among the nodes, and wait until they agree."""
    share = -(-16384 // len(nodes))
    for number, node in enumerate(nodes):
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        node.ask("CLUSTER", "ADDSLOTSRANGE", number * share, min((number + 1) * share, 16384) - 1)
    for node in nodes[1:]:
        node.ask("CLUSTER", "MEET", HOST, nodes[0].port, nodes[0].options["cluster-port"])

    async def agreed() -> bool:
        infos = [node.ask("CLUSTER", "INFO").decode().split() for node in nodes]
        return all({"cluster_state:ok", f"cluster_size:{len(nodes)}"} <= set(info) for info in infos)

    await until(agreed)
