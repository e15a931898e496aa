"""NVIDIA's gRPC client, unmodified, against ``superserve gateway --grpc-port`` as a process of its own."""

import asyncio
import functools
import socket
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from common.errors import ConfigError
from services.gateway import messages
from tests.gateway.conftest import gateway_process, image
from tests.gateway.mesh import MODEL, FakeMesh, ignore, reject

PARAMETERS = {"slo_ms": 10_000}
CODES = {
    "queue_full": "RESOURCE_EXHAUSTED",
    "no_worker": "UNAVAILABLE",
    "late": "DEADLINE_EXCEEDED",
    "min_accuracy": "INVALID_ARGUMENT",
}


@pytest.fixture
async def address(url: str, mesh: FakeMesh) -> AsyncIterator[str]:
    """``host:port`` of the gateway's gRPC."""
    del mesh
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    async with gateway_process(url, "--grpc-port", str(port)):
        yield f"127.0.0.1:{port}"


def image_input(rows: int = 2) -> Any:
    pixels = np.full((rows, 28, 28), 4, np.uint8)
    tensor = triton.InferInput("image", pixels.shape, "UINT8")
    tensor.set_data_from_numpy(pixels)
    return tensor


def use_sync_client(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert client.is_model_ready(MODEL, "1")
        assert client.get_server_metadata().name == "superserve"
        metadata = client.get_model_metadata(MODEL, "1")
        assert [(tensor.name, list(tensor.shape)) for tensor in metadata.inputs] == [("image", [-1, 28, 28])]
        config = client.get_model_config(MODEL).config
        assert (config.max_batch_size, config.input[0].data_type, list(config.input[0].dims)) == (16, 2, [28, 28])
        assert client.get_model_repository_index().models[0].state == "READY"
        for compression in (None, "gzip", "deflate"):
            result = client.infer(
                MODEL,
                [image_input()],
                model_version="1",
                outputs=[triton.InferRequestedOutput(name) for name in ("label", "scores")],
                request_id="seven",
                priority=1,
                timeout=5_000_000,
                compression_algorithm=compression,
                parameters={**PARAMETERS, "min_accuracy": 90.5},
            )
            assert result.as_numpy("label").tolist() == [4, 4]
            assert result.as_numpy("scores").tolist() == np.arange(20, dtype=np.float32).reshape(2, 10).tolist()
            response = result.get_response()
            assert (response.id, response.parameters["subnet"].string_param) == ("seven", "large")
            assert response.parameters["accuracy"].double_param == 93.5
            assert response.parameters["batch_size"].int64_param == 2
            assert response.parameters["deadline_met"].bool_param is True
        for statistics in (client.get_inference_statistics(MODEL), client.get_inference_statistics()):
            (stats,) = statistics.model_stats
            assert (stats.inference_count, stats.inference_stats.success.count) == (6, 3)


async def test_sync_client(address: str, mesh: FakeMesh) -> None:
    """Health, metadata, configuration, statistics, and inference with compression, versions and our parameters."""
    await asyncio.to_thread(use_sync_client, address)
    record, _ = (await mesh.until_read(3))[0]
    assert (record.deadline_us - record.arrival_us, record.min_accuracy, record.priority) == (10_000_000, 90.5, 1)


async def test_aio_client(address: str) -> None:
    """The asyncio client, with many queries at a time."""
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_model_ready(MODEL)
        queries = [client.infer(MODEL, [image_input(1 + n % 3)], parameters=PARAMETERS) for n in range(24)]
        for n, result in enumerate(await asyncio.gather(*queries)):
            assert result.as_numpy("label").tolist() == [4] * (1 + n % 3)


async def test_typed_contents(address: str, mesh: FakeMesh) -> None:
    """Tensors may come as numbers too, and mean what the raw ones mean; both at once are refused, as is neither."""
    contents = service_pb2.InferTensorContents(uint_contents=image())
    async with grpc.aio.insecure_channel(address) as channel:
        call = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]}
        parameters = {"slo_ms": service_pb2.InferParameter(int64_param=10_000)}
        request = functools.partial(service_pb2.ModelInferRequest, model_name=MODEL, parameters=parameters)
        reply = await call(request(inputs=[{**tensor, "contents": contents}]))
        ((_, tensors),) = await mesh.until_read(1)
        assert tensors == image()
        assert np.frombuffer(reply.raw_output_contents[1], np.int64).tolist() == [7]
        for wrong, words in (
            (request(inputs=[{**tensor, "contents": contents}], raw_input_contents=[image()]), "both data and"),
            (request(inputs=[tensor]), "data has 0 elements"),
            (request(inputs=[tensor], raw_input_contents=[image(), image()]), "2 tensors, but there are 1 inputs"),
            (request(inputs=[tensor], raw_input_contents=[image()[1:]]), "binary_data_size is 783"),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=words) as refused:
                await call(wrong)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_errors_of_the_client(address: str) -> None:
    """No such model or version is NOT_FOUND, a bad parameter or output INVALID_ARGUMENT, in the words of HTTP."""
    async with triton_aio.InferenceServerClient(address) as client:

        async def refused(code: str, words: str, model: str = MODEL, **options: Any) -> None:
            with pytest.raises(InferenceServerException, match=words) as error:
                await client.infer(model, [image_input()], **options)
            assert error.value.status() == f"StatusCode.{code}"

        await refused("NOT_FOUND", "no model 'a/b'; known models: fashion", "a/b")
        await refused("NOT_FOUND", "has no version '2'", model_version="2")
        await refused("INVALID_ARGUMENT", "slo_ms: expected a number, got 'x'", parameters={"slo_ms": "x"})
        await refused("INVALID_ARGUMENT", r"reaches 93\.5", parameters={"min_accuracy": 99})
        await refused("INVALID_ARGUMENT", "no such output", outputs=[triton.InferRequestedOutput("other")])
        for name in ("other", "", "stats"):
            with pytest.raises(InferenceServerException, match=f"no model '{name}'"):
                await client.get_model_metadata(name)


