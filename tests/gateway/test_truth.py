"""What an answer says of itself: parameters, headers, a line in the log, spans. The scheduler's side is in
tests/sched/test_degraded.py, all together in tests/e2e/test_truth.py."""

import asyncio
import contextlib
import json
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from common.errors import ConfigError
from common.settings import GatewaySettings, load
from services.gateway import Gateway
from tests.common.processes import program
from tests.gateway.conftest import Client, binary_header, image, json_request
from tests.gateway.mesh import MODEL, FakeMesh, reject
from tests.gateway.receiver import attributes, receiver
from tests.gateway.test_grpc import PARAMETERS, image_input

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = {"admit", "queue", "dispatch", "inference", "reply"}


async def test_parameters_and_headers(client: Client, mesh: FakeMesh) -> None:
    """Subnet, accuracy, reason and stages stand among the parameters, and in headers that need no parsing of a body."""
    for degraded, told in (("slack", "slack"), ("", "no")):
        mesh.degraded = degraded
        reply = await client.infer_binary(binary_header(), image())
        parameters = reply.document["parameters"]
        assert parameters["degraded"] is bool(degraded)
        assert parameters.get("degraded_reason", "") == degraded
        assert reply.headers["X-Superserve-Degraded"] == told
        assert reply.headers["X-Superserve-Subnet"] == parameters["subnet"] == "large"
        assert float(reply.headers["X-Superserve-Accuracy"]) == parameters["accuracy"] == 93.5
        assert reply.headers["X-Superserve-Query-Id"] == parameters["query_id"]
        stages = dict(re.findall(r"(\w+);dur=([\d.-]+)", reply.headers["Server-Timing"]))
        assert list(stages) == ["queue", "inference", "reply", "total"]
        assert float(stages["total"]) == pytest.approx(parameters["total_ms"], abs=0.001)
        assert float(stages["queue"]) == pytest.approx(parameters["queue_ms"], abs=0.001)
        assert (stages["inference"], float(stages["reply"]) >= 0) == ("1.500", True)


async def test_headers_of_a_binary_reply(client: Client) -> None:
    """They stand beside those of the protocol's own."""
    outputs = [{"name": "label", "parameters": {"binary_data": True}}]
    reply = await client.infer_binary(binary_header(outputs=outputs), image())
    assert reply.headers["Content-Type"] == "application/octet-stream"
    assert reply.headers["X-Superserve-Subnet"] == "large"
    assert len(reply.raw) == 8


async def test_scheduler_that_does_not_tell(client: Client, mesh: FakeMesh) -> None:
    """From a scheduler of an earlier version nothing is claimed either way."""
    mesh.degraded = None
    reply = await client.infer_binary(binary_header(), image())
    assert {"degraded", "degraded_reason"}.isdisjoint(reply.document["parameters"])
    assert "X-Superserve-Degraded" not in reply.headers


async def test_error_names_its_query(client: Client, mesh: FakeMesh) -> None:
    """A query that was rejected in the mesh bears its id in a header; one that never got there has none."""
    mesh.behaviour = reject("late")
    reply = await client.infer_binary(binary_header(), image())
    ((record, _),) = await mesh.until_read(1)
    assert (reply.status, reply.headers["X-Superserve-Query-Id"]) == (504, f"{record.id:016x}")
    assert "X-Superserve-Query-Id" not in (await client.infer(b"nonsense")).headers


async def test_nothing_is_watched_unless_asked_for(client: Client) -> None:
    """Without settings there is no log of queries and no tracer, and no call is noted."""
    assert client.gateway._watch is None
    assert client.gateway._inference._watch is None


# -- log ------------------------------------------------------------------------------------------------------------


async def infer(session: aiohttp.ClientSession, url: str, body: bytes, **headers: str) -> int:
    async with session.post(f"{url}/v2/models/{MODEL}/infer", data=body, headers=headers) as response:
        await response.read()
        return response.status


