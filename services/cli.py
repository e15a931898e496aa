"""``superserve``: the mesh's command line.

Exit codes: 0 done, or drained after SIGINT or SIGTERM; 1 it failed while running; 2 wrong usage or settings.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from common import compiled, log
from common.errors import ConfigError
from common.runtime import run
from common.settings import (
    GatewaySettings,
    SchedulerSettings,
    ServiceSettings,
    UpSettings,
    WorkerSettings,
    flags_of,
    load,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.runtime import Service

USAGE = """\
usage: superserve COMMAND [FLAGS]      superserve COMMAND --help      superserve --version

Serve one weight-shared supernet under bursty load: accuracy bends, deadlines hold. A mesh is one Redis or Valkey, a
scheduler for each model, its workers, and gateways. `up` starts all of it on this machine, `loadgen` sends it queries.

commands:
  up          the whole mesh on this machine; starts a Redis of its own if none is given
  gateway     one gateway: HTTP (Open Inference Protocol v2) to the ingress stream
  scheduler   one scheduler: ingress stream to batches, each with its subnet
  worker      one worker: batches to answers; joins the mesh by itself
  policies    the scheduling policies and their options
  status      models, workers, policies, queue and attainment of a mesh, as they are now
  doctor      is Redis, this machine and the mesh as they have to be, and what to do if not
  explain     what became of one query and why, from the scheduler's event log
  search      a trained supernet to its Pareto set, hundreds of hosted subnets and a profile
  profile     how fast each subnet is on this device
  import      a published checkpoint to a model that can be served
  completion  a script that completes all this in bash, zsh or fish

examples:
  superserve up --workers 2                                  then: loadgen replay --rate 50
  superserve up --executor emulated --profile rtx2080ti-reconstructed --workers 8
  superserve worker --redis redis://10.0.0.5:6379/0 --device cuda:0
  superserve status

Every flag of a service can be set by the environment: --log-level is SUPERSERVE_LOG_LEVEL; --redis is REDIS_URL too.
exit codes: 0 done or drained, 1 failed while running, 2 wrong usage or settings; --help of a command says more
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
            _import_from_here()
            return tool(name).run(flags)
        if name not in _COMMANDS:
            raise ConfigError(f"no command {name!r}; there are {', '.join([*_COMMANDS, *_TOOLS])}")
        kind, make = _COMMANDS[name]
        settings = load(kind, flags, program=f"superserve {name}")
        log.configure(name, settings.log_level, json=settings.log_json)
        log.get(__name__).info("settings", compiled=compiled.in_use(), **settings.shown())
        return run(make(settings), settings.grace_s)
    except ConfigError as error:
        print(f"superserve {name}: {error.message}", file=sys.stderr)  # noqa: T201
        return 2


_PATHS = ("event_log", "cache_dir")  # settings that are paths, though strings


class Tool(Protocol):
    """What a module of ``_TOOLS`` has."""

    def run(self, flags: list[str]) -> int:
        """Run the command and return its exit code; ConfigError for what makes it 2."""

    def parser(self) -> argparse.ArgumentParser:
        """Return the command's parser."""


def tool(name: str) -> Tool:
    """Return the module of a command that is no service."""
    return cast("Tool", importlib.import_module(_TOOLS[name]))


def parser() -> argparse.ArgumentParser:
    """Return one parser of all commands, for completion and documentation; ``command`` reads flags by itself."""
    from common.sched.policies import available
    from services.worker import library

    made = argparse.ArgumentParser(prog="superserve", description="The mesh's command line.")
    made.add_argument("--version", action="store_true", help="print the version")
    commands = made.add_subparsers(metavar="COMMAND")
    parsers = {
        **{name: flags_of(kind, f"superserve {name}") for name, (kind, _) in _COMMANDS.items()},
        **{name: tool(name).parser() for name in _TOOLS},
    }
    values = {"policy": tuple(available()), "model": library.shipped_models(), "profile": library.shipped_profiles()}
    for name, of_command in parsers.items():
        for action in of_command._actions:
            action.choices = values.get(action.dest, action.choices)
            action.type = Path if action.dest in _PATHS else action.type
        about = (of_command.description or "").partition(".")[0]
        commands.add_parser(name, parents=[of_command], add_help=False, help=about)
    return made


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


# Commands that are no services: module with ``run`` and ``parser``, loaded only when asked for.
_TOOLS = {
    "policies": "services.policies",
    "status": "services.status",
    "doctor": "services.doctor",
    "explain": "services.explain",
    "search": "services.worker.searching",
    "profile": "services.worker.profiling",
    "import": "services.worker.importing",
    "completion": "services.completing",
}


_COMMANDS: dict[str, tuple[type[ServiceSettings], Callable[..., Service]]] = {
    "up": (UpSettings, _up),
    "gateway": (GatewaySettings, _gateway),
    "scheduler": (SchedulerSettings, _scheduler),
    "worker": (WorkerSettings, _worker),
}


if __name__ == "__main__":
    main()
