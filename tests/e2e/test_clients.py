"""Every block of docs/clients.md does what the page says, where its program is installed."""

import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator

import pytest

from tests.e2e import pages
from tests.e2e.pages import Place

BLOCKS = pages.blocks(pages.ROOT / "docs" / "clients.md")
SAVED = [block for block in BLOCKS if block.file is not None]
(START,) = [block for block in BLOCKS if "superserve up" in block.code]
SCRIPTS = [block.code for block in BLOCKS if block.language == "python" and block.file is None]
COMMANDS = [block.code for block in BLOCKS if block.language == "sh" and block is not START]
# Of a command: what its output says when it went well.
SIGNS = {
    "curl": r'"label_name":|"data":\[\d\]',
    "python3": r'"subnet":"',
    "perf_analyzer": r"Successful request count: [1-9]",
    "wrk": r"[1-9]\d* requests in(?![\s\S]*Non-2xx)",
    "locust": r"Aggregated +[1-9]\d* +0\(0\.00%\)",
    "k6": r"checks_succeeded\D*100\.00%",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The mesh that the page starts, with an emulated worker, and the files that it has one save."""
    with pages.place(tmp_path_factory.mktemp("clients")) as place:
        place.serve(START, "--executor", "emulated", "--profile", "rtx2080ti-reconstructed")
        for block in SAVED:
            place.save(block)
        yield place


def test_page_has_every_client() -> None:
    """The page has a call of each client, and no block that these tests would pass over."""
    assert {re.match(r"\w+", code)[0] for code in COMMANDS} == SIGNS.keys()  # type: ignore[index]
    assert {block.file for block in SAVED} == {"infer.lua", "locustfile.py", "infer.js"}
    assert len(SCRIPTS) == 4
    assert len(BLOCKS) == len(SCRIPTS) + len(COMMANDS) + len(SAVED) + 1
    assert not any(block.why_not for block in BLOCKS)


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
