"""The README's first command, in its quick form."""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
FIELDS = {
    "queries", "answered", "errors", "slo_attainment", "serving_accuracy", "label_accuracy", "latency_ms",
    "offered_qps", "goodput_qps", "subnets", "batch_size_mean", "sender_lag_ms", "policy", "executor", "seed", "trace",
}  # fmt: skip


def test_quick_demo_writes_report_and_plot(tmp_path: Path) -> None:
    """The demo ends well and leaves one full report per policy of the same trace, a plot, and no process behind."""
    environment = {key: value for key, value in os.environ.items() if key != "REDIS_URL"}
    done = subprocess.run(
        [sys.executable, "scripts/demo.py", "--quick", "--out", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "SLO attainment" in done.stdout
    runs = json.loads((tmp_path / "report.json").read_bytes())["runs"]
    assert [run["policy"] for run in runs] == ["foresight", "slackfit", "fixed:largest", "fixed:smallest"]
    for run in runs:
        assert run.keys() >= FIELDS
        assert run["answered"] + run["errors"] == run["queries"] > 0
        assert run["executor"] == "torch"
    assert len({(run["trace"], run["seed"], run["queries"]) for run in runs}) == 1
    assert len(runs[2]["subnets"]) == len(runs[3]["subnets"]) == 1
    with Image.open(tmp_path / "report.png") as image:
        assert min(image.size) > 400
