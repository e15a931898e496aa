"""Scheduler and workers over a real Redis, with a test peer in the gateway's place."""

import asyncio
import contextlib
import functools
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp
import pytest
import structlog

from common import embedded, keys, wire
from common.errors import ConfigError
from common.runtime import Service, Tasks
from common.sched import Dispatch
from common.sched.eventlog import replay
from common.settings import SchedulerSettings, WorkerSettings
from services.scheduler.scheduler import SchedulerService
from services.worker.start import build
from services.worker.worker import Worker
from tests.mesh.peer import IMAGE, Peer, until, wall_us

Running = Callable[[Service], AbstractAsyncContextManager[Tasks]]


def scheduler(url: str, folder: Path, **settings: object) -> SchedulerService:
    return SchedulerService(SchedulerSettings(redis=url, model=folder.name, **settings))  # type: ignore[arg-type]


def worker(url: str, folder: Path, profile: Path, **settings: object) -> Worker:
    chosen = WorkerSettings(redis=url, model=str(folder), executor="emulated", profile=str(profile), **settings)  # type: ignore[arg-type]
    return Worker(chosen, build(chosen))


@contextlib.asynccontextmanager
async def process_of(kind: str, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A service in a process of its own, which a test may kill."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", kind, *flags, preexec_fn=embedded.die_with_parent
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def worker_process(
    url: str, folder: Path, profile: Path, *flags: str
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return process_of(
        "worker", "--redis", url, "--model", str(folder), "--executor", "emulated", "--profile", str(profile), *flags
    )


async def test_every_query_gets_exactly_one_answer(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """Packs of queries come back answered once each, by a subnet of the profile, with output bytes for every row."""
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder)),
        running(worker(redis_url, model_folder, profile_file())),
    ):
        await peer.wait_for_workers(1)
        ids = []
        for rows in (1, 3, 1, 2):
            payload = IMAGE * rows
            ids += await peer.send([peer.record(rows=rows, payload=payload) for _ in range(20)], payload)
        await peer.collect(ids)
        assert all(len(peer.answers[i]) == 1 for i in ids)
        for batch, answer, payload in (peer.answers[i][0] for i in ids):
            assert batch.executor == "emulated"
            assert batch.subnet in ("small", "large")
            assert batch.batch_rows <= 16
            assert (answer.error, len(payload) % (8 + 40)) == ("", 0)
        assert sum(len(peer.answers[i][0][2]) for i in ids) == (20 + 60 + 20 + 40) * 48


async def test_streams_are_empty_when_all_is_answered(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """Everything acked is deleted: a stream's length is what is outstanding."""
    service = worker(redis_url, model_folder, profile_file())
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder)),
        running(service),
    ):
        await peer.wait_for_workers(1)
        await peer.collect(await peer.send([peer.record() for _ in range(50)]))

        async def empty() -> bool:
            ingress = await peer.streams.outstanding(keys.ingress(model_folder.name))
            return not ingress and not await peer.outstanding(service.name)

        await until(empty)


async def test_hopeless_query_is_rejected_at_once(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """A query that no subnet can serve in time is rejected as late; one beyond all accuracies by its reason."""
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder)),
        running(worker(redis_url, model_folder, profile_file(small_us=50_000, large_us=90_000))),
    ):
        await peer.wait_for_workers(1)
        late = await peer.send([peer.record(slo_ms=10)])
        greedy = await peer.send([peer.record(min_accuracy=99.0)])
        await peer.collect(late + greedy)
        assert peer.rejections[late[0]] == ["late"]
        assert peer.rejections[greedy[0]] == ["min_accuracy"]


async def test_minimum_accuracy_is_kept(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """A query with a minimum accuracy is never served below it, even where the policy would take the smallest."""
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder, policy="slackfit")),
        running(worker(redis_url, model_folder, profile_file())),
    ):
        await peer.wait_for_workers(1)
        demanding = await peer.send([peer.record(slo_ms=40, min_accuracy=85.0)])
        await peer.collect(demanding)
        assert [batch.subnet for batch, _, _ in peer.answers[demanding[0]]] == ["large"]


