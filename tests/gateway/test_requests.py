"""What is wrong with a request is said in words, with the right status; what is right goes through."""

import gzip
import io
import zlib
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from tests.gateway.conftest import Client, binary_header, image, json_request
from tests.gateway.mesh import FakeMesh


def png(picture: np.ndarray[Any, Any], kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind)
    return stream.getvalue()


BAD_JSON: list[tuple[Any, str]] = [
    (b"{not json", "not valid JSON"),
    (b"", "not valid JSON"),
    (b"[1]", "must be a JSON object"),
    ({}, "inputs: missing"),
    ({"inputs": 3}, "inputs: expected a list"),
    ({"inputs": []}, "image missing"),
    ({"inputs": [5]}, "inputs[0]"),
    ({"inputs": [{"name": "other"}]}, "no such input, only image"),
    ({"inputs": json_request()["inputs"] * 2}, "given twice"),
    (json_request(datatype="FP32"), 'expected datatype UINT8, got "FP32"'),
    (json_request(datatype="BYTES"), 'expected datatype UINT8, got "BYTES"'),
    (json_request(shape=[1, 28]), "expected shape [-1,28,28]"),
    (json_request(shape=[1, 28, 29]), "expected shape [-1,28,28]"),
    (json_request(shape=[True, 28, 28]), "expected shape"),
    (json_request(shape=[0, 28, 28]), "has 0 rows; the model takes 1 to 16"),
    (json_request(shape=[-1, 28, 28]), "has -1 rows"),
    (json_request(shape=[17, 28, 28]), "has 17 rows; the model takes 1 to 16"),
    (json_request(data=[0] * 783), "data has 783 elements"),
    (json_request(data=None), "neither data nor"),
    (json_request(data="x"), "expected data as a list"),
    (json_request(data=[300] + [0] * 783), "data[0] is 300, outside of UINT8 (0 to 255)"),
    (json_request(data=[0, -1] + [0] * 782), "data[1] is -1, outside of UINT8"),
    (json_request(data=[0.5] + [0] * 783), "data[0] is 0.5, expected an integer"),
    (json_request(data=["a"] + [0] * 783), "data[0] is 'a'"),
    (json_request(data=[True] + [0] * 783), "data[0] is True"),
    (json_request(data=[[0] * 784]), "other lengths"),
    (json_request(data=[[[0] * 28] * 27 + [[0] * 27]]), "other lengths"),
    (json_request(parameters={"binary_data_size": 784}), "both data and"),
    (b'{"inputs":[{"name":"image","shape":[1,28,28],"datatype":"UINT8","data":[NaN]}]}', "not valid JSON"),
    (b'{"inputs":[{"name":"image","shape":[1,28,28],"datatype":"UINT8","data":[1e999]}]}', "not valid JSON"),
    ({**json_request(), "outputs": [{"name": "nope"}]}, "no such output, only scores, label"),
    ({**json_request(), "outputs": [{"name": "label", "parameters": {"binary_data": 1}}]}, "expected true or false"),
    ({**json_request(), "id": 5}, "id: expected a string"),
    ({**json_request(), "parameters": []}, "parameters of the request: expected an object"),
]
BAD_PARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({"slo_ms": 0}, "slo_ms: expected milliseconds above 0"),
    ({"slo_ms": -5}, "slo_ms"),
    ({"slo_ms": "50"}, "slo_ms: expected a number, got '50'"),
    ({"slo_ms": True}, "slo_ms: expected a number"),
    ({"slo_ms": 60_001}, "exceeds the limit of 60000"),
    ({"min_accuracy": 101}, "expected percent from 0 to 100"),
    ({"min_accuracy": 99.5}, "most accurate subnet of model 'fashion' reaches 93.5"),
    ({"priority": -1}, "priority"),
    ({"priority": 1.5}, "priority"),
    ({"timeout": -1}, "timeout: expected microseconds"),
]
BAD_BINARY: list[tuple[Any, bytes, str]] = [
    (binary_header(), image()[:-1], "the body truncated: 783 bytes"),
    (binary_header(), image() + b"x", "has trailing bytes: 785 bytes"),
    (binary_header(2), image(1), "truncated"),
]


@pytest.mark.parametrize(("request_", "words"), BAD_JSON)
async def test_bad_json_is_a_400_that_names_the_field(client: Client, request_: Any, words: str) -> None:
    """A malformed JSON request is answered 400, and the message says what is wrong with which field."""
    reply = await client.infer(request_, headers={"Content-Type": "application/json"})
    assert reply.status == 400
    assert words in reply.error


@pytest.mark.parametrize(("parameters", "words"), BAD_PARAMETERS)
async def test_bad_parameters_are_a_400(client: Client, parameters: dict[str, Any], words: str) -> None:
    """A parameter out of its range is answered 400 by name."""
    reply = await client.infer_binary({**binary_header(), "parameters": parameters}, image())
    assert reply.status == 400
    assert words in reply.error


@pytest.mark.parametrize(("header", "raw", "words"), BAD_BINARY)
async def test_binary_sizes_must_agree(client: Client, header: Any, raw: bytes, words: str) -> None:
    """Raw tensors shorter or longer than announced are answered 400."""
    reply = await client.infer_binary(header, raw)
    assert reply.status == 400
    assert words in reply.error


