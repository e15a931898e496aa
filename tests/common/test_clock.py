"""The common clock: known to within its error bound, whatever the network and the wall clock do."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import clock
from common.clock import PROBES, Clock
from common.streams import Streams

NANOSECONDS = 1_000


@dataclass
class Machine:
    """Stands for module ``time`` and for Redis: its server's clock is ahead of the monotonic one by ``ahead_us``.

    Each probe takes the next pair of ``delays_us``: there, and back.
    """

    ahead_us: int
    delays_us: list[tuple[int, int]]
    monotonic_us: int = 5_000_000
    wall_us: int = 1_700_000_000_000_000
    asked: list[int] = field(default_factory=list)

    def monotonic_ns(self) -> int:
        return self.monotonic_us * NANOSECONDS

    def time_ns(self) -> int:
        return self.wall_us * NANOSECONDS

    async def server_time_us(self) -> int:
        there, back = self.delays_us[len(self.asked)]
        self.monotonic_us += there
        self.asked.append(self.monotonic_us + self.ahead_us)
        self.monotonic_us += back
        return self.asked[-1]


def synchronised(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that runs on ``machine`` and has asked it."""
    monkeypatch.setattr(clock, "time", machine)
    ours = Clock()
    asyncio.run(ours.synchronise(machine))
    return ours


delay = st.integers(0, 10_000_000)


@settings(deadline=None)  # a loaded machine pauses
@given(st.integers(-(10**16), 10**16), st.lists(st.tuples(delay, delay), min_size=PROBES, max_size=PROBES))
def test_truth_is_within_the_error_bound(ahead_us: int, delays_us: list[tuple[int, int]]) -> None:
    """However asymmetric the delays, the clock is wrong by no more than it says, and it says half of the quickest
    round trip."""
    machine = Machine(ahead_us, delays_us)
    with pytest.MonkeyPatch.context() as monkeypatch:
        ours = synchronised(machine, monkeypatch)
        assert ours.error_us is not None
        assert abs(ours.now_us() - (machine.monotonic_us + ahead_us)) <= ours.error_us
        assert ours.error_us <= min(there + back for there, back in delays_us) / 2 + 1
        assert len(machine.asked) == PROBES


def test_quickest_probe_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One quick, even round trip among slow, lopsided ones gives the offset exactly."""
    delays = [(90_000, 10), (10, 40_000), (50, 50), (0, 70_000), (90_000, 0)]
    ours = synchronised(Machine(123_456_789, delays), monkeypatch)
    assert (ours.offset_us, ours.error_us) == (123_456_789, 51)


def test_wall_clock_counts_only_before_the_first_synchronisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new clock is the machine's own and says that its error is unknown."""
    machine = Machine(0, [(0, 0)] * PROBES)
    monkeypatch.setattr(clock, "time", machine)
    ours = Clock()
    assert (ours.now_us(), ours.error_us) == (machine.wall_us, None)


def test_jump_of_the_wall_clock_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour's jump of the machine's wall clock, before or after a refresh, leaves the common time as it was."""
    machine = Machine(1_000, [(5, 5)] * 2 * PROBES)
    ours = synchronised(machine, monkeypatch)
    before_us = ours.now_us()
    machine.wall_us -= 3_600_000_000
    assert ours.now_us() == before_us
    asyncio.run(ours.synchronise(machine))
    assert ours.now_us() == before_us + PROBES * 10
    machine.monotonic_us += 250
    assert ours.now_us() == before_us + PROBES * 10 + 250


async def test_clock_of_a_real_server(streams: Streams) -> None:
    """Two processes' clocks, one of them an hour off, agree after asking the same Redis, within both error bounds."""
    ours, theirs = Clock(), Clock(offset_us=Clock().offset_us + 3_600_000_000)
    await ours.synchronise(streams)
    await theirs.synchronise(streams)
    assert ours.error_us is not None
    assert theirs.error_us is not None
    assert abs(ours.offset_us - theirs.offset_us) <= ours.error_us + theirs.error_us
    earliest, server, latest = ours.now_us(), await streams.server_time_us(), ours.now_us()
    assert earliest - ours.error_us <= server <= latest + ours.error_us
