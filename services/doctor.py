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
from common.settings import GatewaySettings, WorkerSettings, load, redis_url
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
  superserve doctor --json | jq '.findings[] | select(.verdict != "ok")'

It writes one entry to a stream of its own in Redis and deletes it, and changes nothing else. Each finding is ok, warn
(it works, and may not tomorrow) or fail (queries are not served, or may be lost), with what to do.

exit codes: 0 nothing fails; 1 something does; 2 wrong usage
"""


def run(flags: list[str]) -> int:
    """Look at everything and print what was found; returns the exit code."""
    args = parser().parse_args(flags)
    findings = asyncio.run(_look(args))
    worker = load(WorkerSettings, ["--model", args.model or "fashion-resnet", "--device", args.device], "doctor")
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
    made.add_argument("--redis", default=redis_url(), metavar="URL", help="URL of Redis, as every service takes it")
    made.add_argument(
        "--model", help="name of a shipped model, or the folder of one: it has to be served (default: whichever are)"
    )
    made.add_argument("--device", default=worker["device"].default, help="auto, cpu or cuda:N (%(default)s)")
    made.add_argument("--host", default=gateway["host"].default, help="where a gateway is to listen (%(default)s)")
    made.add_argument("--port", type=_port, default=gateway["port"].default, help="and its port (%(default)s)")
    made.add_argument("--json", action="store_true", help="print the findings as JSON")
    return made


async def _look(args: argparse.Namespace) -> list[Finding]:
    streams = Streams(args.redis)
    try:
        findings = await checks.check_redis(streams, args.redis)
        if findings[0].verdict != "fail":
            findings += await checks.check_mesh(streams, _served_as(args.model))
    finally:
        await streams.close()
    return [*findings, await checks.check_port(args.host, args.port)]


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a port, 0 to 65535, got {text!r}")
    return int(text)


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