@pytest.mark.parametrize("size", [-1, 0, 783, "784", True, 1.5])
async def test_binary_data_size_must_be_that_of_the_shape(client: Client, size: Any) -> None:
    """A binary_data_size that is not shape times item size is answered 400."""
    header = binary_header()
    header["inputs"][0]["parameters"]["binary_data_size"] = size
    reply = await client.infer_binary(header, image())
    assert reply.status == 400
    assert "binary_data_size" in reply.error


@pytest.mark.parametrize("length", ["-1", "abc", "99999", "", "1_0", "²"])
async def test_header_length_must_fit_the_body(client: Client, length: str) -> None:
    """An Inference-Header-Content-Length that is no length within the body is answered 400."""
    reply = await client.infer(b"{}", headers={"Inference-Header-Content-Length": length})
    assert reply.status == 400
    assert "Inference-Header-Content-Length" in reply.error


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "image/gif"]
)
async def test_other_content_types_are_a_415(client: Client, content_type: str) -> None:
    """A body that says it is something else is answered 415, naming it."""
    reply = await client.infer(json_request(), headers={"Content-Type": content_type})
    assert reply.status == 415
    assert content_type.partition(";")[0] in reply.error


@pytest.mark.parametrize("data", [list(image()), np.frombuffer(image(), np.uint8).reshape(1, 28, 28).tolist()])
async def test_json_data_is_flat_or_nested(client: Client, data: list[Any]) -> None:
    """JSON tensors may be flat or nested as their shape."""
    reply = await client.infer({**json_request(data=data), "id": "mine"})
    assert reply.status == 200
    assert reply.document["id"] == "mine"
    outputs = {tensor["name"]: tensor for tensor in reply.document["outputs"]}
    assert outputs["label"]["data"] == [7]
    assert outputs["scores"]["shape"] == [1, 10]
    assert outputs["scores"]["data"] == list(range(10))


async def test_binary_reply_and_account(client: Client) -> None:
    """Binary outputs follow the JSON part in order, which tells subnet, accuracy, times and whether it was in time."""
    header = binary_header(2, outputs=[{"name": "label", "parameters": {"binary_data": True}}, {"name": "scores"}])
    reply = await client.infer_binary(header, image(2, 3))
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "application/octet-stream"
    assert np.frombuffer(reply.raw, np.int64).tolist() == [3, 3]
    parameters = reply.document["parameters"]
    assert (parameters["subnet"], parameters["accuracy"], parameters["deadline_met"]) == ("large", 93.5, True)
    assert parameters["batch_size"] == 2
    assert len(int(parameters["query_id"], 16).to_bytes(8, "big")) == 8


async def test_gzip_both_ways(client: Client) -> None:
    """gzip and deflate bodies are read; a large reply is compressed for who asks, a small one is not."""
    for encoding, packed in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        header = binary_header(16)
        body = orjson.dumps(header)
        headers = {
            "Inference-Header-Content-Length": str(len(body)), "Content-Encoding": encoding, "Accept-Encoding": encoding
        }  # fmt: skip
        reply = await client.infer(packed(body + image(16)), headers=headers)
        assert reply.status == 200
        assert reply.headers["Content-Encoding"] == encoding
        assert reply.document["outputs"][1]["data"] == [7] * 16


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [(b"no gzip", "gzip", 400), (gzip.compress(b"{}")[:-4], "gzip", 400), (b"{}", "br", 415),
     (gzip.compress(bytes(9 * 2**20)), "gzip", 413)],
    ids=["no gzip", "cut off", "unknown", "too large"],
)  # fmt: skip
async def test_bad_compression(client: Client, body: bytes, encoding: str, status: int) -> None:
    """Broken gzip is 400, an unknown coding 415, and a body that unfolds beyond the limit 413."""
    reply = await client.infer(body, headers={"Content-Encoding": encoding})
    assert reply.status == status
    assert reply.error


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
async def test_images_are_resized_and_answered_by_name(client: Client, mesh: FakeMesh, kind: str) -> None:
    """A colour image of any size becomes one grey row of the model's size, and the answer names the class."""
    picture = np.full((50, 40, 3), 203, np.uint8)
    reply = await client.infer(
        png(picture, kind), query="?slo_ms=5000&min_accuracy=90", headers={"Content-Type": f"image/{kind.lower()}"}
    )
    assert reply.status == 200
    ((record, tensors),) = await mesh.until_read(1)
    assert (record.deadline_us - record.arrival_us, record.min_accuracy, record.rows) == (5_000_000, 90.0, 1)
    assert set(tensors) == {203}
    assert reply.document["parameters"]["label_name"] == "class-3"


@pytest.mark.parametrize("body", [b"", b"nothing", png(np.zeros((9, 9), np.uint8))[:40]])
async def test_broken_images_are_a_400(client: Client, body: bytes) -> None:
    """What is no image, or a truncated one, is answered 400."""
    reply = await client.infer(body, headers={"Content-Type": "image/png"})
    assert reply.status == 400
    assert reply.error.startswith("image: ")


@pytest.mark.parametrize("query", ["?slo_ms=x", "?slo_ms=nan", "?priority=-1"])
async def test_bad_query_strings_are_a_400(client: Client, query: str) -> None:
    """Options in the query string are checked like those in the body."""
    assert (await client.infer(json_request(), query=query)).status == 400
