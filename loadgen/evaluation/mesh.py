"""A real mesh of emulated workers, started as a user starts one: `superserve up`, and a Redis that is its own.

Whatever Redis the environment names is left alone: emulated workers must never join a mesh that serves.
"""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import embedded
from common.errors import ConfigError
from loadgen.errors import InputError, LoadgenError

MODEL = "fashion-resnet"  # shipped; emulated workers take its tensors and the profile's time
READY = "ready "  # first word of the line that `superserve up` prints once a query would be served
_END_S = 30.0  # its grace period, and three times that of a process that hangs
_TOLD = 2_000  # characters of its log that an error tells


class MeshError(LoadgenError):
    """The mesh did not become ready, or did not end as it should; the message has its own words."""


def find_superserve() -> Path:
    """The script `superserve` of the environment that this runs in. InputError if it is not installed there."""
    path = Path(sysconfig.get_path("scripts")) / "superserve"
    if not path.is_file():
        raise InputError("live", path, "no such program: install superserve-mesh into the environment of loadgen")
    return path


@contextmanager
def emulated_mesh(profile: Path, policy: str, workers: int, folder: Path) -> Iterator[str]:
    """Run a mesh and yield its URL once a query would be served. MeshError if it fails.

    profile: a file. folder: for `events.jsonl`, what the scheduler was told, whole once the block has ended, and
    `mesh.log`. The processes end with the block, however it ends, and with this process.
    """
    program, log = find_superserve(), folder / "mesh.log"
    try:
        with embedded.server() as redis, log.open("wb") as stderr:
            process = subprocess.Popen(  # noqa: S603 - our own program
                [
                    *(str(program), "up", "--redis", redis, "--port", "0", "--model", MODEL, "--log-level", "warning"),
                    *("--executor", "emulated", "--profile", str(profile), "--workers", str(workers)),
                    *("--policy", policy, "--event-log", str(folder / "events.jsonl")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,  # a Ctrl-C is ours: it ends the run, and that the mesh
                preexec_fn=embedded.die_with_parent,  # noqa: PLW1509 - it makes one system call and takes no lock
            )
            assert process.stdout is not None
            try:
                line = process.stdout.readline().decode()
                if not line.startswith(READY):
                    raise MeshError(f"the mesh did not become ready: {_told(log)}")
                yield line.removeprefix(READY).strip()
            finally:
                code = embedded.stop(process, _END_S)
                process.stdout.close()
    except ConfigError as error:
        raise MeshError(error.message) from None
    if code:
        raise MeshError(f"the mesh ended with code {code}: {_told(log)}")


def _told(log: Path) -> str:
    return log.read_text(errors="replace")[-_TOLD:].strip() or "it logged nothing"
