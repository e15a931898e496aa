"""A service's life, in a process of its own; and the loop that keeps its steps going."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator

import pytest

from common import runtime
from common.errors import ConfigError
from common.runtime import Tasks, keep_trying, unique_name
from common.streams import StreamsError
from tests.common.processes import Program, program

LONG_S, SHORT_S = 60.0, 0.2


@contextlib.contextmanager
def probe(mode: str, grace_s: float = LONG_S) -> Iterator[Program]:
    """A process that runs the service of this mode; it is up when this returns."""
    with program("tests.common.service", mode, str(grace_s)) as process:
        assert process.line() == "up\n"
        yield process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains(number: signal.Signals) -> None:
    """SIGTERM and SIGINT end a service by ``shutdown``, with code 0 and nothing on stderr."""
    with probe("obedient") as process:
        assert process.end(number) == (0, "draining\ndrained\n", "")


def test_collector_passes_over_what_there_is_after_start() -> None:
    """Modules are out of the garbage collector's sight: a full collection costs by what came after the start."""
    with probe("frozen") as process:
        assert process.end(signal.SIGTERM) == (0, "draining\nTrue\ndrained\n", "")


def test_signal_during_startup_drains() -> None:
    """A service that hangs in ``startup``, waiting for what does not come, can be ended in the same way."""
    with probe("never up") as process:
        assert process.end(signal.SIGTERM) == (0, "draining\ndrained\n", "")


def test_failed_task_ends_the_service() -> None:
    """A task that fails drains the service with code 1; an error of ours is told in words, without a traceback."""
    with probe("failing") as process:
        code, out, err = process.end()
    assert (code, out) == (1, "draining\ndrained\n")
    assert "failing task" in err
    assert "this went wrong" in err
    assert "Traceback" not in err


def test_crashed_task_shows_its_traceback() -> None:
    """An error that nobody raised on purpose is a bug: it is told with its traceback."""
    with probe("crashing") as process:
        code, out, err = process.end()
    assert (code, out) == (1, "draining\ndrained\n")
    assert "Traceback" in err
    assert "nobody thought of this" in err


@pytest.mark.parametrize("mode", ["slow", "clinging"])
def test_grace_has_an_end(mode: str) -> None:
    """A service that does not drain within the grace period ends with code 1, even if a task of it will not be
    cancelled."""
    with probe(mode, SHORT_S) as process:
        code, out, err = process.end(signal.SIGTERM)
    assert code == 1
    assert out.startswith("draining\n")
    assert "drained" not in out
    assert "drain_timeout" in err


def test_second_signal_ends_at_once() -> None:
    """Who asks twice does not want to wait: a second signal ends the process with code 1 in mid-drain."""
    with probe("slow") as process:
        process.process.send_signal(signal.SIGTERM)
        assert process.line() == "draining\n"
        code, out, err = process.end(signal.SIGINT)
    assert (code, out) == (1, "")
    assert "second_signal" in err


class Misconfigured:
    """Finds out in ``startup`` that it cannot run."""

    closed = False

    async def startup(self, tasks: Tasks) -> None:
        tasks.spawn(asyncio.Event().wait(), "bystander")
        raise ConfigError("port 1: permission denied")

    async def shutdown(self) -> None:
        self.closed = True


def test_error_of_startup_passes_through() -> None:
    """What ``startup`` raises reaches the caller, who knows the exit code for it; connections are closed before."""
    service = Misconfigured()
    with pytest.raises(ConfigError, match="permission denied"):
        runtime.run(service, LONG_S)
    assert service.closed


async def test_keep_trying_backs_off_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures in a row wait twice as long each, up to a limit; a success starts over; other errors pass through."""
    waits: list[float] = []
    script: list[Exception | None] = [
        *(None, StreamsError("a"), StreamsError("b"), None, None),
        *(StreamsError("c") for _ in range(8)),
        KeyError("a bug"),
    ]

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def step() -> None:
        outcome = script.pop(0)
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(KeyError, match="a bug"):
        await keep_trying(step, StreamsError, "testing")
    assert waits == pytest.approx([0.05, 0.1, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0])
    assert not script


async def test_cancelling_ends_all_tasks() -> None:
    """``cancel`` waits until every task has ended, its clean-up included; none of it counts as a failure."""
    tasks = Tasks()
    cleaned = []

    async def work(number: int, started: asyncio.Event) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(number)

    events = [asyncio.Event() for _ in range(3)]
    for number, started in enumerate(events):
        tasks.spawn(work(number, started), f"work {number}")
        await started.wait()
    await tasks.cancel()
    assert sorted(cleaned) == [0, 1, 2]
    assert not tasks.failed.done()


def test_names_are_unique() -> None:
    """Two runs never share a name, and a name suits the keys of Redis and the settings' pattern for names."""
    names = {unique_name("worker") for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("worker-") and name.replace("-", "").isalnum() for name in names)
