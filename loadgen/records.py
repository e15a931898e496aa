"""One record per query: written while a run goes on, handed over as arrays at its end."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadgen.oip import parse_reply
from loadgen.workload import Workload

Column = NDArray[np.float64]

LABEL = "label"  # the output that is compared with the true labels
ROUNDING_MS = 1e-6  # times are floats: an answer at its deadline, to the microsecond, has met it
_MAX_HELD_BYTES = 256 << 20  # of answers read after the run; further ones are read as they come
_MAX_REASONS = 50  # distinct error reasons kept: a server may write a name into each


@dataclass(frozen=True, slots=True)
class Records:
    """What became of every query of a workload, in its order. NaN stands for what is not known.

    Times are seconds since the start of the run. `subnets` and `workers` say which one a code means; code 0 is one not
    told.
    """

    workload: Workload
    sent_s: Column
    done_s: Column  # the whole answer, status 200, had come; NaN for an error
    accuracy: Column  # profiled accuracy of the subnet, percent
    batch_size: Column
    queue_ms: Column
    inference_ms: Column
    deadline_met: Column  # 1 or 0, as the server saw it
    correct_rows: Column
    subnet: NDArray[np.int32]  # code into `subnets`
    worker: NDArray[np.int32]  # code into `workers`
    subnets: Sequence[str] = ()
    workers: Sequence[str] = ()
    policies: Sequence[str] = ()
    executors: Sequence[str] = ()
    ids: Sequence[str] = ()  # the server's own of each query, "" for one not told
    errors: Mapping[int, str] = field(default_factory=dict)  # query: reason


class Recorder:
    """Takes each query's end, exactly once, and counts as it goes.

    `labels` gives the true labels of a query's rows as INT64 bytes; None when none are known.
    """

    def __init__(self, workload: Workload, labels: Callable[[int], bytes] | None = None) -> None:
        count = len(workload.intended_s)
        self.answered = 0
        self.met = 0
        self.errors: dict[int, str] = {}
        self.intended_s: list[float] = workload.intended_s.tolist()
        self.sent_s = _unknown(count)
        self._workload = workload
        self._tenant: list[int] = workload.tenant.tolist()
        self._within_ms = [tenant.slo_ms + ROUNDING_MS for tenant in workload.tenants]
        self._labels = labels
        self._done_s = _unknown(count)
        self._accuracy = _unknown(count)
        self._batch_size = _unknown(count)
        self._queue_ms = _unknown(count)
        self._inference_ms = _unknown(count)
        self._deadline_met = _unknown(count)
        self._correct_rows = _unknown(count)
        self._subnet = array("i", bytes(4 * count))
        self._worker = array("i", bytes(4 * count))
        self._ids = [""] * count
        # Code 0 is a name not told.
        self._subnets: dict[str, int] = {"": 0}
        self._workers: dict[str, int] = {"": 0}
        self._policies: dict[str, int] = {}
        self._executors: dict[str, int] = {}
        self._reasons: set[str] = set()
        self._held: list[tuple[int, bytes, int]] = []  # bodies not yet read
        self._held_bytes = 0

    @property
    def ended(self) -> int:
        """Queries answered or failed."""
        return self.answered + len(self.errors)

    def answer(self, query: int, done_s: float, body: bytes, header_length: int) -> None:
        """`query` was answered with status 200. `finish` reads the body, so that a run has its CPU for sending."""
        self._done_s[query] = done_s
        self.answered += 1
        self.met += self._in_time(query)
        if self._held_bytes < _MAX_HELD_BYTES:
            self._held.append((query, body, header_length))
            self._held_bytes += len(body)
        else:
            self._read(query, body, header_length)

    def fail(self, query: int, reason: str) -> None:
        """`query` ended without an answer."""
        if reason not in self._reasons:
            if len(self._reasons) < _MAX_REASONS:
                self._reasons.add(reason)
            else:
                reason = f"{reason.partition(':')[0]}: (other reasons)"
        self.errors[query] = reason

    def finish(self) -> Records:
        """The arrays of a run that has ended; an answer that cannot be read becomes an error."""
        for held in self._held:
            self._read(*held)
        self._held.clear()
        return Records(
            workload=self._workload,
            sent_s=np.array(self.sent_s),
            done_s=np.array(self._done_s),
            accuracy=np.array(self._accuracy),
            batch_size=np.array(self._batch_size),
            queue_ms=np.array(self._queue_ms),
            inference_ms=np.array(self._inference_ms),
            deadline_met=np.array(self._deadline_met),
            correct_rows=np.array(self._correct_rows),
            subnet=np.array(self._subnet),
            worker=np.array(self._worker),
            subnets=[str(name) for name in self._subnets],
            workers=[str(name) for name in self._workers],
            policies=[str(name) for name in self._policies],
            executors=[str(name) for name in self._executors],
            ids=self._ids,
            errors=self.errors,
        )

    def _read(self, query: int, body: bytes, header_length: int) -> None:
        try:
            parameters, predicted = parse_reply(body, header_length, LABEL)
            self._note(query, parameters)
            if self._labels is not None and predicted is not None:
                self._correct_rows[query] = _equal_labels(predicted, self._labels(query))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            self.met -= self._in_time(query)
            self.answered -= 1
            self._done_s[query] = math.nan
            self.fail(query, f"reply: cannot be read, {type(error).__name__}: {error}")

    def _note(self, query: int, parameters: Mapping[str, Any]) -> None:
        """Keep what the server told of `query`. TypeError when a value has the wrong type."""
        for key, value in parameters.items():
            if value is None:
                continue
            if key == "subnet":
                self._subnet[query] = self._subnets.setdefault(value, len(self._subnets))
            elif key == "accuracy":
                self._accuracy[query] = value
            elif key == "batch_size":
                self._batch_size[query] = value
            elif key == "queue_ms":
                self._queue_ms[query] = value
            elif key == "inference_ms":
                self._inference_ms[query] = value
            elif key == "deadline_met":
                self._deadline_met[query] = value
            elif key == "worker":
                self._worker[query] = self._workers.setdefault(value, len(self._workers))
            elif key == "policy":
                self._policies.setdefault(value, len(self._policies))
            elif key == "executor":
                self._executors.setdefault(value, len(self._executors))
            elif key == "query_id":
                self._ids[query] = str(value)

    def _in_time(self, query: int) -> bool:
        return (self._done_s[query] - self.intended_s[query]) * 1e3 <= self._within_ms[self._tenant[query]]


def _equal_labels(predicted: bytes, true: bytes) -> int:
    if predicted == true:
        return len(true) // 8
    if len(predicted) != len(true):
        raise ValueError(f"{len(predicted) // 8} labels for {len(true) // 8} rows")
    return int(np.count_nonzero(np.frombuffer(predicted, np.int64) == np.frombuffer(true, np.int64)))


def _unknown(count: int) -> array[float]:
    return array("d", np.full(count, np.nan).tobytes())
