"""Settings: where they come from, and what a wrong one says."""

import os
from typing import Any

import pytest
from pydantic import ValidationError

from common.errors import ConfigError
from common.sched import SchedulerOptions
from common.settings import (
    GatewaySettings,
    SchedulerSettings,
    ServiceSettings,
    UpSettings,
    WorkerSettings,
    child_environment,
    load,
)

KINDS: list[type[ServiceSettings]] = [GatewaySettings, SchedulerSettings, WorkerSettings, UpSettings]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting comes from outside, and none that a test makes stays."""
    for name in [*os.environ, "SUPERSERVE_REDIS"]:
        if name.startswith("SUPERSERVE_") or name == "REDIS_URL":
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)


def gateway(*flags: str) -> GatewaySettings:
    return load(GatewaySettings, list(flags), "superserve gateway")


def refusal(kind: type[ServiceSettings], *flags: str) -> str:
    """What the refusal of these flags says."""
    with pytest.raises(ConfigError) as caught:
        load(kind, list(flags), "superserve")
    return caught.value.message


def test_flag_over_environment_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag wins over its environment variable, which wins over the default."""
    assert gateway().max_queue == 4096
    monkeypatch.setenv("SUPERSERVE_MAX_QUEUE", "512")
    assert gateway().max_queue == 512
    assert gateway("--max-queue", "7").max_queue == 7
    assert gateway("--max-queue=8").max_queue == 8


def test_redis_url_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """``REDIS_URL`` sets --redis, a flag still wins, and the environment stays as it was."""
    monkeypatch.setenv("REDIS_URL", "redis://one:1/0")
    before = dict(os.environ)
    assert gateway().redis == "redis://one:1/0"
    assert gateway("--redis", "redis://two:2/0").redis == "redis://two:2/0"
    assert dict(os.environ) == before


def test_our_own_variable_wins_over_redis_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """``SUPERSERVE_REDIS`` says more than the platform's ``REDIS_URL``."""
    monkeypatch.setenv("REDIS_URL", "redis://one:1/0")
    monkeypatch.setenv("SUPERSERVE_REDIS", "redis://three:3/0")
    assert gateway().redis == "redis://three:3/0"


def test_up_alone_starts_a_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """``up`` without a URL has none and starts a server; with ``REDIS_URL`` it uses that one."""
    assert load(UpSettings, [], "superserve up").redis is None
    monkeypatch.setenv("REDIS_URL", "redis://one:1/0")
    assert load(UpSettings, [], "superserve up").redis == "redis://one:1/0"


