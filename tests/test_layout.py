"""What may import what, where the environment is read, and what is shipped."""

import ast
import email.parser
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sched.test_purity import SOLVER

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "services", "loadgen")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = (*PACKAGES, "tests", "scripts")
GATEWAY, SCHEDULER, WORKER = "services.gateway", "services.scheduler", "services.worker"

# Part of the tree -> what of ours it may import beside itself, and which heavy packages of others it alone may use.
# The longest part that fits a file holds for it.
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    "common": (set(), {"redis", "hiredis"}),
    "common.sched": (set(), set()),
    "common.supernet": (set(), {"torch", "safetensors"}),
    GATEWAY: ({"common"}, set()),
    SCHEDULER: ({"common"}, set()),
    WORKER: ({"common", "common.supernet"}, {"torch"}),
    "services": ({"common", GATEWAY, SCHEDULER, WORKER}, set()),  # what puts them together: cli, mesh, up
    "loadgen": ({"common"}, set()),
}
HEAVY = {"torch", "safetensors", "redis", "hiredis"}
# A part that the part around it does not speak for: who may import `common` may not yet import SubNetAct.
APART = ("common.supernet",)


def part_of(module: str) -> str:
    """The part of the tree that a module belongs to."""
    return max((part for part in MAY_IMPORT if f"{module}.".startswith(f"{part}.")), key=len)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def allowed(importing: str, imported: str) -> bool:
    """Whether the rules above let one part import a module."""
    ours, heavy = MAY_IMPORT[importing]
    top = imported.partition(".")[0]
    if top not in OURS:
        return top not in HEAVY or top in heavy
    return any(
        f"{imported}.".startswith(f"{part}.")
        and all(part.startswith(apart) or not imported.startswith(f"{apart}.") for apart in APART)
        for part in (importing, *ours)
    )


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_keep_to_the_layout(path: Path) -> None:
    """Services do not import each other; the core and SubNetAct know no service and no Redis; only the worker and
    SubNetAct import torch; nothing imports tests or scripts."""
    importing = part_of(".".join(path.with_suffix("").parts))
    assert [name for name in imports(path) if not allowed(importing, name)] == []


@pytest.mark.parametrize(
    ("importing", "imported"),
    [
        ("common", "services.up"),
        ("common", "torch.nn"),
        ("common", "common.supernet.spec"),
        ("common.sched", "common.keys"),
        ("common.supernet", "common.streams"),
        ("common.supernet", "redis"),
        (GATEWAY, "services.scheduler.ledger"),
        (GATEWAY, "common.supernet.spec"),
        (SCHEDULER, "torch"),
        (WORKER, "services.gateway"),
        (WORKER, "redis.asyncio"),
        ("loadgen", "services.cli"),
        ("loadgen", "tests.conftest"),
    ],
)
def test_rule_forbids(importing: str, imported: str) -> None:
    """The rules above do say what they are meant to say."""
    assert not allowed(importing, imported)


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[:2] == ("common", "sched")], ids=str)
def test_core_is_pure(path: Path) -> None:
    """`common.sched` imports the standard library, numpy and itself, and one file its solver."""
    tops = {name.partition(".")[0] for name in imports(path)}
    assert tops <= {*sys.stdlib_module_names, "numpy", "common", SOLVER.get(path.name)}


def test_types_of_the_core_have_names_of_their_own() -> None:
    """No two public classes or type aliases of `common.sched` share a name."""
    places = defaultdict(list)
    for path in (p for p in FILES if p.parts[:2] == ("common", "sched")):
        for node in ast.parse((ROOT / path).read_text()).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path))
            elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
                places[ast.unparse(node.target)].append(str(path))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_gateway_scheduler_and_load_generator_run_without_torch() -> None:
    """Nothing that they import, however indirectly, loads torch: their images do without it."""
    modules = "services.gateway, services.scheduler.scheduler, services.up, services.cli, loadgen.cli, loadgen.simulate"
    code = f"import sys, {modules}; print(sorted({{'torch', 'safetensors', 'common.supernet'}} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-W", "error", "-c", code], cwd=ROOT, text=True) == "[]\n"


# The second must know before anything of ours is imported, settings included.
READ_ENVIRONMENT = {Path("common/settings.py"), Path("common/compiled.py")}


@pytest.mark.parametrize("path", [p for p in FILES if p not in READ_ENVIRONMENT], ids=str)
def test_environment_is_read_by_settings_alone(path: Path) -> None:
    """Outside `common.settings`, and the one switch of `common.compiled`, no file reads or writes the environment."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in {"environ", "environb", "getenv", "putenv"}, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            assert not {alias.name for alias in node.names} & {"environ", "getenv"}, f"line {node.lineno}"


def scripts() -> list[Path]:
    return [path for path in sorted((ROOT / "scripts").iterdir()) if path.is_file()]


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.name)
def test_scripts_can_be_run(path: Path) -> None:
    """A script is executable and says by what; modules and data beside it end in .py and .json."""
    if path.suffix not in (".py", ".json"):
        assert os.access(path, os.X_OK)
        assert path.read_text().startswith("#!/usr/bin/env ")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built by the backend that pip would call, from a copy: it writes beside what it reads."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    with zipfile.ZipFile(path) as file:
        yield file


def test_wheel_has_every_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Each source file is in it, a new package included, and no test is."""
    found = {name for name in wheel.namelist() if name.endswith(".py")}
    assert found == {path.as_posix() for path in FILES}


def test_wheel_has_models_profiles_page_and_traces(wheel: zipfile.ZipFile) -> None:
    """What serves without training or measuring is shipped byte by byte, with the live page, traces and the marker of
    typing."""
    folders = ("worker/models", "worker/profiles", "gateway/page")
    shipped = [path for folder in folders for path in (ROOT / "services" / folder).rglob("*")]
    shipped = [path for path in shipped if path.is_file()]
    assert {"supernet.json", "weights.safetensors", "rtx2080ti-reconstructed.json", "index.html"} <= {
        path.name for path in shipped
    }
    for path in [*shipped, ROOT / "common/py.typed", ROOT / "loadgen/data/synthetic_day.csv"]:
        assert wheel.read(path.relative_to(ROOT).as_posix()) == path.read_bytes()


def test_version_is_one(wheel: zipfile.ZipFile) -> None:
    """Wheel and command line bear the version of pyproject.toml, which the changelog has or is about to have."""
    version = PROJECT["project"]["version"]
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = email.parser.Parser().parsestr(wheel.read(name).decode())
    assert (metadata["Name"], metadata["Version"]) == ("superserve-mesh", version)
    assert wheel.filename is not None
    assert Path(wheel.filename).name.startswith(f"superserve_mesh-{version}-")
    command = [sys.executable, "-m", "services.cli", "--version"]
    assert subprocess.check_output(command, cwd=ROOT, text=True) == f"{version}\n"
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    assert headings[0] == "## Unreleased" or version in headings[0]


def test_wheel_installs_the_commands(wheel: zipfile.ZipFile) -> None:
    """`superserve` and `loadgen` are console scripts of functions that there are."""
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    text = wheel.read(name).decode()
    for command, target in PROJECT["project"]["scripts"].items():
        assert f"{command} = {target}" in text
        module, _, function = target.partition(":")
        tree = ast.parse(wheel.read(f"{module.replace('.', '/')}.py"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
