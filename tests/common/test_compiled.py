"""The compiled core is the core: found by its sources, never stale, and the same in every command."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common import compiled

COMPILE = compiled.ROOT / "scripts" / "compile_core.py"
WHERE = """
import importlib, json
from common import compiled
modules = [importlib.import_module(name) for name in compiled.MODULES]
print(json.dumps([compiled.in_use(), *[module.__file__ for module in modules]]))
"""
# What a few runs of every policy tell the core and hear from it, and what became of their queries.
RUNS = """
import hashlib, json, sys
from pathlib import Path
from common.sched import Profile, Scheduler, SchedulerOptions
from common.sched.eventlog import EventLog
from common.sched.policies import parse_policy
from loadgen.conditions import Conditions
from loadgen.simulate import simulate
from loadgen.workload import make_workload

profile = Profile.from_dict(json.loads(Path("services/worker/profiles/rtx2080ti-reconstructed.json").read_text()))
conditions = [
    Conditions(),
    Conditions(jitter=0.2, tail=0.01, overhead_us=1_000, hop_us=300, seed=3),
    Conditions(actuation_us=20_000, deaths=((200_000, "worker-1"),), slow=((100_000, "worker-3", 3.0),)),
]
print("policy, conditions, trace, queries, answered, digest")
for policy in sys.argv[1:]:
    for number, world in enumerate(conditions):
        for trace in (
            "bursty:base=1500,variant=4900,cv2=4",
            "poisson:rate=15000",
            "poisson:rate=3000,tenant=a+poisson:rate=900,tenant=b,rows=3,slo_ms=90,min_accuracy=76,priority=1",
        ):
            digest = hashlib.sha256()
            late = "serve" if number == 1 else "drop"
            scheduler = Scheduler(parse_policy(policy), SchedulerOptions(late=late))
            log = EventLog(lambda line: digest.update(line.encode()), scheduler)
            workload = make_workload(trace, duration_s=0.4, seed=1, slo_ms=36)
            records = simulate(scheduler, workload, profile, 8, world, log=log)
            for column in (records.done_s, records.subnet, records.worker):
                digest.update(column.tobytes())
            print(policy, number, trace, len(workload.intended_s), scheduler.done, digest.hexdigest())
"""
POLICIES = ("foresight", "slackfit", "maxbatch", "infaas", "fixed:largest", "coarse:slackfit", "brownout", "proteus")


def run(root: Path, code: str, *args: str, switch: str = "") -> str:
    """Run code in the folder of the packages; return what it prints."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", compiled.SWITCH)}
    environment |= {"PYTHONPATH": str(root)} | ({compiled.SWITCH: switch} if switch else {})
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *args],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def copy_of(root: Path, target: Path) -> Path:
    """Copy the packages, and what is compiled of them if it is."""
    for name in ("common", "loadgen", "services", "build/compiled"):
        if (root / name).is_dir():
            shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "models"))
    return target


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the packages as they are now, compiled: what `scripts/setup` made of these sources, or else anew."""
    root = copy_of(compiled.ROOT, tmp_path_factory.mktemp("compiled"))
    done = subprocess.run([sys.executable, COMPILE, "--root", root], capture_output=True, text=True, check=False)
    if "apt-get install" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.timeout(600)
def test_sources_that_were_compiled_run_compiled(root: Path) -> None:
    """Where a build of these very sources lies, its modules are what is imported, unless it is switched off."""
    in_use, *files = json.loads(run(root, WHERE))
    folder = compiled.directory(root)
    assert in_use
    assert files == [str(compiled.files(folder)[name]) for name in compiled.MODULES]
    in_use, *files = json.loads(run(root, WHERE, switch="0"))
    assert not in_use
    assert files == [str(compiled.source(name, root)) for name in compiled.MODULES]


def test_digest_covers_what_is_imported() -> None:
    """Of our own modules the compiled ones import each other, and what the digest covers beside them."""
    covered = {*compiled.MODULES, *compiled.TYPES}
    for module in compiled.MODULES:
        for node in ast.walk(ast.parse(compiled.source(module).read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in ("common", "loadgen"):
                assert node.module in covered, module


@pytest.mark.parametrize("change", ["common.sched.queue", "common.sched.types", "a build that lacks a module"])
def test_what_is_stale_or_partial_is_not_run(root: Path, tmp_path: Path, change: str) -> None:
    """A build of other sources, or one that is not whole, is as if it were not there: all sources run."""
    other = copy_of(root, tmp_path)
    if change.startswith("common"):
        with compiled.source(change, other).open("a") as file:
            file.write("\nEDITED = True\n")
    else:
        compiled.files(compiled.directory(other))["common.sched.worker"].unlink()
    in_use, *files = json.loads(run(other, WHERE))
    assert not in_use
    assert files == [str(compiled.source(name, other)) for name in compiled.MODULES]


def test_compiled_and_interpreted_decide_alike(root: Path) -> None:
    """Every policy, in calm and in trouble, sees the same events and gives the same commands, to the microsecond."""
    as_compiled, interpreted = run(root, RUNS, *POLICIES), run(root, RUNS, *POLICIES, switch="0")
    assert len(as_compiled.splitlines()) == 1 + 9 * len(POLICIES)
    assert as_compiled == interpreted


def test_what_is_lacking_is_said(tmp_path: Path) -> None:
    """Without a C compiler nothing is compiled, and the message says what to install."""
    copy_of(compiled.ROOT, tmp_path)
    shutil.rmtree(tmp_path / "build", ignore_errors=True)
    environment = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, COMPILE, "--root", tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no C compiler" in done.stderr
    assert "apt-get install gcc" in done.stderr
    assert not (tmp_path / "build").exists()
