"""Rules of delivery, against a real server."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from common import embedded, keys
from common import streams as streams_module
from common.errors import ConfigError
from common.resp import ConnectionBrokenError
from common.streams import Depth, NoGroupError, Outgoing, Streams, StreamsError
from tests.mesh.peer import until

GROUP, CONSUMER = "readers", "reader"
BLOCK_MS = 50


async def read(streams: Streams, *names: str, count: int = 100, block_ms: int = BLOCK_MS) -> list[bytes]:
    """Headers of what is new."""
    return [e.header for e in await streams.read(names, GROUP, CONSUMER, count=count, block_ms=block_ms)]


async def pending(streams: Streams, name: str) -> list[bytes]:
    return [entry.header for entry in await streams.pending(name, GROUP, CONSUMER)]


async def test_read_gives_each_entry_once_and_in_order(streams: Streams, stream: str) -> None:
    """A group starts at the stream's first entry; what was delivered is not delivered again; headers and payloads
    come as they went."""
    await streams.append(stream, b"one", b"\x00\xff" * 500)
    await streams.make_group(stream, GROUP)
    await streams.append(stream, b"two")
    first, second = await streams.read([stream], GROUP, CONSUMER, count=10, block_ms=BLOCK_MS)
    assert (first.stream, first.header, first.payload) == (stream, b"one", b"\x00\xff" * 500)
    assert (second.header, second.payload) == (b"two", b"")
    assert await read(streams, stream) == []


async def test_read_covers_several_streams_and_counts(streams: Streams, stream: str) -> None:
    """One blocking read serves several streams, at most ``count`` entries of each."""
    other = f"{stream}:other"
    for name in (stream, other):
        await streams.make_group(name, GROUP)
        await streams.append_all([Outgoing(name, name.encode() + b"%d" % i) for i in range(3)])
    found = await streams.read([stream, other], GROUP, CONSUMER, count=2, block_ms=BLOCK_MS)
    assert sorted(entry.stream for entry in found) == [stream, stream, other, other]
    assert len(await read(streams, stream, other)) == 2


async def test_depths_tell_what_is_in_each_stream(streams: Streams, stream: str) -> None:
    """Entries not acked, and of them those read; a missing stream is empty, one without its group has none read."""
    other, missing = f"{stream}:other", f"{stream}:missing"
    await streams.make_group(stream, GROUP)
    await streams.append_all([Outgoing(stream, b"%d" % i) for i in range(4)])
    await streams.append(other, b"unread")
    found = await streams.read([stream], GROUP, CONSUMER, count=3, block_ms=BLOCK_MS)
    await streams.ack(GROUP, [(stream, found[0].id)])
    asked = [(stream, GROUP), (missing, GROUP), (other, GROUP)]
    assert await streams.depths(asked) == [Depth(3, 2), Depth(0, 0), Depth(1, 0)]


async def test_depth_of_what_is_no_stream_is_an_error(streams: Streams, stream: str) -> None:
    """A key of another kind is refused by Redis, and not taken for an empty stream."""
    await streams.put_payloads({stream: b"bytes"})
    with pytest.raises(StreamsError, match="WRONGTYPE"):
        await streams.depths([(stream, GROUP)])


async def test_ack_deletes(streams: Streams, stream: str) -> None:
    """What is acked is neither outstanding nor pending; what is not stays both, delivered or not."""
    await streams.make_group(stream, GROUP)
    await streams.append_all([Outgoing(stream, b"%d" % i) for i in range(4)])
    found = await streams.read([stream], GROUP, CONSUMER, count=3, block_ms=BLOCK_MS)
    await streams.ack(GROUP, [(stream, found[0].id), (stream, found[2].id)])
    assert [entry.header for entry in await streams.outstanding(stream)] == [b"1", b"3"]
    assert await pending(streams, stream) == [b"1"]
    await streams.ack(GROUP, [])


async def test_pending_is_read_back_in_pages(
    streams: Streams, redis_url: str, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A successor gets all that was delivered and not acked, oldest first, however many pages it takes; entries that
    were deleted without an ack, a whole page of them, do not end the search."""
    monkeypatch.setattr(streams_module, "PAGE", 3)
    await streams.make_group(stream, GROUP)
    await streams.append_all([Outgoing(stream, b"%02d" % i) for i in range(11)])
    assert await pending(streams, stream) == []
    found = await streams.read([stream], GROUP, CONSUMER, count=10, block_ms=BLOCK_MS)
    assert await pending(streams, stream) == [b"%02d" % i for i in range(10)]
    with redis.Redis.from_url(redis_url) as client:
        client.xdel(stream, *(entry.id for entry in found[3:6]))
    assert await pending(streams, stream) == [b"00", b"01", b"02", b"06", b"07", b"08", b"09"]


