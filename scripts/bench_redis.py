"""The benchmark behind ``scripts/bench-redis``: what a stream command costs this process, by two clients in turn.

CPU time of the client process alone, on a unix socket, medians over the rounds; the rounds of both alternate, so that a
busy machine is busy for both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

import redis.asyncio as redis
import uvloop
from rich.console import Console
from rich.table import Table

from common import embedded
from common.streams import Outgoing, Streams

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

STREAM, GROUP = "bench", "bench"
BATCH = 16


async def main(args: argparse.Namespace, url: str) -> Table:
    """Measure every operation with both clients."""
    streams = Streams(url)
    client: Any = redis.Redis.from_url(url, protocol=2)  # redis-py types every reply as a union
    payload = bytes(args.payload)
    await streams.make_group(STREAM, GROUP)

    async def lean_append() -> None:
        await streams.append(STREAM, b"header", payload)

    async def redis_append() -> None:
        await client.xadd(STREAM, {b"h": b"header", b"p": payload})

    async def lean_append_batch() -> None:
        await streams.append_all([Outgoing(STREAM, b"header", payload, create=True)] * BATCH)

    async def redis_append_batch() -> None:
        async with client.pipeline(transaction=False) as pipe:
            for _ in range(BATCH):
                pipe.xadd(STREAM, {b"h": b"header", b"p": payload})
            await pipe.execute()

    async def lean_read_and_ack() -> None:
        entries = await streams.read([STREAM], GROUP, "lean", count=BATCH, block_ms=100)
        await streams.ack(GROUP, [(STREAM, entry.id) for entry in entries])

    async def redis_read_and_ack() -> None:
        ((_, entries),) = await client.xreadgroup(GROUP, "redis", {STREAM: ">"}, count=BATCH, block=100)
        ids = [entry_id for entry_id, _ in entries]
        async with client.pipeline(transaction=False) as pipe:
            pipe.xack(STREAM, GROUP, *ids)
            pipe.xdel(STREAM, *ids)
            await pipe.execute()

    table = Table("operation", "redis-py, us", "common.resp, us", "ratio")
    for name, slow, fast in (
        ("XADD, one", redis_append, lean_append),
        (f"XADD, {BATCH} in one round trip", redis_append_batch, lean_append_batch),
        (f"XREADGROUP of {BATCH}, XACK + XDEL", redis_read_and_ack, lean_read_and_ack),
    ):
        costs: tuple[list[float], list[float]] = ([], [])
        for _ in range(args.rounds):
            for cost, operation in zip(costs, (slow, fast), strict=True):
                cost.append(await cpu_us(operation, args.repeat))
        a, b = (statistics.median(cost) for cost in costs)
        table.add_row(name, f"{a:.0f}", f"{b:.0f}", f"{a / b:.1f}")
    await streams.close()
    await client.aclose()
    return table


async def cpu_us(operation: Callable[[], Awaitable[None]], repeat: int) -> float:
    """Return the CPU microseconds of this process per call."""
    started = time.process_time()
    for _ in range(repeat):
        await operation()
    return (time.process_time() - started) * 1e6 / repeat


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="scripts/bench-redis", description=__doc__)
    parser.add_argument("--payload", type=int, default=784, help="bytes of an entry's payload (default: 784)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: 5)")
    parser.add_argument("--repeat", type=int, default=200, help="calls a round (default: 200)")
    parsed = parser.parse_args()
    with embedded.server() as server:
        Console().print(uvloop.run(main(parsed, server)))
