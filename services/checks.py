"""What ``superserve doctor`` looks at beside the worker: Redis, clocks, the published mesh, port and limits."""

from __future__ import annotations

import contextlib
import resource
import secrets
import socket
import statistics
import time
from typing import TYPE_CHECKING, Any

import aiohttp

from common import address, keys, overview
from common.clock import Clock
from common.diagnosis import Finding
from common.streams import StreamsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from common.streams import Streams

LEAST_VERSION = (6, 2)  # XADD NOMKSTREAM
PINGS = 50
SLOW_MS = 2.0  # of a round trip: a query makes four
CLOCK_WARN_US = 1_000_000
MEMORY_WARN = 0.8  # share of maxmemory
LEAST_FILES = 4_096
ANSWER_S = 2.0


async def check_redis(streams: Streams, url: str) -> list[Finding]:
    """Look at the server itself; the first finding is "fail" if there is no use in looking at anything behind it."""
    shown = address.shown(url)
    try:
        await streams.ping()
    except StreamsError as error:
        return [Finding("redis", "fail", f"{shown}: {error.message}", _reaching(error.message))]
    try:
        info = await streams.information()
    except StreamsError as error:
        advice = "run the doctor as a user that may: +info"
        findings = [Finding("redis", "warn", f"{shown} answers, but not to INFO: {error.message}", advice)]
    else:
        findings = [_version(info, shown), _memory(info), _persistence(info), _role(info)]
    findings += [await _latency(streams), await _streams(streams)]
    with contextlib.suppress(StreamsError):
        findings.append(await _clock(streams))
    return findings


def _reaching(message: str) -> str:
    if "NOAUTH" in message or "WRONGPASS" in message or "uthentication" in message:
        return "give user and password: redis://USER:PASSWORD@HOST:6379/0, or REDIS_URL"
    return "start a Redis or Valkey, or give its URL: --redis or REDIS_URL. `superserve up` starts its own"


def _version(info: Mapping[str, Any], shown: str) -> Finding:
    name = str(info.get("server_name", "redis"))
    text = str(info.get("valkey_version", info.get("redis_version", "0")))
    version = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if version < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        return Finding("redis", "fail", f"{name} {text} at {shown}", f"update it: streams need {least} at least")
    return Finding("redis", "ok", f"{name} {text} at {shown}")


def _memory(info: Mapping[str, Any]) -> Finding:
    policy, limit, used = info.get("maxmemory_policy"), int(info.get("maxmemory", 0)), int(info["used_memory"])
    share = f"{used / 2**20:.0f} MiB used of {f'{limit / 2**20:.0f} MiB' if limit else 'no limit'}"
    found = f"maxmemory-policy {policy}, {share}"
    if policy != "noeviction":
        advice = "redis-cli CONFIG SET maxmemory-policy noeviction, and in redis.conf: "
        if limit:
            return Finding("redis memory", "fail", found, f"{advice}when full it evicts queries that wait")
        return Finding("redis memory", "warn", found, f"{advice}with a limit it would evict queries that wait")
    if limit and used > MEMORY_WARN * limit:
        return Finding("redis memory", "warn", found, "raise maxmemory: when full, every query is answered 503")
    return Finding("redis memory", "ok", found)


def _persistence(info: Mapping[str, Any]) -> Finding:
    check = "redis persistence"
    for key in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
        if info.get(key, "ok") != "ok":
            return Finding(check, "fail", f"{key} {info[key]}", "free its disk and look at its log: it refuses writes")
    if info.get("loading"):
        return Finding(check, "fail", "it is loading its data", "wait until it has")
    if not info.get("aof_enabled"):
        advice = "appendonly yes in redis.conf, if a restart of Redis is to lose no query; the mesh recovers without"
        return Finding(check, "warn", "no append-only file: a restart loses what waits", advice)
    return Finding(check, "ok", "append-only file, last write ok")


def _role(info: Mapping[str, Any]) -> Finding:
    role = info.get("role")
    if role != "master":
        return Finding("redis role", "fail", f"{role} of {info.get('master_host')}", "give the URL of the primary")
    return Finding("redis role", "ok", f"primary, {info.get('connected_slaves', 0)} replicas")


async def _latency(streams: Streams) -> Finding:
    check = "redis latency"
    took_ms = []
    try:
        for _ in range(PINGS):
            began = time.perf_counter()
            await streams.ping()
            took_ms.append((time.perf_counter() - began) * 1e3)
    except StreamsError as error:
        return Finding(check, "fail", error.message, "look at the network between here and Redis")
    median_ms = statistics.median(took_ms)
    found = f"round trip {median_ms:.2f} ms, at most {max(took_ms):.2f} ms of {PINGS}"
    if median_ms > SLOW_MS:
        return Finding(check, "warn", found, "bring Redis nearer: a query makes four round trips, all out of its SLO")
    return Finding(check, "ok", found)