async def test_append_all_makes_nothing_for_a_reader_that_is_gone(streams: Streams, stream: str) -> None:
    """An entry for a stream that its reader has not made is told as False and leaves no key; the others arrive, and
    one marked ``create`` makes its stream."""
    there, made = f"{stream}:there", f"{stream}:made"
    await streams.make_group(there, GROUP)
    outgoing = [Outgoing(there, b"a"), Outgoing(stream, b"b"), Outgoing(made, b"c", create=True), Outgoing(there, b"d")]
    assert await streams.append_all(outgoing) == [True, False, True, True]
    assert [entry.header for entry in await streams.outstanding(there)] == [b"a", b"d"]
    assert [entry.header for entry in await streams.outstanding(made)] == [b"c"]
    assert not await streams.expire(stream, 10)  # there is no such key


async def test_append_all_tells_of_a_refusal(streams: Streams, stream: str) -> None:
    """An entry that Redis refuses raises; the entry before it stays."""
    wrong = f"{stream}:string"
    await streams.put_payloads({wrong: b"not a stream"})
    with pytest.raises(StreamsError, match="WRONGTYPE"):
        await streams.append_all([Outgoing(stream, b"a", create=True), Outgoing(wrong, b"b")])
    assert len(await streams.outstanding(stream)) == 1


async def test_entries_of_others_are_passed_over(streams: Streams, redis_url: str, stream: str) -> None:
    """An entry without our header field is skipped instead of breaking the reader."""
    await streams.make_group(stream, GROUP)
    with redis.Redis.from_url(redis_url) as client:
        client.xadd(stream, {"foreign": "yes"})
    await streams.append(stream, b"ours")
    assert await read(streams, stream) == [b"ours"]


async def test_making_a_group_again_changes_nothing(streams: Streams, stream: str) -> None:
    """``make_group`` is idempotent: what was delivered stays delivered, what is new stays new."""
    await streams.make_group(stream, GROUP)
    await streams.append_all([Outgoing(stream, b"a"), Outgoing(stream, b"b")])
    assert await read(streams, stream, count=1) == [b"a"]
    await streams.make_group(stream, GROUP)
    assert await pending(streams, stream) == [b"a"]
    assert await read(streams, stream) == [b"b"]


async def test_only_an_existing_group_is_forgiven(streams: Streams, stream: str) -> None:
    """``make_group`` on a key that is no stream raises."""
    await streams.put_payloads({stream: b"not a stream"})
    with pytest.raises(StreamsError, match="WRONGTYPE"):
        await streams.make_group(stream, GROUP)


async def test_forgotten_group_has_an_error_of_its_own(streams: Streams, stream: str) -> None:
    """Reading and reading back raise NoGroupError before the group was made and after its stream was deleted."""

    async def expect_no_group() -> None:
        with pytest.raises(NoGroupError):
            await read(streams, stream)
        with pytest.raises(NoGroupError):
            await pending(streams, stream)

    await expect_no_group()
    await streams.make_group(stream, GROUP)
    assert await read(streams, stream) == []
    await streams.delete(stream)
    await expect_no_group()


async def test_reader_that_waits_hears_of_the_deletion(streams: Streams, redis_url: str, stream: str) -> None:
    """A read that blocks while its stream is deleted raises instead of waiting for what can never come."""
    await streams.make_group(stream, GROUP)
    reader = asyncio.create_task(read(streams, stream, block_ms=4_000))
    await until(lambda: _blocked(redis_url))
    await streams.delete(stream)
    with pytest.raises(StreamsError):
        await asyncio.wait_for(reader, 3)


async def _blocked(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("clients")["blocked_clients"])


async def test_group_with_a_time_to_live(streams: Streams, redis_url: str, stream: str) -> None:
    """``ttl_s`` sets the stream's expiry, ``expire`` renews it, and none is set unless asked for."""
    other = f"{stream}:other"
    await streams.make_group(stream, GROUP, ttl_s=50)
    await streams.make_group(other, GROUP)
    with redis.Redis.from_url(redis_url) as client:
        assert 0 < client.ttl(stream) <= 50
        assert client.ttl(other) == -1
        assert await streams.expire(stream, 500)
        assert client.ttl(stream) > 50


async def test_payloads_expire(streams: Streams, redis_url: str, stream: str) -> None:
    """Payloads come back in the order asked for, None where one is gone, and none of them stays for ever."""
    first, second = f"{stream}:1", f"{stream}:2"
    await streams.put_payloads({first: b"\x00one", second: b"two"})
    assert await streams.get_payloads([second, f"{stream}:3", first]) == [b"two", None, b"\x00one"]
    with redis.Redis.from_url(redis_url) as client:
        assert 0 < client.ttl(first) <= keys.PAYLOAD_TTL_S
    await streams.delete(first)
    await streams.delete()
    assert await streams.get_payloads([first]) == [None]


