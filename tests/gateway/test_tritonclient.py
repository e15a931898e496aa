"""NVIDIA's client, unmodified, against ``superserve gateway`` as a process of its own."""

import asyncio
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.gateway.mesh import MODEL

PARAMETERS = {"slo_ms": 10_000}


def image_input(module: Any, *, binary: bool) -> Any:
    pixels = np.full((2, 28, 28), 4, np.uint8)
    tensor = module.InferInput("image", pixels.shape, "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    return tensor


def use_sync_client(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert client.is_model_ready(MODEL, "1")
        assert client.get_model_metadata(MODEL)["outputs"][0]["name"] == "scores"
        assert client.get_model_config(MODEL)["max_batch_size"] == 16
        assert client.get_server_metadata()["name"] == "superserve"
        assert client.get_model_repository_index()[0]["name"] == MODEL
        assert client.get_inference_statistics()["model_stats"]
        for binary_in in (True, False):
            for binary_out in (True, False, None):
                outputs = binary_out is not None and [
                    triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("label", "scores")
                ]
                result = client.infer(
                    MODEL,
                    [image_input(triton, binary=binary_in)],
                    outputs=outputs or None,
                    request_id="seven",
                    model_version="1",
                    priority=1,
                    timeout=5_000_000,
                    parameters=PARAMETERS,
                )
                assert result.as_numpy("label").tolist() == [4, 4]
                assert result.as_numpy("scores").shape == (2, 10)
                assert result.get_response()["id"] == "seven"
        for algorithm in ("gzip", "deflate"):
            result = client.infer(
                MODEL,
                [image_input(triton, binary=True)],
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
                parameters=PARAMETERS,
            )
            assert result.as_numpy("label").tolist() == [4, 4]
        with pytest.raises(InferenceServerException, match=r"reaches 93\.5"):
            client.infer(MODEL, [image_input(triton, binary=True)], parameters={"min_accuracy": 99})
        with pytest.raises(InferenceServerException, match="no model 'other'"):
            client.infer("other", [image_input(triton, binary=True)])


async def test_sync_client(address: str) -> None:
    """The synchronous client: metadata, JSON and binary both ways, compression, and errors in our words."""
    await asyncio.to_thread(use_sync_client, address)


async def test_aio_client(address: str) -> None:
    """The asyncio client, which sends JSON bodies as application/octet-stream: versions, compression, errors."""
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(MODEL, "1")
        assert (await client.get_model_metadata(MODEL, "1"))["versions"] == ["1"]
        assert (await client.get_model_config(MODEL, "1"))["max_batch_size"] == 16
        for binary in (True, False):
            for version in ("", "1"):
                for algorithm in (None, "gzip", "deflate"):
                    result = await client.infer(
                        MODEL,
                        [image_input(triton_aio, binary=binary)],
                        model_version=version,
                        request_compression_algorithm=algorithm,
                        response_compression_algorithm=algorithm,
                        parameters=PARAMETERS,
                    )
                    assert result.as_numpy("label").tolist() == [4, 4]
        with pytest.raises(InferenceServerException, match="has no version '2'"):
            await client.infer(MODEL, [image_input(triton_aio, binary=True)], model_version="2")
        with pytest.raises(InferenceServerException, match=r"reaches 93\.5"):
            await client.infer(MODEL, [image_input(triton_aio, binary=True)], parameters={"min_accuracy": 99})
