"""Where a connection finds its server each time that it is made: a fixed place, the primary of Sentinel, or a node.

Nothing is cached: connections are made rarely, and when one breaks the answer may have changed. A Cluster is asked by
slot. All keys of a model lie in one slot, so a connection serves one slot and knows one node at a time; a node that the
slot has left says MOVED, which breaks the connection, and the next one goes where that points.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import hiredis
from redis.crc import key_slot

from common.resp import Command, Connection, Place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from common.address import Address, Host

ASK_TIMEOUT_S = 0.5  # for one Sentinel or node to say where; then the next one is asked
MOVED = "MOVED "


class Topology:
    """The servers behind one URL, and how to connect to the right one."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._hosts = list(address.hosts)  # whom to ask, the one that answered last first
        self.clustered = address.kind == "cluster"

    def slot(self, key: str) -> int:
        """Return which of a Cluster's slots a key lies in."""
        return key_slot(key.encode())

    def connection(self, slot: int) -> Connection:
        """Return a connection to whoever serves a slot whenever it connects."""
        return Connection(partial(self._locate, slot), self._address.greeting, self._address.tls)

    async def _locate(self, slot: int, why: str) -> Place:
        """Return where to connect; ``why`` is what ended the connection before. OSError if nobody can tell."""
        address = self._address
        if address.kind == "server":
            return address.path or self._hosts[0]
        if address.kind == "sentinel":
            _, found = await self._ask(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service))
            if found is None:
                raise ConnectionError(f"Sentinel knows no service {address.service!r}")
            host, port = found
            return host.decode(), int(port)
        if why.startswith(MOVED) and (host := why.split()[2].rpartition(":"))[0]:
            return host[0], int(host[2])
        asked, ranges = await self._ask(("CLUSTER", "SLOTS"))
        nodes = {first: _node(node, asked) for first, _, node, *_ in ranges}
        self._hosts = list(dict.fromkeys([asked, *nodes.values(), *address.hosts]))
        for first, last, *_ in ranges:
            if first <= slot <= last:
                return nodes[first]
        raise ConnectionError(f"no node of the Cluster serves slot {slot}")

    async def _ask(self, command: Command) -> tuple[Host, Any]:
        """Put a question to one host after the other; return who answered, and the answer."""
        sentinel = self._address.kind == "sentinel"
        greeting = self._address.sentinel_greeting if sentinel else self._address.greeting
        problems = []
        for host in self._hosts:
            connection = Connection(partial(_fixed, host), greeting, self._address.tls, timeout_s=ASK_TIMEOUT_S)
            try:
                (answer,) = await connection.call([command], ASK_TIMEOUT_S, repeat=False)
            except (OSError, hiredis.ReplyError) as error:
                answer = error
            finally:
                connection.close()
            if not isinstance(answer, Exception):
                self._hosts = [host, *(other for other in self._hosts if other != host)]
                return host, answer
            problems.append(f"{host[0]}:{host[1]}: {answer}")
        asked = "Sentinel" if sentinel else "node of the Cluster"
        raise ConnectionError(f"no {asked} answers: {'; '.join(problems)}")


async def _fixed(host: Host, why: str) -> Place:
    return host


def _node(node: Sequence[Any], asked: Host) -> Host:
    """Return a node's address; one that does not know its own is reached as it was asked."""
    return (node[0].decode() if node[0] else asked[0]), node[1]
