"""Processes of a mesh on one machine: start one, wait until it serves, end them in the order in which queries flow."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from common import embedded, wire
from common.errors import ConfigError
from common.settings import child_environment
from common.streams import Streams, StreamsError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import IO

POLL_S = 0.05
READY = b"ready "  # first word of the line that a gateway prints once it listens
ORDER = ("gateway", "worker", "scheduler")  # as queries flow: each kind drains into the next


@dataclass(frozen=True, slots=True)
class Child:
    """One process of the mesh."""

    kind: str
    number: int
    process: asyncio.subprocess.Process

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.returncode is None

    def __str__(self) -> str:
        return f"{self.kind}-{self.number}"


class Mesh:
    """Services of this project as child processes around one Redis.

    ``flags`` go to every service; ``log`` takes what they log (default: our own stderr). A child gets SIGTERM from the
    kernel if this process ends without ending it, and no Ctrl-C from the terminal: we end them in order.
    """

    def __init__(self, redis_url: str, flags: Iterable[str] = (), log: IO[bytes] | None = None) -> None:
        self.redis_url = redis_url
        self.children: list[Child] = []
        self._stopped: set[Child] = set()  # by us
        self._flags = tuple(flags)
        self._log = log

    async def start(self, kind: str, *flags: str) -> Child:
        """Start a ``gateway``, ``scheduler`` or ``worker`` with these flags; does not wait until it serves."""
        number = 1 + sum(child.kind == kind for child in self.children)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "services.cli", kind, *self._flags, *flags),
            stdin=asyncio.subprocess.DEVNULL,
            # Only a gateway has a line for us; a pipe that nobody empties would block its writer one day.
            stdout=asyncio.subprocess.PIPE if kind == "gateway" else asyncio.subprocess.DEVNULL,
            stderr=self._log,
            env=child_environment(self.redis_url),
            start_new_session=True,
            preexec_fn=embedded.die_with_parent,
        )
        child = Child(kind, number, process)
        self.children.append(child)
        return child

    async def start_gateway(self, *flags: str) -> str:
        """Start a gateway and return its URL once it listens; ConfigError if it ends before."""
        child = await self.start("gateway", *flags)
        assert child.process.stdout is not None
        line = await child.process.stdout.readline()
        if not line.startswith(READY):
            code = await child.process.wait()
            raise ConfigError(f"{child} ended with code {code} before it listened; its log says why")
        return line.removeprefix(READY).decode().strip()

    async def wait_for_workers(self, model: str, count: int, policy: str | None = None) -> wire.Status:
        """Wait until the model's scheduler (of this policy, if given) counts so many workers; return its status.

        Raises ConfigError with the scheduler's words if it refuses one, or if a process has ended by itself.
        """
        streams = Streams(self.redis_url)
        try:
            while True:
                self._check_alive()
                with contextlib.suppress(StreamsError):
                    document = (await streams.read_statuses()).get(model)
                    status = wire.decode(document) if document else None
                    if isinstance(status, wire.Status) and policy in (None, status.policy):
                        if status.problems:
                            raise ConfigError("; ".join(status.problems))
                        if len(status.workers) >= count:
                            return status
                await asyncio.sleep(POLL_S)
        finally:
            await streams.close()

    async def wait_until_ready(self, url: str) -> None:
        """Wait until the gateway at ``url`` says that a query would be served."""
        async with aiohttp.ClientSession() as session:
            while True:
                self._check_alive()
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{url}/v2/health/ready") as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(POLL_S)

    def _check_alive(self) -> None:
        for child in self.children:
            if not child.alive and child not in self._stopped:
                raise ConfigError(f"{child} ended with code {child.process.returncode}; its log says why")

    async def stop(self, *children: Child) -> None:
        """End processes by SIGTERM and wait for them; each has its own grace period."""
        self._stopped.update(children)
        for child in children:
            if child.alive:
                with contextlib.suppress(ProcessLookupError):
                    child.process.send_signal(signal.SIGTERM)
        for child in children:
            await child.process.wait()

    async def stop_all(self) -> None:
        """End gateways, then workers, then schedulers, each after it has drained; kill what is left if interrupted."""
        try:
            for kind in ORDER:
                await self.stop(*(child for child in self.children if child.kind == kind))
        finally:
            for child in self.children:
                if child.alive:
                    child.process.kill()
