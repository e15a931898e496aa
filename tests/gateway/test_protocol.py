"""Parsing alone: whatever the bytes, the outcome is a plan or an error of the client's."""

import contextlib
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import BadRequest, ClientError
from common.tensors import DTYPES
from services.gateway.bodies import inflate
from services.gateway.images import decode, frame_of
from services.gateway.model import Model
from services.gateway.options import parse_query
from services.gateway.protocol import Planner, parse, split
from tests.gateway.conftest import binary_header, image, json_request
from tests.gateway.mesh import DESCRIPTION, MODEL

FASHION = Model.from_dict(MODEL, DESCRIPTION)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def model_of(*inputs: tuple[str, str, list[int]]) -> Model:
    tensors = [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in inputs]
    return Model.from_dict("m", {**DESCRIPTION, "inputs": tensors})


def request_of(name: str, datatype: str, data: Any, shape: list[int]) -> bytes:
    return orjson.dumps({"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]})


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.text(max_size=6))
def test_any_bytes(body: bytes, length: str) -> None:
    """Arbitrary bytes raise nothing but errors of the client's."""
    with contextlib.suppress(ClientError):
        header, raw = split(body, length)
        parse(FASHION, header).tensors(raw)
    for encoding in ("gzip", "deflate"):
        with contextlib.suppress(ClientError):
            inflate(body, encoding, 100)
    with contextlib.suppress(ClientError):
        decode(body, "image/png", frame_of(FASHION))
    with contextlib.suppress(ClientError):
        parse_query(body.decode("latin-1"), FASHION)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_json_in_any_place(data: st.DataObject) -> None:
    """A valid request with anything in place of any of its values raises nothing but errors of the client's."""
    request: Any = data.draw(st.sampled_from([binary_header(), json_request()]))
    request["outputs"] = [{"name": "label", "parameters": {"binary_data": True}}]
    request["parameters"] |= {"min_accuracy": 1, "priority": 1, "timeout": 1}
    place = request
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(min(len(place), 3)))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    try:
        header = orjson.dumps(request)
    except TypeError:  # beyond 64 bits: orjson writes no such integer
        return
    with contextlib.suppress(ClientError):
        parse(FASHION, header).tensors(image())


@pytest.mark.parametrize("datatype", sorted(set(DTYPES) - {"FP16"}))
def test_every_datatype_from_json(datatype: str) -> None:
    """The extremes of each datatype pass unchanged; one beyond is refused."""
    dtype = DTYPES[datatype]
    values: list[Any] = [True, False]
    beyond: Any = 1
    if dtype.kind in "iu":
        values, beyond = [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)], int(np.iinfo(dtype).max) + 1
    elif dtype.kind == "f":
        values, beyond = [float(np.finfo(dtype).min), 0.5], float(np.finfo(dtype).max) * 2
    model = model_of(("x", datatype, [2]))
    plan = parse(model, request_of("x", datatype, values, [1, 2]))
    assert np.frombuffer(plan.tensors(b""), dtype).tolist() == values
    if datatype not in ("UINT64", "FP64"):  # beyond these there is no JSON number that arrives exactly
        with pytest.raises(BadRequest, match=r"data\[1\]"):
            parse(model, request_of("x", datatype, [values[0], beyond], [1, 2]))


def test_fp16_is_binary_only() -> None:
    """FP16 has no JSON form, as in the protocol."""
    with pytest.raises(BadRequest, match="FP16 has no JSON form"):
        parse(model_of(("x", "FP16", [2])), request_of("x", "FP16", [1, 2], [1, 2]))


def test_inputs_in_any_order_and_form() -> None:
    """Inputs may come in any order, binary and JSON mixed; they leave in the model's order."""
    model = model_of(("a", "UINT8", [2]), ("b", "INT32", []))
    b = {"name": "b", "datatype": "INT32", "shape": [1], "parameters": {"binary_data_size": 4}}
    a = {"name": "a", "datatype": "UINT8", "shape": [1, 2], "parameters": {"binary_data_size": 2}}
    inline = {"name": "a", "datatype": "UINT8", "shape": [1, 2], "data": [8, 9]}
    assert parse(model, orjson.dumps({"inputs": [b, a]})).tensors(b"BBBBaa") == b"aaBBBB"
    assert parse(model, orjson.dumps({"inputs": [a, b]})).tensors(b"aaBBBB") == b"aaBBBB"
    assert parse(model, orjson.dumps({"inputs": [b, inline]})).tensors(b"BBBB") == b"\x08\x09BBBB"
    with pytest.raises(BadRequest, match="2 rows, but the inputs before it have 1"):
        two = {**inline, "shape": [2, 2], "data": [1, 2, 3, 4]}
        parse(model, orjson.dumps({"inputs": [b, two]}))


def test_plans_are_kept_and_errors_are_not() -> None:
    """The same JSON part is parsed once."""
    planner = Planner(FASHION)
    header = orjson.dumps(binary_header())
    assert planner.plan(header) is planner.plan(bytes(bytearray(header)))
    for _ in range(2):
        with pytest.raises(BadRequest):
            planner.plan(b"{}")


def test_nulls_are_as_good_as_absent() -> None:
    """Clients that write every optional field send null for those they have nothing for."""
    request = {**binary_header(), "id": None, "parameters": None, "outputs": None}
    plan = parse(FASHION, orjson.dumps(request))
    assert (plan.id, plan.rows, len(plan.outputs)) == (None, 1, 2)
