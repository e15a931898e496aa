"""The code blocks of a page of Markdown, and a place in which they run as its reader would run them.

- ``sh`` runs in bash and must end with 0. ``console`` has its commands behind ``$ ``; each line below one is printed by
  it, numbers and white space apart, and ``...`` stands for lines left out. ``python`` runs as a script.
- A block whose first line is a comment with the name of a file is saved under that name instead.
- ``superserve up`` goes on in the background, and what follows talks to it in place of 127.0.0.1:8000.
- A block that is not run says why, in a comment before it: ``<!-- not run: needs a GPU -->``.
"""

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.e2e.conftest import Running, launch

ROOT = Path(__file__).parents[2]
RUN = ("python", "sh", "console")
HTTP, GRPC = "127.0.0.1:8000", "127.0.0.1:8001"
NOT_HERE = {".git", ".venv", "out"}
TIMEOUT_S = 240
_BLOCK = re.compile(r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
_TITLE = re.compile(r"(?:--|#|//) ([\w/.-]+\.\w+)\n")
_UP = re.compile(r"(?:\w+=\S+ )*superserve up\b")
# As a reader's shell, but that a status of 400 and above is a failure, and that nothing is drawn while it lasts.
_SHELL = 'set -euo pipefail; curl() { command curl --fail-with-body -sS "$@"; }\n'


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. ``why_not``: the reason for which it is not run, None if it is."""

    where: str
    language: str
    code: str
    why_not: str | None

    @property
    def file(self) -> str | None:
        """The name under which a reader is to save it."""
        title = _TITLE.match(self.code)
        return title[1] if title else None

    @property
    def runs(self) -> bool:
        """Whether it is to be run."""
        return self.language in RUN and self.file is None and self.why_not is None

    @property
    def commands(self) -> str:
        """What a reader types: all but the output that a ``console`` shows."""
        if self.language != "console":
            return self.code
        typed = re.findall(r"^\$ ((?:.*\\\n)*.*)$", self.code, re.M)
        return "\n".join(typed)

    @property
    def shown(self) -> list[str]:
        """The lines that a ``console`` says are printed."""
        output = re.sub(r"^\$ (?:.*\\\n)*.*\n?", "", self.code, flags=re.M)
        return [line for line in output.splitlines() if line.strip() not in ("", "...")]


def blocks(page: Path) -> list[Block]:
    """Every block of a page, in order."""
    text = page.read_text()
    return [
        Block(
            f"{page.name}:{text.count(chr(10), 0, match.start('code'))}",
            match["language"],
            match["code"],
            match["why"],
        )
        for match in _BLOCK.finditer(text)
    ]


class Place:
    """A folder with what a reader of the repository has, and the mesh that the page is about.

    ``http``, ``grpc``: where it listens, once `serve` has started one, or a test has.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.http, self.grpc = folder, HTTP, GRPC
        self._mesh = contextlib.ExitStack()
        for path in ROOT.iterdir():
            if path.name not in NOT_HERE:
                (folder / path.name).symlink_to(path)
        (folder / "out").mkdir()
        Image.fromarray(np.zeros((60, 40, 3), np.uint8)).save(folder / "shirt.png")

    def adapted(self, code: str) -> str:
        """The code of a block with the addresses of this place, programs found by PATH, and SLOs that a machine holds
        which has other things to do."""
        code = code.replace(".venv/bin/", "").replace("localhost:8000", HTTP)
        code = re.sub(r"([?&]slo_ms=|[\"']slo_ms[\"']: ?)\d+", r"\g<1>10000", code)
        code = code.replace("loadgen replay", f"loadgen replay --url http://{self.http}")
        return code.replace(HTTP, self.http).replace(GRPC, self.grpc)

    def save(self, block: Block) -> None:
        """Save a block under its name."""
        assert block.file is not None
        path = self.folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.adapted(block.code))

    def do(self, block: Block) -> None:
        """Run or save a block; what it prints must be what the page shows."""
        if block.file is not None:
            self.save(block)
        elif block.runs and _UP.match(self.adapted(block.commands)):
            self.serve(block)
        elif block.runs:
            code = self.adapted(block.commands)
            command = [sys.executable, "-c", code] if block.language == "python" else ["bash", "-c", _SHELL + code]
            printed = {_rough(line) for line in self.run(*command, where=block.where).splitlines()}
            missing = [line for line in block.shown if block.language == "console" and _rough(line) not in printed]
            assert not missing, f"{block.where}: {missing} not in {sorted(printed)}"

    def run(self, *command: str, where: str = "") -> str:
        """Return what a command prints; it must end with 0."""
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0, f"{where}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def serve(self, block: Block, *flags: str) -> Running:
        """Start the mesh of a ``superserve up``, on ports of its own, in place of the one before it."""
        self.close()
        words = shlex.split(self.adapted(block.commands), comments=True)
        start = words.index("superserve")
        environment, given = dict(word.split("=", 1) for word in words[:start]), words[start + 2 :]
        if "SUPERSERVE_GRPC_PORT" in environment:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = environment["SUPERSERVE_GRPC_PORT"] = str(probe.getsockname()[1])
            self.grpc = f"127.0.0.1:{port}"
        if "--port" in given:
            place = given.index("--port")
            del given[place : place + 2]
        running = self._mesh.enter_context(launch(*given, *flags, cwd=self.folder, environment=environment))
        self.http = running.url.removeprefix("http://")
        return running

    def close(self) -> None:
        """End the mesh; its exit code must be 0."""
        self._mesh.close()


@contextlib.contextmanager
def place(folder: Path) -> Iterator[Place]:
    """A place whose mesh ends with it."""
    made = Place(folder)
    try:
        yield made
    finally:
        made.close()


def _rough(line: str) -> str:
    """A line without what differs from run to run: its numbers, and how wide a table is."""
    return re.sub(r"[\s│┃|]+", " ", re.sub(r"\d[\d.,]*", "N", line)).strip()
