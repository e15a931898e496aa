"""``superserve doctor``: is everything as a mesh needs it, and what is to be done about what is not?"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import orjson
from rich.table import Table
from rich.text import Text

from common import terminal
from common.errors import ConfigError
from common.settings import GatewaySettings, WorkerSettings, load
from common.streams import Streams
from services import checks
from services.worker import library
from services.worker.checks import check_device, check_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from common.diagnosis import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
EPILOG = """\
examples:
  superserve doctor
  superserve doctor --redis redis://10.0.0.5:6379/0 --model fashion-resnet
  SUPERSERVE_DEVICE=cuda:0 superserve doctor --port 0        # as a worker here would find it
  superserve doctor --json | jq '.findings[] | select(.verdict != "ok")'

It reads settings as gateway and worker do: a flag, then its environment variable (SUPERSERVE_MODEL, SUPERSERVE_DEVICE,
SUPERSERVE_HOST, SUPERSERVE_PORT, and of the others that bear on it SUPERSERVE_PROFILE, SUPERSERVE_PRECISION and
SUPERSERVE_CACHE_DIR), then the default. Run it where the service is to run, with the same environment.

It writes one entry to a stream of its own in Redis and deletes it, and changes nothing else. Each finding is ok, warn
(it works, and may not tomorrow) or fail (queries are not served, or may be lost), with what to do.

exit codes: 0 nothing fails; 1 something does; 2 wrong usage
"""


def run(flags: list[str]) -> int:
    """Look at everything and print what was found; returns the exit code."""
    args = parser().parse_args(flags)
    gateway = load(GatewaySettings, _given(args, "redis", "host", "port"), "superserve doctor")
    worker = load(WorkerSettings, _given(args, "redis", "model", "device"), "superserve doctor")
    findings = asyncio.run(_look(gateway, worker.model if "model" in worker.model_fields_set else None))
    findings += [checks.check_limits(), check_device(worker), *check_model(worker)]
    failed = any(finding.verdict == "fail" for finding in findings)
    if args.json:
        document = {"ok": not failed, "findings": [finding._asdict() for finding in findings]}
        print(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())  # noqa: T201 - a command line prints
    else:
        terminal.console().print(_table(findings))
        counts = Counter(finding.verdict for finding in findings)
        print(f"{counts['ok']} ok, {counts['warn']} warn, {counts['fail']} fail")  # noqa: T201 - a command line prints
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``superserve doctor``."""
    gateway, worker = GatewaySettings.model_fields, WorkerSettings.model_fields
    made = terminal.parser("doctor", "Check Redis, clocks, torch device, model, profile, mesh and port.")
    made.epilog = EPILOG
    made.add_argument("--redis", metavar="URL", help="URL of Redis, as every service takes it (REDIS_URL)")
    made.add_argument(
        "--model", metavar="NAME",
        help="name of a shipped model, or the folder of one: it has to be served (default: whichever are)",
    )  # fmt: skip
    made.add_argument("--device", help=f"auto, cpu or cuda:N ({worker['device'].default})")
    made.add_argument("--host", help=f"where a gateway is to listen ({gateway['host'].default})")
    made.add_argument("--port", help=f"and its port ({gateway['port'].default})")
    made.add_argument("--json", action="store_true", help="print the findings as JSON")
    return made


def _given(args: argparse.Namespace, *names: str) -> list[str]:
    """Return those flags that were given, for ``load``, which looks in the environment for the others."""
    return [part for name in names if (value := getattr(args, name)) is not None for part in (f"--{name}", value)]


async def _look(gateway: GatewaySettings, model: str | None) -> list[Finding]:
    streams = Streams(gateway.redis)
    try:
        findings = await checks.check_redis(streams, gateway.redis)
        if findings[0].verdict != "fail":
            findings += await checks.check_mesh(streams, _served_as(model))
    finally:
        await streams.close()
    return [*findings, await checks.check_port(gateway.host, gateway.port)]


def _served_as(model: str | None) -> str | None:
    """Return the name that a model's scheduler and workers serve it under."""
    if model is None:
        return None
    try:
        return library.model_name(library.find_model(model))
    except ConfigError:  # it need not be on this machine
        return model


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for check, verdict, found, advice in findings:
        table.add_row(Text(verdict, style=_COLOURS[verdict]), Text(check), Text(found))
        if verdict != "ok":
            table.add_row("", "", Text(f"-> {advice}", style="bold"))
    return table
