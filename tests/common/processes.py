"""Programs of ours in processes of their own, and what tests ask the kernel about other processes."""

import contextlib
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from common.embedded import die_with_parent


@dataclass(frozen=True)
class Program:
    """A process, what it prints, and what it logs."""

    process: "subprocess.Popen[str]"
    log: IO[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """Wait for a line on its stdout."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self, number: int | None = None) -> tuple[int, str, str]:
        """Send a signal, if one is given, and wait: return exit code, the rest of stdout, and stderr."""
        if number is not None:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        out = self.process.stdout.read()  # not communicate(), which forgets what line() has read ahead
        code = self.process.wait()
        self.log.seek(0)
        return code, out, self.log.read()


@contextlib.contextmanager
def program(module: str, *arguments: str) -> Iterator[Program]:
    """``python -m module arguments``, with warnings as errors; killed when the block ends, if it still lives."""
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [sys.executable, "-W", "error", "-m", module, *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=die_with_parent,
        ) as process,
    ):
        try:
            yield Program(process, log)
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    """Return the processes that ``pid`` has started and that live."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in tasks for child in path.read_text().split()]


def command_line(pid: int) -> str:
    """Return how a process was started."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def wait_until_gone(pid: int, timeout_s: float = 20.0) -> None:
    """Wait for the end of any process, whoever its parent is; TimeoutError tells what lives on."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([handle], [], [], timeout_s)[0]:
            raise TimeoutError(f"still there after {timeout_s} s: {pid} {command_line(pid)}")
    finally:
        os.close(handle)
