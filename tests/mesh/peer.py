"""A gateway's half of the wire, for tests: sends packs, collects answers and rejections by query id."""

import asyncio
import itertools
import secrets
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from common import keys, wire
from common.streams import Streams

IMAGE = bytes(range(256)) * 3 + bytes(16)  # 784 bytes


def wall_us() -> int:
    """Return the machine's clock, which is also that of a Redis on the same machine."""
    return time.time_ns() // 1_000


async def until(condition: Callable[[], Awaitable[object]], timeout_s: float = 10.0) -> None:
    """Ask until ``condition`` is true; TimeoutError if it does not become so. What other processes do has no event."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


@dataclass
class Peer:
    """``answers`` and ``rejections`` list what came for each id, duplicates included."""

    url: str
    model: str
    name: str = field(default_factory=lambda: f"peer-{secrets.token_hex(4)}")
    answers: dict[int, list[tuple[wire.Answers, wire.Answer, bytes]]] = field(default_factory=lambda: defaultdict(list))
    rejections: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    last_status: wire.Status | None = None
    _ids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(secrets.randbits(31) << 32))

    async def __aenter__(self) -> "Peer":
        self.streams = Streams(self.url)
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.streams.close()

    async def open(self) -> None:
        """Make the reply stream."""
        await self.streams.make_group(keys.replies(self.model, self.name), keys.GATEWAY_GROUP)

    def record(
        self, slo_ms: float = 2_000.0, rows: int = 1, payload: bytes = IMAGE, **changes: object
    ) -> wire.QueryRecord:
        """Stamp one query."""
        now = wall_us()
        record = wire.QueryRecord(
            next(self._ids), now, now + round(slo_ms * 1e3), rows, 0.0, 0, len(payload), wire.checksum(payload), False
        )
        return record._replace(**changes)  # type: ignore[arg-type]

    async def send(self, records: list[wire.QueryRecord], payload: bytes = IMAGE) -> list[int]:
        """Put queries on the ingress stream as one pack, each with ``payload`` unless it is stored."""
        packed = b"".join(payload for record in records if not record.stored)
        await self.streams.append(keys.ingress(self.model), wire.encode(wire.Pack(self.name, records)), packed)
        return [record.id for record in records]

    async def collect(self, ids: list[int], timeout_s: float = 20.0) -> None:
        """Read replies until each of ``ids`` has one; TimeoutError tells how many are missing."""
        stream = keys.replies(self.model, self.name)
        try:
            async with asyncio.timeout(timeout_s):
                while any(not self.answers[i] and not self.rejections[i] for i in ids):
                    await self._read(stream, block_ms=100)
        except TimeoutError:
            missing = [i for i in ids if not self.answers[i] and not self.rejections[i]]
            raise TimeoutError(f"{len(missing)} of {len(ids)} queries without a reply") from None

    async def _read(self, stream: str, block_ms: int) -> None:
        entries = await self.streams.read(
            [stream], keys.GATEWAY_GROUP, keys.GATEWAY_CONSUMER, count=100, block_ms=block_ms
        )
        for entry in entries:
            message = wire.decode(entry.header)
            if isinstance(message, wire.Answers):
                offset = 0
                for answer in message.answers:
                    self.answers[answer.id].append((message, answer, entry.payload[offset : offset + answer.size]))
                    offset += answer.size
            elif isinstance(message, wire.Rejections):
                for query_id, reason in message.rejections:
                    self.rejections[query_id].append(reason)
        await self.streams.ack(keys.GATEWAY_GROUP, [(stream, entry.id) for entry in entries])

    async def status(self) -> wire.Status | None:
        """Return what the scheduler publishes now."""
        document = (await self.streams.read_statuses()).get(self.model)
        message = wire.decode(document) if document else None
        return message if isinstance(message, wire.Status) else None

    async def wait_for_workers(self, count: int, timeout_s: float = 10.0) -> wire.Status:
        """Wait until the scheduler counts so many workers, and return its status."""

        async def counted() -> bool:
            status = self.last_status = await self.status()
            return status is not None and len(status.workers) == count

        await until(counted, timeout_s)
        assert self.last_status is not None
        return self.last_status

    async def outstanding(self, worker: str) -> int:
        """Return how many entries a worker's stream holds."""
        return len(await self.streams.outstanding(keys.work(self.model, worker)))
