"""Every block of docs/clients.md does what the page says, where its program is installed."""

import importlib.util
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import launch

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
SAVED = {
    title[1]: code for _, code in BLOCKS if (title := re.match(r"(?:--|#|//) (\w+\.\w+)\n", code)) is not None
}  # blocks to save under a name
SCRIPTS = [code for language, code in BLOCKS if language == "python" and code not in SAVED.values()]
COMMANDS = [code for language, code in BLOCKS if language == "bash"]
# Of a command: what its output says when it went well.
SIGNS = {
    "curl": r'"label_name":|"data":\[\d\]',
    "python3": r'"subnet":"',
    "perf_analyzer": r"Successful request count: [1-9]",
    "wrk": r"[1-9]\d* requests in(?![\s\S]*Non-2xx)",
    "locust": r"Aggregated +[1-9]\d* +0\(0\.00%\)",
    "k6": r"checks_succeeded\D*100\.00%",
}


@dataclass(frozen=True)
class Place:
    """Where the gateway listens, and a folder with the page's files."""

    http: str
    grpc: str
    folder: Path

    def adapted(self, code: str) -> str:
        return code.replace("127.0.0.1:8000", self.http).replace("127.0.0.1:8001", self.grpc)

    def run(self, *command: str) -> str:
        """Return what a command prints; it must end with 0."""
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("clients")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SUPERSERVE_GRPC_PORT", str(port))
        with launch("--executor", "emulated", "--profile", "rtx2080ti-reconstructed") as running:
            place = Place(running.url.removeprefix("http://"), f"127.0.0.1:{port}", folder)
            Image.fromarray(np.zeros((60, 40, 3), np.uint8)).save(folder / "shirt.png")
            for name, code in SAVED.items():
                (folder / name).write_text(place.adapted(code))
            yield place


def test_page_has_every_client() -> None:
    """The page has a call of each client, and no block that these tests would pass over."""
    assert {re.match(r"\w+", code)[0] for code in COMMANDS} == SIGNS.keys()  # type: ignore[index]
    assert set(SAVED) == {"infer.lua", "locustfile.py", "infer.js"}
    assert len(SCRIPTS) == 4
    assert len(BLOCKS) == len(SCRIPTS) + len(COMMANDS) + len(SAVED)


@pytest.mark.parametrize("code", SCRIPTS, ids=lambda code: re.findall(r"tritonclient[\w.]+|kserve", code)[0])
def test_scripts(place: Place, code: str) -> None:
    """A Python block prints a label and the subnet that found it."""
    if "kserve" in code and importlib.util.find_spec("kserve") is None:
        pytest.skip("KServe's client is not installed")
    lines = place.run(sys.executable, "-c", place.adapted(code)).splitlines()
    assert lines
    assert all(re.fullmatch(r"\[\d\] \d\d\.\d+", line) for line in lines), lines


@pytest.mark.parametrize("code", COMMANDS, ids=lambda code: re.findall(r"^\w+", code)[0])
def test_commands(place: Place, code: str) -> None:
    """A shell block ends with 0, and its output says that queries were answered and none failed."""
    program = re.findall(r"^\w+", code)[0]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    assert re.search(SIGNS[program], place.run("bash", "-ec", place.adapted(code)))
