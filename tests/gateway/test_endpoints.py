"""Endpoints beside inference, and HTTP itself."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from tests.gateway.conftest import Client, binary_header, image, json_request
from tests.gateway.mesh import FakeMesh

HEAD = "POST /v2/models/fashion/infer HTTP/1.1\r\nHost: x\r\n"


async def talk(client: Client, data: bytes) -> tuple[int, Any]:
    """Send bytes as they are; return status and JSON body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.gateway.port)
    writer.write(data)
    async with asyncio.timeout(5):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if " 100 " in head:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        body = await reader.readexactly(length)
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), orjson.loads(body)


async def test_metadata(client: Client) -> None:
    """Server and model metadata are what the protocol says, with and without version, with and without slash."""
    for path in ("/v2", "/v2/"):
        server = (await client.get(path)).document
        assert server["name"] == "superserve"
        assert "binary_tensor_data" in server["extensions"]
    for path in ("/v2/models/fashion", "/v2/models/fashion/versions/1", "/v2/models/%66ashion"):
        model = (await client.get(path)).document
        assert (model["name"], model["versions"]) == ("fashion", ["1"])
        assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28]}]
        assert model["outputs"][1] == {"name": "label", "datatype": "INT64", "shape": [-1]}
    config = (await client.get("/v2/models/fashion/config")).document
    assert config["max_batch_size"] == 16
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [28, 28]}]
    assert (await client.get("/v2/models/fashion/versions/1/ready")).document == {"name": "fashion", "ready": True}
    index = {"name": "fashion", "version": "1", "state": "READY", "reason": ""}
    assert (await client.request("POST", "/v2/repository/index")).document == [index]
    assert (await client.get("/v2/models")).document == {"models": [index]}


async def test_statistics_and_metrics_count(client: Client) -> None:
    """Queries show in Triton's statistics and in Prometheus' metrics, good and bad ones apart."""
    await client.infer_binary(binary_header(3), image(3))
    await client.infer(b"nonsense")
    for path in ("/v2/models/stats", "/v2/models/fashion/stats", "/v2/models/fashion/versions/1/stats"):
        (stats,) = (await client.get(path)).document["model_stats"]
        assert (stats["inference_count"], stats["inference_stats"]["success"]["count"]) == (3, 1)
        assert stats["inference_stats"]["fail"]["count"] == 1
        assert stats["inference_stats"]["compute_infer"]["ns"] == 1_500_000
    metrics = await client.get("/metrics")
    assert metrics.headers["Content-Type"].startswith("text/plain")
    lines = metrics.body.decode().splitlines()
    assert 'superserve_gateway_queries_total{model="fashion",outcome="answered"} 1.0' in lines
    assert 'superserve_gateway_queries_total{model="fashion",outcome="invalid"} 1.0' in lines
    assert 'superserve_gateway_subnet_queries_total{model="fashion",subnet="large"} 1.0' in lines
    assert 'superserve_gateway_latency_seconds_count{model="fashion"} 1.0' in lines
    assert "superserve_gateway_pending_queries 0.0" in lines


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/page", 404, "no route '/page'"),
        ("GET", "/page/static.py", 404, "no route"),
        ("POST", "/", 405, "only GET, HEAD"),
        ("GET", "/v2/nothing", 404, "no route"),
        ("GET", "/v2/models/fashion/nothing", 404, "no route"),
        ("GET", "/v2/models/other", 404, "known models: fashion"),
        ("POST", "/v2/models/other/infer", 404, "known models: fashion"),
        ("POST", "/v2/models/fashion/versions/2/infer", 404, "has no version '2', only '1'"),
        ("GET", "/v2/models/fashion/infer", 405, "only POST"),
        ("DELETE", "/v2", 405, "only GET, HEAD"),
        ("GET", "/v2/repository/index", 405, "only POST"),
    ],
)
async def test_wrong_paths_and_methods(client: Client, method: str, path: str, status: int, words: str) -> None:
    """Unknown paths are 404, known ones with another method 405 with Allow; all errors are JSON."""
    reply = await client.request(method, path)
    assert reply.status == status
    assert words in reply.error
    assert ("Allow" in reply.headers) == (status == 405)


async def test_head_is_get_without_a_body(client: Client) -> None:
    """HEAD is allowed wherever GET is."""
    reply = await client.request("HEAD", "/v2/health/live")
    assert (reply.status, reply.body) == (200, b"")


async def test_bodies_beyond_the_limit(mesh: FakeMesh, connect: Callable[..., Any]) -> None:
    """A body above --max-body-bytes is a 413 that names the limit, announced by its length or coming in chunks."""
    client = await connect(max_body_bytes=2_000)
    reply = await client.infer(bytes(2_001))
    assert reply.status == 413
    assert "2001 bytes exceeds the limit of 2000" in reply.error

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield bytes(1_000)

    reply = await client.request("POST", "/v2/models/fashion/infer", data=chunks())
    assert reply.status == 413
    assert "limit of 2000" in reply.error


async def test_malformed_http_is_a_json_400(client: Client) -> None:
    """What is no HTTP is answered 400, in JSON like every error."""
    for data in (b"NO HTTP AT ALL\r\n\r\n", f"{HEAD}Content-Length: -5\r\n\r\n".encode()):
        status, document = await talk(client, data)
        assert status == 400
        assert document["error"].startswith("malformed HTTP")


async def test_refusals_are_counted(mesh: FakeMesh, connect: Callable[..., Any]) -> None:
    """A request that names no model is counted once by the reason of its refusal, and no query with it."""
    client = await connect(max_body_bytes=2_000)

    async def counted() -> dict[str, int]:
        text = (await client.get("/metrics")).body.decode()
        found = re.findall(r'refused_requests_total\{protocol="http",reason="(\w+)"\} (\d+)', text)
        return {reason: int(count) for reason, count in found if count != "0"}

    assert await counted() == {}
    await client.get("/nonesuch")
    await client.infer(json_request(), model="nonesuch")
    await client.request("DELETE", "/v2")
    await client.infer(bytes(2_001))
    await talk(client, b"NO HTTP AT ALL\r\n\r\n")
    assert await counted() == {"not_found": 2, "method_not_allowed": 1, "too_large": 1, "malformed": 1}
    assert 'queries_total{model="fashion",outcome="invalid"} 1' not in (await client.get("/metrics")).body.decode()
    await client.infer(b"{")
    assert 'queries_total{model="fashion",outcome="invalid"} 1' in (await client.get("/metrics")).body.decode()


async def test_expect_continue(client: Client) -> None:
    """A client that waits for 100 Continue, as curl does with large bodies, is told to go on."""
    part = orjson.dumps(binary_header())
    length = len(part) + 784
    lengths = f"Inference-Header-Content-Length: {len(part)}\r\nContent-Length: {length}\r\n"
    head = f"{HEAD}{lengths}Expect: 100-continue\r\n\r\n"
    status, document = await talk(client, head.encode() + part + image())
    assert (status, document["model_name"]) == (200, "fashion")
