"""``superserve``: the mesh's command line.

Exit codes: 0 done, or drained after SIGINT or SIGTERM; 1 it failed while running; 2 wrong usage or settings.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common import log
from common.errors import ConfigError
from common.runtime import run
from common.settings import GatewaySettings, SchedulerSettings, ServiceSettings, UpSettings, WorkerSettings, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.runtime import Service

USAGE = """\
usage: superserve COMMAND [FLAGS]      superserve COMMAND --help

Serve one weight-shared supernet under bursty load: accuracy bends, deadlines hold.

commands:
  up          the whole mesh on this machine; starts a Redis of its own if none is given
  gateway     one gateway: HTTP (Open Inference Protocol v2) to the ingress stream
  scheduler   one scheduler: ingress stream to batches, each with its subnet
  worker      one worker: batches to answers; joins the mesh by itself
  policies    the scheduling policies and their options
  search      a trained supernet to its Pareto set, hundreds of hosted subnets and a profile
  profile     how fast each subnet is on this device
  import      a published checkpoint to a model that can be served

examples:
  superserve up --workers 2
  superserve up --executor emulated --profile rtx2080ti-reconstructed --workers 8
  superserve worker --redis redis://10.0.0.5:6379/0 --device cuda:0

Every flag can be set by the environment: --log-level is SUPERSERVE_LOG_LEVEL; --redis is REDIS_URL as well.
exit codes: 0 done or drained, 1 failed while running, 2 wrong usage or settings
"""


def main() -> None:
    """Entry point of the console script."""
    sys.exit(command(sys.argv[1:]))


def command(args: list[str]) -> int:
    """Run one command and return its exit code."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")  # noqa: T201 - a command line prints
        return 0 if args else 2
    if args[0] == "--version":
        print(importlib.metadata.version("superserve-mesh"))  # noqa: T201
        return 0
    name, flags = args[0], args[1:]
    try:
        if name in _TOOLS:
            return _TOOLS[name](flags)
        if name not in _COMMANDS:
            raise ConfigError(f"no command {name!r}; there are {', '.join([*_COMMANDS, *_TOOLS])}")
        kind, make = _COMMANDS[name]
        settings = load(kind, flags, program=f"superserve {name}")
        log.configure(name, settings.log_level, json=settings.log_json)
        log.get(__name__).info("settings", **settings.shown())
        return run(make(settings), settings.grace_s)
    except ConfigError as error:
        print(f"superserve {name}: {error.message}", file=sys.stderr)  # noqa: T201
        return 2


def _policies(flags: list[str]) -> int:
    del flags
    from common.sched.policies import available

    for name, text in available().items():
        print(f"{name}: {text}\n")  # noqa: T201
    return 0


def _import_from_here() -> None:
    """Find policies and families of the user's own where the command is run."""
    sys.path.append(str(Path.cwd()))


# Imports stand inside the makers: a gateway must not load torch, nor a worker an HTTP server.


def _gateway(settings: GatewaySettings) -> Service:
    from services.gateway import Gateway

    return Gateway(settings, announce=lambda url: print(f"ready {url}", flush=True))  # noqa: T201 - `up` waits for it


def _scheduler(settings: SchedulerSettings) -> Service:
    from services.scheduler.scheduler import SchedulerService

    _import_from_here()
    return SchedulerService(settings)


def _worker(settings: WorkerSettings) -> Service:
    from services.worker.start import build
    from services.worker.worker import Worker

    _import_from_here()
    return Worker(settings, build(settings))


def _up(settings: UpSettings) -> Service:
    from services.up import Up

    return Up(settings)


def _search(flags: list[str]) -> int:
    from services.worker.searching import run as search

    _import_from_here()
    return search(flags)


def _profile(flags: list[str]) -> int:
    from services.worker.profiling import run as profile

    _import_from_here()
    return profile(flags)


def _import(flags: list[str]) -> int:
    from services.worker.importing import run as import_

    return import_(flags)


_TOOLS: dict[str, Callable[[list[str]], int]] = {
    "policies": _policies,
    "search": _search,
    "profile": _profile,
    "import": _import,
}


_COMMANDS: dict[str, tuple[type[ServiceSettings], Callable[..., Service]]] = {
    "up": (UpSettings, _up),
    "gateway": (GatewaySettings, _gateway),
    "scheduler": (SchedulerSettings, _scheduler),
    "worker": (WorkerSettings, _worker),
}


if __name__ == "__main__":
    main()
