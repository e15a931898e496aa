"""What the services of a real mesh expose, and what documents, dashboard and rules say of it."""

import asyncio
import contextlib
import functools
import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from common import embedded
from common.errors import ConfigError
from common.runtime import Service, Tasks
from common.settings import SchedulerSettings, WorkerSettings
from services.scheduler.scheduler import SchedulerService
from services.worker.start import build
from services.worker.worker import Worker
from tests.mesh.peer import until
from tests.monitoring.conftest import KINDS, Watched, settings_of
from tests.monitoring.files import DASHBOARD, DOCUMENT, RULES, dashboard_queries, rules
from tests.worker.conftest import MODEL

ROW = re.compile(r"^\| `(superserve_\w+)` \| (\w+) \|([^|]*)\|([^|]*)\|")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
Running = Callable[[Service], AbstractAsyncContextManager[Tasks]]


async def answers(
    session: aiohttp.ClientSession, service: SchedulerService | Worker, path: str, status: int, document: object
) -> bool:
    """Whether a service's health is that at the moment."""
    assert service.monitor is not None
    async with session.get(f"{service.monitor.url}/health/{path}") as response:
        return (response.status, await response.json()) == (status, document)


class Exposed(NamedTuple):
    """A metric as Prometheus shows it."""

    kind: str
    labels: frozenset[str]
    services: frozenset[str]


async def exposed(mesh: Watched) -> dict[str, Exposed]:
    """All metrics of our own, by name, that the three services show after some queries."""
    await asyncio.gather(*[mesh.ask() for _ in range(20)])
    await mesh.ask(slo_ms=0.001)
    assert set(mesh.statuses) == {200, 504}
    found: dict[str, Exposed] = {}

    async def complete() -> bool:
        found.clear()
        for service in KINDS:
            _, text = await mesh.get(f"{mesh.url(service)}/metrics")
            for family in parse(text):
                if family.name.startswith("superserve_") and family.samples:
                    name = family.name + ("_total" if family.type == "counter" else "")
                    labels = frozenset(key for sample in family.samples for key in sample.labels) - {"le"}
                    known = found.get(name, Exposed(family.type, labels, frozenset()))
                    assert (known.kind, known.labels) == (family.type, labels)
                    found[name] = known._replace(services=known.services | {service})
        return "gateway" in found.get("superserve_stream_entries", Exposed("", frozenset(), frozenset())).services

    await until(complete)
    return found


def documented() -> dict[str, Exposed]:
    """The table of docs/metrics.md."""
    rows = [match for line in DOCUMENT.read_text().splitlines() if (match := ROW.match(line))]
    return {
        name: Exposed(kind, frozenset(re.findall(r"\w+", labels)), frozenset(re.findall(r"\w+", services)))
        for name, kind, labels, services in (row.groups() for row in rows)
    }


def named(expression: str) -> set[str]:
    """The metrics of ours that an expression reads, recorded ones aside."""
    return set(re.findall(r"(?<![\w:])superserve_\w+", expression))


async def test_metrics_are_those_of_documents_dashboard_and_rules(watched: Watched) -> None:
    """The document's table says of each metric its type, its labels and where it is exposed, and leaves none out; the
    dashboard and the rules read none that there is not."""
    found = await exposed(watched)
    assert documented() == found
    series = {name for name, of in found.items() if of.kind in ("gauge", "counter")}
    series |= {
        name + suffix
        for name, of in found.items()
        if of.kind in ("histogram", "summary")
        for suffix in SUFFIXES[of.kind]
    }
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for expression in [*dashboard_queries(), *(rule["expr"] for rule in rules())]:
        assert named(expression) <= series, expression
        assert set(re.findall(r"superserve:\w+:\w+", expression)) <= recorded, expression