async def test_stored_and_damaged_payloads(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """A payload under its own key is fetched; one that expired or was damaged fails alone, in words."""
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder)),
        running(worker(redis_url, model_folder, profile_file())),
    ):
        await peer.wait_for_workers(1)
        stored, gone = peer.record(stored=True), peer.record(stored=True)
        await peer.streams.put_payloads({keys.payload(model_folder.name, stored.id): IMAGE})
        fine, damaged = peer.record(), peer.record(crc=12345)
        ids = await peer.send([stored, gone, fine, damaged])
        await peer.collect(ids)
        errors = [peer.answers[i][0][1].error for i in ids]
        assert (errors[0], errors[2]) == ("", "")
        assert "expired" in errors[1]
        assert "checksum" in errors[3]


async def test_worker_killed_in_mid_batch(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """kill -9 of a worker that holds batches: the other worker answers all of its queries within their deadlines."""
    slow = profile_file(small_us=100_000, large_us=200_000)
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder, worker_timeout_ms=1_000)),
        worker_process(redis_url, model_folder, slow) as victim,
    ):
        await peer.wait_for_workers(1)
        ids = await peer.send([peer.record(slo_ms=60_000) for _ in range(64)])
        status = await peer.wait_for_workers(1)
        name = status.workers[0]["name"]
        await until(lambda: peer.outstanding(name))
        os.kill(victim.pid, signal.SIGKILL)
        async with running(worker(redis_url, model_folder, profile_file())):
            await peer.collect(ids, timeout_s=30)
            assert all(peer.answers[i] and not peer.rejections[i] for i in ids)
            await peer.wait_for_workers(1)
            assert not await peer.streams.outstanding(keys.work(model_folder.name, name))


async def test_poison_query_is_rejected_after_three_workers(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """A query whose batch was running on three workers that died is rejected instead of killing a fourth."""
    slow = profile_file(small_us=30_000_000, large_us=40_000_000)
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder, worker_timeout_ms=700)),
    ):
        ids = await peer.send([peer.record(slo_ms=300_000)])
        for _ in range(3):
            async with worker_process(redis_url, model_folder, slow):
                status = await peer.wait_for_workers(1)
                await until(functools.partial(peer.outstanding, status.workers[0]["name"]))
            await peer.wait_for_workers(0)
        await peer.collect(ids)
        assert peer.rejections[ids[0]] == ["poison"]


async def test_second_worker_joins_under_load(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """A worker launched later takes its share of the load without being configured anywhere."""
    profile = profile_file(small_us=20_000, large_us=30_000)
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder)),
        running(worker(redis_url, model_folder, profile)),
    ):
        await peer.wait_for_workers(1)
        ids = await peer.send([peer.record(slo_ms=60_000) for _ in range(300)])
        async with running(worker(redis_url, model_folder, profile)):
            await peer.wait_for_workers(2)
            await peer.collect(ids)
        assert len({batch.worker for i in ids for batch, _, _ in peer.answers[i]}) == 2


async def test_draining_worker_finishes_its_batches_and_leaves(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """A worker that ends gracefully in mid-load loses nothing, answers nothing twice, and is gone from the status."""
    profile = profile_file(small_us=5_000, large_us=10_000)
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder)),
        running(worker(redis_url, model_folder, profile)),
    ):
        async with running(worker(redis_url, model_folder, profile)):
            await peer.wait_for_workers(2)
            ids = await peer.send([peer.record(slo_ms=60_000) for _ in range(200)])
        await peer.wait_for_workers(1)
        await peer.collect(ids)
        assert all(len(peer.answers[i]) == 1 for i in ids)


