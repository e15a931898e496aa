"""The containers: compose.yaml, Dockerfile and .env.example fit together, and the stack holds where an engine is."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.settings import GatewaySettings, SchedulerSettings, ServiceSettings, WorkerSettings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
USERS_FILE = ROOT / "deploy/compose/users.yaml"
USERS: dict[str, dict[str, Any]] = yaml.safe_load(USERS_FILE.read_text())["services"]
BUILT = {"gateway", "scheduler", "worker", "loadgen", "entry", "redis"}
ONE_OFF = {"loadgen", "cli"}
DOCKERFILE = (ROOT / "Dockerfile").read_text()
EXAMPLE = dict(re.findall(r"^#?([A-Z_]+)=(\S*)", (ROOT / ".env.example").read_text(), re.MULTILINE))
DEFAULTED = re.compile(r"\$\{([A-Z_]+)(?::-([^${}]*))?")
USER_IN_URL = re.compile(r"redis://(\w+):\$\{(\w+):\?\}@redis:6379/0")


def engine() -> bool:
    commands = (("docker", "compose", "version"), ("docker", "info"))
    return shutil.which("docker") is not None and all(
        subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0 for command in commands
    )


@pytest.mark.timeout(3_000)
def test_stack_holds() -> None:
    """Up, inference from the host, three workers, one killed, Redis and scheduler restarted, down: no query is lost."""
    if not engine():
        pytest.skip("no Docker engine with compose answers here")
    script = [sys.executable, "-u", "scripts/test_compose.py"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=2_900, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.count("none lost") == 3
    assert done.stdout.endswith("passed\n")


def test_script_skips_without_an_engine(tmp_path: Path) -> None:
    """Where no docker is, the script says so and ends with 0."""
    environment = {**os.environ, "PATH": str(tmp_path)}
    script = [sys.executable, "scripts/test_compose.py"]
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "skipped: there is no docker on PATH\n"), done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_hardened(name: str) -> None:
    """Each has another user than root, a read-only root, no capability or new privilege, limits, a grace period."""
    service = SERVICES[name]
    assert not service["user"].startswith("0:")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert "stop_grace_period" in service


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - ONE_OFF))
def test_service_is_watched_and_comes_back(name: str) -> None:
    """Each that is to stay up has a health check and a restart policy."""
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["restart"] == "unless-stopped"


def test_one_port_is_published() -> None:
    """Without profiles one port is published, on the loopback interface by default, and Redis has no way out or in."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "entry": ["${PUBLISH:-127.0.0.1:8000}:8000"],
        "grafana": ["${GRAFANA_PUBLISH:-127.0.0.1:3000}:3000"],
    }
    assert SERVICES["grafana"]["profiles"] == ["monitoring"]
    assert COMPOSE["networks"]["mesh"] == {"internal": True}
    assert SERVICES["redis"]["networks"] == ["mesh"]


def test_redis_keeps_its_data() -> None:
    """It writes an append-only file into a named volume, and never evicts."""
    (volume,) = SERVICES["redis"]["volumes"]
    name, _, folder = volume.partition(":")
    assert name in COMPOSE["volumes"]
    lines = (ROOT / "deploy/compose/redis.conf").read_text().splitlines()
    assert {f"dir {folder}", "appendonly yes", "maxmemory-policy noeviction"} <= set(lines)


def test_every_image_is_pinned() -> None:
    """What is not built here bears a version, and no tag that moves from one release to the next."""
    for name, service in SERVICES.items():
        if name in BUILT or "build" in service:
            continue
        assert re.fullmatch(r"\$\{[A-Z_]+:-[\w./-]+:v?\d+\.\d+\.\d+\}", service["image"]), name
    assert re.search(r"^ARG REDIS_IMAGE=valkey/valkey:\d+\.\d+\.\d+-alpine$", DOCKERFILE, re.MULTILINE)


