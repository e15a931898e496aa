"""One typed settings object per service, from flags and environment; nothing else reads the environment.

A flag wins over its environment variable, which wins over the default: ``--max-queue 512`` or
``SUPERSERVE_MAX_QUEUE=512``. ``REDIS_URL`` is understood as well, since every platform sets it. A wrong value ends the
process at start with exit code 2 and a line that names key and value.
"""

import argparse
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, SettingsConfigDict, SettingsError

from common import address
from common.errors import ConfigError
from common.sched import SchedulerOptions, policies

ENV_PREFIX = "SUPERSERVE_"
OF_EVERY_SERVICE = "flags of every service"
REDIS_URL = "REDIS_URL"
_URLS = ("redis", "otlp_endpoint")
_DIFFER = (f"{ENV_PREFIX}NAME", f"{ENV_PREFIX}METRICS_PORT")
_EPILOG = """\
Every flag can be set by the environment: --log-level is SUPERSERVE_LOG_LEVEL; --redis is REDIS_URL as well. Defaults
are in brackets.

exit codes: 0 drained after SIGINT or SIGTERM; 1 it failed while running, or drained for longer than --grace-s;
2 wrong usage, or a setting that cannot be met
"""
_VALUES = {  # what a flag takes, as --help has it
    **{"redis": "URL", "otlp_endpoint": "URL", "model": "NAME", "profile": "NAME|FILE", "policy": "SPEC"},
    **{"event_log": "FILE", "cache_dir": "DIR", "log_queries": "SHARE", "trace_ratio": "SHARE"},
}
_UNITS = ("ms", "s", "bytes", "mib", "port", "host", "name", "device")  # ends of names that say it too
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]


