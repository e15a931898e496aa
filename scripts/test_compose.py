"""What ``scripts/test-compose`` runs: the whole of compose.yaml on a Docker engine, under load while things die.

It is a project of its own beside any other on the engine: own names, image tags and volumes, a free port. A query
counts as lost if the load generator has neither an answer nor an error of the mesh's own for it; an error has to be
503 or 504, with a reason. Load is bounded in rate and time and goes to this stack alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from loadgen.payloads import load_arrays, shipped_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
MODEL = "fashion-resnet"
PINNED = re.compile(r"^\s*REDIS_IMAGE: \$\{REDIS_IMAGE:-(\S+)\}$", re.MULTILINE)  # in compose.yaml
FLOATING = "valkey/valkey:9-alpine"  # where the pinned image cannot be had
TORCH = "torch"
POLL_S = 0.25
BUILD_S, UP_S, WAIT_S = 1800.0, 400.0, 90.0
IMAGES = 20  # sent one by one from the host
LEAST_RIGHT = 15  # of them; the smallest subnet alone has 83 %
RATE_QPS, LOAD_S, SLO_MS = 60, 20, 1_000
SETTLED = 100  # queries that a load has sent before something is killed
# Shares of a load that may fail: what the killed worker had in hand, and what comes while Redis or scheduler are away.
MOST_KILLED, MOST_AWAY = 0.1, 0.5
SERVICES = {"redis": 1, "scheduler": 1, "worker": 1, "gateway": 1, "entry": 1}
SCALED = {**SERVICES, "worker": 3, "gateway": 2}
USERS = "deploy/compose/users.yaml"
PASSWORDS = ("REDIS_PASSWORD", *(f"REDIS_PASSWORD_{user}" for user in ("GATEWAY", "SCHEDULER", "WORKER", "DOCTOR")))

Command = tuple[str, ...]


class FailedError(Exception):
    """A step did not end as it has to."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load generator that runs in a container."""

    process: subprocess.Popen[str]

    def check(self, most_failed: float) -> None:
        """Wait for its end; FailedError if a query was lost, refused without a good reason, or too many failed."""
        out, err = self.process.communicate(timeout=LOAD_S + WAIT_S)
        if self.process.returncode:
            raise FailedError(f"loadgen ended with {self.process.returncode}: {err}")
        report: dict[str, Any] = json.loads(out)
        queries, answered, errors = report["queries"], report["answered"], report["errors"]
        reasons = report["errors_by_status"]
        if answered + errors != queries:
            raise FailedError(f"lost: {queries} queries, {answered} answered and {errors} errors")
        if strange := [reason for reason in reasons if not re.match(r"50[34]: \S", reason)]:
            raise FailedError(f"errors other than 503 and 504 with a reason: {strange}")
        if errors > most_failed * queries:
            raise FailedError(f"{errors} of {queries} queries failed: {reasons}")
        attainment = report["slo_attainment"]
        say(f"  {queries} queries: {answered} answered, {errors} errors, none lost; attainment {attainment:.3f}")
        for reason, count in reasons.items():
            say(f"  {count} x {reason}")


