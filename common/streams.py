"""The only module that speaks Redis commands: append, read, ack, and the few keys beside the streams.

Rules of delivery, for every caller:

- A group starts at 0 and its one consumer has a stable name, so a process that takes over reads what was pending.
- ``ack`` removes (XACK and XDEL): a stream's length is what is outstanding, and nothing is ever trimmed by length.
- Effects first, acks after: ``append_all`` returns only when Redis has every entry, so an ack sent after it never
  loses a query; a crash in between repeats work.
- Streams of a single reader are made by that reader. ``append_all`` to one that is gone tells so instead of making it
  anew, else answers for the dead would pile up for ever.

Errors of the connection are raised as ``StreamsError``; ``NoGroupError`` says that Redis has forgotten a group (a
restart without AOF, a stream deleted by the scheduler): make it again and go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from common import keys
from common.commands import Commands, NoGroupError, StreamsError, check
from common.overview import Published

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.resp import Command

__all__ = ["Depth", "Entry", "NoGroupError", "Outgoing", "Streams", "StreamsError"]

HEADER, PAYLOAD = b"h", b"p"
PAGE = 1_000  # entries per round trip when reading back what is pending
_RENEW_LEASE = (
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"
)
_DROP_LEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


class Entry(NamedTuple):
    """One entry read from a stream."""

    stream: str
    id: bytes
    header: bytes
    payload: bytes


class Outgoing(NamedTuple):
    """One entry to append; ``create`` False: only where the reader has made the stream."""

    stream: str
    header: bytes
    payload: bytes = b""
    create: bool = False


class Depth(NamedTuple):
    """How full a stream is: entries in it, and those of them that its group has read and not acked."""

    entries: int
    pending: int


def _entries(stream: str, found: Iterable[tuple[bytes, list[bytes] | None]]) -> Iterator[Entry]:
    # A pending entry that was deleted meanwhile has no values; one without our fields is not ours.
    for entry_id, values in found:
        if values and len(values) == 4 and (values[0], values[2]) == (HEADER, PAYLOAD):
            yield Entry(stream, entry_id, values[1], values[3])


class Streams(Commands):
    """Streams and the keys beside them, over one process's connections."""

    # -- streams ------------------------------------------------------------------------------------------------------

    async def make_group(self, stream: str, group: str, *, ttl_s: int | None = None) -> None:
        """Make stream and group from entry 0 unless they exist; ``ttl_s`` sets the stream's expiry."""
        (made,) = await self.ask_about(stream, ("XGROUP", "CREATE", stream, group, "0", "MKSTREAM"))
        if not str(made).startswith("BUSYGROUP"):
            check([made])
        if ttl_s is not None:
            await self.expire(stream, ttl_s)

    async def append(self, stream: str, header: bytes, payload: bytes = b"") -> None:
        """Append one entry, making the stream if need be."""
        await self.append_all([Outgoing(stream, header, payload, create=True)])

    async def append_all(self, entries: Sequence[Outgoing]) -> list[bool]:
        """Append in order in one round trip; False where the stream's reader is gone and nothing was made.

        Raises StreamsError if any entry was refused; those before it stay, so a caller that retries repeats them.
        """
        commands: list[Command] = [
            (
                "XADD",
                entry.stream,
                *(() if entry.create else ("NOMKSTREAM",)),
                "*",
                HEADER,
                entry.header,
                PAYLOAD,
                entry.payload,
            )
            for entry in entries
        ]
        return [entry_id is not None for entry_id in await self.call(commands)]

    async def read(
        self, streams: Sequence[str], group: str, consumer: str, *, count: int, block_ms: int
    ) -> list[Entry]:
        """Read new entries of any of ``streams``, which are of one model; empty after ``block_ms`` without one.

        After a StreamsError some may have been delivered unseen: they are ``pending``.
        """
        limits: Command = ("COUNT", count, "BLOCK", block_ms)
        command = ("XREADGROUP", "GROUP", group, consumer, *limits, "STREAMS", *streams, *[">"] * len(streams))
        answer = await self.wait(streams[0], command, block_ms)
        return [entry for stream, found in answer or () for entry in _entries(stream.decode(), found)]

    async def pending(self, stream: str, group: str, consumer: str) -> list[Entry]:
        """Read all that was delivered to this consumer before and never acked, oldest first."""
        entries: list[Entry] = []
        since: bytes | str = "0"
        while True:
            command = ("XREADGROUP", "GROUP", group, consumer, "COUNT", PAGE, "STREAMS", stream, since)
            answer = await self.call_about(stream, command)
            found = answer[0][1] if answer else []
            if not found:
                return entries
            entries.extend(_entries(stream, found))
            since = found[-1][0]

    async def outstanding(self, stream: str) -> list[Entry]:
        """Return all that was appended and not acked, delivered or not, oldest first."""
        (answer,) = await self.call([("XRANGE", stream, "-", "+")])
        return list(_entries(stream, answer))

    async def depths(self, streams: Iterable[tuple[str, str]]) -> list[Depth]:
        """Return how full each stream is for its group, in one round trip; what is not there holds 0."""
        commands: list[Command] = []
        for stream, group in streams:
            commands += [("XLEN", stream), ("XPENDING", stream, group)]
        replies = await self.ask(commands)
        found = []
        for length, summary in zip(replies[::2], replies[1::2], strict=True):
            if isinstance(summary, Exception) and str(summary).startswith("NOGROUP"):
                summary = (0,)
            check([length, summary])
            found.append(Depth(length, summary[0]))
        return found

    async def ack(self, group: str, ids: Iterable[tuple[str, bytes]]) -> None:
        """Acknowledge and delete ``(stream, id)`` pairs in one round trip."""
        by_stream: dict[str, list[bytes]] = {}
        for stream, entry_id in ids:
            by_stream.setdefault(stream, []).append(entry_id)
        if by_stream:
            acks: list[Command] = [("XACK", stream, group, *entry_ids) for stream, entry_ids in by_stream.items()]
            deletes: list[Command] = [("XDEL", stream, *entry_ids) for stream, entry_ids in by_stream.items()]
            await self.call(acks + deletes)

    async def delete(self, *names: str) -> None:
        """Delete streams or keys."""
        if names:
            await self.call([("DEL", name) for name in names])

    async def expire(self, name: str, ttl_s: int) -> bool:
        """Set an expiry; False if there is no such key."""
        (there,) = await self.call([("EXPIRE", name, ttl_s)])
        return bool(there)

    # -- keys beside the streams --------------------------------------------------------------------------------------

    async def put_payloads(self, payloads: dict[str, bytes]) -> None:
        """Store large payloads of one model under their own keys, for ``PAYLOAD_TTL_S``."""
        await self.carry([("SET", key, payload, "EX", keys.PAYLOAD_TTL_S) for key, payload in payloads.items()])

    async def get_payloads(self, names: Sequence[str]) -> list[bytes | None]:
        """Fetch large payloads of one model; None where one has expired."""
        return await self.carry([("GET", name) for name in names])

    async def remember_worker(self, model: str, worker: str) -> None:
        """Note that ``worker`` has a stream, so that a scheduler that starts later looks after it."""
        await self.call([("SADD", keys.workers(model), worker)])

    async def forget_worker(self, model: str, worker: str) -> None:
        """Delete a worker's stream and the note of it."""
        await self.call([("DEL", keys.work(model, worker)), ("SREM", keys.workers(model), worker)])

    async def known_workers(self, model: str) -> list[str]:
        """Return the names of all workers noted and not forgotten."""
        return await self._members(keys.workers(model))

    async def publish_status(self, model: str, document: bytes, counts: bytes) -> None:
        """Publish the scheduler's status and what it counts; both lapse by themselves when no longer refreshed."""
        await self.call(
            [
                ("SET", keys.status(model), document, "PX", keys.STATUS_TTL_MS),
                ("SET", keys.scheduler_counts(model), counts, "PX", keys.COUNTS_TTL_MS),
                ("SADD", keys.MODELS, model),
            ]
        )

    async def read_statuses(self) -> dict[str, bytes | None]:
        """Return every model's status document by name; None where its scheduler is gone.

        A model whose shard of a Cluster cannot tell is left out; StreamsError if none can.
        """
        models = await self._members(keys.MODELS)
        replies = await self.ask_each([("GET", keys.status(model)) for model in models])
        return {model: reply for model, reply in zip(models, replies, strict=True) if not isinstance(reply, Exception)}

    async def publish_counts(self, gateway: str, documents: Mapping[str, bytes]) -> None:
        """Publish what a gateway counts, by model; it lapses by itself when no longer refreshed."""
        commands: list[Command] = []
        for model, document in documents.items():
            commands.append(("SET", keys.gateway_counts(model, gateway), document, "PX", keys.COUNTS_TTL_MS))
            commands.append(("SADD", keys.gateways(model), gateway))
        await self.ask_each(commands)

    async def withdraw_counts(self, gateway: str, models: Iterable[str]) -> None:
        """Remove what a gateway has published."""
        commands: list[Command] = []
        for model in models:
            commands += [("DEL", keys.gateway_counts(model, gateway)), ("SREM", keys.gateways(model), gateway)]
        await self.ask_each(commands)

    async def read_published(self) -> dict[str, Published]:
        """Return all that schedulers and gateways publish, by model; models as in ``read_statuses``."""
        models = await self._members(keys.MODELS)
        members = await self.ask_each([("SMEMBERS", keys.gateways(model)) for model in models])
        gateways = {
            model: sorted(name.decode() for name in names)
            for model, names in zip(models, members, strict=True)
            if not isinstance(names, Exception)
        }
        commands: list[Command] = []
        for model, names in gateways.items():
            commands += [("GET", keys.status(model)), ("GET", keys.scheduler_counts(model))]
            commands += [("GET", keys.gateway_counts(model, name)) for name in names]
        replies = iter(await self.ask_each(commands))
        published = {}
        for model, names in gateways.items():
            status, counts, *documents = [next(replies) for _ in range(2 + len(names))]
            if not any(isinstance(reply, Exception) for reply in (status, counts, *documents)):
                published[model] = Published(status, counts, dict(zip(names, documents, strict=True)))
        return published

    async def take_lease(self, key: str, holder: str, ttl_ms: int) -> bool:
        """Take or renew a lease; False while somebody else holds it."""
        (taken,) = await self.call([("SET", key, holder, "NX", "PX", ttl_ms)])
        return bool(taken or await self._script(_RENEW_LEASE, key, holder, ttl_ms))

    async def drop_lease(self, key: str, holder: str) -> None:
        """Give a lease back, if it is still ours."""
        await self._script(_DROP_LEASE, key, holder)

    async def ping(self) -> None:
        """Raise StreamsError unless Redis answers."""
        await self.call_about(keys.MODELS, ("PING",))

    async def information(self) -> dict[str, Any]:
        """Return what INFO tells of the server (of a Cluster one node), its sections as one, whole numbers as such."""
        text = (await self.call_about(keys.MODELS, ("INFO",))).decode()
        fields = (line.partition(":") for line in text.splitlines() if ":" in line)
        return {name: int(value) if value.isdecimal() else value for name, _, value in fields}

    async def server_time_us(self) -> int:
        """Return the Redis server's clock in microseconds since the epoch; on a Cluster one node's, for everybody."""
        seconds, micros = await self.call_about(keys.MODELS, ("TIME",))
        return int(seconds) * 1_000_000 + int(micros)

    async def _members(self, key: str) -> list[str]:
        (members,) = await self.call([("SMEMBERS", key)])
        return sorted(name.decode() for name in members)

    async def _script(self, script: str, key: str, *args: str | int) -> Any:
        return await self.call_about(key, ("EVAL", script, 1, key, *args))