async def test_scheduler_that_starts_again_loses_nothing(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """Queries queued with a scheduler that ends are served by the next one, which also adopts the running batches."""
    profile = profile_file(small_us=100_000, large_us=200_000)
    async with Peer(redis_url, model_folder.name) as peer, running(worker(redis_url, model_folder, profile)):
        async with running(scheduler(redis_url, model_folder)):
            await peer.wait_for_workers(1)
            ids = await peer.send([peer.record(slo_ms=60_000) for _ in range(80)])
            name = (await peer.wait_for_workers(1)).workers[0]["name"]
            await until(lambda: peer.outstanding(name))
        async with running(scheduler(redis_url, model_folder)):
            ids += await peer.send([peer.record(slo_ms=60_000) for _ in range(20)])
            await peer.collect(ids)
    assert all(len(peer.answers[i]) == 1 for i in ids)


async def test_scheduler_killed(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """kill -9 of the scheduler with queries queued and batches out: one that was standing by serves them all."""
    slow = profile_file(small_us=100_000, large_us=200_000)
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(worker(redis_url, model_folder, slow)),
        process_of("scheduler", "--redis", redis_url, "--model", model_folder.name) as leader,
    ):
        name = (await peer.wait_for_workers(1)).workers[0]["name"]
        async with running(scheduler(redis_url, model_folder)):
            ids = await peer.send([peer.record(slo_ms=60_000) for _ in range(80)])
            await until(lambda: peer.outstanding(name))
            os.kill(leader.pid, signal.SIGKILL)
            ids += await peer.send([peer.record(slo_ms=60_000) for _ in range(20)])
            await peer.collect(ids, timeout_s=30)
    assert all(peer.answers[i] and not peer.rejections[i] for i in ids)


async def test_standby_takes_over(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """Of two schedulers one leads; when it goes, the other serves without anybody being told."""
    async with Peer(redis_url, model_folder.name) as peer, running(worker(redis_url, model_folder, profile_file())):
        first = scheduler(redis_url, model_folder)
        async with running(first):
            leader = (await peer.wait_for_workers(1)).scheduler
            second = running(scheduler(redis_url, model_folder))
            await second.__aenter__()
            try:
                await peer.collect(await peer.send([peer.record()]))
                assert (await peer.wait_for_workers(1)).scheduler == leader
            except BaseException:
                await second.__aexit__(None, None, None)
                raise
        try:
            await peer.collect(await peer.send([peer.record(slo_ms=30_000)]))
            assert (await peer.wait_for_workers(1)).scheduler != leader
        finally:
            await second.__aexit__(None, None, None)


async def test_standby_gives_ids_of_its_own(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running, tmp_path: Path
) -> None:
    """No batch of a standby that takes over has an id that its leader may have given since: they count from the lease,
    and the event log says from where."""
    paths = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first, second = (scheduler(redis_url, model_folder, event_log=str(path)) for path in paths)

    def batches(path: Path) -> list[int]:
        steps = replay(path.read_text().splitlines())
        return [c.batch.id for _, _, commands in steps for c in commands if isinstance(c, Dispatch)]

    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(worker(redis_url, model_folder, profile_file())),
        contextlib.AsyncExitStack() as stack,
    ):
        async with running(first):
            await stack.enter_async_context(running(second))  # built, and standing by, as soon as its leader
            leader = (await peer.wait_for_workers(1)).scheduler
            await peer.collect(await peer.send([peer.record()]))
            given_us = wall_us()

        async def took_over() -> bool:
            status = await peer.status()
            return status is not None and status.scheduler != leader and len(status.workers) == 1

        await until(took_over)
        ids = await peer.send([peer.record()])
        await peer.collect(ids)
        answered = [peer.answers[i][0][0].batch for i in ids]
    assert batches(paths[0])[-1] < given_us < batches(paths[1])[0]
    assert answered == batches(paths[1])


async def test_redis_that_forgets_everything(
    tmp_path: Path, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """A Redis that comes back empty on the same socket is taken up again by scheduler and worker, unasked."""
    home = tmp_path / "r"
    home.mkdir()
    async with contextlib.AsyncExitStack() as stack:
        with embedded.server(folder=home) as url:
            peer = await stack.enter_async_context(Peer(url, model_folder.name))
            await stack.enter_async_context(running(scheduler(url, model_folder)))
            await stack.enter_async_context(running(worker(url, model_folder, profile_file())))
            await peer.wait_for_workers(1)
            await peer.collect(await peer.send([peer.record()]))
        with embedded.server(folder=home):
            await peer.open()
            await peer.wait_for_workers(1)
            ids = await peer.send([peer.record(slo_ms=30_000) for _ in range(10)])
            await peer.collect(ids)
            await stack.aclose()
    assert all(peer.answers[i] for i in ids)


async def test_redis_that_keeps_its_data(
    tmp_path: Path, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """Queries that were queued or on a worker's stream when Redis went are answered once it is back with its data."""
    home = tmp_path / "r"
    home.mkdir()
    slow = profile_file(small_us=150_000, large_us=200_000)
    async with contextlib.AsyncExitStack() as stack:
        with embedded.server(folder=home, append_only=True) as url:
            peer = await stack.enter_async_context(Peer(url, model_folder.name))
            await stack.enter_async_context(running(scheduler(url, model_folder)))
            await stack.enter_async_context(running(worker(url, model_folder, slow)))
            name = (await peer.wait_for_workers(1)).workers[0]["name"]
            ids = await peer.send([peer.record(slo_ms=60_000) for _ in range(64)])
            await until(lambda: peer.outstanding(name))
        with embedded.server(folder=home, append_only=True):
            await peer.collect(ids)
            await stack.aclose()
    assert all(peer.answers[i] and not peer.rejections[i] for i in ids)


async def test_event_log_replays_to_the_same_commands(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running, tmp_path: Path
) -> None:
    """Replaying the live scheduler's event log through a fresh core dispatches every query that was answered."""
    path = tmp_path / "events.jsonl"
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder, event_log=str(path))),
        running(worker(redis_url, model_folder, profile_file())),
    ):
        await peer.wait_for_workers(1)
        ids = await peer.send([peer.record() for _ in range(40)])
        await peer.collect(ids)
        live = {i: peer.answers[i][0][0].subnet for i in ids}
    dispatched = {
        query.id: command.batch.subnet
        for _, _, commands in replay(path.read_text().splitlines())
        for command in commands
        if isinstance(command, Dispatch)
        for query in command.batch.queries
    }
    assert dispatched == live


