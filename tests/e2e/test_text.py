"""The text model that ships, behind the whole mesh: texts in, right labels out, by the clients that people have."""

import asyncio
import json
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as triton

from loadgen.replay import ReplayOptions, replay
from services.worker.library import find_model
from tests.e2e.conftest import Running, launch

MODEL = "rated-text-tiny"
SLO_MS = 10_000.0  # these tests are about answers, not about speed
AT_LEAST = 0.7  # of the labels right: any subnet of the model is better than that


@pytest.fixture(scope="module")
def text_mesh() -> Iterator[Running]:
    with launch("--model", MODEL) as running:
        yield running


@pytest.fixture(scope="module")
def samples() -> tuple[list[str], list[int]]:
    data = json.loads((find_model(MODEL) / "samples.json").read_text())
    return data["text"], data["labels"]


def test_curl_with_a_text(text_mesh: Running) -> None:
    """A text posted as such is answered with a label in words."""
    request = urllib.request.Request(
        f"{text_mesh.url}/v2/models/{MODEL}/infer?slo_ms={SLO_MS:g}",
        b"A wonderful film, I loved every minute of it.",
        {"Content-Type": "text/plain; charset=utf-8"},
    )
    with urllib.request.urlopen(request) as response:
        answer = json.loads(response.read())
    assert answer["parameters"]["label_name"] == "positive"
    assert answer["parameters"]["executor"] == "torch"


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_tritonclient_gets_the_labels_right(
    text_mesh: Running, samples: tuple[list[str], list[int]], binary: bool
) -> None:
    """``tritonclient[http]`` sends texts in batches, as raw bytes and as JSON."""
    texts, labels = samples
    right = 0
    with triton.InferenceServerClient(text_mesh.url.removeprefix("http://")) as client:
        for start in range(0, 64, 8):
            rows = np.array([[text.encode()] for text in texts[start : start + 8]], dtype=np.object_)
            tensor = triton.InferInput("text", [8, 1], "BYTES")
            tensor.set_data_from_numpy(rows, binary_data=binary)
            result = client.infer(MODEL, [tensor], parameters={"slo_ms": SLO_MS})
            right += int((result.as_numpy("label") == labels[start : start + 8]).sum())
    assert right >= AT_LEAST * 64


def test_replay_with_true_labels(text_mesh: Running) -> None:
    """``loadgen replay`` finds the shipped snippets by itself, and counts right labels."""
    options = ReplayOptions(
        url=text_mesh.url, model=MODEL, trace="poisson", rate=20, duration_s=4, slo_ms=SLO_MS, seed=0
    )
    report = asyncio.run(replay(options))
    assert report.answered == report.queries
    assert report.label_accuracy is not None
    assert report.label_accuracy >= 100 * AT_LEAST
