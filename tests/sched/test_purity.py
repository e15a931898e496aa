"""The core decides and does nothing else."""

import ast
import sys
from pathlib import Path

import pytest

import common.sched

FILES = sorted(Path(common.sched.__file__).parent.rglob("*.py"))
# In the standard library, yet a clock, chance, or the outside world.
IMPURE = {
    *("asyncio", "datetime", "io", "logging", "os", "pathlib"),
    *("random", "secrets", "socket", "subprocess", "threading", "time"),
}
# Pure as well, but an extra: the linear program that Proteus is. Equal programs have equal solutions; it is imported by
# the function that solves, so that nobody needs it for anything else.
SOLVER = {"proteus.py": "scipy"}


def imports(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports_nothing_impure(path: Path) -> None:
    """`common.sched` imports itself, numpy, and of the standard library nothing that clocks, draws or talks."""
    tree = ast.parse(path.read_text())
    for name in imports(tree):
        top = name.partition(".")[0]
        known = top in {"numpy", SOLVER.get(path.name)} or top in sys.stdlib_module_names
        assert name.startswith("common.sched") or known, name
        assert top not in IMPURE, name
    at_once = [name for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) for name in imports(node)]
    assert "scipy" not in {name.partition(".")[0] for name in at_once}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_neither_awaits_nor_opens(path: Path) -> None:
    """A file of `common.sched` has no coroutine, and calls neither open, print nor input."""
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "print", "input", "eval", "exec"}