async def test_workers_are_remembered_until_forgotten(streams: Streams) -> None:
    """Forgetting a worker deletes its stream and the note of it, and nobody else's."""
    model = f"model-{secrets.token_hex(4)}"
    for worker in ("b", "a"):
        await streams.make_group(keys.work(model, worker), keys.WORKER_GROUP)
        await streams.remember_worker(model, worker)
    assert await streams.known_workers(model) == ["a", "b"]
    await streams.forget_worker(model, "a")
    assert await streams.known_workers(model) == ["b"]
    assert await streams.append_all([Outgoing(keys.work(model, name), b"x") for name in ("a", "b")]) == [False, True]


async def test_status_lapses(streams: Streams, redis_url: str) -> None:
    """A published status is read under its model's name; once it has lapsed the model is still known, without one."""
    model = f"model-{secrets.token_hex(4)}"
    await streams.publish_status(model, b"document", b"counts")
    assert (await streams.read_statuses())[model] == b"document"
    assert (await streams.read_published())[model] == (b"document", b"counts", {})
    with redis.Redis.from_url(redis_url) as client:
        assert 0 < client.pttl(keys.status(model)) <= keys.STATUS_TTL_MS
        assert 0 < client.pttl(keys.scheduler_counts(model)) <= keys.COUNTS_TTL_MS
    await streams.delete(keys.status(model), keys.scheduler_counts(model))
    assert (await streams.read_statuses())[model] is None
    assert (await streams.read_published())[model] == (None, None, {})


async def test_gateways_counts_lapse(streams: Streams, redis_url: str) -> None:
    """Each gateway's counts are read under its name; a lapsed one's name stays, without counts, until withdrawn."""
    model = f"model-{secrets.token_hex(4)}"
    await streams.publish_status(model, b"document", b"counts")
    await streams.publish_counts("a", {model: b"1"})
    await streams.publish_counts("b", {model: b"2"})
    assert (await streams.read_published())[model].gateways == {"a": b"1", "b": b"2"}
    with redis.Redis.from_url(redis_url) as client:
        assert 0 < client.pttl(keys.gateway_counts(model, "a")) <= keys.COUNTS_TTL_MS
    await streams.delete(keys.gateway_counts(model, "a"))
    assert (await streams.read_published())[model].gateways == {"a": None, "b": b"2"}
    await streams.withdraw_counts("a", [model])
    await streams.withdraw_counts("b", [model])
    assert (await streams.read_published())[model].gateways == {}


async def test_lease_is_exclusive(streams: Streams, redis_url: str, stream: str) -> None:
    """Only the holder can renew a lease or give it back; then, or when it has lapsed, it is free."""
    assert await streams.take_lease(stream, "a", 60_000)
    assert not await streams.take_lease(stream, "b", 60_000)
    assert await streams.take_lease(stream, "a", 90_000)
    with redis.Redis.from_url(redis_url) as client:
        assert client.pttl(stream) > 60_000
    await streams.drop_lease(stream, "b")
    assert not await streams.take_lease(stream, "b", 60_000)
    await streams.drop_lease(stream, "a")
    assert await streams.take_lease(stream, "b", 1)
    await until(lambda: streams.take_lease(stream, "a", 60_000))


@pytest.mark.parametrize("url", ["", "localhost", "http://localhost:6379", "redis://localhost:port"])
def test_urls_that_are_none(url: str) -> None:
    """A URL that is not one of Redis is refused as a setting, by its value."""
    with pytest.raises(ConfigError) as caught:
        Streams(url)
    assert repr(url) in caught.value.message


async def test_pool_recovers_from_a_restart(tmp_path: Path) -> None:
    """While Redis is gone every command raises StreamsError; back on the same socket, the pool's dead connections
    heal at the first use."""
    streams = Streams(f"unix://{tmp_path}/redis.sock")
    with embedded.server(folder=tmp_path):
        await streams.make_group("s", GROUP)
        # Several connections at once, so that several are dead later.
        await asyncio.gather(*(streams.ping() for _ in range(5)), read(streams, "s"))
    commands: list[Callable[[], Any]] = [
        streams.ping,
        lambda: streams.append("s", b"x"),
        lambda: streams.append_all([Outgoing("s", b"x")]),
        lambda: streams.ack(GROUP, [("s", b"1-1")]),
        lambda: read(streams, "s"),
    ]
    for command in commands:
        with pytest.raises(StreamsError) as caught:
            await command()
        assert not isinstance(caught.value, NoGroupError)
    with embedded.server(folder=tmp_path):
        await asyncio.gather(*(streams.ping() for _ in range(5)))
        with pytest.raises(NoGroupError):
            await read(streams, "s")
        await streams.make_group("s", GROUP)
        await streams.append("s", b"back")
        assert await read(streams, "s") == [b"back"]
        await streams.close()