class ServiceSettings(BaseSettings):
    """What every service of the mesh takes."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_implicit_flags=True,
        cli_exit_on_error=False,
        frozen=True,
    )

    redis: str = Field(
        "redis://127.0.0.1:6379/0",
        description="URL of Redis or Valkey: redis://, unix://, redis+sentinel:// or redis+cluster://; rediss for TLS",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level that is logged, to stderr"
    )
    log_json: bool | None = Field(None, description="log JSON lines; by default unless stderr is a terminal")
    grace_s: float = Field(
        10.0, gt=0, le=600, description="seconds to drain after SIGTERM before the process ends hard"
    )
    metrics_host: str = Field("127.0.0.1", description="address of --metrics-port; 0.0.0.0 in a container")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port of /metrics, /health/live and /health/ready; 0: any free one, which is logged;"
        " by default none",
    )

    def shown(self) -> dict[str, Any]:
        """Return every setting as it may be logged: passwords in URLs are left out."""
        settings = self.model_dump()
        return settings | {name: address.shown(settings[name]) for name in _URLS if settings.get(name) is not None}


class GatewaySettings(ServiceSettings):
    """Serve the Open Inference Protocol over HTTP, and gRPC if asked to; queries go by Redis to the scheduler.

    Any number may run. Prints `ready URL` once it listens; until a scheduler and a worker are up the answer is 503.

    Examples:
      superserve gateway --redis redis://redis:6379/0 --host 0.0.0.0 --port 8000
      superserve gateway --port 0 --grpc-port 8001 --metrics-port 9100
    """

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all of the machine")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0: any free one, which is printed")
    grpc_port: int = Field(0, ge=0, le=65535, description="port for the same protocol over gRPC; 0: none")
    reuse_port: bool = Field(False, description="share the port with other gateways of this machine (SO_REUSEPORT)")
    name: Name | None = Field(None, description="name of this gateway; by default made from host and process")
    default_slo_ms: float = Field(
        100.0, gt=0, le=600_000, description="SLO of a query that states none, from its arrival here"
    )
    max_slo_ms: float = Field(60_000.0, gt=0, le=600_000, description="longest SLO that a query may state")
    max_body_bytes: int = Field(8 * 2**20, gt=0, description="largest request body, uncompressed; beyond it 413")
    max_queue: int = Field(4096, gt=0, description="queries in the mesh from this gateway at a time; beyond it 429")
    reply_grace_ms: float = Field(
        250.0, ge=0, le=60_000, description="how long after its deadline a query may still be answered, late"
    )
    payload_threshold_bytes: int = Field(
        16 * 1024, gt=0, description="a query's tensors above this size travel under a key of their own"
    )
    log_queries: float = Field(
        0.0, ge=0, le=1, description="share of queries that get a line in the log: what answered, and why no better"
    )
    otlp_endpoint: str | None = Field(
        None, description="OTLP/HTTP receiver of traces, as http://collector:4318 (extra otel); by default none"
    )
    trace_ratio: float = Field(
        0.01, ge=0, le=1, description="share of queries traced, of those whose client has not decided by traceparent"
    )


class SchedulerSettings(ServiceSettings):
    """Choose subnet and batch for the queries of one model and hand them to its workers.

    One leads; others of the same model stand by and take over within seconds.

    Examples:
      superserve scheduler --model fashion-resnet --policy slackfit:buckets=16
      superserve scheduler --late serve --event-log events.jsonl --metrics-port 9101
    """

    model: Name = Field("fashion-resnet", description="the model whose streams to serve")
    policy: str = Field(
        policies.DEFAULT,
        description="policy and its options, as in slackfit:buckets=16: see `superserve policies`",
    )
    late: Literal["drop", "serve"] = Field(
        "drop", description="a query that can no longer meet its deadline: answer 504 at once, or serve it late"
    )
    reply_margin_ms: float = Field(
        3.0, ge=0, le=1_000, description="kept free of every slack for the way back from worker to client"
    )
    max_in_flight: int = Field(
        2, ge=1, le=64, description="batches at one worker at a time, the running one included; 1: none ahead"
    )
    max_queue_rows: int = Field(
        SchedulerOptions().max_queue_rows, gt=0, description="rows queued; a query beyond them is answered 429"
    )
    worker_timeout_ms: float = Field(
        2_000.0, gt=0, description="silence after which a worker is lost and its queries are put back"
    )
    event_log: str | None = Field(
        None,
        description="write every event to this file while leading, for superserve explain; a log that is there is moved"
        " to FILE.1, FILE.2 and so on",
    )


class WorkerSettings(ServiceSettings):
    """Keep one supernet in memory, actuate the subnet that each batch names, and infer.

    Any number may run, and come and go at any time. The first on a device measures its profile, which takes a while.

    Examples:
      superserve worker --model fashion-resnet --device cpu
      superserve worker --executor emulated --profile rtx2080ti-reconstructed
      superserve worker --redis redis://10.0.0.5:6379/0 --device cuda:0 --precision fp16
    """

    model: str = Field("fashion-resnet", description="name of a shipped model, or the folder of one")
    name: Name | None = Field(None, description="name of this worker; by default made from host and process")
    executor: Literal["torch", "emulated"] = Field(
        "torch", description="torch computes; emulated occupies the worker for the profile's latency instead"
    )
    profile: str | None = Field(
        None,
        description="name of a shipped profile, or a file; emulated needs one, torch measures its own unless given one"
        " of this very device",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda:\d+)$", description="auto, cpu or cuda:N")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="what weights are held and computed with; auto measures which is fastest; fp16 is for GPUs"
    )
    cuda_graphs: bool = Field(
        False, description="run by CUDA graphs; for GPUs and models that take images, not verified on one"
    )
    plan_mib: float | None = Field(
        None, ge=0, description="bound of what plans hold beside the weights; by default half as much as the weights"
    )
    cache_dir: str | None = Field(
        None, description="folder for measured profiles; by default the user's cache folder (XDG_CACHE_HOME)"
    )
    reprofile: bool = Field(False, description="measure the profile anew even if the cache has one")
    heartbeat_ms: float = Field(
        250.0,
        gt=0,
        le=10_000,
        description="interval of heartbeats; the scheduler's --worker-timeout-ms must be several of it",
    )


class UpSettings(ServiceSettings):
    """Run gateway, scheduler and workers on this machine; the Redis too if none is given.

    Prints `ready URL` once a query would be served. That URL in a browser is a live page, `loadgen replay --rate 50`
    sends queries, and Ctrl-C drains and ends all.

    Examples:
      superserve up --model fashion-resnet --workers 2 --policy slackfit --port 8000
      superserve up --executor emulated --profile rtx2080ti-reconstructed --workers 8 --gateways 2
      superserve up --redis redis://127.0.0.1:6379/0 --metrics-port 9100
    """

    redis: str | None = Field(  # type: ignore[assignment]  # here alone None has a meaning: find or start one
        None,
        description="URL of Redis or Valkey; by default a server of its own is started for the mesh",
    )
    model: str = Field("fashion-resnet", description="name of a shipped model, or the folder of one")
    workers: int = Field(1, ge=1, le=64, description="worker processes to start")
    gateways: int = Field(1, ge=1, le=16, description="gateway processes to start; more than one share the port")
    policy: str = Field(
        policies.DEFAULT,
        description="policy and its options, as in slackfit:buckets=16: see `superserve policies`",
    )
    executor: Literal["torch", "emulated"] = Field(
        "torch", description="torch computes; emulated workers wait for the profile's latency instead"
    )
    profile: str | None = Field(
        None, description="of every worker: name of a shipped profile, or a file; emulated workers need one"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda:\d+)$", description="of every worker: auto, cpu or cuda:N")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of every worker; auto measures which is fastest"
    )
    host: str = Field("127.0.0.1", description="address that gateways listen on")
    port: int = Field(
        8000, ge=0, le=65535, description="port that gateways listen on; 0: any free one, which is printed"
    )
    late: Literal["drop", "serve"] = Field(
        "drop", description="of the scheduler: answer 504 at once when a deadline is out of reach, or serve it late"
    )
    event_log: str | None = Field(
        None, description="of the scheduler: write every event to this file; a log that is there is moved to FILE.1"
    )
    start_timeout_s: float = Field(
        120.0, gt=0, description="how long the mesh may take to become ready, a first profile included"
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="metrics port of the scheduler; workers, then gateways take those after it; by default none",
    )


Settings = TypeVar("Settings", bound=ServiceSettings)


def load(kind: type[Settings], args: list[str], program: str) -> Settings:
    """Return the settings of a service from its flags and the environment; ConfigError names every wrong one.

    ``program`` is the command as ``--help`` shows it; that flag prints and ends the process.
    """
    source = _source(kind, program)
    try:
        with _redis_url_understood():
            return CliApp.run(kind, cli_args=args, cli_settings_source=source)
    except ValidationError as error:
        problems = [f"{_flag(kind, e['loc'])}={e['input']!r}: {e['msg']}" for e in error.errors()]
        raise ConfigError("; ".join(problems)) from error
    except SettingsError as error:
        raise ConfigError(str(error).removeprefix("error parsing CLI: ")) from error


@contextmanager
def _redis_url_understood() -> Iterator[None]:
    """Let ``REDIS_URL`` stand for the prefixed variable meanwhile, if that is not set."""
    name, url = f"{ENV_PREFIX}REDIS", os.environ.get(REDIS_URL)
    if not url or name in os.environ:
        yield
        return
    os.environ[name] = url
    try:
        yield
    finally:
        del os.environ[name]


def flags_of(kind: type[ServiceSettings], program: str) -> argparse.ArgumentParser:
    """Return a parser of the same flags, whose values are chosen where there is a choice: for completion."""
    made = _root(_source(kind, program))
    for action in made._actions:
        field = kind.model_fields.get(action.dest.replace("-", "_"))
        if field is not None and get_origin(field.annotation) is Literal:
            action.choices = get_args(field.annotation)
    return made


def _source(kind: type[Settings], program: str) -> CliSettingsSource[Settings]:
    source: CliSettingsSource[Settings] = CliSettingsSource(kind, cli_prog_name=program)
    root = _root(source)
    root.description, root.epilog = inspect.cleandoc(kind.__doc__ or ""), _EPILOG
    _present(root, kind)
    return source


def _present(root: argparse.ArgumentParser, kind: type[ServiceSettings]) -> None:
    """Show of each flag what it takes and its default, and those that are the service's own first."""
    common = root.add_argument_group(OF_EVERY_SERVICE)
    for action in list(root._actions):
        name = action.dest.replace("-", "_")
        field = kind.model_fields.get(name)
        if field is None:
            continue
        text = field.description or ""
        if field.default is not None and not isinstance(field.default, bool):
            text += f" ({field.default:g})" if isinstance(field.default, float) else f" ({field.default})"
        action.help = text.replace("%", "%%")
        if get_origin(field.annotation) is not Literal and action.nargs != 0:
            unit = next((end for end in _UNITS if name == end or name.endswith(f"_{end}")), "n")
            action.metavar = _VALUES.get(name, unit.upper())
        if name in ServiceSettings.model_fields:
            root._optionals._group_actions.remove(action)
            common._group_actions.append(action)


def _root(source: CliSettingsSource[Settings]) -> argparse.ArgumentParser:
    return cast("argparse.ArgumentParser", source.root_parser)  # typed as the settings, which it is not


def from_environment(name: str) -> str | None:
    """Return what the environment sets a flag to, for a command without settings of its own; None if it does not."""
    return os.environ.get(f"{ENV_PREFIX}{name.upper()}")


def redis_url() -> str:
    """Return the URL of Redis for a command that was given none: the environment's, else that of every service."""
    found = from_environment("redis") or os.environ.get(REDIS_URL)
    return found or str(ServiceSettings.model_fields["redis"].default)


def child_environment(redis_url: str) -> dict[str, str]:
    """Return this process's environment for services that it starts, without what must differ between them.

    The URL of Redis goes by it: everybody may read a command line, and the URL may have a password.
    """
    inherited = {key: value for key, value in os.environ.items() if key not in _DIFFER}
    return {**inherited, f"{ENV_PREFIX}REDIS": redis_url}


def _flag(kind: type[ServiceSettings], location: tuple[str | int, ...]) -> str:
    name = str(location[0]) if location else kind.__name__
    return f"--{name.replace('_', '-')} ({ENV_PREFIX}{name.upper()})"
