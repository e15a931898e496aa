"""KServe's client, unmodified, against ``superserve gateway`` as a process of its own.

KServe's package brings sixty others and pins of its own, so no setup of ours installs it.
"""

import asyncio

import numpy as np
import pytest

from tests.gateway.mesh import MODEL

kserve = pytest.importorskip("kserve", reason="KServe's client is not installed")
infer_type = pytest.importorskip("kserve.protocol.infer_type")


def request(*, binary: bool) -> object:
    pixels = np.full((2, 28, 28), 4, np.uint8)
    tensor = kserve.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    outputs = [infer_type.RequestedOutput(name, {"binary_data": binary}) for name in ("label", "scores")]
    return kserve.InferRequest(MODEL, [tensor], "seven", parameters={"slo_ms": 10_000}, request_outputs=outputs)


async def use_client(address: str) -> None:
    url = f"http://{address}"
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", retries=0))
    try:
        assert await client.is_server_live(url)
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, MODEL)
        for binary in (True, False):
            answer = await client.infer(url, request(binary=binary), model_name=MODEL)
            labels = next(output for output in answer.outputs if output.name == "label")
            assert labels.as_numpy().tolist() == [4, 4]
            assert (answer.id, answer.parameters["subnet"]) == ("seven", "large")
        with pytest.raises(Exception, match="404"):
            await client.infer(url, request(binary=False), model_name="other")
    finally:
        await client.close()


async def test_client(address: str) -> None:
    """Liveness, readiness, JSON and binary tensors, and an error of ours, as a coroutine."""
    await use_client(address)


async def test_client_of_a_synchronous_program(address: str) -> None:
    """The same from a thread whose loop is its own, which is how a synchronous program uses this client."""
    await asyncio.to_thread(lambda: asyncio.run(use_client(address)))