async def _streams(streams: Streams) -> Finding:
    """Do with a stream of our own what every service does: append, read as a group, acknowledge, delete."""
    model = f"doctor-{secrets.token_hex(4)}"
    stream = keys.events(model)
    try:
        await streams.make_group(stream, keys.SCHEDULER_GROUP, ttl_s=keys.REPLIES_TTL_S)
        await streams.append(stream, b"doctor", b"payload")
        entries = await streams.read([stream], keys.SCHEDULER_GROUP, keys.SCHEDULER_CONSUMER, count=1, block_ms=100)
        await streams.ack(keys.SCHEDULER_GROUP, [(entry.stream, entry.id) for entry in entries])
        left = await streams.outstanding(stream)
        await streams.take_lease(keys.leader(model), "doctor", keys.LEADER_TTL_MS)
        await streams.drop_lease(keys.leader(model), "doctor")
        await streams.delete(stream)
    except StreamsError as error:
        advice = "run the doctor as the user doctor of deploy/redis/users.acl, or free the memory of Redis"
        return Finding("streams", "fail", error.message, advice)
    if len(entries) != 1 or left:
        return Finding("streams", "fail", f"read {len(entries)} of 1 entry, {len(left)} left", "is a proxy in between?")
    return Finding("streams", "ok", "appended, read, acknowledged and deleted an entry")


async def _clock(streams: Streams) -> Finding:
    clock = Clock()
    await clock.synchronise(streams)
    apart_us = clock.now_us() - time.time_ns() // 1_000
    error_us = clock.error_us or 0
    found = f"{abs(apart_us) / 1e3:.2f} ms from Redis TIME, known to {error_us / 1e3:.2f} ms"
    if abs(apart_us) > CLOCK_WARN_US:
        advice = (
            "synchronise this machine or that of Redis (NTP): deadlines are right all the same, logs do not line up"
        )
        return Finding("clock", "warn", found, advice)
    if error_us > SLOW_MS * 1e3:
        return Finding("clock", "warn", found, "bring Redis nearer: deadlines are off by as much")
    return Finding("clock", "ok", found)


# -- the mesh ---------------------------------------------------------------------------------------------------------


async def check_mesh(streams: Streams, model: str | None) -> list[Finding]:
    """Look at what schedulers and gateways publish, of one model or of all."""
    try:
        document = overview.overview(await streams.server_time_us(), await streams.read_published())
    except StreamsError as error:
        return [Finding("mesh", "fail", error.message, "give the user of this URL the right to read superserve:*")]
    models = [found for found in document["models"] if model in (None, found["name"])]
    if not models:
        advice = f"superserve scheduler --model {model or 'NAME'}, or `superserve up`"
        return [Finding("mesh", "fail" if model else "warn", "no scheduler has ever served it here", advice)]
    findings = [finding for found in models for finding in _model(found)]
    gateways = document["gateways"]
    if gateways:
        return [*findings, Finding("gateways", "ok", ", ".join(gateways))]
    return [*findings, Finding("gateways", "warn", "none counts queries", "superserve gateway, with the same --redis")]


def _model(model: dict[str, Any]) -> list[Finding]:
    name = model["name"]
    check = f"mesh {name}"
    lost = [worker["name"] for worker in model["workers"] if worker["state"] == overview.LOST]
    live = len(model["workers"]) - len(lost)
    if not model["scheduler"]:
        advice = f"superserve scheduler --model {name}; if it is to be no more: redis-cli SREM {keys.MODELS} {name}"
        return [Finding(check, "fail", model["reason"], advice)]
    findings = []
    if model["ready"]:
        found = f"policy {model['policy']}, {live} workers, {model['queue']['queries']} queries wait"
        findings.append(Finding(check, "ok", found))
    else:
        advice = f"superserve worker --model {name}, with the same --redis"
        findings.append(Finding(check, "fail", model["reason"], advice))
    findings += [
        Finding(check, "warn", f"worker refused: {problem}", "give it a model and a profile of the same subnets")
        for problem in model["problems"]
    ]
    findings += [
        Finding(check, "warn", f"worker {worker} fell silent lately", "see its log; launch another in its place")
        for worker in lost
    ]
    return findings


# -- this machine -----------------------------------------------------------------------------------------------------


async def check_port(host: str, port: int) -> Finding:
    """Who listens where a gateway would?"""
    check, place = f"port {port}", f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return Finding(check, "ok", f"{place} is free for a gateway")
    except OSError as error:
        problem = error.strerror or str(error)
    timeout = aiohttp.ClientTimeout(ANSWER_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"http://{place}/v2") as response:
            document = await response.json(content_type=None)
        if isinstance(document, dict) and document.get("name") == "superserve":
            return Finding(check, "ok", f"a SuperServe gateway answers at {place}")
    except (aiohttp.ClientError, TimeoutError, ValueError):
        pass  # then it is no gateway of ours, or none at all
    return Finding(check, "fail", f"{place}: {problem}", "superserve gateway --port N with another number")


def check_limits() -> Finding:
    """May a gateway hold many connections?"""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < LEAST_FILES:
        return Finding("open files", "warn", f"at most {files}", "ulimit -n 65536: each connection is one")
    return Finding("open files", "ok", f"at most {files}")