@contextlib.asynccontextmanager
async def gateway_that_logs(url: str, *flags: str) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """A gateway process: its URL, and when the block has ended the lines of its log."""
    log: list[dict[str, Any]] = []
    with program("services.cli", "gateway", "--redis", url, "--port", "0", *flags) as gateway:
        yield (await asyncio.to_thread(gateway.line)).removeprefix("ready ").strip(), log
        code, _, text = await asyncio.to_thread(gateway.end, signal.SIGTERM)
        assert code == 0, text
        log += [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(("share", "expected"), [("1", 3), ("0", 0)])
async def test_line_per_answer(url: str, mesh: FakeMesh, share: str, expected: int) -> None:
    """``--log-queries 1``: one line each for an answer, a rejection and a refusal, as data; 0, the default: none."""
    one = json.dumps(json_request()).encode()
    mesh.degraded = "policy"
    async with (
        gateway_that_logs(url, "--log-queries", share) as (address, log),
        aiohttp.ClientSession() as session,
    ):
        assert await infer(session, address, one) == 200
        mesh.behaviour = reject("late")
        assert await infer(session, address, one) == 504
        assert await infer(session, address, b"nonsense") == 400
    told = [line for line in log if line["event"] == "query"]
    assert len(told) == expected
    if not told:
        return
    assert [(line["outcome"], line["status"]) for line in told] == [
        ("answered", 200), ("expired", 504), ("invalid", 400),
    ]  # fmt: skip
    ids = [f"{record.id:016x}" for record, _ in await mesh.until_read(2)]
    assert [line.get("query_id") for line in told] == [*ids, None]
    answered, expired, invalid = told
    assert answered["subnet"] == "large"
    assert (answered["degraded"], answered["degraded_reason"]) == (True, "policy")
    assert (answered["slo_ms"], answered["deadline_met"], answered["model"]) == (10_000.0, True, MODEL)
    assert (answered["inference_ms"], answered["batch_size"]) == (1.5, 1)
    assert "out of reach" in expired["error"]
    assert "subnet" not in expired
    assert invalid["error"]


# -- traces ---------------------------------------------------------------------------------------------------------


def traceparent(trace: str, sampled: bool = True) -> str:
    return f"00-{trace}-{PARENT}-{sampled:02x}"


async def test_trace_of_a_query(url: str, mesh: FakeMesh, connect: Callable[..., Any]) -> None:
    """A server span that continues the client's trace, a child per stage end to end, a link to the batch's span."""
    mesh.degraded = "slack"
    async with receiver() as collector:
        client = await connect(otlp_endpoint=collector.url, trace_ratio=0)
        headers = {"traceparent": traceparent(TRACE), "tracestate": "vendor=7"}
        reply = await client.infer_binary(binary_header(), image(), headers=headers)
        assert (await client.infer_binary(binary_header(), image())).status == 200
        unsampled = {"traceparent": traceparent("1" * 32, sampled=False)}
        assert (await client.infer_binary(binary_header(), image(), headers=unsampled)).status == 200
        await client.gateway._watch.close()
        parameters = reply.document["parameters"]
        spans = collector.of(bytes.fromhex(TRACE))
        server = spans.pop("POST /v2/models/{model}/infer")
        assert set(spans) == STAGES
        assert (server.parent_span_id.hex(), server.trace_state, server.kind) == (
            PARENT,
            "vendor=7",
            server.SPAN_KIND_SERVER,
        )
        assert {span.parent_span_id for span in spans.values()} == {server.span_id}
        told = attributes(server)
        assert (told["http.request.method"], told["http.response.status_code"]) == ("POST", 200)
        assert (told["http.route"], told["url.path"]) == ("/v2/models/{model}/infer", f"/v2/models/{MODEL}/infer")
        assert told["superserve.query_id"] == parameters["query_id"]
        assert (told["superserve.subnet"], told["superserve.degraded_reason"]) == ("large", "slack")
        ends = [(spans[stage].start_time_unix_nano, spans[stage].end_time_unix_nano) for stage in sorted(STAGES)]
        assert min(start for start, _ in ends) == server.start_time_unix_nano
        assert max(end for _, end in ends) == server.end_time_unix_nano
        inference = spans["inference"]
        assert inference.end_time_unix_nano - inference.start_time_unix_nano == 1_500_000
        assert spans["admit"].end_time_unix_nano == spans["queue"].start_time_unix_nano
        assert spans["queue"].end_time_unix_nano == spans["dispatch"].start_time_unix_nano
        (link,) = inference.links
        (batch,) = [span for span in collector.spans if span.name == "batch"]
        assert (link.trace_id, link.span_id) == (batch.trace_id, batch.span_id)
        assert [(back.trace_id, back.span_id) for back in batch.links] == [(server.trace_id, server.span_id)]
        assert not batch.parent_span_id
        told = attributes(batch)
        assert (told["superserve.batch.id"], told["superserve.batch.rows"], told["superserve.worker"]) == (
            7,
            1,
            "worker-1",
        )
        assert len(collector.spans) == 7  # of the other two queries, none
        assert collector.resources[0]["service.name"] == "superserve-gateway"


async def test_queries_of_a_batch_share_its_span(mesh: FakeMesh, connect: Callable[..., Any]) -> None:
    """Several sampled queries of one batch link to one span, which links to each of them."""
    async with receiver() as collector:
        client = await connect(otlp_endpoint=collector.url, trace_ratio=1)
        await asyncio.gather(*(client.infer_binary(binary_header(), image()) for _ in range(20)))
        await client.gateway._watch.close()
        batches = {span.span_id: span for span in collector.spans if span.name == "batch"}
        assert len(batches) == len(mesh.packs)
        servers = {span.span_id for span in collector.spans if span.name.startswith("POST")}
        linked = [link.span_id for batch in batches.values() for link in batch.links]
        assert sorted(linked) == sorted(servers)
        assert len(servers) == 20
        for span in collector.spans:
            if span.name == "inference":
                assert {link.span_id for link in span.links} <= set(batches)


async def test_trace_of_what_failed(mesh: FakeMesh, connect: Callable[..., Any]) -> None:
    """A rejection has the stages that it came through and is an error; a refusal is the client's, and none of ours."""
    mesh.behaviour = reject("late")
    async with receiver() as collector:
        client = await connect(otlp_endpoint=collector.url, trace_ratio=1)
        assert (await client.infer_binary(binary_header(), image())).status == 504
        assert (await client.infer(b"nonsense")).status == 400
        await client.gateway._watch.close()
        servers = {attributes(span)["http.response.status_code"]: span for span in collector.spans if span.kind == 2}
        rejected, refused = servers[504], servers[400]
        assert set(collector.of(rejected.trace_id)) == {rejected.name, "admit", "queue"}
        assert set(collector.of(refused.trace_id)) == {refused.name, "admit"}
        assert (rejected.status.code, refused.status.code) == (2, 0)
        assert attributes(rejected)["error.type"] == "504"
        assert attributes(rejected)["superserve.outcome"] == "expired"


async def test_trace_over_grpc(url: str, mesh: FakeMesh) -> None:
    """``traceparent`` among the metadata of a gRPC call is continued as well, and the conventions are those of RPC."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    async with receiver() as collector:
        flags = ("--grpc-port", str(port), "--otlp-endpoint", collector.url, "--log-queries", "1")
        async with (
            gateway_that_logs(url, *flags) as (_, log),
            triton_aio.InferenceServerClient(f"127.0.0.1:{port}") as client,
        ):
            headers = {"traceparent": traceparent(TRACE)}
            result = await client.infer(MODEL, [image_input()], parameters=PARAMETERS, headers=headers)
            told = result.get_response().parameters
            assert told["degraded"].bool_param is False
            mesh.behaviour = reject("no_worker")
            with pytest.raises(InferenceServerException):
                await client.infer(
                    MODEL, [image_input()], parameters=PARAMETERS, headers={"traceparent": traceparent("2" * 32)}
                )
        spans = collector.of(bytes.fromhex(TRACE))
        server = spans.pop("inference.GRPCInferenceService/ModelInfer")
        assert set(spans) == STAGES
        assert server.parent_span_id.hex() == PARENT
        conventions = {
            "rpc.system": "grpc",
            "rpc.service": "inference.GRPCInferenceService",
            "rpc.method": "ModelInfer",
        }
        assert {**conventions, "rpc.grpc.status_code": 0}.items() <= attributes(server).items()
        failed = collector.of(bytes.fromhex("2" * 32))["inference.GRPCInferenceService/ModelInfer"]
        assert attributes(failed)["rpc.grpc.status_code"] == 14
    logged = [line for line in log if line["event"] == "query"]
    assert [line["trace_id"] for line in logged] == [TRACE, "2" * 32]


async def test_receiver_that_is_not_there(url: str, mesh: FakeMesh) -> None:
    """Answers do not wait for it, the log says that spans were not taken, and the gateway ends in time."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    flags = ("--otlp-endpoint", f"http://127.0.0.1:{port}", "--trace-ratio", "1")
    async with gateway_that_logs(url, *flags) as (address, log), aiohttp.ClientSession() as session:
        assert await infer(session, address, json.dumps(json_request()).encode()) == 200
    assert {"tracing", "spans_left_behind"} & {line["event"] for line in log}


async def test_receiver_that_never_answers(url: str, mesh: FakeMesh) -> None:
    """It takes connections and says nothing: the last spans are left behind, and the gateway ends as it should."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        flags = ("--otlp-endpoint", endpoint, "--trace-ratio", "1", "--grace-s", "5")
        async with gateway_that_logs(url, *flags) as (address, log), aiohttp.ClientSession() as session:
            assert await infer(session, address, json.dumps(json_request()).encode()) == 200
    assert "spans_left_behind" in {line["event"] for line in log}


def test_endpoint_that_is_no_url() -> None:
    """A wrong endpoint is a wrong setting, and is named."""
    with pytest.raises(ConfigError, match="--otlp-endpoint='collector:4318': expected a URL"):
        Gateway(load(GatewaySettings, ["--otlp-endpoint", "collector:4318"], program="gateway"))
