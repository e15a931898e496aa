"""`scripts/bench-subnetact` as a person runs it, briefly: the figures it promises are there and fit together."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/bench_subnetact.py"
pytestmark = pytest.mark.timeout(600)
KEYS = {
    "memory_ratio_extracted",
    "memory_ratio_hosted",
    "memory_ratio_hand_sized",
    "subnets_hosted",
    "weights_over_statistics",
    "actuation_ms",
    "load_ms",
    "load_over_inference",
    "subnetnorm_gain_points",
    "throughput_range",
    "actuated_over_extracted",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bench")
    files = [f"--json={out / 'f.json'}", f"--plot={out / 'p.png'}", f"--work={out / 'work'}"]
    command = [sys.executable, str(SCRIPT), "--quick", "--hosted", "8", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr
    assert "actuated / extracted and folded" in done.stdout
    assert (out / "p.png").read_bytes().startswith(b"\x89PNG")
    assert not list((out / "work").iterdir())
    data: dict[str, Any] = json.loads((out / "f.json").read_text())
    return data


def test_every_figure_is_there(report: dict[str, Any]) -> None:
    """All three models have every key, and the report says when and on what it was measured."""
    assert {"date", "device", "threads", "torch", "paper", "models"} <= report.keys()
    models = report["models"]
    assert len(models) == 3
    for figures in models.values():
        assert figures.keys() >= KEYS
        assert figures["actuation_ms"].keys() == {"p50", "p99"}
        assert figures["load_ms"].keys() == {"warm", "cold"}
    assert models["fashion-resnet"]["subnetnorm_gain_points"].keys() >= {"shared", "largest"}
    assert models["ofa-resnet50"]["subnetnorm_gain_points"] is None  # random weights have no accuracy


def test_the_figures_fit_together(report: dict[str, Any]) -> None:
    """Ratios of memory follow from the bytes beside them, and plans stay within their bound."""
    for figures in report["models"].values():
        mib = figures["memory_mib"]
        whole = mib["weights"] + mib["statistics"] + mib["plans"]
        assert figures["memory_ratio_extracted"] == pytest.approx(sum(mib["extracted"]) / whole)
        assert mib["plans"] <= mib["weights"] / 2 + 0.1 * mib["weights"]
        if mib["hand_sized"]:
            assert figures["memory_ratio_hand_sized"] == pytest.approx(sum(mib["hand_sized"].values()) / whole)
        assert max(mib["extracted"]) <= 1.01 * mib["weights"] + mib["statistics"]
        if figures["memory_ratio_hosted"]:  # the six are among them
            assert figures["memory_ratio_hosted"] > 0.99 * figures["memory_ratio_extracted"]
    assert report["models"]["ofa-resnet50"]["subnets_hosted"] == 8
    gains = report["models"]["fashion-resnet"]["subnetnorm_gain_points"]
    assert min(gains["shared"], gains["largest"]) > 10  # without SubnetNorm accuracy collapses