async def test_rejections(address: str, mesh: FakeMesh) -> None:
    """What a scheduler says becomes the code that gRPC's users know."""
    async with triton_aio.InferenceServerClient(address) as client:
        for reason, code in CODES.items():
            mesh.behaviour = reject(reason)
            with pytest.raises(InferenceServerException) as error:
                await client.infer(MODEL, [image_input()], parameters=PARAMETERS)
            assert error.value.status() == f"StatusCode.{code}"


async def test_query_is_named_beside_its_answer(address: str, mesh: FakeMesh) -> None:
    """The trailing metadata of an answer, and of a rejection, has the id that ``superserve explain`` takes."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]}
    parameters = {"slo_ms": service_pb2.InferParameter(int64_param=10_000)}
    request = service_pb2.ModelInferRequest(
        model_name=MODEL, inputs=[tensor], raw_input_contents=[image()], parameters=parameters
    )
    async with grpc.aio.insecure_channel(address) as channel:
        infer = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        call = infer(request)
        reply = await call
        told = dict(await call.trailing_metadata())
        assert told["x-superserve-query-id"] == reply.parameters["query_id"].string_param
        mesh.behaviour = reject("late")
        with pytest.raises(grpc.aio.AioRpcError) as rejected:
            await infer(request)
        record, _ = (await mesh.until_read(2))[1]
        assert dict(rejected.value.trailing_metadata())["x-superserve-query-id"] == f"{record.id:016x}"


async def test_client_that_leaves(address: str, mesh: FakeMesh) -> None:
    """A call that is cancelled, or past its own deadline, is withdrawn: the gateway need not wait for it to drain.

    It would wait longer than its grace, and end with 1.
    """
    mesh.behaviour = ignore
    async with triton_aio.InferenceServerClient(address) as client:
        infer = functools.partial(client.infer, MODEL, [image_input()], parameters={"slo_ms": 60_000})
        query = asyncio.ensure_future(infer())
        await mesh.until_read(1)
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query
        with pytest.raises(InferenceServerException) as error:
            await infer(client_timeout=0.2)
        assert error.value.status() == "StatusCode.DEADLINE_EXCEEDED"


async def refusals(http: str) -> dict[str, float]:
    """What the gateway at ``http`` has refused by gRPC, by reason, and as ``invalid`` its queries that were."""
    async with aiohttp.ClientSession() as session, session.get(f"http://{http}/metrics") as response:
        text = await response.text()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {
        sample.labels["reason"]: sample.value
        for sample in samples
        if sample.name == "superserve_gateway_refused_requests_total" and sample.labels["protocol"] == "grpc"
    }
    queries = (s.value for s in samples if s.name == "superserve_gateway_queries_total")
    invalid = (s.value for s in samples if s.labels.get("outcome") == "invalid")
    return {**found, "invalid": sum(invalid), "queries": sum(queries)}


async def test_refusals_are_counted(url: str, mesh: FakeMesh) -> None:
    """Each call that comes to no query is counted once by its reason, and one that names its model as that model's."""
    del mesh
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]}
    request = service_pb2.ModelInferRequest(model_name=MODEL, inputs=[tensor])
    service = "/inference.GRPCInferenceService/"
    codes = grpc.StatusCode
    async with (
        gateway_process(url, "--grpc-port", str(port), "--max-body-bytes", "5000") as http,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        told = await refusals(http)
        assert told == dict.fromkeys(("malformed", "not_found", "unimplemented", "unread", "invalid", "queries"), 0)
        for method, message, code, words, reason in (
            (f"{service}Divine", b"", codes.UNIMPLEMENTED, "no such method; .* ModelInfer", "unimplemented"),
            ("/other.Service/ModelInfer", b"", codes.UNIMPLEMENTED, "no such method", "unimplemented"),
            (f"{service}ModelInfer", b"\xff\xff", codes.INVALID_ARGUMENT, "no ModelInferRequest", "malformed"),
            (f"{service}ModelReady", b"\x0a", codes.INVALID_ARGUMENT, "no ModelReadyRequest", "malformed"),
            (f"{service}ModelInfer", bytes(5001), codes.RESOURCE_EXHAUSTED, "larger than max", "unread"),
            (f"{service}ModelInfer", b"", codes.NOT_FOUND, "no model ''", "not_found"),
            (f"{service}ModelMetadata", b"", codes.NOT_FOUND, "no model ''", "not_found"),
            (
                f"{service}ModelInfer",
                service_pb2.ModelInferRequest(model_name=MODEL, inputs=[tensor], raw_input_contents=[b"", b""])
                .SerializeToString(),
                codes.INVALID_ARGUMENT, "2 tensors", "invalid",
            ),
            (f"{service}ModelInfer", request.SerializeToString(), codes.INVALID_ARGUMENT, "0 elements", "invalid"),
        ):  # fmt: skip
            with pytest.raises(grpc.aio.AioRpcError, match=words) as refused:
                await channel.unary_unary(method)(message)
            assert refused.value.code() is code
            told[reason] += 1
            told["queries"] = told["invalid"]
            assert await refusals(http) == told, method
        stream = channel.stream_stream(f"{service}ModelStreamInfer")()
        with pytest.raises(grpc.aio.AioRpcError, match="no such method"):
            await stream.read()
        async with asyncio.timeout(5):
            with pytest.raises(grpc.aio.AioRpcError, match="brought no message"):
                await channel.stream_unary(f"{service}ModelInfer")(())
        assert await refusals(http) == {**told, "unimplemented": 3, "unread": 2}


async def test_address_in_use(connect: Callable[..., Any]) -> None:
    """A port that somebody else has is a wrong setting, and is named."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on --host 127.0.0.1 --grpc-port {port}"):
            await connect(grpc_port=port)


async def test_without_the_extra(connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where grpcio is not installed, asking for its port says what to install."""
    monkeypatch.setitem(sys.modules, "services.gateway.rpc", None)
    with pytest.raises(ConfigError, match=r"install the extra: superserve-mesh\[grpc\]"):
        await connect(grpc_port=1)


def shape_of(descriptor: Any, of: Callable[[str], Any]) -> dict[str, Any]:
    return {
        field.name: (field.number, field.type, field.is_repeated, field.message_type and of(field.message_type.name))
        for field in descriptor.fields
    }


def test_messages_are_those_of_the_clients() -> None:
    """Every field of ours has the number, the type and the repetition that it has in the client's generated code."""
    theirs = service_pb2.DESCRIPTOR.message_types_by_name
    nested = {
        **{name: theirs["ModelInferRequest"].nested_types_by_name[name]
           for name in ("InferInputTensor", "InferRequestedOutputTensor")},
        "InferOutputTensor": theirs["ModelInferResponse"].nested_types_by_name["InferOutputTensor"],
        "TensorMetadata": theirs["ModelMetadataResponse"].nested_types_by_name["TensorMetadata"],
        "ModelIndex": theirs["RepositoryIndexResponse"].nested_types_by_name["ModelIndex"],
        **triton.model_config_pb2.DESCRIPTOR.message_types_by_name,
        **theirs,
    }  # fmt: skip
    for name in messages.NAMES:
        ours = shape_of(messages.message_class(name).DESCRIPTOR, str)
        assert ours.items() <= shape_of(nested[name], str).items(), name
    values = triton.model_config_pb2.DataType.items()
    assert [(f"TYPE_{name}", number) for number, name in enumerate(messages.DATA_TYPES)] == values[:14]
