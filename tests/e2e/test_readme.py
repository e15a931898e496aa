"""The README's Python block does what it says."""

import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import Running

README = Path(__file__).parents[2] / "README.md"


def test_python_block_runs_against_a_mesh(mesh: Running) -> None:
    """The block prints a label and a subnet whose accuracy is at least what it asks for."""
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert "127.0.0.1:8000" in block
    code = block.replace("127.0.0.1:8000", mesh.url.removeprefix("http://")).replace('"slo_ms": 50', '"slo_ms": 10000')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\[\d\] d\S+\n", done.stdout), done.stdout