async def test_values_add_up(watched: Watched) -> None:
    """Twenty queries in time and one out of reach are so counted at each service, whatever batches they made; each
    batch changes the subnet, but perhaps the first."""
    await exposed(watched)

    async def value(service: str, name: str, **labels: str) -> float:
        _, text = await watched.get(f"{watched.url(service)}/metrics")
        samples = [sample for family in parse(text) for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    assert await value("gateway", "superserve_gateway_slo_total", model=MODEL) == 21
    assert await value("gateway", "superserve_gateway_slo_met_total", model=MODEL) == 20
    assert await value("gateway", "superserve_gateway_accuracy_ratio_count") == 20
    assert await value("gateway", "superserve_gateway_recent_attainment_ratio") == pytest.approx(20 / 21)
    assert await value("gateway", "superserve_gateway_reply_lag_seconds_count") == 20
    assert await value("scheduler", "superserve_scheduler_queries_total", outcome="dispatched") == 20
    assert await value("scheduler", "superserve_scheduler_queries_total", outcome="late") == 1
    assert await value("scheduler", "superserve_scheduler_subnet_queries_total") == 20
    assert await value("scheduler", "superserve_scheduler_batch_rows_sum") == 20
    assert await value("scheduler", "superserve_scheduler_accuracy_debt") > 0  # of the one turned away
    assert await value("scheduler", "superserve_scheduler_leading") == 1
    assert await value("scheduler", "superserve_scheduler_workers") == 1
    assert await value("worker", "superserve_worker_queries_total", outcome="answered") == 20
    batches = await value("scheduler", "superserve_scheduler_batches_total")
    assert batches > 1
    for name in ("batches_total", "inference_seconds_count", "idle_seconds_count"):
        assert await value("worker", f"superserve_worker_{name}") == batches
    assert batches - 1 <= await value("worker", "superserve_worker_actuation_seconds_count") <= batches
    assert await value("scheduler", "superserve_scheduler_latency_ratio_count") == batches
    assert await value("worker", "process_cpu_seconds_total") > 0


def test_dashboard_and_rules_are_whole() -> None:
    """Every panel has a query, an id and a place of its own; every alert has a severity and a summary."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24
    assert all(panel["targets"] for panel in panels if panel["type"] != "row")
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"]["summary"]
            assert f"`{rule['alert']}`" in DOCUMENT.read_text(), f"{RULES.name}: {rule['alert']} is not documented"


async def test_service_that_has_lost_redis_is_live_and_not_ready(
    model_folder: Path, profile_file: Callable[..., Path], running: Running, tmp_path: Path
) -> None:
    """While Redis is gone, scheduler and worker say that they are not ready, and live; when it is back they are."""
    home = tmp_path / "redis"
    home.mkdir()
    with contextlib.ExitStack() as redis:
        common: dict[str, Any] = {"redis": redis.enter_context(embedded.server(folder=home)), "metrics_port": 0}
        emulated = {"executor": "emulated", "profile": str(profile_file()), "heartbeat_ms": 20}
        settings = settings_of(WorkerSettings, **common, **emulated, model=str(model_folder))
        scheduler = SchedulerService(settings_of(SchedulerSettings, **common, model=model_folder.name))
        worker = Worker(settings, build(settings))
        reasons: dict[SchedulerService | Worker, str] = {
            scheduler: "Redis does not answer",
            worker: "its heartbeats do not reach Redis",
        }

        async def all_ready() -> bool:
            return all([await answers(session, service, "ready", 200, {"ready": True}) for service in reasons])

        async with aiohttp.ClientSession() as session, running(scheduler), running(worker):
            await until(all_ready)
            redis.close()
            for service, reason in reasons.items():
                expected = {"ready": False, "reason": reason}
                await until(functools.partial(answers, session, service, "ready", 503, expected))
                assert await answers(session, service, "live", 200, {"live": True})
            redis.enter_context(embedded.server(folder=home))
            await until(all_ready)


async def test_draining_worker_is_live_and_not_ready(
    redis_url: str, model_folder: Path, profile_file: Callable[..., Path]
) -> None:
    """A worker that was told to end says until its end that it drains."""
    profile = str(profile_file())
    settings = settings_of(
        WorkerSettings,
        redis=redis_url,
        metrics_port=0,
        grace_s=1.0,
        model=str(model_folder),
        executor="emulated",
        profile=profile,
    )
    worker, tasks = Worker(settings, build(settings)), Tasks()
    await worker.startup(tasks)
    async with aiohttp.ClientSession() as session:
        await until(functools.partial(answers, session, worker, "ready", 200, {"ready": True}))
        ending = asyncio.create_task(worker.shutdown())  # no scheduler will dismiss it: it waits
        drains = {"ready": False, "reason": "it is draining"}
        await until(functools.partial(answers, session, worker, "ready", 503, drains))
        assert await answers(session, worker, "live", 200, {"live": True})
        await ending


async def test_port_that_is_taken_is_an_error_of_settings(redis_url: str, model_folder: Path, running: Running) -> None:
    """A metrics port that cannot be had ends the service at its start, in words that name flag and port."""
    first = SchedulerService(settings_of(SchedulerSettings, redis=redis_url, model=model_folder.name, metrics_port=0))
    async with running(first):
        assert first.monitor is not None
        port = int(first.monitor.url.rpartition(":")[2])
        second = SchedulerService(
            settings_of(SchedulerSettings, redis=redis_url, model=model_folder.name, metrics_port=port)
        )
        with pytest.raises(ConfigError, match=f"--metrics-port {port}: "):
            async with running(second):
                pass
