"""``superserve up``: what its services are told."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

from common.embedded import die_with_parent
from tests.common.processes import program

FLAGS = ("--port", "0", "--executor", "emulated", "--profile", "rtx2080ti-reconstructed")
SERVICES = {"up", "gateway", "scheduler", "worker"}


def log_on_a_terminal(*flags: str) -> str:
    """What ``superserve up`` and its services log where stderr is a terminal, from start to end."""
    ours, theirs = os.openpty()
    log = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the other side any more
            while part := os.read(ours, 65_536):
                log.extend(part)

    with subprocess.Popen(
        [sys.executable, "-m", "services.cli", "up", *FLAGS, *flags],
        stdout=subprocess.PIPE, stderr=theirs, preexec_fn=die_with_parent,
    ) as mesh:  # fmt: skip
        os.close(theirs)
        reader = threading.Thread(target=read)
        reader.start()
        try:
            assert mesh.stdout is not None
            assert mesh.stdout.readline().startswith(b"ready ")
            mesh.send_signal(signal.SIGTERM)
            assert mesh.wait(timeout=40) == 0
        finally:
            mesh.kill()
            reader.join()
    os.close(ours)
    return log.decode()


def test_all_services_log_json_where_up_is_told_to() -> None:
    """With --log-json each line of each service is JSON, though stderr is a terminal."""
    lines = log_on_a_terminal("--log-json").splitlines()
    assert {json.loads(line)["service"] for line in lines} == SERVICES


def test_no_service_logs_json_where_up_is_told_not_to() -> None:
    """With --no-log-json none is, though stderr is no terminal: columns, and without colours."""
    with program("services.cli", "up", *FLAGS, "--no-log-json") as mesh:
        assert mesh.line().startswith("ready ")
        code, _, log = mesh.end(signal.SIGTERM)
    assert code == 0
    assert all(f"service={service}" in log for service in SERVICES)
    assert not [line for line in log.splitlines() if line.startswith("{")]
