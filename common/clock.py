"""A clock common to all processes: Redis ``TIME``, carried on each process's own monotonic clock.

Deadlines are stamped by the gateway and compared by scheduler, worker and gateway, so they must agree on now. Each
process holds its offset to Redis ``TIME``, taken as in NTP from the quickest of a few round trips: the true offset is
within half that round trip, which is the error bound known. Between refreshes only the monotonic clock counts, so a
jump of the machine's wall clock moves nothing.
"""

import time
from dataclasses import dataclass, field
from typing import Protocol

REFRESH_S = 10.0
PROBES = 5


class TimeSource(Protocol):
    """What the clock asks: ``Streams`` is one."""

    async def server_time_us(self) -> int:
        """Return the server's time in microseconds since the epoch."""


def monotonic_us() -> int:
    """Return this process's monotonic clock in microseconds."""
    return time.monotonic_ns() // 1_000


def _wall_offset_us() -> int:
    return time.time_ns() // 1_000 - monotonic_us()


@dataclass(slots=True)
class Clock:
    """Microseconds of the common clock; starts on the machine's wall clock until the first ``synchronise``."""

    offset_us: int = field(default_factory=_wall_offset_us)
    error_us: int | None = None  # None: never synchronised

    def now_us(self) -> int:
        """Return the common time in microseconds since the epoch."""
        return time.monotonic_ns() // 1_000 + self.offset_us

    async def synchronise(self, source: TimeSource) -> None:
        """Take the offset from the quickest of ``PROBES`` round trips; errors of the source pass through."""
        best: tuple[int, int] | None = None
        for _ in range(PROBES):
            sent = monotonic_us()
            server = await source.server_time_us()
            received = monotonic_us()
            probe = (received - sent, server - (sent + received) // 2)
            best = min(best, probe) if best else probe
        assert best is not None
        self.error_us = best[0] // 2 + 1
        self.offset_us = best[1]