def test_every_target_is_there() -> None:
    """Each service that is built has its target in the Dockerfile, and no line needs a front end from a registry."""
    targets = set(re.findall(r"^FROM .+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    assert {service["build"]["target"] for service in SERVICES.values() if "build" in service} == BUILT <= targets
    assert "# syntax" not in DOCKERFILE


def test_torch_is_in_the_worker_alone() -> None:
    """Gateway, scheduler and load generator are made of layers that the extra `worker` is not in."""
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
    copied = {name: set(re.findall(r"COPY --from=(\S+)", stages[name])) for name in BUILT}
    assert copied["worker"] == {"torch", "code"}
    assert copied["gateway"] == {"grpc", "code"}
    for name in ("gateway", "scheduler", "loadgen"):
        assert "torch" not in copied[name]
    assert [name for name, text in stages.items() if "pyproject.toml worker" in text] == ["torch"]


def test_offline_build_has_every_extra() -> None:
    """What docs/operations.md downloads for a build without a network are the extras that the images are made with."""
    used = {extra for line in re.findall(r"/wanted/pyproject\.toml([a-z ]*)>", DOCKERFILE) for extra in line.split()}
    (downloaded,) = re.findall(r"/src/pyproject\.toml ([a-z ]+)\)", (ROOT / "docs/operations.md").read_text())
    assert set(downloaded.split()) == used


def test_every_variable_is_documented() -> None:
    """.env.example has each variable of compose.yaml and users.yaml, compose's own that adds users.yaml, and no other,
    with the default that compose.yaml gives it."""
    used = dict(DEFAULTED.findall((ROOT / "compose.yaml").read_text()))
    of_users = dict(DEFAULTED.findall(USERS_FILE.read_text()))
    passed = {
        key for service in SERVICES.values() for key, value in service.get("environment", {}).items() if value is None
    }
    assert EXAMPLE.keys() == used.keys() | of_users.keys() | passed | {"COMPOSE_FILE"}
    assert EXAMPLE["COMPOSE_FILE"] == f"compose.yaml:{USERS_FILE.relative_to(ROOT)}"
    for name, default in used.items():
        if not name.startswith("PIP_") and name != "ENTRY_IMAGE":  # empty, and another variable
            assert EXAMPLE[name] == default, name


def test_settings_exist() -> None:
    """Each SUPERSERVE_ variable that a service gets is one of its settings."""
    kinds: dict[str, type[ServiceSettings]] = {
        "gateway": GatewaySettings,
        "scheduler": SchedulerSettings,
        "worker": WorkerSettings,
        "worker-gpu": WorkerSettings,
    }
    for name, kind in kinds.items():
        given = {key.removeprefix("SUPERSERVE_").lower() for key in SERVICES[name]["environment"] if "REDIS" not in key}
        assert given <= kind.model_fields.keys()


def test_every_user_has_its_password() -> None:
    """With users.yaml whoever gets a URL of Redis gets that of its own user, by the password that Redis is told."""
    given = {name for name, service in SERVICES.items() if "REDIS_URL" in service.get("environment", {})}
    assert given == USERS.keys() - {"redis"}
    told = USERS["redis"]["environment"]
    for name in given:
        matched = USER_IN_URL.fullmatch(USERS[name]["environment"]["REDIS_URL"])
        assert matched is not None, name
        user, variable = matched.groups()
        assert user == {"cli": "doctor", "worker-gpu": "worker"}.get(name, name)
        assert variable == f"REDIS_PASSWORD_{user.upper()}"
        assert told[variable] == f"${{{variable}:?}}"
        assert variable in (ROOT / "deploy/compose/redis-start").read_text()


def test_requirements_follow_pyproject() -> None:
    """The layer of dependencies is made of the project's own and the extra's, and an unknown extra is refused."""
    spec = importlib.util.spec_from_file_location("requirements", ROOT / "deploy/compose/requirements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    core = module.requirements(ROOT / "pyproject.toml", [])
    assert any(line.startswith("aiohttp") for line in core)
    assert not any(line.startswith("torch") for line in core)
    worker = module.requirements(ROOT / "pyproject.toml", ["worker"])
    assert worker[: len(core)] == core
    assert any(line.startswith("torch") for line in worker[len(core) :])
    with pytest.raises(KeyError, match="nonsense"):
        module.requirements(ROOT / "pyproject.toml", ["nonsense"])
