"""Bodies of a run: data files, what fits a model, and what is sent without data."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from common.tensors import decode_elements
from loadgen.errors import InputError
from loadgen.oip import Endpoint, ModelSpec, TensorSpec, datatype_of, parse_error
from loadgen.payloads import Payload, load_arrays, make_payloads, shipped_data
from loadgen.workload import Tenant, Workload

ENDPOINT = Endpoint.parse("http://host:8000/base/")
MODEL = ModelSpec("digits", (TensorSpec("image", "UINT8", (-1, 2, 2)),), (TensorSpec("label", "INT64", (-1,)),))


def payload(data: Path | None, *, rows: int = 1, model: ModelSpec = MODEL, seed: int = 0) -> Payload:
    workload = Workload.of_one(np.zeros(1), Tenant(rows=rows))
    return make_payloads(ENDPOINT, model, workload, data=data, seed=seed).of_tenant[0]


def rows_of(request: bytes) -> list[int]:
    """The label that the first pixel of each image is."""
    head, _, body = request.partition(b"\r\n\r\n")
    length = int(head.split(b"Inference-Header-Content-Length: ")[1].split(b"\r\n")[0])
    return list(body[length::4])


@pytest.mark.parametrize("rows", [1, 3, 4, 10, 25])
def test_every_sample_is_sent_with_its_own_label(samples: Path, rows: int) -> None:
    """Whatever the number of rows, one round of requests sends each sample equally often, beside its label."""
    made = payload(samples, rows=rows)
    assert made.labels is not None
    sent = [label for request in made.requests for label in rows_of(request)]
    true = [label for raw in made.labels for label in struct.unpack(f"<{rows}q", raw)]
    assert sent == true
    assert len(set(np.bincount(sent, minlength=10))) == 1


def test_the_request_goes_to_the_models_path(samples: Path) -> None:
    """A prefix of the URL is kept, and the Host header names the port."""
    assert payload(samples).requests[0].startswith(b"POST /base/v2/models/digits/infer HTTP/1.1\r\nHost: host:8000\r\n")


def test_safetensors_are_read_without_their_package(tmp_path: Path) -> None:
    """What `safetensors` writes is read back, of every type that numpy knows."""
    numpy_safetensors = pytest.importorskip("safetensors.numpy")
    arrays: dict[str, NDArray[Any]] = {
        "images": np.arange(24, dtype=np.uint8).reshape(6, 2, 2),
        "labels": np.arange(6),
        "weights": np.linspace(0, 1, 5, dtype=np.float32),
    }
    numpy_safetensors.save_file(arrays, tmp_path / "s.safetensors", metadata={"made by": "a test"})
    found = load_arrays(tmp_path / "s.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.npz", "missing.npz", "data.csv"])
def test_a_file_that_is_no_data_is_refused(tmp_path: Path, name: str) -> None:
    """Broken, missing and unknown files are InputErrors that name the file."""
    path = tmp_path / name
    if not name.startswith("missing"):
        path.write_bytes(b"\xff" * 40)
    with pytest.raises(InputError, match=name):
        load_arrays(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((4, 3, 3), np.uint8)}, r"images is uint8 \[4, 3, 3\], but image is UINT8 \[-1, 2, 2\]"),
        ({"images": np.zeros((4, 2, 2), np.float32)}, "images is float32"),
        ({"images": np.zeros((4, 2, 2), np.uint8), "labels": np.zeros(3, np.int64)}, "the same number of rows"),
        ({"images": np.zeros((0, 2, 2), np.uint8)}, "the same number of rows, at least one"),
        ({"a": np.zeros(1), "b": np.zeros(1)}, "has a, b, but the model wants image"),
    ],
)
def test_data_that_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    """Shape, type and number of rows are checked against the model before anything is sent."""
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(InputError, match=message):
        payload(tmp_path / "data.npz")


def test_random_tensors_have_the_models_shape_and_type() -> None:
    """Two inputs, two rows: sizes and types as the metadata say, and no labels."""
    inputs = (TensorSpec("a", "FP32", (-1, 3)), TensorSpec("b", "INT64", (-1,)))
    made = payload(None, rows=2, model=ModelSpec("other", inputs, ()))
    body = made.requests[0].partition(b"\r\n\r\n")[2]
    header = orjson.loads(body[: body.rindex(b"}") + 1])
    found = [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in header["inputs"]]
    assert found == [("a", "FP32", [2, 3]), ("b", "INT64", [2])]
    assert header["parameters"] == {"slo_ms": 50, "binary_data_output": True}
    assert "outputs" not in header
    assert made.labels is None


def test_texts_are_invented() -> None:
    """Without data a model that reads text is sent some words, as BYTES of the size that the JSON part says."""
    made = payload(None, rows=3, model=ModelSpec("text", (TensorSpec("text", "BYTES", (-1, 1)),), ()))
    head, _, body = made.requests[0].partition(b"\r\n\r\n")
    length = int(head.split(b"Inference-Header-Content-Length: ")[1].split(b"\r\n")[0])
    (tensor,) = orjson.loads(body[:length])["inputs"]
    assert (tensor["datatype"], tensor["shape"]) == ("BYTES", [3, 1])
    assert tensor["parameters"]["binary_data_size"] == len(body) - length
    assert all(len(text.split()) == 16 for text in decode_elements(body[length:], 3))


def test_texts_with_labels_are_read_from_json(tmp_path: Path) -> None:
    """Samples of a text model are an object of lists in JSON; each text is sent beside its own label."""
    path = tmp_path / "samples.json"
    texts = ["good", "bad", "\u00fcbel"]
    path.write_text(json.dumps({"text": texts, "labels": [1, 0, 0]}))
    spec = TensorSpec("text", "BYTES", (-1, 1))
    made = payload(path, model=ModelSpec("text", (spec,), (TensorSpec("label", "INT64", (-1,)),)))
    assert made.labels is not None
    for request, label in zip(made.requests, made.labels, strict=True):
        (text,) = [text for text in texts if request.endswith(text.encode())]
        assert struct.unpack("<q", label) == (int(text == "good"),)


@pytest.mark.parametrize("content", ["[1]", '{"text": "good"}', "{"])
def test_unreadable_json_is_refused(tmp_path: Path, content: str) -> None:
    """JSON that is no object of lists is refused by its file."""
    path = tmp_path / "samples.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"samples\.json"):
        load_arrays(path)


@pytest.mark.parametrize(("datatype", "shape"), [("FP32", (-1, -1)), ("BYTES", (-1, -1))])
def test_tensors_that_cannot_be_invented_need_data(datatype: str, shape: tuple[int, ...]) -> None:
    """Free dimensions cannot be guessed."""
    model = ModelSpec("text", (TensorSpec("tokens", datatype, shape),), ())
    with pytest.raises(InputError, match="cannot invent tokens"):
        payload(None, model=model)


def test_a_model_of_a_fixed_batch_takes_no_other(samples: Path) -> None:
    """An input whose first dimension is 1 refuses two rows."""
    model = ModelSpec("digits", (TensorSpec("image", "UINT8", (1, 2, 2)),), ())
    with pytest.raises(InputError, match="rows=2: the model's image takes 1 rows"):
        payload(samples, rows=2, model=model)


def test_a_model_that_ships_no_samples_has_none() -> None:
    """An unknown model's samples are not found, without importing the worker."""
    assert shipped_data("no-such-model") is None


def test_types_outside_the_protocol_are_refused() -> None:
    """Complex numbers have no name in the protocol."""
    with pytest.raises(InputError, match="complex128"):
        datatype_of(np.zeros(1, complex))


@pytest.mark.parametrize(
    ("body", "text"),
    [(b'{"error": "too\\n late"}', "too late"), (b"oops", "oops"), (b'["error"]', '["error"]'), (b"", "")],
)
def test_an_error_reply_is_told_in_one_line(body: bytes, text: str) -> None:
    """The protocol's error object, or whatever else came."""
    assert parse_error(body) == text


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("localhost:9", Endpoint(False, "localhost", 9, "")),
        ("https://host/a", Endpoint(True, "host", 443, "/a")),
        ("http://[::1]:8000", Endpoint(False, "::1", 8000, "")),
    ],
)
def test_urls_are_read(url: str, endpoint: Endpoint) -> None:
    """Scheme, port and path have their defaults."""
    assert Endpoint.parse(url) == endpoint
