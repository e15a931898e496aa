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

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import hiredis
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from common import keys
from common.errors import ConfigError, Unavailable
from common.overview import Published
from common.resp import Command, Connection

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER, PAYLOAD = b"h", b"p"
PAGE = 1_000  # entries per round trip when reading back what is pending
READ_GRACE_S = 5.0  # how much longer than BLOCK an answer may take before the connection counts as broken
_RENEW_LEASE = (
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"
)
_DROP_LEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


class StreamsError(Unavailable):
    """Redis cannot be reached, or refused a command."""


class NoGroupError(StreamsError):
    """The stream or its consumer group does not exist (any more)."""


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


def _check(replies: Sequence[Any]) -> None:
    """Raise the first error reply as StreamsError."""
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise (NoGroupError if str(reply).startswith("NOGROUP") else StreamsError)(f"Redis refused: {reply}")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ResponseError as error:
        if str(error).startswith("NOGROUP"):
            raise NoGroupError(str(error)) from error
        raise StreamsError(f"Redis refused: {error}") from error
    except (RedisError, OSError) as error:
        raise StreamsError(f"Redis: {error or type(error).__name__}") from error
    finally:
        # Before Python 3.12 asyncio.wait_for, which redis-py sends through, swallows a cancellation that comes as the
        # inner future completes, with a result or an error. A reader that loops over commands would then never end.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError


