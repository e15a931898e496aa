"""``superserve status`` in processes of its own, over a real Redis, real schedulers and real workers."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import orjson
import pytest

from common import embedded, overview, wire
from common.runtime import Service, Tasks
from services.cli import command
from tests.common.processes import program
from tests.mesh.peer import Peer
from tests.mesh.test_mesh import scheduler, worker_process

Running = Callable[[Service], AbstractAsyncContextManager[Tasks]]
PATIENCE_S = 60.0  # programs take their time to start on a busy machine
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


async def superserve(*flags: str, **environment: str) -> tuple[int, str, str]:
    """Run ``superserve status``; return exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "services.cli", "status", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class Terminal:
    """A terminal, and what a program has shown in it."""

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._master = master
        self._shown = b""

    async def until(self, *words: str) -> str:
        """Return what was shown once it has all of these words, and forget it; TimeoutError with it if not."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not all(word.encode() in self._shown for word in words):
                    self._shown += _ESCAPES.sub(b"", await loop.run_in_executor(None, os.read, self._master, 65_536))
        except TimeoutError:
            raise TimeoutError(self._shown.decode()) from None
        shown, self._shown = self._shown.decode(), b""
        return shown


@contextlib.asynccontextmanager
async def terminal(*flags: str, columns: int = 100) -> AsyncIterator[Terminal]:
    """``superserve status`` in a terminal of so many columns; what it renews comes every 0.1 s."""
    master, slave = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "services.cli", "status", "--interval-s", "0.1", *flags),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "COLUMNS": str(columns), "LINES": "60", "TERM": "xterm"},
        preexec_fn=embedded.die_with_parent,
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        os.close(master)


async def test_worker_that_dies_is_seen_to(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """In a terminal the table renews itself, without any gateway: a worker killed with -9 turns from idle to lost."""
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder, worker_timeout_ms=500)),
        worker_process(redis_url, model_folder, profile_file(), "--name", "stays"),
        worker_process(redis_url, model_folder, profile_file(), "--name", "dies") as dying,
        contextlib.AsyncExitStack() as stack,
    ):
        await peer.wait_for_workers(2, PATIENCE_S)
        shown = await stack.enter_async_context(terminal("--redis", redis_url, "--model", model_folder.name))
        before = await shown.until("dies", "stays", "large")
        assert "lost" not in before
        assert "0 gateways" in before
        os.kill(dying.pid, signal.SIGKILL)
        after = await shown.until("lost")
        assert re.search(r"dies +lost", after)
        assert re.search(r"stays +idle", after)
        assert ", ready" in after
        shown.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            assert await shown.process.wait() == 0


async def test_narrow_terminal_leaves_out_what_matters_least(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path], running: Running
) -> None:
    """In 60 columns state and subnet are whole, a long name keeps its end, and device and waits are not shown."""
    name = f"worker-{'x' * 50}-tail"
    async with (
        Peer(redis_url, model_folder.name) as peer,
        running(scheduler(redis_url, model_folder)),
        worker_process(redis_url, model_folder, profile_file(), "--name", name),
    ):
        await peer.wait_for_workers(1, PATIENCE_S)
        await peer.collect(await peer.send([peer.record()]))
        async with terminal("--redis", redis_url, "--model", model_folder.name, columns=60) as shown:
            table = await shown.until("x-tail", "idle", "\n")
    assert re.search(r"\u2026x+-tail +idle +(small|large) ", table)
    assert "device" not in table
    assert "idle ms" not in table


async def test_redis_that_goes_is_told_and_waited_for(tmp_path: Path) -> None:
    """While Redis is away the table stays, with the reason under it; when it is back the table is renewed."""
    with contextlib.ExitStack() as server:
        url = server.enter_context(embedded.server(folder=tmp_path))
        async with terminal("--redis", url) as shown:
            await shown.until("No scheduler has ever served a model here")
            server.close()
            told = await shown.until(f"{url}: Redis: ")
            assert "No scheduler has ever" in told
            with embedded.server(folder=tmp_path) as again:
                assert again == url
                async with Peer(url, "m") as peer:
                    status = wire.Status("s1", "slackfit", 0, 0, None, [], [])
                    counts = wire.SchedulerCounts(0, None, [], {}, 0, 0, 0, 0)
                    await peer.streams.publish_status("m", wire.encode(status), wire.encode(counts))
                    assert "Redis: " not in (await shown.until("scheduler s1")).partition("scheduler s1")[2]


async def test_what_was_served_is_shown(redis_url: str) -> None:
    """Figures are those of the counts: attainment, accuracy, subnet mix, and failures by their reason."""
    model = f"shown-{os.getpid()}"
    description = {"name": model, "subnets": [{"id": "small", "accuracy": 80.0}, {"id": "large", "accuracy": 90.0}]}
    worker = {"name": "w1", "device": "some device", "state": "busy", "subnet": "large", "queries": 8, "batches": 4}
    status = wire.Status("s1", "slackfit:buckets=16", 0, 7, description, [worker], ["w2: no such subnet"])
    counts = wire.SchedulerCounts(5, 12_340, [], {"small": 2, "large": 6}, 4, 8, 100_000, 4)
    mine = wire.GatewayCounts("g1", 12, 8, 1, {"expired": 1, "invalid": 2}, 10, 700.0)
    async with Peer(redis_url, model) as peer:

        async def publish() -> None:
            while True:  # what nobody refreshes lapses, sooner than a program starts on a busy machine
                await peer.streams.publish_status(model, wire.encode(status), wire.encode(counts))
                await peer.streams.publish_counts("g1", {model: wire.encode(mine)})
                await asyncio.sleep(0.5)

        publishing = asyncio.create_task(publish())
        code, out, err = await superserve("--redis", redis_url, "--model", model, "--interval-s", "0.1")
        publishing.cancel()
    assert (code, err) == (0, "")
    assert f"{model}, ready" in out
    assert "policy slackfit:buckets=16, scheduler s1" in out
    assert "queue: 5 queries, 7 rows; the most urgent has 12.3 ms left" in out
    assert "w2: no such subnet" in out
    assert re.search(r"in all +\(12\) +80.00 % +87.50 % +2.0 +25.0 ms +1 +3 *\n", out)
    assert "failed in all: 1 expired, 2 invalid\n" in out
    assert re.search(r"last 0\.\d s +0.0 +- +- +- +- +0 +0 *\n", out)
    assert re.search(r"w1 +busy +large +0.0 +8 +4 ", out)


async def test_json_is_the_overview(redis_url: str, model_folder: Path, running: Running) -> None:
    """``--json`` prints the document of /v2/overview, of one model if one is named; REDIS_URL is understood."""
    async with Peer(redis_url, model_folder.name) as peer, running(scheduler(redis_url, model_folder)):
        await peer.wait_for_workers(0)
        code, out, err = await superserve("--json", "--model", model_folder.name, REDIS_URL=redis_url)
        published = await peer.streams.read_published()
        (expected,) = overview.overview(0, {model_folder.name: published[model_folder.name]})["models"]
    assert (code, err) == (0, "")
    document = orjson.loads(out)
    assert document["models"] == [expected]
    assert "no worker" in expected["reason"]


def test_a_whole_mesh() -> None:
    """After three queries over HTTP the mesh of ``up`` shows them: all in time, by a subnet of the model."""
    flags = ("--executor", "emulated", "--profile", "rtx2080ti-reconstructed", "--port", "0")
    body = orjson.dumps(
        {
            "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * 784}],
            "parameters": {"slo_ms": 20_000},
        }
    )
    with embedded.server() as url, program("services.cli", "up", *flags, "--redis", url) as process:
        address = process.line().split()[1]
        for _ in range(3):
            with urllib.request.urlopen(f"{address}/v2/models/fashion-resnet/infer", body, timeout=30) as response:
                assert response.status == 200
        with program("services.cli", "status", "--redis", url, "--once") as shown:
            code, out, err = shown.end()
        assert (code, err) == (0, "")
        assert "fashion-resnet, ready" in out
        assert "1 gateway\n" in out
        assert re.search(r"in all +\(3\) +100.00 % +\d\d.\d\d % ", out)
        assert "emulated rtx2080ti-reconstructed" in out
        assert process.end(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--redis", "unix:///nonexistent.sock"], 1, "superserve status: unix:///nonexistent.sock: Redis: "),
        (["--redis", "redis://:secret@127.0.0.1:1/0"], 1, "superserve status: redis://:***@127.0.0.1:1/0: "),
        (["--redis", "localhost"], 2, "superserve status: redis URL 'localhost'"),
        (["--interval-s", "0"], 2, "argument --interval-s: expected seconds, 0.1 to 3600, got '0'"),
        (["--refresh"], 2, "unrecognized arguments: --refresh"),
    ],
)
async def test_what_cannot_be_shown(flags: list[str], code: int, words: str) -> None:
    """A Redis that does not answer is code 1 and wrong usage code 2, in words, without a trace or a password."""
    found, out, err = await superserve(*flags)
    assert (found, out) == (code, "")
    assert words in err
    assert "Traceback" not in err
    assert "secret" not in err


def test_model_that_there_is_not(redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that no scheduler has served is code 1, and the known ones are named."""
    assert command(["status", "--redis", redis_url, "--model", "nonesuch"]) == 1
    assert "no scheduler has ever served a model 'nonesuch'; known models: " in capsys.readouterr().err
