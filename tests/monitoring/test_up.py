"""Metrics of ``superserve up``: a port for each process."""

import socket
import urllib.request

from tests.e2e.conftest import launch

FLAGS = ("--executor", "emulated", "--profile", "rtx2080ti-reconstructed", "--workers", "2")


def free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(20_000, 30_000, count):
        held = [socket.socket() for _ in range(count)]
        try:
            for number, one in enumerate(held):
                one.bind(("127.0.0.1", first + number))
        except OSError:
            continue
        else:
            return first
        finally:
            for one in held:
                one.close()
    raise AssertionError("no ports are free")


def test_ports_follow_one_another() -> None:
    """The scheduler has the port asked for, the workers those after it, the gateway the last."""
    first = free_ports(4)
    with launch(*FLAGS, "--metrics-port", str(first)):
        for number, kind in enumerate(("scheduler", "worker", "worker", "gateway")):
            with urllib.request.urlopen(f"http://127.0.0.1:{first + number}/metrics") as response:
                assert f"# HELP superserve_{kind}_" in response.read().decode()
