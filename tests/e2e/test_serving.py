"""The shipped supernet behind the shipped mesh: right labels through the clients that people have."""

import asyncio
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.http as triton
from PIL import Image
from safetensors.numpy import load_file

from loadgen.replay import ReplayOptions, replay
from services.worker.library import find_model
from tests.e2e.conftest import Running

MODEL = "fashion-resnet"
SLO_MS = 10_000.0  # these tests are about answers, not about speed
AT_LEAST = 0.8  # of the labels right: any subnet of the model is better than that


@pytest.fixture(scope="module")
def samples() -> dict[str, npt.NDArray[Any]]:
    """The shipped test images and their true labels."""
    return load_file(find_model(MODEL) / "samples.safetensors")


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_tritonclient_gets_the_labels_right(mesh: Running, samples: dict[str, npt.NDArray[Any]], binary: bool) -> None:
    """``tritonclient[http]`` infers real images in batches, its tensors binary or JSON both ways."""
    right = 0
    with triton.InferenceServerClient(mesh.url.removeprefix("http://")) as client:
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        for start in range(0, 64, 8):
            images = samples["images"][start : start + 8]
            tensor = triton.InferInput("image", list(images.shape), "UINT8")
            tensor.set_data_from_numpy(images, binary_data=binary)
            wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("label", "scores")]
            result = client.infer(MODEL, [tensor], outputs=wanted, parameters={"slo_ms": SLO_MS})
            labels, scores = result.as_numpy("label"), result.as_numpy("scores")
            assert scores.shape == (8, 10)
            assert np.allclose(scores.sum(axis=1), 1.0, atol=1e-4)
            assert (scores.argmax(axis=1) == labels).all()
            right += int((labels == samples["labels"][start : start + 8]).sum())
    assert right >= AT_LEAST * 64


def test_curl_with_a_png(mesh: Running, samples: dict[str, npt.NDArray[Any]]) -> None:
    """A PNG posted as such is answered with a label in words."""
    import json
    import urllib.request

    buffer = io.BytesIO()
    Image.fromarray(samples["images"][1]).save(buffer, "PNG")
    request = urllib.request.Request(
        f"{mesh.url}/v2/models/{MODEL}/infer?slo_ms={SLO_MS:g}", buffer.getvalue(), {"Content-Type": "image/png"}
    )
    with urllib.request.urlopen(request) as response:
        answer = json.loads(response.read())
    label = next(output["data"][0] for output in answer["outputs"] if output["name"] == "label")
    assert (
        answer["parameters"]["label_name"]
        == json.loads((find_model(MODEL) / "supernet.json").read_text())["labels"][label]
    )
    assert answer["parameters"]["executor"] == "torch"


def test_replay_reports_every_query_once(mesh: Running) -> None:
    """A replay of real images ends with as many answers and errors as queries, and labels mostly right."""
    options = ReplayOptions(url=mesh.url, model=MODEL, trace="poisson", rate=60, duration_s=3, slo_ms=SLO_MS, seed=3)
    report = asyncio.run(replay(options))
    assert report.answered + report.errors == report.queries > 100
    assert report.errors == 0, report.errors_by_status
    assert report.executor == "torch"
    assert report.label_accuracy is not None
    assert report.label_accuracy >= AT_LEAST * 100
    assert abs(sum(report.subnets.values()) - 1) < 1e-6


def test_policy_bends_accuracy_with_the_slo(mesh: Running) -> None:
    """With a long SLO the largest subnet serves; no query below its stated minimum accuracy ever is."""
    options = ReplayOptions(url=mesh.url, model=MODEL, trace="constant", rate=5, duration_s=2, slo_ms=SLO_MS, seed=1)
    report = asyncio.run(replay(options))
    pareto = sorted(report.subnets)
    assert len(pareto) == 1, report.subnets
    with triton.InferenceServerClient(mesh.url.removeprefix("http://")) as client:
        tensor = triton.InferInput("image", [1, 28, 28], "UINT8")
        tensor.set_data_from_numpy(np.zeros((1, 28, 28), np.uint8))
        answer = client.infer(MODEL, [tensor], parameters={"slo_ms": SLO_MS}).get_response()["parameters"]
    assert answer["subnet"] == pareto[0]
