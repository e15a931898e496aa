"""The executor thread: batches in order, and one that fails fails alone."""

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from common import wire
from common.clock import Clock
from services.worker.executor import Executor, Finished, Job
from services.worker.library import PROFILES, read_profile


@dataclass
class Upper:
    """An engine that answers in capitals, and fails for the subnet ``broken``."""

    executor: str = "torch"
    actuation_s: float | None = None
    profile: Any = field(default_factory=lambda: read_profile(PROFILES / "rtx2080ti-reconstructed.json"))
    calls: list[tuple[str, list[bytes], list[int]]] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        return {}

    def execute(self, subnet: str, payloads: Sequence[bytes | memoryview], rows: Sequence[int]) -> list[bytes]:
        self.calls.append((subnet, [bytes(payload) for payload in payloads], list(rows)))
        self.actuation_s = 0.25 if subnet == "other" else None
        if subnet == "broken":
            raise RuntimeError("out of memory")
        if subnet == "forgetful":
            return []
        return [bytes(payload).upper() for payload in payloads]


@dataclass
class Bench:
    """An executor at work, and what it delivered."""

    engine: Upper
    executor: Executor
    delivered: "queue.Queue[Finished]"

    def run(self, subnet: str, *payloads: bytes | str) -> Finished:
        """Execute one batch of one-row queries."""
        self.submit(subnet, *payloads)
        return self.delivered.get(timeout=20)

    def submit(self, subnet: str, *payloads: bytes | str) -> None:
        records = [
            wire.WorkRecord("gateway", 0, wire.QueryRecord(i, 0, 0, i + 1, 0.0, 0, 0, 0, stored=False))
            for i in range(len(payloads))
        ]
        batch = wire.WorkBatch(len(self.engine.calls), subnet, "slackfit", "", 0, records)
        views = [payload if isinstance(payload, str) else memoryview(payload) for payload in payloads]
        self.executor.submit(Job(b"1-1", batch, views))


@pytest.fixture
def bench() -> Iterator[Bench]:
    engine: Upper = Upper()
    delivered: queue.Queue[Finished] = queue.Queue()
    executor = Executor(engine, Clock(), delivered.put)
    yield Bench(engine, executor, delivered)
    executor.close()


def test_results_come_in_the_order_of_the_records(bench: Bench) -> None:
    """A batch is one call of the engine, with every query's rows, and times that do not run backwards."""
    done = bench.run("fine", b"a", b"b")
    assert done.results == [b"A", b"B"]
    assert bench.engine.calls == [("fine", [b"a", b"b"], [1, 2])]
    assert done.rows == 3
    assert done.started_us <= done.finished_us
    assert done.idle_us >= 0


def test_batch_that_raises_fails_alone(bench: Bench) -> None:
    """Every query of a batch that failed is told why, in words; the next batch is served."""
    failed = bench.run("broken", b"a", b"b")
    assert failed.results == ["inference failed: RuntimeError: out of memory"] * 2
    assert bench.run("fine", b"c").results == [b"C"]


def test_engine_that_forgets_a_query_fails_its_batch(bench: Bench) -> None:
    """An engine that returns fewer outputs than queries leaves none of them without a result."""
    (why,) = bench.run("forgetful", b"a").results
    assert isinstance(why, str)
    assert why.startswith("inference failed: ValueError")


def test_unusable_payload_is_kept_from_the_engine(bench: Bench) -> None:
    """A payload that is known to be bad passes as its error; the engine computes the others, and their rows alone."""
    done = bench.run("fine", b"a", "payload has expired", b"c")
    assert done.results == [b"A", "payload has expired", b"C"]
    assert bench.engine.calls == [("fine", [b"a", b"c"], [1, 3])]
    assert done.rows == 4


def test_bad_payload_keeps_its_reason_in_a_batch_that_raises(bench: Bench) -> None:
    """Each query gets its own reason: what was wrong with it, or with the batch."""
    first, second = bench.run("broken", "payload has expired", b"b").results
    assert (first, second) == ("payload has expired", "inference failed: RuntimeError: out of memory")


def test_batch_without_a_usable_payload_costs_no_inference(bench: Bench) -> None:
    """A batch of nothing but bad payloads never reaches the engine, and is finished all the same."""
    done = bench.run("fine", "expired", "damaged")
    assert (done.results, done.rows, bench.engine.calls) == (["expired", "damaged"], 0, [])


def test_close_finishes_what_was_submitted(bench: Bench) -> None:
    """Batches are run in order, and closing waits for those before it."""
    for number in range(5):
        bench.submit("fine", b"x%d" % number)
    bench.executor.close()
    assert [bench.delivered.get_nowait().results for _ in range(5)] == [[b"X%d" % n] for n in range(5)]


def test_change_of_subnet_is_told_with_its_batch(bench: Bench) -> None:
    """What the engine says its change of subnet took goes with the batch; None where it changed nothing or failed."""
    took = [bench.run(subnet, b"a").actuation_s for subnet in ("other", "fine", "broken")]
    assert took == [0.25, None, None]
