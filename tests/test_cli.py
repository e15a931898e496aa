"""The command line as a user meets it: in processes of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.sched.policies import available
from services.cli import USAGE, command
from tests.common.processes import Program, children, command_line, program, wait_until_gone

PROGRAM = [sys.executable, "-W", "error", "-m", "services.cli"]
EMULATED = ("--executor", "emulated", "--profile", "rtx2080ti-reconstructed", "--port", "0")


def superserve(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False, timeout=60)


@contextlib.contextmanager
def up(*flags: str) -> Iterator[tuple[Program, str]]:
    """``superserve up`` with an emulated worker, and its URL; ready when this returns, and gone afterwards."""
    with program("services.cli", "up", *EMULATED, *flags) as process:
        line = process.line()
        assert line.startswith("ready http://127.0.0.1:"), process.end()
        yield process, line.split()[1]


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command the usage is shown, with code 2; asked for, the same with code 0."""
    assert command([]) == 2
    assert capsys.readouterr().out == USAGE
    for words in (["--help"], ["-h"], ["help"]):
        assert command(words) == 0
        assert capsys.readouterr().out == USAGE


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve"], "superserve serve: no command 'serve'; there are up, gateway, scheduler, worker, policies"),
        (["gateway", "--prot", "80"], "superserve gateway: unrecognized arguments: --prot 80"),
        (["gateway", "--port", "http"], "superserve gateway: --port (SUPERSERVE_PORT)='http'"),
        (["gateway", "--redis", "localhost"], "superserve gateway: redis URL 'localhost'"),
        (["scheduler", "--policy", "magic"], "superserve scheduler: --policy='magic': policy: unknown 'magic'"),
        (["scheduler", "--policy", "slackfit:bukets=3"], "unknown option 'bukets'"),
        (["worker", "--model", "nonesuch"], "superserve worker: model 'nonesuch'"),
        (["worker", "--executor", "emulated"], "superserve worker: --executor emulated needs --profile"),
        (["up", "--model", "nonesuch"], "superserve up: model 'nonesuch'"),
        (["explain", "xyz"], "superserve explain: ID='xyz': expected up to 16 hexadecimal digits"),
        (["explain", "1f"], "superserve explain: --event-log: name the file"),
        (["explain", "1f", "--event-log", "nonesuch"], "superserve explain: --event-log='nonesuch': No such file"),
        (["up", "--workers", "0"], "superserve up: --workers (SUPERSERVE_WORKERS)='0'"),
    ],
)
def test_wrong_usage_is_told_on_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake ends with code 2, nothing on stdout, and a last line on stderr that names command and mistake."""
    monkeypatch.setattr("common.log.configure", lambda *_, **__: None)  # the suite's own stays
    assert command(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err.splitlines()[-1]


def test_policies_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """``policies`` shows every policy there is, with its options."""
    assert command(["policies"]) == 0
    out = capsys.readouterr().out
    assert {"slackfit", "fixed", "maxbatch"} <= set(available())
    for name, text in available().items():
        assert f"{name}: {text}" in out


def test_event_log_is_that_of_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the scheduler's own variable is set, `explain` need not be told the file; a log without the query is 1."""
    log = tmp_path / "events.jsonl"
    log.write_text('{"format":1,"policy":"maxbatch","options":{}}\n{"now_us":1,"event":"ti')  # being written
    monkeypatch.setenv("SUPERSERVE_EVENT_LOG", str(log))
    assert command(["explain", "1f"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        f"superserve explain: {log}: no query 000000000000001f among the 0 that arrive in this log\n",
    )


def test_exit_code_is_the_process_s() -> None:
    """What ``command`` returns is what the shell sees: 2 for a mistake, said on stderr."""
    done = superserve("sevre")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("superserve sevre: no command 'sevre'")


def test_mistake_found_while_starting_is_a_mistake_too(redis_url: str) -> None:
    """A port that is taken is found only in ``startup``: still code 2, and the flag to change is named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = superserve("gateway", "--redis", redis_url, "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--port {port}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_life_of_a_mesh(number: signal.Signals) -> None:
    """``up`` prints one line once it serves, is ready, and ends by a signal with code 0 and without a trace."""
    with up() as (process, url):
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=10) as response:
            assert response.status == 200
        started = children(process.pid)
        kinds = [kind for pid in started for kind in command_line(pid).split() if kind in ("gateway", "scheduler")]
        assert sorted(kinds) == ["gateway", "scheduler"]
        assert len(started) == 4  # these two, a worker, and a Redis
        code, out, err = process.end(number)
        assert (code, out) == (0, ""), err
        for pid in started:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(url, timeout=10)
        assert "Traceback" not in err
        assert {"ended_uncleanly", "process_died"}.isdisjoint(_events(err))


def _events(log: str) -> list[str]:
    return [json.loads(line)["event"] for line in log.splitlines() if line.startswith("{")]


def test_mesh_dies_with_a_parent_that_was_killed() -> None:
    """kill -9 of ``up``, which can end nothing any more, leaves no process behind."""
    with up() as (process, _):
        started = children(process.pid)
        process.end(signal.SIGKILL)
        assert len(started) == 4
        for pid in started:
            wait_until_gone(pid)


def test_mesh_ends_with_its_last_worker() -> None:
    """When the only worker dies, ``up`` says so and ends with code 1 and all the others."""
    with up("--grace-s", "6") as (process, _):
        started = children(process.pid)
        (worker,) = [pid for pid in started if " worker " in command_line(pid)]
        os.kill(worker, signal.SIGKILL)
        code, out, err = process.end()
        assert (code, out) == (1, "")
        assert "process_died" in _events(err)
        assert "worker-1 ended with code -9 and was the last worker" in err
        for pid in started:
            wait_until_gone(pid)


def test_mistake_of_a_child_ends_the_mesh() -> None:
    """A policy that the scheduler refuses ends ``up`` with code 2; the scheduler says why, ``up`` whose log it is."""
    done = superserve("up", *EMULATED, "--policy", "magic")
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert any(line.startswith("superserve scheduler: --policy='magic': ") for line in lines)
    assert lines[-1].startswith("superserve up: scheduler-1 ended with code 2")
