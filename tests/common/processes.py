"""What tests ask the kernel about processes that are not their own children."""

import os
import select
from pathlib import Path


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