async def test_live_pool_survives_a_restart_unseen(tmp_path: Path) -> None:
    """A restart between two commands, which nobody was there to see, costs no error at all."""
    streams = Streams(f"unix://{tmp_path}/redis.sock")
    with embedded.server(folder=tmp_path):
        await asyncio.gather(*(streams.ping() for _ in range(5)))
    with embedded.server(folder=tmp_path):
        await asyncio.gather(*(streams.ping() for _ in range(5)))
        await streams.close()


@contextlib.asynccontextmanager
async def _looping(step: Callable[[], Any]) -> AsyncIterator["asyncio.Task[None]"]:
    """The loop of every reader, for which an error of the connection is no reason to end."""
    given_up = asyncio.Event()

    async def loop() -> None:
        while not given_up.is_set():
            with contextlib.suppress(StreamsError):
                await step()
            await asyncio.sleep(0)

    task = asyncio.create_task(loop())
    try:
        yield task
    finally:
        given_up.set()  # else a failed test would wait for ever


@pytest.mark.parametrize("outcome", [[b"PONG"], ConnectionBrokenError("gone")], ids=["answer", "error"])
async def test_cancelled_reader_ends(streams: Streams, outcome: list[bytes] | Exception) -> None:
    """A reader that is cancelled in the very moment in which its answer, or an error, arrives ends all the same."""
    await streams.ping()
    protocol = streams._lanes.of(keys.MODELS).writer._protocol
    assert protocol is not None
    async with _looping(streams.ping) as reader:
        while not protocol.waiting:  # noqa: ASYNC110 - a turn of the loop, in which the command is sent
            await asyncio.sleep(0)
        reply, _ = protocol.waiting[0]
        if isinstance(outcome, Exception):
            reply.set_exception(outcome)
        else:
            reply.set_result(outcome)
        reader.cancel()
        await asyncio.wait([reader], timeout=5)
        assert reader.cancelled()


@pytest.mark.parametrize("command", ["ping", "read", "append"])
async def test_reader_ends_whenever_it_is_cancelled(streams: Streams, stream: str, command: str) -> None:
    """Cancelled at any point of a real round trip, a loop of commands ends; nothing swallows it, and the commands of
    others on the same connection go on."""
    await streams.make_group(stream, GROUP)
    step: Callable[[], Any] = {
        "ping": streams.ping,
        "read": lambda: read(streams, stream, block_ms=1),
        "append": lambda: streams.append(stream, b"again"),
    }[command]
    bystander = asyncio.create_task(_times(50, lambda: streams.append(stream, b"bystander")))
    for turns in range(50):
        async with _looping(step) as reader:
            for _ in range(turns):
                await asyncio.sleep(0)
            reader.cancel()
            await asyncio.wait([reader], timeout=5)
            assert reader.cancelled()
    await asyncio.wait_for(bystander, 10)


async def _times(count: int, step: Callable[[], Any]) -> None:
    for _ in range(count):
        await step()


async def test_cancelled_command_disturbs_no_other(streams: Streams, stream: str) -> None:
    """Callers share a connection: one that is cancelled while its command is under way neither fails the others' nor
    has them sent again."""
    await streams.append(stream, b"connected")
    victim = asyncio.create_task(streams.append(stream, b"victim"))
    others = [asyncio.create_task(streams.append(stream, b"other")) for _ in range(3)]
    await asyncio.sleep(0)  # now all are sent, and none is answered
    victim.cancel()
    await asyncio.gather(*others)
    assert victim.cancelled()
    headers = [entry.header for entry in await streams.outstanding(stream)]
    assert headers == [b"connected", b"victim", b"other", b"other", b"other"]


async def test_read_that_breaks_raises(streams: Streams, redis_url: str, stream: str) -> None:
    """A read whose connection breaks raises, so that its caller reads back what is pending: the reply that was lost
    may have held entries, which no later read would give again."""
    await streams.make_group(stream, GROUP)
    reader = asyncio.create_task(read(streams, stream, block_ms=4_000))
    await until(lambda: _blocked(redis_url))
    with redis.Redis.from_url(redis_url) as client:
        (blocked,) = [c["id"] for c in client.client_list() if c["cmd"] == "xreadgroup" and "b" in c["flags"]]
        client.client_kill_filter(_id=blocked)
        with pytest.raises(StreamsError):
            await asyncio.wait_for(reader, 3)
    await streams.append(stream, b"later")
    assert await read(streams, stream) == [b"later"]
