"""The README's Python blocks do what they say."""

import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import Running

README = Path(__file__).parents[2] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_python_block_runs_against_a_mesh(mesh: Running) -> None:
    """The block prints a label and a subnet whose accuracy is at least what it asks for."""
    (block,) = (block for block in blocks() if "127.0.0.1:8000" in block)
    code = block.replace("127.0.0.1:8000", mesh.url.removeprefix("http://")).replace('"slo_ms": 50', '"slo_ms": 10000')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\[\d\] d\S+\n", done.stdout), done.stdout


def test_python_block_inserts_and_actuates() -> None:
    """The block of at most 30 lines makes a supernet of a plain ResNet, and runs three subnets of it."""
    (block,) = (block for block in blocks() if "insert(" in block)
    assert block.count("\n") <= 30
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    space, left, *subnets = done.stdout.splitlines()
    assert space.startswith("Space(depth=((1, 2, 3), (1, 2, 3))")
    assert "it is the network's output" in left
    assert [line.split()[0] for line in subnets] == ["d1-w25-e25", "d2.3-w50.100-e50", "d3-w100-e100"]
    assert all(line.endswith("torch.Size([64, 10])") for line in subnets)
