"""perf_analyzer's requests, as captured on the wire from the program in tritonclient 2.50; the pinned one has none."""

import orjson

from tests.gateway.conftest import Client, image
from tests.gateway.mesh import MODEL

TENSOR = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "parameters": {"binary_data_size": 784}}
OUTPUTS = [{"name": name, "parameters": {"binary_data": True}} for name in ("label", "scores")]
HEADER = orjson.dumps({"id": "", "inputs": [TENSOR], "outputs": OUTPUTS, "parameters": {"timeout": 10_000_000}})


async def count(client: Client) -> tuple[int, int, int]:
    """What it reads around each window: (inferences, executions, successes)."""
    (stats,) = (await client.get(f"/v2/models/{MODEL}/stats")).document["model_stats"]
    successes = stats["inference_stats"]["success"]
    assert (successes["count"] == 0) == (successes["ns"] == 0)
    return stats["inference_count"], stats["execution_count"], successes["count"]


async def test_sequence(client: Client) -> None:
    """Metadata, configuration, extensions, and statistics that differ by what was sent between two readings."""
    metadata = (await client.get(f"/v2/models/{MODEL}")).document
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["image"]
    config = (await client.get(f"/v2/models/{MODEL}/config")).document
    assert config["max_batch_size"] >= 1
    assert not {"ensemble_scheduling", "sequence_batching", "model_transaction_policy"} & config.keys()
    assert "statistics" in (await client.get("/v2")).document["extensions"]
    for window in range(3):
        assert await count(client) == (5 * window,) * 3
        for _ in range(5):
            headers = {"Inference-Header-Content-Length": str(len(HEADER)), "Content-Type": "application/octet-stream"}
            reply = await client.infer(HEADER + image(), headers=headers)
            assert (reply.status, len(reply.raw)) == (200, 8 + 40)
