"""``superserve status``: models, workers, policies, queue, attainment and subnet mix, read from Redis.

No gateway is needed: schedulers and gateways publish what they know, see ``common.overview``.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from common import address, overview, terminal
from common.overview import Document
from common.settings import redis_url
from common.streams import Streams, StreamsError

if TYPE_CHECKING:
    from collections.abc import Iterable

WINDOW_S = 10.0
Row = dict[str, str]  # cells by their headings
_COLOURS = {"idle": "green", "busy": "green", "draining": "yellow", "lost": "bold red"}  # of a state
_WORDS = {"", "subnet", "worker", "state", "device"}
_DISPENSABLE = ("device", "idle ms, p50 p99", "batches", "queries")  # columns, in the order in which they are left out
_NAME = 16  # characters that a worker's name has at least
_GAP = 2
_BAR = 20  # characters of a subnet's whole share
EPILOG = """\
examples:
  superserve status                         a table, renewed every second; Ctrl-C ends it
  superserve status --once --redis redis://10.0.0.5:6379/0
  superserve status --json --model fashion-resnet | jq '.models[0].totals'

Where standard output is no terminal the table is printed once. Its first line of figures is of the last 10 s at most,
with --once of --interval-s; the second is of all since the processes started. slack: of a batch's most urgent query at
dispatch. --json prints the document of the gateway's /v2/overview.

exit codes: 0 shown, whatever it shows; 1 Redis cannot be read, or no such model; 2 wrong usage
"""


class Unreadable(Exception):
    """There is nothing to show, for this reason."""


class Watch:
    """Documents of the latest seconds, of one model or of all."""

    def __init__(self, url: str, model: str | None) -> None:
        self._url = url
        self._model = model
        self._streams = Streams(url)
        self._documents: deque[Document] = deque()

    async def look(self) -> Document:
        """Read the overview, and forget what is older than ``WINDOW_S``; Unreadable says why there is none."""
        try:
            published = await self._streams.read_published()
            document = overview.overview(await self._streams.server_time_us(), published)
        except StreamsError as error:
            raise Unreadable(f"{address.shown(self._url)}: {error.message}") from error
        if self._model is not None:
            found = overview.of_model(document, self._model)
            if found is None:
                known = ", ".join(sorted(published)) or "none"
                raise Unreadable(f"no scheduler has ever served a model {self._model!r}; known models: {known}")
            document["models"] = [found]
        self._documents.append(document)
        while document["now_us"] - self._documents[0]["now_us"] > WINDOW_S * 1e6:
            self._documents.popleft()
        return document

    def shown(self, width: int, problem: str | None = None) -> RenderableType:
        """Return what a person sees of the latest document; ``problem``: why there is no newer one."""
        parts: list[RenderableType] = []
        if self._documents:
            document = self._documents[-1]
            at = datetime.fromtimestamp(document["now_us"] / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            gateways = len(document["gateways"])
            head = f"{address.shown(self._url)}, {at}, {gateways} {'gateway' if gateways == 1 else 'gateways'}"
            parts.append(Text(head, style="bold"))
            if not document["models"]:
                parts.append(Text("No scheduler has ever served a model here: superserve scheduler --model NAME"))
            parts += [_model(model, self._since(model["name"]), document, width) for model in document["models"]]
        if problem is not None:
            parts.append(Text(problem, style="bold red"))
        return Group(*parts)

    def _since(self, model: str) -> Document | None:
        """Return the oldest document that the latest one can be compared with; None if there is none."""
        latest = self._documents[-1]
        older = (one for one in self._documents if overview.comparable(one, latest, model))
        found = next(older, latest)
        return None if found is latest else found

    async def close(self) -> None:
        """Close the connections."""
        await self._streams.close()


def run(flags: list[str]) -> int:
    """Show the mesh as the flags say; returns the exit code."""
    args = parser().parse_args(flags)
    console = terminal.console()
    try:
        return asyncio.run(_run(args, console))
    except Unreadable as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"superserve status: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``superserve status``."""
    made = terminal.parser("status", "Show models, workers, policies, queue and attainment of a mesh.")
    made.epilog = EPILOG
    made.add_argument(
        "--redis", default=redis_url(), metavar="URL", help="URL of Redis, as every service takes it (REDIS_URL)"
    )
    made.add_argument("--model", metavar="NAME", help="show this model alone; default: all")
    made.add_argument("--once", action="store_true", help="print the table once instead of renewing it")
    made.add_argument("--json", action="store_true", help="print the overview as JSON, once")
    made.add_argument(
        "--interval-s", type=_seconds, default=1.0, metavar="S", help="seconds between two looks (%(default)g)"
    )
    return made


async def _run(args: argparse.Namespace, console: Console) -> int:
    watch = Watch(args.redis, args.model)
    try:
        document = await watch.look()
        if args.json:
            print(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())  # noqa: T201 - a command line prints
        elif args.once or not console.is_terminal:
            await asyncio.sleep(args.interval_s)
            await watch.look()
            console.print(watch.shown(console.width))
        else:
            await _renew(watch, args.interval_s, console)
    finally:
        await watch.close()
    return 0


