"""A mesh of one function: reads packs as a scheduler would, and answers as a worker would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from common import keys, wire
from common.clock import Clock
from common.streams import Entry, Outgoing, Streams

MODEL = "fashion"
SUBNETS = [{"id": "small", "accuracy": 86.5}, {"id": "large", "accuracy": 93.5}]
DESCRIPTION: dict[str, Any] = {
    "name": MODEL,
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [28, 28]}],
    "outputs": [
        {"name": "scores", "datatype": "FP32", "shape": [10]},
        {"name": "label", "datatype": "INT64", "shape": []},
    ],
    "labels": [f"class-{n}" for n in range(10)],
    "max_batch": 16,
    "subnets": SUBNETS,
}
WORKER = {"name": "worker-1", "executor": "torch", "device": "cpu", "draining": False}

Pairs = list[tuple[wire.QueryRecord, bytes]]
Behaviour = Callable[["FakeMesh", str, Pairs], list[Outgoing]]


def outputs_of(record: wire.QueryRecord, tensors: bytes) -> bytes:
    """Scores of row n: n * 10 + class; label: the first pixel of the row, modulo 10."""
    rows = np.frombuffer(tensors, np.uint8).reshape(record.rows, -1)
    scores = np.arange(record.rows * 10, dtype=np.float32)
    return scores.tobytes() + (rows[:, 0].astype(np.int64) % 10).tobytes()


def answer(mesh: FakeMesh, gateway: str, pairs: Pairs) -> list[Outgoing]:
    """Answer all queries of a pack as one batch."""
    payloads = [outputs_of(record, tensors) for record, tensors in pairs]
    return [mesh.answers(gateway, [(record, payload) for (record, _), payload in zip(pairs, payloads, strict=True)])]


def ignore(mesh: FakeMesh, gateway: str, pairs: Pairs) -> list[Outgoing]:
    """Answer nothing."""
    del mesh, gateway, pairs
    return []


def reject(reason: str) -> Behaviour:
    """Reject everything for this reason."""

    def behave(mesh: FakeMesh, gateway: str, pairs: Pairs) -> list[Outgoing]:
        message = wire.Rejections([wire.Rejection(record.id, reason) for record, _ in pairs])
        return [Outgoing(keys.replies(mesh.model, gateway), wire.encode(message))]

    return behave


class FakeMesh:
    """Scheduler and worker of ``model`` in one; what it read is in ``packs``."""

    def __init__(self, url: str, description: dict[str, Any]) -> None:
        self.model: str = description["name"]
        self.description: dict[str, Any] | None = description
        self.workers = [WORKER]
        self.counts = wire.SchedulerCounts(0, None, [], {}, 0, 0, 0, 0)
        self.behaviour: Behaviour = answer
        self.degraded: str | None = ""
        self.packs: list[Pairs] = []
        self.read = asyncio.Condition()
        self.streams = Streams(url)
        self.clock = Clock()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.clock.synchronise(self.streams)
        await self.streams.make_group(keys.ingress(self.model), keys.SCHEDULER_GROUP)
        await self.publish()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._serve()), loop.create_task(self._keep_published())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.streams.close()

    async def publish(self) -> None:
        status = wire.Status("scheduler-1", "slackfit", self.clock.now_us(), 0, self.description, self.workers, [])
        await self.streams.publish_status(self.model, wire.encode(status), wire.encode(self.counts))

    async def until_read(self, queries: int) -> Pairs:
        """Return once so many queries have arrived."""
        async with asyncio.timeout(10), self.read:
            await self.read.wait_for(lambda: sum(map(len, self.packs)) >= queries)
        return [pair for pack in self.packs for pair in pack]

    def answers(self, gateway: str, results: Pairs, error: str = "") -> Outgoing:
        started = self.clock.now_us()
        message = wire.Answers(
            "worker-1", "torch", "large", "slackfit", 93.5, sum(record.rows for record, _ in results),
            started, started + 1_500, 7, self.degraded, started - 500,
            [wire.Answer(record.id, len(payload), error) for record, payload in results],
        )  # fmt: skip
        payload = b"".join(payload for _, payload in results)
        return Outgoing(keys.replies(self.model, gateway), wire.encode(message), payload)

    async def _keep_published(self) -> None:
        while True:
            await asyncio.sleep(1)
            await self.publish()

    async def _serve(self) -> None:
        stream = keys.ingress(self.model)
        while True:
            entries = await self.streams.read(
                [stream], keys.SCHEDULER_GROUP, keys.SCHEDULER_CONSUMER, count=64, block_ms=1_000
            )
            outgoing: list[Outgoing] = []
            for entry in entries:
                gateway, pairs = await self._unpack(entry)
                async with self.read:
                    self.packs.append(pairs)
                    self.read.notify_all()
                outgoing += self.behaviour(self, gateway, pairs)
            if outgoing:
                await self.streams.append_all(outgoing)
            await self.streams.ack(keys.SCHEDULER_GROUP, [(entry.stream, entry.id) for entry in entries])

    async def _unpack(self, entry: Entry) -> tuple[str, Pairs]:
        pack = wire.decode(entry.header)
        assert isinstance(pack, wire.Pack)
        pairs, offset = [], 0
        for record in pack.queries:
            if record.stored:
                (stored,) = await self.streams.get_payloads([keys.payload(self.model, record.id)])
                assert stored is not None
                tensors = stored
            else:
                tensors = entry.payload[offset : offset + record.size]
                offset += record.size
            assert wire.checksum(tensors) == record.crc
            assert len(tensors) == record.size
            pairs.append((record, tensors))
        assert offset == len(entry.payload)
        return pack.gateway, pairs