def test_simulated_and_live_queues_are_alike() -> None:
    """What is simulated without saying so has the live scheduler's limit of rows."""
    assert (
        load(SchedulerSettings, [], "superserve scheduler").max_queue_rows
        == SchedulerOptions().max_queue_rows
        == 100_000
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_service_starts_without_flags(kind: type[ServiceSettings]) -> None:
    """No setting is required, and settings cannot be changed later."""
    settings = load(kind, [], "superserve")
    with pytest.raises(ValidationError, match="frozen"):
        settings.grace_s = 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_explained(kind: type[ServiceSettings], capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` ends with code 0 and names every flag, each with a description."""
    with pytest.raises(SystemExit) as caught:
        load(kind, ["--help"], "superserve thing")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert text.startswith("usage: superserve thing")
    for name, setting in kind.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert setting.description


@pytest.mark.parametrize("flags", [["--port", "many"], ["--port=many"]])
def test_wrong_flag_names_flag_variable_and_value(flags: list[str]) -> None:
    """The message has what the user wrote, where, and the environment variable that would do the same."""
    assert "--port (SUPERSERVE_PORT)='many'" in refusal(GatewaySettings, *flags)


def test_wrong_variable_names_flag_variable_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong value from the environment is told in the same words."""
    monkeypatch.setenv("SUPERSERVE_LOG_JSON", "perhaps")
    assert "--log-json (SUPERSERVE_LOG_JSON)='perhaps'" in refusal(GatewaySettings)


def test_every_wrong_value_is_named_at_once() -> None:
    """Two mistakes cost one attempt."""
    message = refusal(GatewaySettings, "--port", "70000", "--log-level", "loud")
    assert "--port (SUPERSERVE_PORT)='70000'" in message
    assert "--log-level (SUPERSERVE_LOG_LEVEL)='loud'" in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-queu", "5"], "--max-queu"),  # nor is an abbreviation guessed
        (["--nonsense"], "--nonsense"),
        (["stray"], "stray"),
        (["--port"], "--port"),
    ],
)
def test_unknown_flag_is_named(flags: list[str], words: str) -> None:
    """A flag that does not exist, a stray word and a flag without its value are refused by name."""
    assert words in refusal(GatewaySettings, *flags)


@pytest.mark.parametrize(
    ("kind", "flag", "legal", "illegal"),
    [
        (GatewaySettings, "port", ["0", "65535"], ["-1", "65536"]),
        (GatewaySettings, "default-slo-ms", ["0.001", "600000"], ["0", "-1", "600001", "nan", "inf"]),
        (GatewaySettings, "max-body-bytes", ["1"], ["0", "1.5"]),
        (GatewaySettings, "max-queue", ["1"], ["0"]),
        (GatewaySettings, "reply-grace-ms", ["0"], ["-0.1"]),
        (GatewaySettings, "name", ["g-1", "a" * 100], ["", "a b", "-g", "{g}", "a" * 101, "g:1"]),
        (GatewaySettings, "grace-s", ["0.1", "600"], ["0", "601"]),
        (SchedulerSettings, "late", ["drop", "serve"], ["keep"]),
        (SchedulerSettings, "model", ["fashion-resnet"], ["a/b", "{a}"]),
        (SchedulerSettings, "max-in-flight", ["1", "64"], ["0", "65"]),
        (SchedulerSettings, "worker-timeout-ms", ["1"], ["0"]),
        (WorkerSettings, "device", ["auto", "cpu", "cuda:1"], ["gpu", "cuda", "cuda:x"]),
        (WorkerSettings, "executor", ["torch", "emulated"], ["onnx"]),
        (WorkerSettings, "heartbeat-ms", ["1"], ["0", "10001"]),
        (UpSettings, "workers", ["1", "64"], ["0", "65"]),
        (UpSettings, "gateways", ["1", "16"], ["0", "17"]),
    ],
)
def test_bounds(kind: type[ServiceSettings], flag: str, legal: list[str], illegal: list[str]) -> None:
    """Values at a bound are taken, those beyond it are refused."""
    for value in legal:
        taken: Any = getattr(load(kind, [f"--{flag}={value}"], "superserve"), flag.replace("-", "_"))
        assert taken == type(taken)(value)
    for value in illegal:
        assert f"--{flag} (SUPERSERVE_{flag.replace('-', '_').upper()})={value!r}" in refusal(kind, f"--{flag}={value}")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:hunter2@redis:6379/0", "redis://:***@redis:6379/0"),
        ("rediss://gateway:hunter2@redis:6380/0", "rediss://gateway:***@redis:6380/0"),
        ("redis://:hunter@2@redis:6379/0", "redis://:***@redis:6379/0"),
        ("redis://redis:6379/0", "redis://redis:6379/0"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_password_is_not_shown(url: str, shown: str) -> None:
    """What is logged of the URL lacks its password and nothing else."""
    assert gateway("--redis", url).shown()["redis"] == shown


def test_password_of_the_receiver_of_traces_is_not_shown() -> None:
    """What is logged of the OTLP endpoint lacks its password."""
    shown = gateway("--otlp-endpoint", "http://me:secret@collector:4318").shown()
    assert shown["otlp_endpoint"] == "http://me:***@collector:4318"


def test_absent_redis_is_shown_as_absent() -> None:
    """`superserve up` without a URL logs that there is none."""
    assert load(UpSettings, [], "superserve up").shown()["redis"] is None


def test_children_do_not_share_a_name_or_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """What must differ between the processes of a mesh is not passed on to all of them; the rest is."""
    for key in ("SUPERSERVE_NAME", "SUPERSERVE_METRICS_PORT", "SUPERSERVE_METRICS_HOST"):
        monkeypatch.setenv(key, "7")
    inherited = child_environment("redis://one:1/0")
    ours = {key: value for key, value in inherited.items() if key.startswith("SUPERSERVE_")}
    assert ours == {"SUPERSERVE_METRICS_HOST": "7", "SUPERSERVE_REDIS": "redis://one:1/0"}
