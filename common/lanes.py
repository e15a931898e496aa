"""A process's connections to Redis, by slot.

On a Cluster each slot, which is each model, has connections of its own, so that a shard that is away takes no other
model with it; commands on several models go out side by side. Everything else has one slot.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import hiredis

from common import address
from common.topology import Topology

if TYPE_CHECKING:
    from collections.abc import Sequence

    from common.resp import Command, Connection


class Lane:
    """The connections to whoever serves one slot."""

    def __init__(self, topology: Topology, slot: int) -> None:
        self._topology, self._slot = topology, slot
        self._idle_readers: list[Connection] = []
        self.writer = topology.connection(slot)
        self.bulk = topology.connection(slot)  # large payloads, which nothing small is to wait behind

    async def read(self, command: Command, timeout_s: float) -> Any:
        """Return the reply to a command that blocks, over a connection that nobody else uses meanwhile."""
        reader = self._idle_readers.pop() if self._idle_readers else self._topology.connection(self._slot)
        try:
            (reply,) = await reader.call([command], timeout_s, repeat=False)
        finally:
            self._idle_readers.append(reader)
        return reply

    def close(self) -> None:
        """Close all connections."""
        for connection in (self.writer, self.bulk, *self._idle_readers):
            connection.close()


class Lanes:
    """All lanes to the servers behind one URL; ConfigError if it is none. Errors are those of ``resp.Connection``."""

    def __init__(self, url: str) -> None:
        self._topology = Topology(address.parse(url))
        self._only = None if self._topology.clustered else Lane(self._topology, 0)
        self._lanes: dict[int, Lane] = {}

    def of(self, key: str) -> Lane:
        """Return the lane to a key, hence to all keys with the same hash tag."""
        if self._only is not None:
            return self._only
        slot = self._topology.slot(key)
        lane = self._lanes.get(slot)
        if lane is None:
            lane = self._lanes[slot] = Lane(self._topology, slot)
        return lane

    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """Return the replies to commands whose first argument is a key, error replies among them.

        Where one shard of several does not answer, the error of its connection stands for each of its replies.
        """
        if self._only is not None:
            return await self._only.writer.call(commands, timeout_s)
        lanes = [self.of(str(command[1])) for command in commands]
        if len(set(lanes)) == 1:
            return await lanes[0].writer.call(commands, timeout_s)
        replies: list[Any] = [None] * len(commands)

        async def ask(lane: Lane) -> None:
            places = [place for place, other in enumerate(lanes) if other is lane]
            try:
                found = await lane.writer.call([commands[place] for place in places], timeout_s)
            except (hiredis.ReplyError, OSError) as error:
                found = [error] * len(places)
            for place, reply in zip(places, found, strict=True):
                replies[place] = reply

        await asyncio.gather(*map(ask, dict.fromkeys(lanes)))
        return replies

    def close(self) -> None:
        """Close all connections."""
        for lane in [self._only] if self._only is not None else self._lanes.values():
            lane.close()
