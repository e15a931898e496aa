"""Fixtures of the suite for `common`: a connection, and names that no other test has."""

import secrets
from collections.abc import AsyncIterator

import pytest

from common.streams import Streams


@pytest.fixture
async def streams(redis_url: str) -> AsyncIterator[Streams]:
    streams = Streams(redis_url)
    yield streams
    await streams.close()


@pytest.fixture
def stream() -> str:
    """The name of a stream that nobody has made."""
    return f"test:{secrets.token_hex(6)}"
