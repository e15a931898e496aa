"""Engines: bytes of queries in, bytes of answers out."""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from services.worker import library
from services.worker.engine import EmulatedEngine, Engine, TorchEngine, bytes_of

PIXELS, CLASSES = 784, 10
ANSWER = 8 + 4 * CLASSES  # bytes per row: a label and the scores


@pytest.fixture(scope="module")
def samples(shipped: Path) -> tuple[bytes, list[int]]:
    """Two hundred images of the test set, end to end, and their labels."""
    tensors = load_file(shipped / "samples.safetensors")
    return tensors["images"][:200].tobytes(), tensors["labels"][:200].tolist()


@pytest.fixture
def emulated(model_folder: Path, profile_file: Callable[..., Path]) -> EmulatedEngine:
    _, profile = library.find_profile(str(profile_file(small_us=8_000, large_us=16_000)))
    return EmulatedEngine(library.read_description(model_folder), profile)


def labels(output: bytes, rows: int) -> list[int]:
    return [int(label) for label in np.frombuffer(output[: 8 * rows], np.int64)]


def scores(output: bytes, rows: int) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    return np.frombuffer(output[8 * rows :], np.float32).reshape(rows, CLASSES)


def test_real_labels(torch_engine: TorchEngine, samples: tuple[bytes, list[int]]) -> None:
    """The largest subnet names at least four of five shipped test images rightly, and each label is that of its
    highest score; the scores of a row add up to one."""
    images, truth = samples
    (output,) = torch_engine.execute(torch_engine.profile.largest, [images], [len(truth)])
    found = labels(output, len(truth))
    assert sum(a == b for a, b in zip(found, truth, strict=True)) >= 0.8 * len(truth)
    assert scores(output, len(truth)).argmax(1).tolist() == found
    assert scores(output, len(truth)).sum(1) == pytest.approx(1, abs=1e-5)


def test_outputs_are_split_per_query(torch_engine: TorchEngine, samples: tuple[bytes, list[int]]) -> None:
    """A batch of queries of different rows gives each query what it would have got alone."""
    images, _ = samples
    subnet, rows = torch_engine.profile.smallest, [1, 3, 2]
    cuts = [0, 1, 4, 6]
    parts = [memoryview(images)[a * PIXELS : b * PIXELS] for a, b in pairwise(cuts)]
    together = torch_engine.execute(subnet, parts, rows)
    assert [len(output) for output in together] == [n * ANSWER for n in rows]
    for output, part, n in zip(together, parts, rows, strict=True):
        (alone,) = torch_engine.execute(subnet, [part], [n])
        assert labels(output, n) == labels(alone, n)
        assert scores(output, n) == pytest.approx(scores(alone, n), abs=1e-5)


def test_batch_names_its_subnet(torch_engine: TorchEngine, samples: tuple[bytes, list[int]]) -> None:
    """Each subnet that the profile offers can be asked for, in any order, and they differ in what they answer."""
    image = samples[0][:PIXELS]
    subnets = [subnet.id for subnet in torch_engine.profile.subnets]
    first = {subnet: torch_engine.execute(subnet, [image], [1]) for subnet in subnets}
    again = {subnet: torch_engine.execute(subnet, [image], [1]) for subnet in reversed(subnets)}
    assert first == again
    assert len({outputs[0] for outputs in first.values()}) == len(subnets) > 1


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [([PIXELS - 1], [1]), ([2 * PIXELS], [1]), ([0], [1]), ([PIXELS - 1, PIXELS + 1], [1, 1]), ([PIXELS], [1, 1])],
)
def test_wrong_size_is_refused(torch_engine: TorchEngine, sizes: list[int], rows: list[int]) -> None:
    """A payload of another size than its rows' is refused, even where two wrong ones add up to a right total."""
    with pytest.raises(ValueError, match=r"bytes of input|shorter|longer"):
        torch_engine.execute(torch_engine.profile.smallest, [bytes(size) for size in sizes], rows)


def test_unknown_subnet_is_refused(torch_engine: TorchEngine) -> None:
    """A subnet that the model does not have is named in the error."""
    with pytest.raises(ValueError, match="d9-w9"):
        torch_engine.execute("d9-w9", [bytes(PIXELS)], [1])


def test_description_is_what_the_mesh_needs(torch_engine: TorchEngine) -> None:
    """Name, tensors and labels are the model's; subnets ascend in accuracy and are those of the profile."""
    description = torch_engine.describe()
    assert description["name"] == "fashion-resnet"
    assert [bytes_of(tensor) for tensor in description["inputs"]] == [PIXELS]
    assert sum(bytes_of(tensor) for tensor in description["outputs"]) == ANSWER
    assert len(description["labels"]) == CLASSES
    assert description["max_batch"] == torch_engine.profile.max_batch
    accuracies = [subnet["accuracy"] for subnet in description["subnets"]]
    assert accuracies == sorted(accuracies)
    assert [subnet["id"] for subnet in description["subnets"]] == [s.id for s in torch_engine.profile.subnets]


def test_emulation_answers_zeros_for_every_row(emulated: EmulatedEngine) -> None:
    """An emulated answer has the size of a real one and nothing in it; what was sent is not looked at."""
    outputs = emulated.execute("small", [b"", b"anything"], [1, 3])
    assert outputs == [bytes(ANSWER), bytes(3 * ANSWER)]


@pytest.mark.parametrize(("subnet", "rows"), [("small", [1]), ("small", [3, 5]), ("large", [16])])
def test_emulation_occupies_the_worker(emulated: EmulatedEngine, subnet: str, rows: list[int]) -> None:
    """A batch takes at least the median latency that the profile states for its subnet and rows."""
    began = time.perf_counter()
    emulated.execute(subnet, [b""] * len(rows), rows)
    assert time.perf_counter() - began >= emulated.profile.latency_us(subnet, sum(rows)) / 1e6


def test_engines_say_which_they_are(torch_engine: TorchEngine, emulated: EmulatedEngine) -> None:
    """No emulated answer passes for a computed one."""
    engines: list[Engine] = [torch_engine, emulated]
    assert [engine.executor for engine in engines] == ["torch", "emulated"]


def test_only_a_change_of_subnet_is_timed(torch_engine: TorchEngine, samples: tuple[bytes, list[int]]) -> None:
    """A change of subnet tells what it took; a batch of the subnet that is in place tells of none."""
    image = samples[0][:PIXELS]
    took = []
    for subnet in (torch_engine.profile.smallest, torch_engine.profile.largest, torch_engine.profile.largest):
        torch_engine.execute(subnet, [image], [1])
        took.append(torch_engine.actuation_s)
    assert took[1] is not None
    assert took[1] > 0
    assert took[2] is None