class Streams:
    """One process's connection pool. ``url``: ``redis://``, ``rediss://`` or ``unix://``; ConfigError if it is none."""

    def __init__(self, url: str) -> None:
        try:
            # RESP2 and no client-side name: the same answers from Redis 6.2 to 8 and from Valkey.
            # One retry, at once: after a restart of Redis every pooled connection is dead and the first use says so.
            # Repeating is safe, for delivery is at least once everywhere. Any: redis-py types every reply as a union.
            self._redis: Any = redis.Redis.from_url(
                url,
                protocol=2,
                retry=Retry(NoBackoff(), retries=1),
                socket_connect_timeout=2.0,
                socket_timeout=READ_GRACE_S,
            )
        except ValueError as error:
            raise ConfigError(f"redis URL {url!r}: {error}") from error
        self._url = url
        self._writer = Connection(url)
        self._idle_readers: list[Connection] = []  # a blocking read has a connection to itself

    async def close(self) -> None:
        """Close all connections."""
        for connection in (self._writer, *self._idle_readers):
            connection.close()
        await self._redis.aclose()

    # -- streams ------------------------------------------------------------------------------------------------------

    async def make_group(self, stream: str, group: str, *, ttl_s: int | None = None) -> None:
        """Make stream and group from entry 0 unless they exist; ``ttl_s`` sets the stream's expiry."""
        with _translated():
            try:
                await self._redis.xgroup_create(stream, group, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
            if ttl_s is not None:
                await self._redis.expire(stream, ttl_s)

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
        return [entry_id is not None for entry_id in await self._call(self._writer, commands)]

    async def read(
        self, streams: Sequence[str], group: str, consumer: str, *, count: int, block_ms: int
    ) -> list[Entry]:
        """Read new entries of any of ``streams``; empty after ``block_ms`` without one.

        After a StreamsError some may have been delivered unseen: they are ``pending``.
        """
        limits: Command = ("COUNT", count, "BLOCK", block_ms)
        command = ("XREADGROUP", "GROUP", group, consumer, *limits, "STREAMS", *streams, *[">"] * len(streams))
        reader = self._idle_readers.pop() if self._idle_readers else Connection(self._url)
        try:
            (answer,) = await self._call(reader, [command], block_ms / 1e3, repeat=False)
        finally:
            self._idle_readers.append(reader)
        return [entry for stream, found in answer or () for entry in _entries(stream.decode(), found)]

    async def pending(self, stream: str, group: str, consumer: str) -> list[Entry]:
        """Read all that was delivered to this consumer before and never acked, oldest first."""
        entries: list[Entry] = []
        since: bytes | str = "0"
        while True:
            command = ("XREADGROUP", "GROUP", group, consumer, "COUNT", PAGE, "STREAMS", stream, since)
            (answer,) = await self._call(self._writer, [command])
            found = answer[0][1] if answer else []
            if not found:
                return entries
            entries.extend(_entries(stream, found))
            since = found[-1][0]

    async def outstanding(self, stream: str) -> list[Entry]:
        """Return all that was appended and not acked, delivered or not, oldest first."""
        (answer,) = await self._call(self._writer, [("XRANGE", stream, "-", "+")])
        return list(_entries(stream, answer))

    async def depths(self, streams: Iterable[tuple[str, str]]) -> list[Depth]:
        """Return how full each stream is for its group, in one round trip; what is not there holds 0."""
        commands: list[Command] = []
        for stream, group in streams:
            commands += [("XLEN", stream), ("XPENDING", stream, group)]
        replies = await self._ask(self._writer, commands)
        found = []
        for length, summary in zip(replies[::2], replies[1::2], strict=True):
            if isinstance(summary, hiredis.ReplyError) and str(summary).startswith("NOGROUP"):
                summary = (0,)
            _check([length, summary])
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
            await self._call(self._writer, acks + deletes)

    async def _call(
        self, connection: Connection, commands: list[Command], wait_s: float = 0.0, *, repeat: bool = True
    ) -> list[Any]:
        """Return the replies; an error reply or a broken connection is raised as StreamsError."""
        replies = await self._ask(connection, commands, wait_s, repeat=repeat)
        _check(replies)
        return replies

    async def _ask(
        self, connection: Connection, commands: list[Command], wait_s: float = 0.0, *, repeat: bool = True
    ) -> list[Any]:
        """Return the replies, error replies among them; a broken connection is raised as StreamsError."""
        try:
            return await connection.call(commands, READ_GRACE_S + wait_s, repeat=repeat)
        except hiredis.ReplyError as error:
            raise StreamsError(f"Redis refused: {error}") from error
        except OSError as error:
            raise StreamsError(f"Redis: {error or type(error).__name__}") from error

    async def delete(self, *names: str) -> None:
        """Delete streams or keys."""
        if names:
            with _translated():
                await self._redis.delete(*names)

    async def expire(self, name: str, ttl_s: int) -> bool:
        """Set an expiry; False if there is no such key."""
        with _translated():
            return bool(await self._redis.expire(name, ttl_s))

    # -- keys beside the streams --------------------------------------------------------------------------------------

    async def put_payloads(self, payloads: dict[str, bytes]) -> None:
        """Store large payloads under their own keys, for ``PAYLOAD_TTL_S``."""
        with _translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                for key, payload in payloads.items():
                    pipe.set(key, payload, ex=keys.PAYLOAD_TTL_S)
                await pipe.execute()

    async def get_payloads(self, names: Sequence[str]) -> list[bytes | None]:
        """Fetch large payloads; None where one has expired."""
        with _translated():
            return list(await self._redis.mget(names))

    async def remember_worker(self, model: str, worker: str) -> None:
        """Note that ``worker`` has a stream, so that a scheduler that starts later looks after it."""
        with _translated():
            await self._redis.sadd(keys.workers(model), worker)

    async def forget_worker(self, model: str, worker: str) -> None:
        """Delete a worker's stream and the note of it."""
        with _translated():
            await self._redis.delete(keys.work(model, worker))
            await self._redis.srem(keys.workers(model), worker)

    async def known_workers(self, model: str) -> list[str]:
        """Return the names of all workers noted and not forgotten."""
        with _translated():
            return sorted(name.decode() for name in await self._redis.smembers(keys.workers(model)))

    async def publish_status(self, model: str, document: bytes, counts: bytes) -> None:
        """Publish the scheduler's status and what it counts; both lapse by themselves when no longer refreshed."""
        with _translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.set(keys.status(model), document, px=keys.STATUS_TTL_MS)
                pipe.set(keys.scheduler_counts(model), counts, px=keys.COUNTS_TTL_MS)
                pipe.sadd(keys.MODELS, model)
                await pipe.execute()

    async def read_statuses(self) -> dict[str, bytes | None]:
        """Return every model's status document by name; None where its scheduler is gone."""
        with _translated():
            models = sorted(name.decode() for name in await self._redis.smembers(keys.MODELS))
            return {model: await self._redis.get(keys.status(model)) for model in models}

    async def publish_counts(self, gateway: str, documents: Mapping[str, bytes]) -> None:
        """Publish what a gateway counts, by model; it lapses by itself when no longer refreshed."""
        with _translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                for model, document in documents.items():
                    pipe.set(keys.gateway_counts(model, gateway), document, px=keys.COUNTS_TTL_MS)
                    pipe.sadd(keys.gateways(model), gateway)
                await pipe.execute()

    async def withdraw_counts(self, gateway: str, models: Iterable[str]) -> None:
        """Remove what a gateway has published."""
        with _translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                for model in models:
                    pipe.delete(keys.gateway_counts(model, gateway))
                    pipe.srem(keys.gateways(model), gateway)
                await pipe.execute()

    async def read_published(self) -> dict[str, Published]:
        """Return all that schedulers and gateways publish, by model."""
        with _translated():
            models = sorted(name.decode() for name in await self._redis.smembers(keys.MODELS))
            return {model: await self._published(model) for model in models}

    async def _published(self, model: str) -> Published:
        names = sorted(name.decode() for name in await self._redis.smembers(keys.gateways(model)))
        wanted = (keys.status(model), keys.scheduler_counts(model), *(keys.gateway_counts(model, n) for n in names))
        status, counts, *documents = await self._redis.mget(wanted)
        return Published(status, counts, dict(zip(names, documents, strict=True)))

    async def take_lease(self, key: str, holder: str, ttl_ms: int) -> bool:
        """Take or renew a lease; False while somebody else holds it."""
        with _translated():
            if await self._redis.set(key, holder, nx=True, px=ttl_ms):
                return True
            return bool(await self._script(_RENEW_LEASE, key, holder, ttl_ms))

    async def drop_lease(self, key: str, holder: str) -> None:
        """Give a lease back, if it is still ours."""
        with _translated():
            await self._script(_DROP_LEASE, key, holder)

    async def _script(self, script: str, key: str, *args: Any) -> Any:
        return await self._redis.eval(script, 1, key, *args)

    async def ping(self) -> None:
        """Raise StreamsError unless Redis answers."""
        with _translated():
            await self._redis.ping()

    async def server_time_us(self) -> int:
        """Return the Redis server's clock in microseconds since the epoch."""
        with _translated():
            seconds, micros = await self._redis.time()
        return int(seconds) * 1_000_000 + int(micros)
