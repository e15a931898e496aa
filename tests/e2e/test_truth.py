"""What a mesh says of its answers, by all the ways that it says it, and whether they agree."""

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from common.sched.explain import explain
from common.sched.story import Dispatched, Finished, Rejected
from tests.common.processes import program
from tests.gateway.conftest import json_request
from tests.gateway.receiver import Receiver, attributes, receiver

SMALL_US, LARGE_US = 20_000, 400_000  # of a worker that is emulated: 22 and 450 ms for one row, 60 and 1,200 for 16


class Told(NamedTuple):
    """What a client sees of a query."""

    query_id: str
    slo_ms: float
    status: int
    parameters: dict[str, Any]
    headers: Any


class Run(NamedTuple):
    """A mesh that has served and ended: what clients saw, its log, its event log, and the spans that it sent."""

    told: list[Told]
    log: dict[str, dict[str, Any]]
    events: Path
    collector: Receiver


async def ask(session: aiohttp.ClientSession, url: str, slo_ms: float) -> Told:
    body = {**json_request(), "parameters": {"slo_ms": slo_ms}}
    async with session.post(url, json=body) as response:
        document = await response.json()
        query_id = response.headers["X-Superserve-Query-Id"]
        return Told(query_id, slo_ms, response.status, document.get("parameters", {}), response.headers)


@pytest.fixture
async def run(
    tmp_path: Path, model_folder: Path, profile_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Serve one query with all the time there is, a load of such as leave no time for the large subnet, and one that
    nobody could serve in time."""
    events = tmp_path / "events.jsonl"
    profile = profile_file(small_us=SMALL_US, large_us=LARGE_US)
    monkeypatch.setenv("SUPERSERVE_LOG_QUERIES", "1")
    monkeypatch.setenv("SUPERSERVE_TRACE_RATIO", "1")
    flags = ("--model", str(model_folder), "--executor", "emulated", "--profile", str(profile), "--port", "0")
    async with receiver() as collector:
        monkeypatch.setenv("SUPERSERVE_OTLP_ENDPOINT", collector.url)
        with program("services.cli", "up", *flags, "--event-log", str(events)) as mesh:
            address = (await asyncio.to_thread(mesh.line)).removeprefix("ready ").strip()
            url = f"{address}/v2/models/{model_folder.name}/infer"
            async with aiohttp.ClientSession() as session:
                told = [await ask(session, url, 30_000)]
                told += await asyncio.gather(*(ask(session, url, 400.0) for _ in range(64)))
                told.append(await ask(session, url, 5.0))
            code, _, text = await asyncio.to_thread(mesh.end, signal.SIGTERM)
            assert code == 0, text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    log = {line["query_id"]: line for line in lines if line["event"] == "query"}
    return Run(told, log, events, collector)


async def test_all_ways_of_telling_agree(run: Run) -> None:
    """Parameters, headers, log, spans and `explain` say the same of every query: what served it, why no better, or why
    nothing did; under load by a subnet that is degraded by the slack."""
    assert len(run.log) == len(run.told) == 66
    first, *loaded, hopeless = run.told
    assert (first.status, first.parameters["subnet"], first.parameters["degraded"]) == (200, "large", False)
    reasons = Counter(one.parameters.get("degraded_reason") for one in loaded if one.status == 200)
    assert reasons["slack"] > 0
    assert set(reasons) == {"slack"}
    assert hopeless.status == 504
    servers = {attributes(span)["superserve.query_id"]: span for span in run.collector.spans if span.kind == 2}
    assert len(servers) == 66
    for one in run.told:
        log, span = run.log[one.query_id], attributes(servers[one.query_id])
        assert log["status"] == span["http.response.status_code"] == one.status
        with run.events.open() as lines:
            *_, ended = explain(lines, int(one.query_id, 16)).steps
        if one.status != 200:
            assert isinstance(ended, Rejected)
            assert ended.reason == "late"
            continue
        assert isinstance(ended, Finished)
        check_answer(run, one, log, span, ended)


def check_answer(run: Run, one: Told, log: dict[str, Any], span: dict[str, Any], ended: Finished) -> None:
    told, reason = one.parameters, one.parameters.get("degraded_reason", "")
    with run.events.open() as lines:
        (left,) = [step for step in explain(lines, int(one.query_id, 16)).steps if isinstance(step, Dispatched)]
    assert one.headers["X-Superserve-Degraded"] == (reason or "no")
    assert told["subnet"] == one.headers["X-Superserve-Subnet"] == log["subnet"] == span["superserve.subnet"]
    assert reason == log.get("degraded_reason", "") == span.get("superserve.degraded_reason", "") == left.degraded
    assert (left.subnet, left.accuracy, left.worker, left.rows) == (
        told["subnet"], told["accuracy"], told["worker"], told["batch_size"],
    )  # fmt: skip
    assert told["inference_ms"] == (ended.finished_us - ended.started_us) / 1_000
    assert left.decision is not None
    better = [option for option in left.decision.options if option.accuracy > left.accuracy]
    assert bool(better) == told["degraded"]
    assert not any(option.meets_slack for option in better)


def superserve(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "services.cli", "explain", *arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


async def test_explain_as_a_user_runs_it(run: Run) -> None:
    """`superserve explain` tells a person, and with `--json` a program; an id that is not there is code 1 and a hint.

    So is a log that is broken before the query's end, by the number of the line.
    """
    one = next(one for one in run.told if one.parameters.get("degraded"))
    log = ("--event-log", str(run.events))
    shown = superserve(one.query_id, *log)
    assert shown.returncode == 0, shown.stderr
    for words in (
        f"query {one.query_id} of 1 row, SLO 400.0 ms",
        "on small (80 %, degraded: slack), number",
        "Why: No better subnet would have met the slack of",
        "The policy was asked to fill worker-",
        "taken: ",
    ):
        assert words in shown.stdout
    document = json.loads(superserve(one.query_id, *log, "--json").stdout)
    assert (document["query_id"], document["ended"]) == (one.query_id, True)
    assert [step["step"] for step in document["steps"]] == ["read", "dispatched", "finished"]
    assert document["steps"][1]["decision"]["choice"]["subnet"] == "small"
    unknown = superserve(f"{int(one.query_id, 16) + 1_000:016x}", *log)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "of its gateway there are" in unknown.stderr
    broken = run.events.with_name("broken.jsonl")
    broken.write_text("".join(run.events.read_text().splitlines(keepends=True)[:2]) + "{\n")
    told = superserve(one.query_id, "--event-log", str(broken))
    assert (told.returncode, told.stdout) == (1, "")
    assert "broken.jsonl: line 3: JSONDecodeError" in told.stderr
