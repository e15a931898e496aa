"""The worker service where Redis fails in the middle of its work."""

import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from common import keys, wire
from common.runtime import Service, Tasks
from common.streams import Streams, StreamsError
from services.worker.start import build
from services.worker.worker import Worker
from tests.mesh.peer import IMAGE, Peer
from tests.worker.conftest import worker_settings

Running = Callable[[Service], AbstractAsyncContextManager[Tasks]]


async def test_batch_survives_a_failed_fetch_of_its_payloads(
    redis_url: str,
    model_folder: Path,
    profile_file: Callable[..., Path],
    running: Running,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that loses Redis while it fetches stored payloads takes the batch up again, and answers it."""
    fetch, failures = Streams.get_payloads, [StreamsError("Redis: connection reset")]

    async def get_payloads(streams: Streams, names: Sequence[str]) -> list[bytes | None]:
        if failures:
            raise failures.pop()
        return await fetch(streams, names)

    monkeypatch.setattr(Streams, "get_payloads", get_payloads)
    settings = worker_settings(
        redis=redis_url,
        model=str(model_folder),
        executor="emulated",
        profile=str(profile_file()),
        name=f"worker-{secrets.token_hex(4)}",
        grace_s=1.0,  # no scheduler will dismiss it
    )
    service = Worker(settings, build(settings))
    async with Peer(redis_url, model_folder.name) as peer, running(service):
        query = peer.record(stored=True)
        await peer.streams.put_payloads({keys.payload(peer.model, query.id): IMAGE})
        batch = wire.WorkBatch(1, "small", "test", "", 0, [wire.WorkRecord(peer.name, 0, query)])
        await peer.streams.append(keys.work(peer.model, service.name), wire.encode(batch))
        await peer.collect([query.id])
        (answer,) = peer.answers[query.id]
        assert answer[1].error == ""
        assert not failures
