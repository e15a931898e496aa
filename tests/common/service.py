"""A service that behaves as its argument says, for tests of ``run``: python -m tests.common.service MODE GRACE_S."""

import asyncio
import gc
import sys

from common import log
from common.errors import SuperServeError
from common.runtime import Tasks, run


def say(words: str) -> None:
    print(words, flush=True)  # noqa: T201 - the test reads it


async def fail(error: Exception) -> None:
    raise error


async def cling() -> None:
    """End for no cancellation."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            say("clings")


class Probe:
    """Prints what it is asked to do. Modes: see ``startup`` and ``shutdown``."""

    def __init__(self, mode: str) -> None:
        self._mode = mode

    async def startup(self, tasks: Tasks) -> None:
        if self._mode == "never up":
            say("up")  # as far as the test is concerned
            await asyncio.Event().wait()
        tasks.spawn(asyncio.Event().wait(), "bystander")
        if self._mode == "clinging":
            tasks.spawn(cling(), "cling")
        if self._mode == "failing":
            tasks.spawn(fail(SuperServeError("this went wrong")), "failing task")
        if self._mode == "crashing":
            tasks.spawn(fail(ZeroDivisionError("nobody thought of this")), "crashing task")
        say("up")

    async def shutdown(self) -> None:
        say("draining")
        if self._mode == "frozen":
            say(f"{gc.get_freeze_count() > 10_000}")
        if self._mode in ("slow", "clinging"):
            await asyncio.Event().wait()
        say("drained")


if __name__ == "__main__":
    log.configure("probe")
    sys.exit(run(Probe(sys.argv[1]), float(sys.argv[2])))