async def test_no_scheduler_overwrites_an_event_log(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running, tmp_path: Path
) -> None:
    """A standby of the same path leaves its leader's log alone; leading, it moves it aside and begins its own.

    A path that cannot be written is refused before that.
    """
    path = tmp_path / "events.jsonl"
    first, second = (scheduler(redis_url, model_folder, event_log=str(path)) for _ in range(2))
    with pytest.raises(ConfigError, match=r"--event-log='/nonesuch/a': No such file"):
        scheduler(redis_url, model_folder, event_log="/nonesuch/a")

    def dispatched(log: Path) -> set[int]:
        steps = replay(log.read_text().splitlines())
        batches = (command.batch for _, _, commands in steps for command in commands if isinstance(command, Dispatch))
        return {query.id for batch in batches for query in batch.queries}

    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(worker(redis_url, model_folder, profile_file())),
        contextlib.AsyncExitStack() as stack,
    ):
        async with running(first):
            await peer.wait_for_workers(1)
            await stack.enter_async_context(running(second))
            ids = await peer.send([peer.record() for _ in range(5)])
            await peer.collect(ids)
            assert dispatched(path) == set(ids)

        async def took_over() -> bool:
            return bool((status := await peer.status()) and len(status.workers) == 1)

        await until(took_over)
        others = await peer.send([peer.record() for _ in range(5)])
        await peer.collect(others)
        assert dispatched(path) == set(others)
        assert dispatched(tmp_path / "events.jsonl.1") == set(ids)


