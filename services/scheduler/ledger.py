"""What the core does not want to know of its queries: whom to answer, their bytes, and which entries they came with.

An entry may be acked when all its queries have left: each query held counts for its source, and the source is due when
the last has gone. A lost worker's stream is one source: it is deleted when nothing in it is needed any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from common import wire
from common.sched import Query

if TYPE_CHECKING:
    from collections.abc import Iterator


class Source(NamedTuple):
    """Where a query was read: an entry of a stream, or with ``entry`` None a whole stream of a lost worker."""

    stream: str
    entry: bytes | None


class Held(NamedTuple):
    """A queued query's other half. ``payload`` is empty if the bytes are stored under their own key."""

    gateway: str
    record: wire.QueryRecord
    payload: memoryview
    source: Source


@dataclass(slots=True)
class Ledger:
    """Queries held, by id, and how many each source still waits for."""

    _held: dict[int, Held] = field(default_factory=dict)
    _waiting: dict[Source, int] = field(default_factory=dict)
    _due: list[Source] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, query_id: int) -> bool:
        return query_id in self._held

    def hold(self, held: Held) -> None:
        """Hold a query; one held before is replaced, and its source waits for one less."""
        self.release(held.record.id)
        self._held[held.record.id] = held
        self._waiting[held.source] = self._waiting.get(held.source, 0) + 1

    def release(self, query_id: int) -> Held | None:
        """Let a query go; its source is due if it was the last."""
        held = self._held.pop(query_id, None)
        if held is not None:
            left = self._waiting[held.source] - 1
            if left:
                self._waiting[held.source] = left
            else:
                del self._waiting[held.source]
                self._due.append(held.source)
        return held

    def settle(self, source: Source) -> None:
        """Make a source due that holds nothing."""
        if source not in self._waiting:
            self._due.append(source)

    def take_due(self) -> list[Source]:
        """Return the sources due since the last call."""
        due, self._due = self._due, []
        return due

    def still_due(self, sources: list[Source]) -> list[Source]:
        """Return those for which nothing is waiting (again)."""
        return [source for source in sources if source not in self._waiting]


def to_query(record: wire.QueryRecord, attempts: int = 0) -> Query:
    """Return the core's view of a query on the wire."""
    return Query(
        record.id, record.arrival_us, record.deadline_us, record.rows, record.min_accuracy, record.priority, attempts
    )


def split(records: Iterator[wire.QueryRecord], payload: memoryview) -> Iterator[tuple[wire.QueryRecord, memoryview]]:
    """Cut the payload that travels beside ``records`` into theirs, in order; stored ones have none here."""
    offset = 0
    for record in records:
        size = 0 if record.stored else record.size
        yield record, payload[offset : offset + size]
        offset += size
