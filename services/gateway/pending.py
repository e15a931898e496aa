"""Queries that wait for their answer, by id: each is answered exactly once, whatever comes twice, late or never."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from common import keys
from common.errors import DeadlineExceeded, SuperServeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.wire import Answers, QueryRecord


class Result(NamedTuple):
    """A query's answer: the batch it was in, its own output bytes, and when they came (common clock)."""

    batch: Answers
    payload: bytes
    now_us: int


@dataclass(slots=True, eq=False)
class Query:
    """A query on its way; ``done`` is called once, with its result or with what went wrong."""

    model: str
    record: QueryRecord
    tensors: bytes
    expires_us: int
    done: Callable[[Query, Result | SuperServeError], None]


class Pending:
    """All queries of this gateway that are in the mesh. Everything runs on the loop, so nothing is locked."""

    def __init__(self) -> None:
        self.spent: list[str] = []  # keys of payloads that nobody needs any more, to be deleted
        self._queries: dict[int, Query] = {}
        self._next_id = secrets.randbits(31) << 32  # 63 bits: no other process, and no earlier run, has these ids
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._queries)

    def __contains__(self, query: Query) -> bool:
        return query.record.id in self._queries

    def new_id(self) -> int:
        """Return an id that nobody has had."""
        self._next_id += 1
        return self._next_id

    def add(self, query: Query) -> None:
        """Wait for this query's answer."""
        self._queries[query.record.id] = query
        self._empty.clear()

    def take(self, query_id: int) -> Query | None:
        """Return a query and forget it; None if it was answered before, or given up."""
        query = self._queries.pop(query_id, None)
        if query is not None and query.record.stored:
            self.spent.append(keys.payload(query.model, query_id))
        if not self._queries:
            self._empty.set()
        return query

    def fail(self, queries: list[Query], error: SuperServeError) -> None:
        """Answer those of ``queries`` that still wait with an error."""
        for query in queries:
            if self.take(query.record.id) is not None:
                query.done(query, error)

    def of(self, model: str) -> list[Query]:
        """Return the waiting queries of a model."""
        return [query for query in self._queries.values() if query.model == model]

    def sweep(self, now_us: int) -> None:
        """Give up the queries whose answer is overdue."""
        for query in [query for query in self._queries.values() if query.expires_us < now_us]:
            record = query.record
            waited_ms, slo_ms = (now_us - record.arrival_us) / 1e3, (record.deadline_us - record.arrival_us) / 1e3
            message = f"no answer came within {waited_ms:.0f} ms; the SLO was {slo_ms:g} ms"
            self.fail([query], DeadlineExceeded(message))

    async def until_empty(self) -> None:
        """Return once nothing waits."""
        await self._empty.wait()
