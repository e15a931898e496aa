"""The queue, in order of deadlines: earliest deadline first (EDF)."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from operator import lt
from typing import Any

from common.sched.types import DEADLINE_US, EDF, MIN_ACCURACY, ROWS, Query

_PASS_OVER = 64
"""How many queries too demanding for a batch's subnet are passed over while packing: bounds a decision's cost."""

_COMPACT = 256
"""Slots freed at the front before the list may be compacted."""


class EdfQueue:
    """Queries sorted by (deadline, priority, id), and their rows in total.

    A sorted list whose front is an index: arrivals are nearly sorted and cost an append, batches leave from the front
    and move nothing. At 10,000 queries an insertion in the middle moves 40 kB, which is a microsecond or two.
    """

    __slots__ = ("_front", "_items", "_min_accuracy", "rows")

    def __init__(self) -> None:
        self._items: list[Query] = []
        self._front = 0
        self._min_accuracy = 0.0  # none that waits needs more, nor any that came since the queue was empty
        self.rows = 0

    def __len__(self) -> int:
        return len(self._items) - self._front

    def __iter__(self) -> Iterator[Query]:
        items = self._items
        return (items[i] for i in range(self._front, len(items)))

    @property
    def head(self) -> Query:
        """The query whose deadline comes first. Raises IndexError if the queue is empty."""
        return self._items[self._front]

    def first(self, most: int) -> list[Query]:
        """Return the first queries in EDF order, up to `most`."""
        return self._items[self._front : self._front + most]

    def deadlines(self) -> Iterator[tuple[int, int]]:
        """Iterate (deadline_us, rows) in EDF order, copying nothing: take what is needed and stop."""
        items = self._items
        return ((items[i].deadline_us, items[i].rows) for i in range(self._front, len(items)))

    def batches(self, skipped: int, size: int, most: int) -> tuple[list[int], int]:
        """Cut what is behind the first `skipped` rows into up to `most` batches of up to `size` rows, in EDF order.

        Returns the earliest deadline of each, and the rows of the largest. The head is skipped in any case, and no
        query is split; one larger than `size` is a batch by itself and counts as `size` rows.
        """
        items, i = self._items, self._front
        if self.rows == len(items) - i:  # one row each, as nearly always: no need to look at every one
            i += max(skipped, 1)
            return list(map(DEADLINE_US, items[i : i + size * most : size])), min(size, max(0, len(items) - i))
        skipped -= items[i].rows
        i += 1
        while i < len(items) and skipped >= items[i].rows:
            skipped -= items[i].rows
            i += 1
        found: list[int] = []
        largest = 0
        while i < len(items) and len(found) < most:
            deadline_us, rows = items[i].deadline_us, items[i].rows
            i += 1
            while i < len(items) and rows + items[i].rows <= size:
                rows += items[i].rows
                i += 1
            found.append(deadline_us)
            largest = max(largest, min(rows, size))
        return found, largest

    def push(self, queries: Iterable[Query]) -> None:
        """Add queries, whose ids must not be in the queue."""
        queries = tuple(queries)
        self.extend(queries, sum(map(ROWS, queries)), max(map(MIN_ACCURACY, queries), default=0.0))

    def extend(self, queries: Sequence[Query], rows: int, min_accuracy: float) -> None:
        """Add queries as `push` does, where their rows in all and the greatest accuracy they need are known."""
        items = self._items
        last = items[max(self._front, len(items) - 1) :]
        if not last or min_accuracy > self._min_accuracy:
            self._min_accuracy = min_accuracy
        pack = [*last, *queries]
        if _ascend(list(map(DEADLINE_US, pack))) or _ascend(list(map(EDF, pack))):  # nearly always: they came in order
            items += queries
        else:
            for query in queries:
                insort(items, query, lo=self._front, key=EDF)
        self.rows += rows

    def take(self, max_rows: int, accuracy: float) -> tuple[Query, ...]:
        """Remove and return the queries of one batch: the head always, then the next in order while their rows fit.

        A query that needs more than `accuracy` is passed over and keeps its place. One whose rows do not fit ends the
        batch: nothing overtakes it for being smaller. Raises IndexError if the queue is empty.
        """
        items, i = self._items, self._front
        if self.rows == len(items) - i:  # one row each, as nearly always: if all may go, they go as they stand
            alike = items[i : i + max(1, max_rows)]
            if self._min_accuracy <= accuracy or max(map(MIN_ACCURACY, alike[1:]), default=0.0) <= accuracy:
                self._front += len(alike)
                self.rows -= len(alike)
                self._compact()
                return tuple(alike)
        head = items[i]
        taken, rows = [head], head.rows
        passed: list[Query] = []
        i += 1
        while rows < max_rows and i < len(items) and len(passed) < _PASS_OVER:
            query = items[i]
            if query.min_accuracy > accuracy:
                passed.append(query)
            elif rows + query.rows > max_rows:
                break
            else:
                taken.append(query)
                rows += query.rows
            i += 1
        self._front = i - len(passed)
        items[self._front : i] = passed
        self.rows -= rows
        self._compact()
        return tuple(taken)

    def pop(self) -> Query:
        """Remove and return the head. Raises IndexError if the queue is empty."""
        return self.take(0, 0.0)[0]

    def discard(self, ids: Collection[int]) -> None:
        """Remove the queries with these ids, where present. Costs a pass over the queue."""
        self._items = [item for item in self._items[self._front :] if item.id not in ids]
        self._front = 0
        self.rows = sum(item.rows for item in self._items)

    def check(self) -> None:
        """Raise AssertionError if the queue is out of order or its row count is wrong."""
        items = self._items[self._front :]
        assert all(EDF(a) < EDF(b) for a, b in pairwise(items)), "queue out of order"
        assert self.rows == sum(item.rows for item in items), "queued rows miscounted"
        assert max(map(MIN_ACCURACY, items), default=0.0) <= self._min_accuracy, "the greatest demand is forgotten"

    def _compact(self) -> None:
        if self._front > _COMPACT and self._front * 2 > len(self._items):
            del self._items[: self._front]
            self._front = 0


def _ascend(keys: list[Any]) -> bool:
    """Whether each is greater than the one before it."""
    return all(map(lt, keys, keys[1:]))
