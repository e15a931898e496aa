"""What the scheduler publishes of its workers, and of those that died, for who watches."""

import os
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from common.overview import overview
from common.runtime import Service, Tasks
from services.scheduler import roster
from tests.mesh.peer import Peer, until, wall_us
from tests.mesh.test_mesh import scheduler, worker, worker_process

Running = Callable[[Service], AbstractAsyncContextManager[Tasks]]


async def shown(peer: Peer, condition: Callable[[Any], bool]) -> Any:
    """Return the first overview of the model of which this is true."""
    model: Any = None

    async def true() -> bool:
        nonlocal model
        found = (await peer.streams.read_published()).get(peer.model)
        if found is None:
            return False
        (model,) = overview(wall_us(), {peer.model: found})["models"]
        return condition(model)

    await until(true)
    return model


async def test_what_was_served_is_counted(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """After 30 queries: as many of the worker's, of the subnets', batches and slacks alike, and nobody waits."""
    service = worker(redis_url, model_folder, profile_file())
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder)),
        running(service),
    ):
        await peer.wait_for_workers(1, 60.0)
        before = await shown(peer, lambda model: model["ready"])
        assert [found["subnet"] for found in before["workers"]] == [None]
        await peer.collect(await peer.send([peer.record() for _ in range(30)]))
        model = await shown(peer, lambda model: model["workers"][0]["queries"] == 30)
        (found,), totals = model["workers"], model["totals"]
        assert (found["name"], found["state"], found["executor"]) == (service.name, "idle", "emulated")
        assert found["subnet"] in ("small", "large")
        assert 1 <= found["batches"] == totals["batches"] == totals["slack_count"]
        assert sum(totals["subnets"].values()) == totals["rows"] == 30
        assert 0 < totals["slack_us_sum"] / totals["slack_count"] <= 2_000_000
        assert (model["queue"], model["head_slack_ms"]) == ({"queries": 0, "rows": 0}, None)


async def test_what_waits_is_told_with_the_slack_of_its_most_urgent(
    redis_url: str, model_folder: Path, running: Running
) -> None:
    """Without a worker queries wait: how many, how many rows, and the slack of the earliest deadline, which shrinks."""
    async with Peer(redis_url, model_folder.name) as peer, running(scheduler(redis_url, model_folder)):
        await peer.send([peer.record(slo_ms=60_000, rows=2, payload=b"x" * 1_568) for _ in range(3)], b"x" * 1_568)
        await peer.send([peer.record(slo_ms=30_000)])
        model = await shown(peer, lambda model: model["queue"] == {"queries": 4, "rows": 7})
        assert 0 < model["head_slack_ms"] < 30_000
        assert not model["ready"]
        await shown(peer, lambda later: later["head_slack_ms"] < model["head_slack_ms"])


async def test_worker_that_dies_is_shown_as_lost_for_a_while(
    redis_url: str,
    model_folder: Path,
    profile_file: Callable[..., Path],
    running: Running,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed with -9 it is lost, no worker of the status any more, and gone once ``LOST_SHOWN_S`` have passed."""
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder, worker_timeout_ms=500)),
        worker_process(redis_url, model_folder, profile_file()) as process,
    ):
        (known,) = (await peer.wait_for_workers(1, 60.0)).workers
        await peer.collect(await peer.send([peer.record() for _ in range(5)]))
        await shown(peer, lambda model: model["workers"][0]["queries"] == 5)
        os.kill(process.pid, signal.SIGKILL)
        model = await shown(peer, lambda model: [found["state"] for found in model["workers"]] == ["lost"])
        (lost,) = model["workers"]
        assert (lost["name"], lost["queries"]) == (known["name"], 5)
        assert not model["ready"]
        await peer.wait_for_workers(0)
        monkeypatch.setattr(roster, "LOST_SHOWN_S", 0.0)
        await shown(peer, lambda model: model["workers"] == [])


async def test_worker_that_leaves_is_not_lost(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """One that drained and left is gone at once: it did not die."""
    async with Peer(redis_url, model_folder.name) as peer, running(scheduler(redis_url, model_folder)):
        async with running(worker(redis_url, model_folder, profile_file())):
            await peer.wait_for_workers(1)
        model = await shown(peer, lambda model: not model["ready"])
        assert model["workers"] == []


async def test_worker_that_comes_back_is_no_longer_lost(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """A worker of the same name takes the lost one's place: nobody is shown twice."""
    profile = profile_file()
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder, worker_timeout_ms=500)),
        worker_process(redis_url, model_folder, profile, "--name", "w") as process,
    ):
        await peer.wait_for_workers(1, 60.0)
        os.kill(process.pid, signal.SIGKILL)
        await shown(peer, lambda model: [found["state"] for found in model["workers"]] == ["lost"])
        async with running(worker(redis_url, model_folder, profile, name="w")):
            await shown(peer, lambda model: [found["state"] for found in model["workers"]] == ["idle"])
