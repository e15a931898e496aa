"""The README's Python blocks do what they say; test_docs runs its shell blocks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton

from tests.e2e import pages
from tests.e2e.conftest import Running, launch


def blocks() -> list[str]:
    return [block.code for block in pages.blocks(pages.ROOT / "README.md") if block.language == "python"]


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


def test_policy_of_at_most_20_lines_schedules(tmp_path: Path) -> None:
    """The block, saved where `superserve up` is run, is the policy of mesh and simulator, and takes its option."""
    (block,) = (block for block in blocks() if "class Cautious" in block)
    assert len([line for line in block.splitlines() if line.strip()]) <= 20
    (tmp_path / "cautious.py").write_text(block)
    arguments = ("--policy", "cautious:Cautious", "--rate", "2000", "--duration", "1", "--out", "-")
    command = (str(Path(sys.executable).parent / "loadgen"), "simulate", *arguments)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    report = json.loads(done.stdout)
    assert report["policy"] == "cautious:Cautious:share=0.5"
    assert report["slo_attainment"] > 0.99
    emulated = ("--executor", "emulated", "--profile", "rtx2080ti-reconstructed")
    with (
        launch(*emulated, "--policy", "cautious:Cautious:share=0.4", cwd=tmp_path) as running,
        triton.InferenceServerClient(running.url.removeprefix("http://")) as client,
    ):
        image = triton.InferInput("image", [1, 28, 28], "UINT8")
        image.set_data_from_numpy(np.zeros((1, 28, 28), np.uint8))
        answer = client.infer("fashion-resnet", [image], parameters={"slo_ms": 10_000}).get_response()
    assert answer["parameters"]["policy"] == "cautious:Cautious:share=0.4"
    assert answer["parameters"]["subnet"] == "80.16"  # ten seconds are enough for the most accurate
