"""The whole mesh as a user runs it: ``superserve up`` in processes of its own, with the shipped model."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from common.embedded import die_with_parent

Launch = Callable[..., AbstractContextManager["Running"]]


@dataclass(frozen=True)
class Running:
    """A mesh that serves."""

    url: str
    process: psutil.Process

    def services(self, kind: str) -> list[psutil.Process]:
        """Return the processes of one kind of service, oldest first."""
        children = [child for child in self.process.children() if kind in child.cmdline()[1:4]]
        return sorted(children, key=lambda child: child.create_time())

    def start_worker(self, *flags: str) -> "subprocess.Popen[bytes]":
        """Launch one more worker against the same Redis, as a user would to scale out."""
        known = self.services("worker")[0]
        return subprocess.Popen([*known.cmdline(), *flags], env=known.environ(), preexec_fn=die_with_parent)


@contextlib.contextmanager
def launch(*flags: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """``superserve up --port 0`` with these flags, run in a folder; ended by SIGTERM, and its exit code must be 0."""
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "up", "--port", "0", *flags],
        stdout=subprocess.PIPE,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        preexec_fn=die_with_parent,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline().decode()
        assert line.startswith("ready http://"), f"not ready: {line!r}"
        yield Running(line.split()[1], psutil.Process(process.pid))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=40) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def mesh() -> Iterator[Running]:
    """One mesh with one torch worker for the tests of a module."""
    with launch() as running:
        yield running


@pytest.fixture
def start() -> Launch:
    """Start a mesh of one's own."""
    return launch
