"""Which tests run side by side when pytest-xdist spreads them: `scripts/test` without arguments.

A test that waits for processes or measures time is disturbed by another one of its kind. All such tests are one lane,
which one process goes through in order; unknown files are in it. What only computes is spread file by file over the
other processes, at a lower priority, and over the first one once it is done.
"""

import os
from functools import cache
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

HERE = Path(__file__).parent
IN_A_LANE = "PYTEST_XDIST_WORKER" in os.environ
NICENESS = 10
TIMEOUT_S = 600  # of a calm test beside timed ones
TIMED = "timed"
# What only computes, the long ones first. Not supernet/test_explore.py: what a search finds follows from what it times.
CALM = (
    "common/test_compiled.py",
    "e2e/test_bench_subnetact.py",
    "supernet/test_ofa.py",
    "supernet/test_text.py",
    "supernet/test_insert.py",
    "supernet/test_train.py",
    "supernet/test_shipped.py",
    "supernet/test_actuate.py",
    "supernet/test_artifact.py",
    "supernet/test_calibrate.py",
    "supernet/test_evolve.py",
    "supernet/test_measure.py",
    "supernet/test_spec.py",
    "worker/test_searching.py",
    "loadgen/test_evaluation.py",
    "worker/test_importing.py",
    "sched",
    "loadgen/test_bounds.py",
    "worker/test_start.py",
    "worker/test_library.py",
    "test_completion.py",
    "test_kubernetes.py",
    "test_layout.py",
    "loadgen/test_agreement.py",
    "loadgen/test_payloads.py",
    "loadgen/test_plot.py",
    "loadgen/test_report.py",
    "loadgen/test_traces.py",
    "loadgen/test_workload.py",
    "common/test_address.py",
    "common/test_settings.py",
    "common/test_wire.py",
)


@cache
def place(path: Path) -> int:
    """Return the place of a test file in ``CALM``, -1 if it is timed."""
    return next((i for i, calm in enumerate(CALM) if path.is_relative_to(HERE / calm)), -1)


class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # its package has no types
    """Timed tests are one unit of work, each file of calm ones is another."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return TIMED if place(self.config.rootpath / file) < 0 else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    """Spread tests by lane, whatever ``--dist`` says; units of work go out in the order of the tests."""
    config.option.loadscopereorder = False
    return Lanes(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring timed tests to the front, so that the first process takes them all; give calm ones time to give way."""
    if not IN_A_LANE:
        return
    items.sort(key=lambda item: place(item.path))
    for item in items:
        if place(item.path) >= 0 and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@cache
def give_way() -> None:
    """Lower the priority of this process, once and for good: no timed test is left when it has a calm one."""
    os.nice(NICENESS)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let calm tests give way to the timed ones beside them."""
    if IN_A_LANE and place(item.path) >= 0:
        give_way()
