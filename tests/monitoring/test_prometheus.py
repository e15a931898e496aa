"""Debian's promtool and Prometheus on what we ship for them."""

import asyncio
import contextlib
import math
import shutil
import socket
import subprocess
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from common.embedded import die_with_parent
from tests.mesh.peer import until
from tests.monitoring.conftest import KINDS, Watched
from tests.monitoring.files import FOLDER, RULES, dashboard_queries, rules

PATIENCE_S = 60.0
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: Debian's package prometheus")
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus: Debian's package prometheus"
)


@needs_promtool
@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint=all", "--lint-fatal", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts(command: tuple[str, ...]) -> None:
    """Configuration and rules are valid, and alerts fire when they should and not when they should not."""
    done = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
async def test_promtool_accepts_what_is_exposed(watched: Watched) -> None:
    """Names, types and help of every service's metrics keep to Prometheus' conventions."""
    await watched.ask()
    for kind in KINDS:
        _, text = await watched.get(f"{watched.url(kind)}/metrics")
        command = await asyncio.create_subprocess_exec(
            "promtool", "check", "metrics", stdin=PIPE, stdout=PIPE, stderr=STDOUT
        )
        said, _ = await command.communicate(text.encode())
        assert command.returncode == 0, said.decode()


@contextlib.asynccontextmanager
async def prometheus(mesh: Watched, folder: Path) -> AsyncIterator[str]:
    """A Prometheus that scrapes a mesh several times a second and evaluates our rules; its URL."""
    jobs = [
        {"job_name": kind, "static_configs": [{"targets": [mesh.url(kind).removeprefix("http://")]}]} for kind in KINDS
    ]
    often = {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "500ms"}
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump({"global": often, "rule_files": [str(RULES)], "scrape_configs": jobs}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = (f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}")
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "prometheus", *flags, stderr=log, stdout=log, preexec_fn=die_with_parent
        )
        url = f"http://{address}"

        async def ready() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                return (await mesh.get(f"{url}/-/ready"))[0] == 200
            return False

        try:
            await until(ready, PATIENCE_S)
            yield url
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def query(mesh: Watched, url: str, expression: str) -> list[float]:
    """The values that an expression has now; AssertionError for one that Prometheus refuses."""
    async with mesh.session.get(f"{url}/api/v1/query", params={"query": expression}) as response:
        document: dict[str, Any] = await response.json()
    assert document["status"] == "success", f"{expression}: {document}"
    return [float(result["value"][1]) for result in document["data"]["result"]]


@needs_prometheus
@pytest.mark.timeout(180)
async def test_every_query_of_the_dashboard_has_an_answer(watched: Watched, tmp_path: Path) -> None:
    """A real Prometheus that scrapes a real mesh under load answers every panel's query with a number, evaluates every
    rule without an error, and fires no alert but those that the load deserves: one query in nine is out of reach."""
    waiting = [
        expression.replace("$__rate_interval", "10s").replace("$model", ".*") for expression in dashboard_queries()
    ]
    assert not [expression for expression in waiting if "$" in expression]

    async def load() -> None:
        while True:
            await asyncio.gather(*[watched.ask() for _ in range(8)], watched.ask(slo_ms=0.001))

    async with prometheus(watched, tmp_path) as url:
        loading = asyncio.create_task(load())

        async def answered() -> bool:
            for expression in list(waiting):
                if any(map(math.isfinite, await query(watched, url, expression))):
                    waiting.remove(expression)
            return not waiting

        try:
            await until(answered, PATIENCE_S)
        except TimeoutError:
            raise AssertionError(f"no answer to {waiting}") from None
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        async with watched.session.get(f"{url}/api/v1/rules") as response:
            groups = (await response.json())["data"]["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        assert len(found) == len(rules())
        assert [rule["lastError"] for rule in found if rule.get("lastError")] == []
        firing = {rule["name"] for rule in found if rule.get("state") == "firing"}
        assert firing <= {"SuperServeBudgetBurnFast", "SuperServeBudgetBurnSlow"}