async def _renew(watch: Watch, interval_s: float, console: Console) -> None:
    with Live(watch.shown(console.width), console=console, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(interval_s)
            problem = None
            try:
                await watch.look()
            except Unreadable as error:
                problem = str(error)
            live.update(watch.shown(console.width, problem), refresh=True)


# -- tables -----------------------------------------------------------------------------------------------------------


def _model(model: Document, before: Document | None, after: Document, width: int) -> RenderableType:
    """Return what a person sees of one model; ``before``: the document to compare with."""
    then = overview.of_model(before, model["name"]) if before else None
    seconds = (after["now_us"] - before["now_us"]) / 1e6 if before else 0.0
    state = Text("ready", style="green") if model["ready"] else Text(f"not ready: {model['reason']}", style="bold red")
    parts: list[RenderableType] = [Text(), Text.assemble((model["name"], "bold"), ", ", state)]
    if model["scheduler"]:
        parts.append(Text(f"policy {model['policy']}, scheduler {model['scheduler']}"))
        queue, slack_ms = model["queue"], model["head_slack_ms"]
        urgent = "" if slack_ms is None else f"; the most urgent has {slack_ms:.1f} ms left"
        parts.append(Text(f"queue: {queue['queries']} queries, {queue['rows']} rows{urgent}"))
    parts += [Text(problem, style="red") for problem in model["problems"]]
    totals = model["totals"]
    recent = overview.gained(then["totals"], totals) if then else None
    rows = [{"": "in all", "queries/s": f"({totals['arrived']:,})", **_figures(totals)}]
    if recent is not None:
        period, rate = f"last {seconds:.{0 if seconds >= 1 else 1}f} s", f"{recent['arrived'] / seconds:,.1f}"
        rows.insert(0, {"": period, "queries/s": rate, **_figures(recent)})
    parts += [Text(), _table(rows)]
    if any(totals["failed"].values()):
        failed = (f"{count:,} {reason}" for reason, count in sorted(totals["failed"].items()) if count)
        parts.append(Text(f"failed in all: {', '.join(failed)}"))
    if model["subnets"]:
        parts += [Text(), _table(_subnets(model["subnets"], (recent or totals)["subnets"]))]
    if model["workers"]:
        rows = _workers(model["workers"], then["workers"] if then else (), seconds)
        parts += [Text(), _table(_fitted(rows, width))]
    return Group(*parts)


def _figures(totals: Document) -> Row:
    def share(value: float, of: float, text: str) -> str:
        return text.format(value / of) if of else "-"

    return {
        "attainment": share(100 * totals["answered"], totals["slo"], "{:.2f} %"),
        "accuracy": share(totals["accuracy_sum"], totals["answered"], "{:.2f} %"),
        "rows/batch": share(totals["rows"], totals["batches"], "{:.1f}"),
        "slack": share(totals["slack_us_sum"] / 1e3, totals["slack_count"], "{:.1f} ms"),
        "late": f"{totals['late']:,}",
        "failed": f"{sum(totals['failed'].values()):,}",
    }


def _subnets(subnets: Iterable[Document], dispatched: dict[str, int]) -> list[Row]:
    total = sum(dispatched.values())
    rows = []
    for subnet in subnets:
        share = dispatched.get(subnet["id"], 0) / total if total else 0.0
        bar = "█" * round(share * _BAR)
        rows.append(
            {"subnet": subnet["id"], "accuracy": f"{subnet['accuracy']:.2f} %", "share": f"{share:.1%}", "": bar}
        )
    return rows


def _workers(workers: Iterable[Document], before: Iterable[Document], seconds: float) -> list[Row]:
    then = {worker["name"]: worker["queries"] for worker in before}
    rows = []
    for worker in sorted(workers, key=lambda worker: str(worker["name"])):
        name, state, idle_ms, queries = worker["name"], worker["state"], worker["idle_ms"], worker["queries"]
        since = overview.gained({"": then.get(name, 0)}, {"": queries})[""]
        rows.append(
            {
                "worker": name,
                "state": state,
                "subnet": worker["subnet"] or "-",
                "queries/s": f"{since / seconds:,.1f}" if seconds and state != overview.LOST else "-",
                "queries": f"{queries:,}",
                "batches": f"{worker['batches']:,}",
                "idle ms, p50 p99": f"{idle_ms['p50']:6.2f} {idle_ms['p99']:7.2f}",
                "device": worker["device"],
            }
        )
    return rows


def _fitted(rows: list[Row], width: int) -> list[Row]:
    """Return rows without the columns that ``width`` has no room for; of a worker's name the end is kept."""
    room = width
    for dropped in ("", *_DISPENSABLE):
        rows = [{heading: cell for heading, cell in row.items() if heading != dropped} for row in rows]
        columns = {heading: max(len(heading), *(len(row[heading]) for row in rows)) for heading in rows[0]}
        room = width - sum(size + _GAP for heading, size in columns.items() if heading != "worker")
        if room >= min(columns["worker"], _NAME):
            break
    room = max(room, _NAME)
    return [{**row, "worker": name if len(name := row["worker"]) <= room else f"…{name[1 - room :]}"} for row in rows]


def _table(rows: list[Row]) -> Table:
    """Return a table whose numbers stand to the right."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, _GAP, 0, 0))
    for heading in rows[0]:
        table.add_column(heading, justify="left" if heading in _WORDS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row.values()))
    return table


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3_600:
        raise argparse.ArgumentTypeError(f"expected seconds, 0.1 to 3600, got {text!r}")
    return seconds
