"""``superserve doctor`` on real servers: what is wrong with each is found, and told with what to do."""

import json
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from common import embedded, keys
from common.settings import WorkerSettings, load
from common.supernet import artifact, measure
from services.cli import command
from services.worker import library
from services.worker.start import cache_path
from tests.common.processes import children, command_line, program
from tests.worker.conftest import brief_profile

PROGRAM = [sys.executable, "-W", "error", "-m", "services.cli", "doctor"]
EMULATED = ("--executor", "emulated", "--profile", "rtx2080ti-reconstructed", "--port", "0")
Doctor = Callable[..., tuple[int, dict[str, dict[str, str]]]]


@pytest.fixture
def url() -> Iterator[str]:
    """A server of one's own, with an append-only file."""
    with embedded.server(append_only=True) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def doctor(url: str, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """``doctor(flags)`` returns the exit code, and the worst finding of each check by its name."""

    def look(*flags: str) -> tuple[int, dict[str, dict[str, str]]]:
        code = command(["doctor", "--json", "--redis", url, "--port", "0", *flags])
        document = json.loads(capsys.readouterr().out)
        order = ("ok", "warn", "fail")
        findings = sorted(document["findings"], key=lambda finding: order.index(finding["verdict"]))
        assert all(bool(finding["advice"]) == (finding["verdict"] != "ok") for finding in findings)
        assert document["ok"] == (code == 0) == (findings[-1]["verdict"] != "fail")
        return code, {finding["check"]: finding for finding in findings}

    return look


def test_a_mesh_that_is_well(url: str) -> None:
    """On a whole mesh nothing fails: code 0, and policy, workers and gateway are named; a worker that dies is told."""
    with program("services.cli", "up", *EMULATED, "--workers", "2", "--redis", url) as mesh:
        port = mesh.line().rpartition(":")[2].strip()
        done = subprocess.run(
            [*PROGRAM, "--redis", url, "--model", "fashion-resnet", "--port", port],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        for words in (
            f"at {url}",
            "policy noeviction",
            "append-only file, last write ok",
            "appended, read, acknowledged and deleted an entry",
            "policy foresight, 2 workers, 0 queries wait",
            f"a SuperServe gateway answers at 127.0.0.1:{port}",
            "fashion-resnet loads: 7 subnets",
        ):
            assert words in done.stdout
        assert done.stdout.splitlines()[-1].endswith(" 0 fail")
        worker, _ = [pid for pid in children(mesh.pid) if " worker " in command_line(pid)]
        os.kill(worker, signal.SIGKILL)
        found = ""
        while "policy foresight, 1 workers" not in found:
            found = subprocess.run([*PROGRAM, "--redis", url], capture_output=True, text=True, check=False).stdout
        assert "fell silent lately" in found
        assert mesh.end(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize(("limit", "code", "verdict"), [("64mb", 1, "fail"), ("0", 0, "warn")])
def test_server_that_evicts(client: Any, doctor: Doctor, limit: str, code: int, verdict: str) -> None:
    """A policy that evicts fails where there is a limit, and is warned of where there is none yet."""
    client.config_set("maxmemory", limit)
    client.config_set("maxmemory-policy", "allkeys-lru")
    found, findings = doctor()
    assert (found, findings["redis memory"]["verdict"]) == (code, verdict)
    assert "maxmemory-policy allkeys-lru" in findings["redis memory"]["found"]
    assert "noeviction" in findings["redis memory"]["advice"]


def test_server_that_is_nearly_full(client: Any, doctor: Doctor) -> None:
    """More than four fifths of the limit in use are warned of."""
    client.setrange("filling", 8 << 20, b"x")
    client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.15))
    code, findings = doctor()
    assert (code, findings["redis memory"]["verdict"]) == (0, "warn")
    assert "503" in findings["redis memory"]["advice"]


def test_server_that_is_full(client: Any, doctor: Doctor) -> None:
    """One that refuses to write fails at the stream that the doctor tries, in the server's own words."""
    client.config_set("maxmemory", 1)
    code, findings = doctor()
    assert (code, findings["streams"]["verdict"]) == (1, "fail")
    assert "maxmemory" in findings["streams"]["found"]


def test_server_without_persistence(client: Any, doctor: Doctor) -> None:
    """No append-only file is warned of: the mesh recovers, what waits is lost."""
    client.config_set("appendonly", "no")
    code, findings = doctor()
    assert (code, findings["redis persistence"]["verdict"]) == (0, "warn")
    assert "appendonly yes" in findings["redis persistence"]["advice"]


def test_replica(client: Any, doctor: Doctor) -> None:
    """A replica takes no writes: it fails, and the primary is asked for."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        client.replicaof("127.0.0.1", nobody.getsockname()[1])
        code, findings = doctor()
    assert (code, findings["redis role"]["verdict"], findings["streams"]["verdict"]) == (1, "fail", "fail")
    assert "primary" in findings["redis role"]["advice"]


def test_nothing_is_left_behind(client: Any, doctor: Doctor) -> None:
    """The stream that is tried is deleted again."""
    assert doctor()[1]["streams"]["verdict"] == "ok"
    assert client.keys() == []


def test_no_server(doctor: Doctor, tmp_path: Path) -> None:
    """Without a server nothing behind it is looked at, but this machine is."""
    code, findings = doctor("--redis", f"unix://{tmp_path}/none.sock")
    assert (code, findings["redis"]["verdict"]) == (1, "fail")
    assert f"{tmp_path}/none.sock" in findings["redis"]["found"]
    assert {"torch device", "open files", "port 0"} <= findings.keys()
    assert not {"streams", "mesh", "clock"} & findings.keys()


def test_server_that_wants_a_password(client: Any, doctor: Doctor) -> None:
    """Without the password the URL is asked for one."""
    client.config_set("requirepass", "a secret")
    code, findings = doctor()
    assert (code, findings["redis"]["verdict"]) == (1, "fail")
    assert "redis://USER:PASSWORD@HOST" in findings["redis"]["advice"]


def test_user_without_rights(client: Any, doctor: Doctor, url: str) -> None:
    """A user that may ping alone: what it may not is named, by the server's own words."""
    client.acl_setuser("weak", enabled=True, passwords=["+word"], commands=["+ping", "+time"])
    code, findings = doctor("--redis", url.replace("unix://", "unix://weak:word@"))
    assert (code, findings["redis"]["verdict"]) == (1, "warn")
    assert {findings[check]["verdict"] for check in ("streams", "mesh")} == {"fail"}
    assert "permission" in findings["streams"]["found"]
    assert findings["clock"]["verdict"] == "ok"


@pytest.mark.parametrize(("flags", "code", "verdict"), [((), 0, "warn"), (("--model", "fashion-resnet"), 1, "fail")])
def test_no_scheduler_yet(doctor: Doctor, flags: tuple[str, ...], code: int, verdict: str) -> None:
    """Nothing was ever served: a warning, unless the model that is to be served is named."""
    found, findings = doctor(*flags)
    assert (found, findings["mesh"]["verdict"]) == (code, verdict)
    assert "superserve scheduler --model" in findings["mesh"]["advice"]


def test_scheduler_that_is_gone(client: Any, doctor: Doctor) -> None:
    """A model that was served and has no scheduler any more fails; how to start one and how to forget it is told."""
    client.sadd(keys.MODELS, "m")
    code, findings = doctor()
    assert (code, findings["mesh m"]["verdict"]) == (1, "fail")
    assert "no scheduler" in findings["mesh m"]["found"]
    assert f"SREM {keys.MODELS} m" in findings["mesh m"]["advice"]


def test_scheduler_without_worker_and_gateway(client: Any, doctor: Doctor, url: str) -> None:
    """A scheduler alone: a worker and a gateway are asked for."""
    model = f"m-{secrets.token_hex(4)}"
    with program("services.cli", "scheduler", "--redis", url, "--model", model) as scheduler:
        while not client.exists(keys.status(model)):
            assert scheduler.process.poll() is None
        code, findings = doctor("--model", model)
        scheduler.end(signal.SIGTERM)
    check = findings[f"mesh {model}"]
    assert (code, check["verdict"], findings["gateways"]["verdict"]) == (1, "fail", "warn")
    assert f"superserve worker --model {model}" in check["advice"]
    assert findings[f"model {model}"]["verdict"] == "warn"  # it is not on this machine


def test_port_of_somebody_else(doctor: Doctor) -> None:
    """A port where something else listens fails, and another one is asked for."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, findings = doctor("--port", str(port))
    assert (code, findings[f"port {port}"]["verdict"]) == (1, "fail")
    assert "in use" in findings[f"port {port}"]["found"]


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 on this machine")
def test_port_by_ipv6(doctor: Doctor) -> None:
    """An IPv6 address is looked at as a gateway would listen there, and written as in a URL."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        _, findings = doctor("--host", "::1", "--port", str(port))
    assert findings[f"port {port}"]["found"].startswith(f"[::1]:{port}: ")
    assert "in use" in findings[f"port {port}"]["found"]


def test_port_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    """A number that is no port is wrong usage, and the message has it."""
    assert command(["doctor", "--port", "65536"]) == 2
    assert "--port (SUPERSERVE_PORT)='65536'" in capsys.readouterr().err


def test_too_few_files(url: str) -> None:
    """A process that may hold few files open is warned: each connection is one."""
    done = subprocess.run(
        [*PROGRAM, "--redis", url, "--port", "0"],
        capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "at most 512" in done.stdout
    assert "ulimit -n 65536" in done.stdout


def test_machine_without_torch(url: str) -> None:
    """Where torch is not installed no worker can run: a warning, for gateways and schedulers do without."""
    code = "import sys; sys.modules['torch'] = None; from services.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "doctor", "--redis", url, "--port", "0"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no worker can run here" in done.stdout
    assert "pip install 'superserve-mesh[worker]'" in done.stdout


def test_device_that_there_is_not(doctor: Doctor) -> None:
    """A GPU that torch does not see fails."""
    code, findings = doctor("--device", "cuda:7")
    assert (code, findings["torch device"]["verdict"]) == (1, "fail")
    assert "cuda:7" in findings["torch device"]["found"]


def test_settings_are_read_as_services_read_them(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Redis, device, host, port, model and profile are those of the environment; a flag wins, a wrong value is 2."""
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = str(taken.getsockname()[1])
        for name, value in {
            "REDIS_URL": url,
            "SUPERSERVE_DEVICE": "cuda:7",
            "SUPERSERVE_HOST": "127.0.0.2",
            "SUPERSERVE_PORT": port,
            "SUPERSERVE_MODEL": "rated-text-tiny",
        }.items():
            monkeypatch.setenv(name, value)

        def look(*flags: str) -> dict[str, dict[str, str]]:
            assert command(["doctor", "--json", *flags]) == 1  # for the mesh, if for nothing else
            return {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}

        findings = look()
        assert url in findings["redis"]["found"]
        assert findings[f"port {port}"]["verdict"] == "fail"
        assert f"127.0.0.2:{port}" in findings[f"port {port}"]["found"]
        assert (findings["torch device"]["verdict"], findings["mesh"]["verdict"]) == ("fail", "fail")
        assert "superserve scheduler --model rated-text-tiny" in findings["mesh"]["advice"]
        assert "model rated-text-tiny" in findings
        monkeypatch.setenv("SUPERSERVE_PROFILE", "rtx2080ti-reconstructed")
        given = look("--device", "cpu", "--host", "127.0.0.1", "--port", "0", "--model", "fashion-resnet")
        assert findings["torch device"]["verdict"] != given["torch device"]["verdict"]
        assert given["port 0"]["found"].startswith("127.0.0.1:0")
        assert given["profile of fashion-resnet"]["verdict"] == "fail"  # it is of another executor
        monkeypatch.setenv("SUPERSERVE_EXECUTOR", "emulated")
        assert look("--device", "cpu", "--model", "fashion-resnet")["profile of fashion-resnet"]["verdict"] == "ok"
    monkeypatch.setenv("SUPERSERVE_DEVICE", "tpu")
    assert command(["doctor"]) == 2
    assert "--device (SUPERSERVE_DEVICE)='tpu'" in capsys.readouterr().err


def test_model_that_is_damaged(doctor: Doctor, tmp_path: Path) -> None:
    """A folder whose files do not make a model fails, by the file that is wrong."""
    (tmp_path / "supernet.json").write_text('{"name": "broken", "inputs": [], "outputs": []}')
    _, findings = doctor("--model", str(tmp_path))
    assert findings[f"model {tmp_path}"]["verdict"] == "fail"
    assert "supernet.json" in findings[f"model {tmp_path}"]["found"]


def test_profile_that_was_measured_here(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a worker has measured it is a warning, afterwards it tells how fast; a damaged one is to be taken anew."""
    monkeypatch.setenv("SUPERSERVE_CACHE_DIR", str(tmp_path))
    check, shipped = "profile of fashion-resnet", library.find_model("fashion-resnet")
    assert doctor()[1][check]["verdict"] == "warn"
    settings = load(WorkerSettings, [], program="worker")
    supernet = artifact.load(shipped)
    path = cache_path(settings, shipped, measure.device_name(supernet.device), torch.__version__)
    path.write_text(json.dumps(brief_profile(supernet)))
    finding = doctor()[1][check]
    assert finding["verdict"] == "ok"
    assert f"measured here in {supernet.precision}" in finding["found"]
    path.write_text("{")
    code, findings = doctor()
    assert (code, findings[check]["verdict"]) == (1, "fail")
    assert "--reprofile" in findings[check]["advice"]
