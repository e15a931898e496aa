"""What executes a batch: ``TorchEngine`` computes, ``EmulatedEngine`` says that it does not.

An engine runs in the worker's one executor thread and nowhere else. Tensors come and go as bytes in wire order: the
input tensors of each query one after the other, and so the outputs (``rows`` x the shape of one row, C order).
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from common.errors import ConfigError
from common.tensors import BYTES, DTYPES, decode_elements, encode_elements, row_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from common.sched.profile import Profile
    from common.supernet.artifact import Supernet


class Engine(Protocol):
    """One supernet on one device."""

    executor: str  # "torch" or "emulated": goes into every answer
    profile: Profile
    actuation_s: float | None  # what the latest batch's change of subnet took; None: it had the same subnet, or none

    def describe(self) -> dict[str, Any]:
        """Return the model as ``common.wire.Status`` has it."""

    def execute(self, subnet: str, payloads: Sequence[bytes | memoryview], rows: Sequence[int]) -> list[bytes]:
        """Actuate ``subnet``, infer all rows as one batch, and return each query's output bytes.

        Raises ValueError for a payload that does not hold ``rows`` rows, or an unknown subnet.
        """


def describe(description: dict[str, Any], profile: Profile) -> dict[str, Any]:
    """Return what the mesh needs to know of a model: its tensors, and the subnets of its profile."""
    return {
        "name": description["name"],
        "inputs": description["inputs"],
        "outputs": description["outputs"],
        "labels": description.get("labels", []),
        "max_batch": profile.max_batch,
        "subnets": [{"id": subnet.id, "accuracy": subnet.accuracy} for subnet in profile.subnets],
    }


def bytes_of(tensor: dict[str, Any]) -> int:
    """Return the bytes of one row of a tensor of a description; ConfigError for a datatype that there is not."""
    try:
        return row_bytes(tensor["datatype"], tensor["shape"])
    except KeyError as error:
        raise ConfigError(f"tensor {tensor.get('name')!r}: datatype {tensor.get('datatype')!r} is unknown") from error


class TorchEngine:
    """Real forward passes of the subnet that was actuated in place (section 3 of the paper)."""

    executor = "torch"

    def __init__(self, supernet: Supernet, description: dict[str, Any], profile: Profile) -> None:
        self.profile = profile
        self.actuation_s: float | None = None
        self._actuated = ""
        self._supernet = supernet
        self._description = description
        (self._input,) = description["inputs"]
        self._reads_text = self._input["datatype"] == BYTES
        self._input_bytes = 0 if self._reads_text else bytes_of(self._input)

    def describe(self) -> dict[str, Any]:
        """See Engine."""
        return describe(self._description, self.profile)

    def execute(self, subnet: str, payloads: Sequence[bytes | memoryview], rows: Sequence[int]) -> list[bytes]:
        """See Engine."""
        batch = self._texts(payloads, rows) if self._reads_text else self._tensor(payloads, rows)
        self._actuate(subnet)
        outputs = self._supernet.infer(batch)
        arrays = [outputs[tensor["name"]].cpu().numpy() for tensor in self._description["outputs"]]
        bounds = [0]
        for n in rows:
            bounds.append(bounds[-1] + n)
        return [b"".join(array[a:b].tobytes() for array in arrays) for a, b in pairwise(bounds)]

    def example(self, rows: int) -> bytes:
        """Return a payload of so many rows, to warm up with."""
        batch = self._supernet.example(rows)
        if isinstance(batch, list):
            return encode_elements(text.encode() for text in batch)
        return bytes(rows * self._input_bytes)

    def _actuate(self, subnet: str) -> None:
        began_s = time.perf_counter()
        self._supernet.actuate(subnet)
        self.actuation_s = time.perf_counter() - began_s if subnet != self._actuated else None
        self._actuated = subnet

    def _texts(self, payloads: Sequence[bytes | memoryview], rows: Sequence[int]) -> list[str]:
        pairs = zip(payloads, rows, strict=True)
        return [element.decode() for payload, n in pairs for element in decode_elements(payload, n)]

    def _tensor(self, payloads: Sequence[bytes | memoryview], rows: Sequence[int]) -> Tensor:
        import torch  # here: torch is the worker's extra, and an emulated worker runs without it

        for payload, n in zip(payloads, rows, strict=True):  # each: two wrong sizes may add up to a right one
            if len(payload) != n * self._input_bytes:
                raise ValueError(f"{len(payload)} bytes of input for {n} rows of {self._input_bytes} bytes")
        batch = np.frombuffer(bytearray().join(payloads), DTYPES[self._input["datatype"]])
        return torch.from_numpy(batch.reshape(sum(rows), *self._input["shape"]))


class EmulatedEngine:
    """Stands for a device that is not here: sleeps for the profile's median latency and answers zeros.

    It occupies the worker as long as that device would have been busy, so that scheduling is real while inference is
    not; ``executor`` says so in every answer and report.
    """

    executor = "emulated"

    def __init__(self, description: dict[str, Any], profile: Profile) -> None:
        self.profile = profile
        self.actuation_s: float | None = None
        self._description = description
        self._output_bytes = sum(bytes_of(tensor) for tensor in description["outputs"])

    def describe(self) -> dict[str, Any]:
        """See Engine."""
        return describe(self._description, self.profile)

    def execute(self, subnet: str, payloads: Sequence[bytes | memoryview], rows: Sequence[int]) -> list[bytes]:
        """See Engine; the payloads' sizes are not looked at."""
        del payloads
        time.sleep(self.profile.latency_us(subnet, sum(rows)) / 1e6)
        return [bytes(n * self._output_bytes) for n in rows]