async def test_worker_of_an_unfit_profile_is_refused(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """A worker that lacks the policy's subnet is not used, and the status says why."""
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder, policy="fixed:huge")),
        running(worker(redis_url, model_folder, profile_file(), grace_s=1.0)),
    ):

        async def refused() -> bool:
            return bool((status := await peer.status()) and status.problems)

        await until(refused)
        status = await peer.wait_for_workers(0)
        assert status.workers == []
        assert "huge" in status.problems[0]


async def test_policy_that_fails(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running, tmp_path: Path
) -> None:
    """Where the policy raises, queries are answered by the quickest subnet. The first error is logged with its
    traceback, all are counted, and the event log replays to the same commands."""
    path, policy = tmp_path / "events.jsonl", "tests.sched.test_failing:Failing"
    service = scheduler(redis_url, model_folder, policy=policy, event_log=str(path), metrics_port=0)
    with structlog.testing.capture_logs() as logged:
        async with (
            Peer(redis_url, model_folder.name) as peer,
            running(service),
            running(worker(redis_url, model_folder, profile_file())),
        ):
            await peer.wait_for_workers(1)
            subnets = {}
            for _ in range(6):  # ids count up: the policy fails for every second one
                (one,) = await peer.send([peer.record()])
                await peer.collect([one])
                subnets[one] = peer.answers[one][0][0].subnet
            assert service.monitor is not None
            async with aiohttp.ClientSession() as session, session.get(f"{service.monitor.url}/metrics") as response:
                text = await response.text()
    assert f'superserve_scheduler_policy_failures_total{{model="{model_folder.name}"}} 3.0' in text
    assert subnets == {one: "large" if one % 2 else "small" for one in subnets}
    (line,) = [entry for entry in logged if entry["event"] == "policy_failed"]
    assert (line["policy"], line["failures"]) == (policy, 1)
    assert isinstance(line["exc_info"], ZeroDivisionError)
    assert "test_failing.py" in "".join(traceback.format_exception(line["exc_info"]))
    dispatched = {
        query.id: command.batch.subnet
        for _, _, commands in replay(path.read_text().splitlines())
        for command in commands
        if isinstance(command, Dispatch)
        for query in command.batch.queries
    }
    assert dispatched == subnets


def test_policy_whose_learner_is_none_is_refused(model_folder: Path) -> None:
    """A scheduler whose policy makes something else for a learner does not start."""
    with pytest.raises(ConfigError, match=r"--policy='tests.*kind=none': learner: expected a Learner .* got dict"):
        scheduler("redis://127.0.0.1:1", model_folder, policy="tests.sched.test_failing:Untaught:kind=none")


async def test_unreadable_entries_are_refused_and_do_no_harm(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """Entries that are no messages, or of another wire version, are acked and logged; what follows is served."""
    import msgpack

    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder)),
        running(worker(redis_url, model_folder, profile_file())),
    ):
        await peer.wait_for_workers(1)
        for header in (b"", b"\xc1garbage", msgpack.packb([99, 1, "x", []]), msgpack.packb([wire.VERSION, 77])):
            await peer.streams.append(keys.ingress(model_folder.name), header)
        await peer.collect(await peer.send([peer.record()]))


@pytest.mark.parametrize("late", ["drop", "serve"])
async def test_late_queries_are_dropped_or_served(
    late: str, redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """The switch decides: rejected as late, or answered after the deadline."""
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder, late=late)),
        running(worker(redis_url, model_folder, profile_file())),
    ):
        await peer.wait_for_workers(1)
        ids = await peer.send([peer.record(slo_ms=0.001)])
        await peer.collect(ids)
        assert bool(peer.answers[ids[0]]) == (late == "serve")
        assert bool(peer.rejections[ids[0]]) == (late == "drop")
