"""Real processes that die: every query still gets exactly one answer."""

import asyncio

import psutil

from loadgen.replay import ReplayOptions, replay
from loadgen.report import Report
from loadgen.sender import Progress
from tests.e2e.conftest import Launch, Running

MODEL = "fashion-resnet"
EMULATED = ("--executor", "emulated", "--profile", "rtx2080ti-reconstructed")


def run_while(mesh: Running, event: "list[psutil.Process]", *, rate: float = 400, slo_ms: float = 15_000) -> Report:
    """Replay, and kill ``event``'s processes with -9 once a third of the queries are out."""
    victims = list(event)

    def at(progress: Progress) -> None:
        if victims and progress.sent > progress.queries / 3:
            for victim in victims:
                victim.kill()
            victims.clear()

    options = ReplayOptions(
        url=mesh.url, model=MODEL, trace="poisson", rate=rate, duration_s=4, slo_ms=slo_ms, timeout_s=30
    )
    report = asyncio.run(replay(options, at))
    assert not victims, "nobody was killed"
    return report


def test_worker_killed_under_load(start: Launch) -> None:
    """kill -9 of one of two workers in the middle of its batches: all queries are answered, by the other if need be."""
    with start("--workers", "2", *EMULATED) as mesh:
        victim = mesh.services("worker")[0]
        report = run_while(mesh, [victim])
        assert report.answered + report.errors == report.queries
        assert report.errors == 0, report.errors_by_status
        assert len(report.workers) == 2, "the victim never worked"


def test_second_worker_joins(start: Launch) -> None:
    """A worker launched against the same Redis while load is on takes part without further ado."""
    with start(*EMULATED) as mesh:
        joined = mesh.start_worker()
        try:
            options = ReplayOptions(
                url=mesh.url, model=MODEL, trace="poisson", rate=400, duration_s=5, slo_ms=15_000, timeout_s=30
            )
            report = asyncio.run(replay(options))
        finally:
            joined.terminate()
            joined.wait(20)
        assert report.answered + report.errors == report.queries
        assert report.errors == 0, report.errors_by_status
        assert len(report.workers) == 2


def test_worker_that_is_the_last_one_killed(start: Launch) -> None:
    """Without any worker left no query hangs: each has an answer, or an error with a status."""
    options = ("--workers", "2", *EMULATED)
    with start(*options) as mesh:
        first, second = mesh.services("worker")
        report = run_while(mesh, [first], slo_ms=1_500)
        assert report.answered + report.errors == report.queries
        second.suspend()
        try:
            silent = asyncio.run(
                replay(ReplayOptions(url=mesh.url, model=MODEL, trace="constant", rate=50, duration_s=3, slo_ms=500))
            )
        finally:
            second.resume()
        assert silent.answered + silent.errors == silent.queries
        assert silent.errors > 0
        assert {status.split(":")[0] for status in silent.errors_by_status} <= {"503", "504"}
