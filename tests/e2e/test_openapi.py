"""schemathesis on ``/openapi.json``: whatever it sends, the gateway answers as its document says."""

from collections.abc import Iterator
from typing import Any
from unittest import SkipTest

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.e2e.conftest import Running, launch

MODEL = "fashion-resnet"
EXAMPLES = 40
PATIENCE_MS = 10_000  # no SLO is shorter here: out of reach is an answer of its own, 504, and not what is looked for


@pytest.fixture(scope="module")
def emulated() -> Iterator[Running]:
    """A mesh whose worker emulates, with time for every query."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERSERVE_DEFAULT_SLO_MS", str(PATIENCE_MS))
        with launch("--executor", "emulated", "--profile", "rtx2080ti-reconstructed") as running:
            yield running


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with names, datatypes and shapes of which some exist, and with time for every query."""
    components = document["components"]
    components["schemas"]["SloMs"] = {"type": "number", "minimum": PATIENCE_MS, "maximum": 60_000}
    components["schemas"]["Timeout"] = {"enum": [0, PATIENCE_MS * 1_000]}
    components["parameters"]["Model"]["schema"] = {"enum": [MODEL, "other", "a b/c"]}
    tensor = components["schemas"]["InferRequest"]["properties"]["inputs"]["items"]["properties"]
    tensor["name"] = {"enum": ["image", "other"]}
    tensor["shape"] = {"enum": [[1, 28, 28], [2, 28, 28], [1, 28], [0]]}
    tensor["data"] = {"enum": [[0] * 784, [255] * 1568, [0.5], [256] * 784, []]}
    return document


def test_document_is_served_and_complete(emulated: Running) -> None:
    """It is OpenAPI 3.1 of this distribution, and every path of it exists, for the methods it lists."""
    document = requests.get(f"{emulated.url}/openapi.json", timeout=10).json()
    assert document["openapi"].startswith("3.1.")
    for path, item in document["paths"].items():
        url = emulated.url + path.format(model=MODEL, version="1")
        for method in {"get", "post"} & item.keys():
            status = requests.request(method, url, timeout=10).status_code
            assert status == (400 if path.endswith("/infer") else 200), path


def test_a_valid_request_is_answered_as_the_document_says(emulated: Running) -> None:
    """A tensor that fits the model gets its answer, by the document as it is, and not only in what is made up."""
    schema = schemathesis.openapi.from_dict(requests.get(f"{emulated.url}/openapi.json", timeout=10).json())
    tensor: dict[str, Any] = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * 784}
    case = schema["/v2/models/{model}/infer"]["POST"].Case(
        path_parameters={"model": MODEL},
        query={"slo_ms": PATIENCE_MS},
        body={"inputs": [tensor]},
        media_type="application/json",
    )
    response = case.call(base_url=emulated.url, timeout=20)
    case.validate_response(response)
    assert response.status_code == 200
    assert response.json()["parameters"]["deadline_met"] is True


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_answers_are_as_the_document_says(emulated: Running, mode: GenerationMode) -> None:
    """Statuses, types and bodies are those documented, none is a 5xx, and errors are JSON of one key.

    Whether a tensor fits a model is not for the document to say, so a request may be valid by it and yet refused.
    """
    document = narrowed(requests.get(f"{emulated.url}/openapi.json", timeout=10).json())
    seen: dict[str, set[int]] = {}

    def check(case: Any) -> None:
        response = case.call(base_url=emulated.url, timeout=10)
        case.validate_response(response, excluded_checks=[positive_data_acceptance])
        status = response.status_code
        seen.setdefault(case.operation.path, set()).add(status)
        assert status < 500
        if status >= 400 and not case.operation.path.endswith("/ready"):
            error = response.json()
            assert list(error) == ["error"]
            assert isinstance(error["error"], str)

    bounded = settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = result.ok()  # type: ignore[union-attr]  # else the document is not valid, and it raises
        try:
            strategy = operation.as_strategy(generation_mode=mode)
            bounded(given(case=strategy)(check))()
        except (Unsatisfiable, SkipTest):
            assert mode is GenerationMode.NEGATIVE  # an operation without parameters takes nothing that is wrong
    assert {400, 404} <= seen["/v2/models/{model}/infer"]