class Stack:
    """The compose project of this run."""

    def __init__(self, project: str, port: int, env_file: Path, redis_image: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.redis_user = "default"
        self._environment = {
            **os.environ,
            "PUBLISH": f"127.0.0.1:{port}",
            "IMAGE_TAG": project,
            "REDIS_IMAGE": redis_image,
            "COMPOSE_ANSI": "never",
        }
        self._compose: Command = ("docker", "compose", "--project-name", project, "--env-file", str(env_file))

    def run(self, *arguments: str, timeout_s: float = WAIT_S) -> str:
        """Run a compose command and return what it prints; FailedError with its words if it fails."""
        done = self._start(*arguments)
        try:
            out, err = done.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            done.kill()
            done.communicate()
            raise FailedError(f"docker compose {' '.join(arguments)}: not done within {timeout_s:g} s") from None
        if done.returncode:
            raise FailedError(f"docker compose {' '.join(arguments)} ended with {done.returncode}:\n{err[-4000:]}")
        return out

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            (*self._compose, *arguments),
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def use_users(self) -> None:
        """From the next `up` on each service has its own user of Redis."""
        self._environment |= {name: secrets.token_hex(24) for name in PASSWORDS}
        self._compose = (*self._compose, "--file", "compose.yaml", "--file", USERS)
        self.redis_user = "admin"

    def up(self, scale: dict[str, int], *flags: str) -> None:
        """Have so many containers of each service, all of them healthy."""
        scales = [f"--scale={service}={count}" for service, count in scale.items()]
        self.run("up", "--detach", "--wait", "--no-build", *flags, *scales, timeout_s=UP_S)
        self.wait(lambda: self.healthy() == scale, f"healthy: {scale}")

    def containers(self) -> list[dict[str, Any]]:
        """Return what the engine knows of each container, the stopped ones too."""
        names = self.run("ps", "--all", "--quiet").split()
        found: list[dict[str, Any]] = json.loads(output(("docker", "inspect", *names))) if names else []
        return found

    def healthy(self) -> dict[str, int]:
        """Return how many containers of each service are healthy."""
        found: dict[str, int] = {}
        for container in self.containers():
            if container["State"].get("Health", {}).get("Status") == "healthy":
                service = service_of(container)
                found[service] = found.get(service, 0) + 1
        return {service: found[service] for service in SERVICES if service in found}

    def scheduler_metric(self, name: str, **labels: str) -> float:
        """Return the sum of the scheduler's samples of this name and these labels; 0 while it does not answer."""
        code = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
        try:
            text = self.run("exec", "-T", "scheduler", "python", "-c", code)
        except FailedError:
            return 0.0
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def workers(self) -> float:
        """Return how many workers the scheduler gives batches to."""
        states = ("idle", "busy")
        return sum(self.scheduler_metric("superserve_scheduler_workers", state=state) for state in states)

    @contextlib.contextmanager
    def load(self) -> Iterator[Load]:
        """Run the load generator; the block begins when the load is under way."""
        before = self.scheduler_metric("superserve_scheduler_queries_total")
        arguments = ("--rate", str(RATE_QPS), "--duration", str(LOAD_S), "--slo-ms", str(SLO_MS), "--out", "-")
        process = self._start("run", "--rm", "--no-deps", "-T", "loadgen", "replay", *arguments)
        try:
            arrived = "superserve_scheduler_queries_total"
            self.wait(lambda: self.scheduler_metric(arrived) >= before + SETTLED, "the load to arrive")
            yield Load(process)
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def cli(self, *arguments: str) -> str:
        """Run a command of `superserve` in a container of its own and return what it prints."""
        return self.run("run", "--rm", "--no-deps", "-T", "cli", *arguments)

    def fetch(self, path: str) -> str:
        """Get a path from the host and return its text; an OSError unless it is 200."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=WAIT_S) as answer:  # noqa: S310 - of this stack
            text: str = answer.read().decode(errors="replace")
            return text

    def infer(self, png: Path) -> dict[str, Any]:
        """Post an image from the host by curl and return the answer; FailedError unless it is 200."""
        url = f"{self.url}/v2/models/{MODEL}/infer?slo_ms=5000"
        flags = ("-sS", "-w", "\n%{http_code}", "-H", "Content-Type: image/png", "--data-binary", f"@{png}")
        done = subprocess.run(
            ("curl", *flags, url),  # noqa: S607 - the one that a person would call
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        body, _, status = done.stdout.rpartition("\n")
        if status != "200":
            raise FailedError(f"curl {url}: {status or done.stderr} {body}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until it holds; FailedError if it does not for too long."""
        end = time.monotonic() + WAIT_S
        while not condition():
            if time.monotonic() > end:
                raise FailedError(f"waited {WAIT_S:g} s for {what}")
            time.sleep(POLL_S)

    def down(self) -> None:
        """Remove containers, networks, volumes and images; `down --rmi` leaves the image of a one-off container."""
        self.run("--profile", "tools", "down", "--volumes", timeout_s=UP_S)
        images = self.run("--profile", "tools", "config", "--images").split()
        succeeds(("docker", "image", "rm", *images), UP_S)

    def logs(self) -> str:
        """Return the end of each service's log."""
        done = self._start("logs", "--no-color", "--tail", "40")
        out, err = done.communicate(timeout=WAIT_S)
        return out + err


def main(arguments: argparse.Namespace) -> int:
    """Run every step and return the exit code."""
    if (missing := no_engine()) is not None:
        print(f"skipped: {missing}", flush=True)
        return 0
    if shutil.which("curl") is None:
        print("failed: there is no curl on PATH", flush=True)
        return 1
    with tempfile.TemporaryDirectory(prefix="superserve-compose-") as temporary:
        folder = Path(temporary)
        env_file = folder / "empty.env"  # no .env of this checkout: what is tried are the defaults
        env_file.touch()
        stack = Stack(f"superserve-test-{os.getpid()}", free_port(), env_file, redis_image())
        try:
            run(stack, folder)
        except (FailedError, OSError, subprocess.SubprocessError) as error:
            print(f"\n{stack.logs()}\nfailed: {error}", file=sys.stderr, flush=True)
            if not arguments.keep:
                stack.down()
            return 1
        except BaseException:
            stack.down()
            raise
    say("passed")
    return 0


def run(stack: Stack, folder: Path) -> None:
    """Every step in order."""
    pngs = write_samples(folder)
    say("building the images")
    bring_torch()
    stack.run("--profile", "tools", "build", timeout_s=BUILD_S)
    say("up: redis, scheduler, worker, gateway, entry")
    stack.up(SERVICES)
    check_hardened(stack)
    say(f"{IMAGES} images from the host")
    check_answers(stack, pngs)
    check_grpc(stack)
    check_page(stack)
    check_tools(stack, workers=1)
    say("scaling to three workers and two gateways")
    stack.up(SCALED, "--no-recreate")
    stack.wait(lambda: stack.workers() == 3, "three workers at the scheduler")
    check_gateways(stack, pngs[0][0])
    say("killing a worker under load")
    with stack.load() as load:
        kill(stack, "worker", 2)
        load.check(MOST_KILLED)
    check_restarted(stack, "worker")
    say("restarting Redis under load")
    redis_cli(stack, "SET", "kept", "yes")
    with stack.load() as load:
        stack.run("restart", "redis")
        load.check(MOST_AWAY)
    check_recovered(stack)
    if redis_cli(stack, "GET", "kept") != "yes":
        raise FailedError("Redis came back without its data")
    say("restarting the scheduler under load")
    with stack.load() as load:
        stack.run("restart", "scheduler")
        load.check(MOST_AWAY)
    check_recovered(stack)
    check_answers(stack, pngs)
    say("a user of Redis for each service")
    stack.use_users()
    stack.up(SCALED)
    stack.wait(lambda: stack.workers() == 3, "three workers at the scheduler")
    check_hardened(stack)
    check_answers(stack, pngs)
    check_tools(stack, workers=3)
    check_users(stack)
    say("down")
    stack.run("stop", timeout_s=UP_S)
    check_drained(stack)
    stack.down()
    if left := stack.containers():
        raise FailedError(f"left behind: {[container['Name'] for container in left]}")


def check_answers(stack: Stack, pngs: list[tuple[Path, int]]) -> None:
    """Every image is answered by a subnet that is named, and most of them rightly."""
    right, subnets = 0, set()
    for png, label in pngs:
        answer = stack.infer(png)
        if answer["model_name"] != MODEL or answer["parameters"]["deadline_met"] is not True:
            raise FailedError(f"not what was asked for: {answer}")
        (output_,) = (tensor for tensor in answer["outputs"] if tensor["name"] == "label")
        right += output_["data"] == [label]
        subnets.add(answer["parameters"]["subnet"])
    if right < LEAST_RIGHT:
        raise FailedError(f"{right} of {len(pngs)} images got their true label, at least {LEAST_RIGHT} have to")
    say(f"  {right} of {len(pngs)} got their true label, by {', '.join(sorted(subnets))}")


def check_grpc(stack: Stack) -> None:
    """The published port speaks gRPC too."""
    try:
        import tritonclient.grpc as triton
    except ModuleNotFoundError:
        say("  gRPC is not tried: no tritonclient is installed")
        return
    image = triton.InferInput("image", [1, 28, 28], "UINT8")
    image.set_data_from_numpy(np.zeros((1, 28, 28), np.uint8))
    with triton.InferenceServerClient(stack.url.removeprefix("http://")) as client:
        answer = client.infer(MODEL, [image], parameters={"slo_ms": 5_000})
    if (shape := answer.as_numpy("label").shape) != (1,):
        raise FailedError(f"by gRPC the label of one image has shape {shape}")
    say("  one by gRPC")


def check_page(stack: Stack) -> None:
    """The gateway's image has the live page and each file that it names, and what traces are sent by."""
    names = set(re.findall(r'(?:src|href)="(page/[^"]+)"', stack.fetch("/")))
    if not {"page/main.js", "page/page.css"} <= names:
        raise FailedError(f"the live page names {sorted(names)}")
    sizes = {name: len(stack.fetch(f"/{name}")) for name in names}
    if empty := [name for name, size in sizes.items() if not size]:
        raise FailedError(f"the live page's files {empty} are empty")
    stack.run("exec", "-T", "gateway", "python", "-c", "import services.gateway.tracing")
    say(f"  the live page and {len(names)} files of it")


def check_tools(stack: Stack, workers: int) -> None:
    """`superserve status` has the model with so many workers, and `superserve doctor` finds nothing that fails."""
    (model,) = json.loads(stack.cli("status", "--json"))["models"]
    living = [worker["name"] for worker in model["workers"] if worker["state"] in ("idle", "busy")]
    if (model["name"], model["ready"], len(living)) != (MODEL, True, workers):
        raise FailedError(f"superserve status: {model}")
    say(f"  superserve doctor: {stack.cli('doctor').splitlines()[-1]}")


def check_users(stack: Stack) -> None:
    """Redis has the users of this stack alone, has refused them nothing, and has kept its data."""
    users = redis_cli(stack, "ACL", "USERS").split()
    if set(users) != {"default", "admin", "gateway", "scheduler", "worker", "doctor"}:
        raise FailedError(f"Redis has the users {users}")
    if refused := redis_cli(stack, "ACL", "LOG"):
        raise FailedError(f"Redis refused what its users asked for:\n{refused}")
    if redis_cli(stack, "GET", "kept") != "yes":
        raise FailedError("Redis came back with users and without its data")
    say(f"  users {', '.join(sorted(users))}; nothing was refused")


def check_gateways(stack: Stack, png: Path) -> None:
    """The published port leads to both gateways: their ids, in the upper half of a query's, are two."""
    seen: set[str] = set()

    def both() -> bool:
        seen.add(stack.infer(png)["parameters"]["query_id"][:8])
        return len(seen) == 2

    stack.wait(both, "answers by two gateways")


def check_hardened(stack: Stack) -> None:
    """No container runs as root, keeps a capability, writes to its root or publishes a port but the one of entry."""
    for container in stack.containers():
        host, name = container["HostConfig"], container["Name"]
        published = [binding for bindings in (host["PortBindings"] or {}).values() for binding in bindings]
        facts = {
            "user": container["Config"]["User"] == "10001:10001",
            "read-only": host["ReadonlyRootfs"],
            "no capability": host["CapDrop"] == ["ALL"] and not host["CapAdd"],
            "no new privileges": "no-new-privileges:true" in host["SecurityOpt"],
            "limits": min(host["Memory"], host["NanoCpus"], host["PidsLimit"]) > 0,
            "ports": len(published) == (service_of(container) == "entry"),
        }
        if wrong := [fact for fact, holds in facts.items() if not holds]:
            raise FailedError(f"{name}: {', '.join(wrong)} as it should not be")
    written = "touch /written 2>/dev/null && exit 1; id -u"
    for service in SERVICES:
        if (found := stack.run("exec", "-T", service, "sh", "-c", written).strip()) != "10001":
            raise FailedError(f"{service} runs as user {found}")


def kill(stack: Stack, service: str, index: int) -> None:
    """End a container's processes by SIGKILL from inside, as a crash would: the engine itself did not ask for it."""
    with contextlib.suppress(FailedError):  # our own shell is one of them
        stack.run("exec", "-T", "--index", str(index), service, "sh", "-c", "kill -9 -1")
    say(f"  killed {service} {index}")


def check_restarted(stack: Stack, service: str) -> None:
    """The engine has brought the killed container back, and the mesh has taken it in."""
    stack.wait(lambda: stack.healthy() == SCALED, f"healthy: {SCALED}")
    stack.wait(lambda: stack.workers() == 3, "three workers at the scheduler")
    restarts = [c["RestartCount"] for c in stack.containers() if service_of(c) == service]
    if sum(restarts) != 1:
        raise FailedError(f"restarts of {service}: {restarts}, one was killed")


def check_recovered(stack: Stack) -> None:
    """Everything is healthy again, and the scheduler has its workers."""
    stack.wait(lambda: stack.healthy() == SCALED, f"healthy: {SCALED}")
    stack.wait(lambda: stack.workers() == 3, "three workers at the scheduler")


def check_drained(stack: Stack) -> None:
    """Told to stop, every service has ended by itself, with 0."""
    codes = {container["Name"]: container["State"]["ExitCode"] for container in stack.containers()}
    if bad := {name: code for name, code in codes.items() if code}:
        raise FailedError(f"ended with other codes than 0: {bad}")


def redis_cli(stack: Stack, *command: str) -> str:
    """Run a command of Redis in its container and return the answer."""
    script = 'REDISCLI_AUTH="$REDIS_PASSWORD" VALKEYCLI_AUTH="$REDIS_PASSWORD" valkey-cli --user "$@"'
    return stack.run("exec", "-T", "redis", "sh", "-c", script, "sh", stack.redis_user, *command).strip()


def write_samples(folder: Path) -> list[tuple[Path, int]]:
    """Write some of the shipped test images as PNG files and return them with their true labels."""
    path = shipped_data(MODEL)
    if path is None:
        raise FailedError(f"no samples of {MODEL} are shipped")
    arrays = load_arrays(path)
    found = []
    for number, (pixels, label) in enumerate(zip(arrays["images"][:IMAGES], arrays["labels"], strict=False)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        png = folder / f"{number}.png"
        png.write_bytes(buffer.getvalue())
        found.append((png, int(label)))
    return found


def bring_torch() -> None:
    """Put the CPU build of torch into wheels/ where this environment has one: an image's pip may know another index."""
    version = importlib.metadata.version(TORCH)
    wheels = ROOT / "wheels"
    if not version.endswith("+cpu") or any(wheels.glob(f"{TORCH}-{version}-*")):
        return
    wheels.mkdir(exist_ok=True)
    say(f"  {TORCH} {version} into wheels/")
    flags = ("--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", "3.11", "--dest", str(wheels))
    subprocess.run((sys.executable, "-m", "pip", "download", *flags, f"{TORCH}=={version}"), cwd=ROOT, check=True)


def redis_image() -> str:
    """Return the image that compose.yaml pins, or, where that is not to be had, one that is on this engine already."""
    found = PINNED.search((ROOT / "compose.yaml").read_text())
    assert found is not None
    pinned = found[1]
    for command in (("docker", "image", "inspect", pinned), ("docker", "pull", "--quiet", pinned)):
        if succeeds(command, BUILD_S):
            return pinned
    if not succeeds(("docker", "image", "inspect", FLOATING), WAIT_S):
        return pinned  # the build says what is wrong with it
    say(f"{pinned} cannot be had here; {FLOATING} of this engine stands in for it")
    return FLOATING


def no_engine() -> str | None:
    """Return why no stack can be started here, or None."""
    for command in (("docker", "compose", "version"), ("docker", "info")):
        if shutil.which("docker") is None:
            return "there is no docker on PATH"
        if not succeeds(command, WAIT_S):
            return f"`{' '.join(command)}` fails"
    return None


def succeeds(command: Command, timeout_s: float) -> bool:
    """Whether a command ends with 0 in time."""
    try:
        return not subprocess.run(command, capture_output=True, timeout=timeout_s, check=False).returncode
    except subprocess.TimeoutExpired:
        return False


def output(command: Command) -> str:
    """Return what a command prints; CalledProcessError if it fails."""
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout


def service_of(container: dict[str, Any]) -> str:
    """The service of compose.yaml that a container belongs to."""
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


STARTED_S = time.monotonic()


def say(text: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED_S:6.1f} s] {text}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Try compose.yaml on this machine's Docker engine.")
    parser.add_argument("--keep", action="store_true", help="leave the stack running after a failure")
    sys.exit(main(parser.parse_args()))
