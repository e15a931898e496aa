"""The EDF queue against a plain sorted list."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.sched.queue import EdfQueue
from common.sched.types import Query
from tests.sched.harness import query


def key(item: Query) -> tuple[int, int, int]:
    return item.deadline_us, item.priority, item.id


@settings(deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 50), st.integers(-1, 1), st.integers(1, 4)), max_size=8), max_size=8),
    st.lists(st.integers(0, 20), max_size=8),
)
def test_queue_is_a_sorted_list(packs: list[list[tuple[int, int, int]]], takes: list[int]) -> None:
    """Pushed and taken in any order, the queue holds what a sorted list holds, and counts its rows."""
    queue, model, next_id = EdfQueue(), list[Query](), 0
    for pack, max_rows in zip(packs, [*takes, *[3] * len(packs)], strict=False):
        queries = [Query(next_id + i, 0, d, rows=r, priority=p) for i, (d, p, r) in enumerate(pack)]
        next_id += len(queries)
        queue.push(queries)
        model = sorted([*model, *queries], key=key)
        if model:
            assert queue.head is model[0]
            taken = queue.take(max_rows, 0.0)
            assert list(taken) == model[: len(taken)]
            assert len(taken) == 1 or sum(item.rows for item in taken) <= max_rows
            model = model[len(taken) :]
        queue.check()
        assert list(queue) == model
        assert list(queue.deadlines()) == [(item.deadline_us, item.rows) for item in model]


def test_passed_over_queries_keep_their_order() -> None:
    """Queries too demanding for the batch stay, in order, before those that come later."""
    queue = EdfQueue()
    queue.push(query(i, 100 + i, min_accuracy=90.0 if i in (1, 3) else 0.0) for i in range(7))
    assert [item.id for item in queue.take(4, 80.0)] == [0, 2, 4, 5]
    assert [item.id for item in queue] == [1, 3, 6]
    queue.check()


def test_packing_looks_a_bounded_way_ahead() -> None:
    """After 64 queries passed over a batch is closed, so that a decision's cost does not grow with the queue."""
    queue = EdfQueue()
    queue.push(query(i, i, min_accuracy=0.0 if i in (0, 500) else 90.0) for i in range(501))
    assert [item.id for item in queue.take(16, 80.0)] == [0]
    assert len(queue) == 500


def test_space_of_taken_queries_is_reclaimed() -> None:
    """A long run of pushes and takes does not keep the queries that have left."""
    queue = EdfQueue()
    for start in range(0, 100_000, 16):
        queue.push(query(i, i) for i in range(start, start + 16))
        queue.take(16, 0.0)
    assert len(queue._items) < 2_000
    assert len(queue) == 0


def test_discard_removes_by_id() -> None:
    """Discarding removes the ids that are there and ignores the rest."""
    queue = EdfQueue()
    queue.push(query(i, i, rows=2) for i in range(5))
    queue.pop()
    queue.discard({0, 2, 4, 99})
    assert [item.id for item in queue] == [1, 3]
    assert queue.rows == 4


def test_empty_queue_has_no_head() -> None:
    """The head of an empty queue is an error, not a value."""
    with pytest.raises(IndexError):
        _ = EdfQueue().head
