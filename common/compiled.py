"""The hot modules as machine code, where somebody compiled them: `scripts/compile` does, by mypyc, from the sources.

What is compiled lies in `build/compiled/DIGEST/` beside the packages, under the digest of the sources that it was made
of, and of those whose types they use. `import common` looks there once: if all is there, the modules below come from
there, else from their sources, as they do after a change of any of them until they are compiled again. So a stale build
is never run, and whoever has no C compiler has the same behaviour, slower. `SUPERSERVE_COMPILED=0` in the environment
runs the sources in any case.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

MODULES = (
    "common.sched.core",
    "common.sched.degraded",
    "common.sched.estimators",
    "common.sched.policies.lookahead",
    "common.sched.queue",
    "common.sched.worker",
    "loadgen.simulate",
)
"""What is compiled, together: calls from one of these to another are calls of C."""

TYPES = (
    "common.sched.eventlog",
    "common.sched.options",
    "common.sched.policies",
    "common.sched.policies.base",
    "common.sched.profile",
    "common.sched.types",
    "loadgen.conditions",
    "loadgen.errors",
    "loadgen.records",
    "loadgen.report",
    "loadgen.workload",
)
"""What those import of ours: they were compiled to its types, so that a change of it outdates them too."""

GROUP = "superserve"
LIBRARY = f"{GROUP}__mypyc"
"""The module that has the code of all: each of `MODULES` is a few lines that find themselves in it."""

SWITCH = "SUPERSERVE_COMPILED"
ROOT = Path(__file__).parents[1]
SUFFIX = EXTENSION_SUFFIXES[0]  # names interpreter, version and machine


def source(module: str, root: Path = ROOT) -> Path:
    """Return where the source of a module, or of a package, is."""
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def directory(root: Path = ROOT) -> Path:
    """Return where what is compiled of the sources below `root`, as they are now, for this interpreter, would lie."""
    digest = hashlib.sha256(SUFFIX.encode())
    for module in (*MODULES, *TYPES):
        digest.update(source(module, root).read_bytes())
    return root / "build" / "compiled" / digest.hexdigest()[:16]


def files(folder: Path) -> dict[str, Path]:
    """Return the file of each compiled module in a folder, the library's included."""
    return {name: source(name, folder).with_suffix(SUFFIX) for name in (*MODULES, LIBRARY)}


def in_use() -> bool:
    """Whether this process runs the compiled modules."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def use() -> None:
    """Import the compiled modules from now on, if there are any of these sources and nobody switched them off."""
    if os.environ.get(SWITCH) == "0" or not (ROOT / "build" / "compiled").is_dir():
        return
    found = files(directory())
    if all(map(Path.is_file, found.values())):
        sys.meta_path.insert(0, _Finder(found))


class _Finder(MetaPathFinder):
    """Finds modules by their full names in a table of files."""

    def __init__(self, found: dict[str, Path]) -> None:
        self._found = found

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the specification of a module of the table, None for every other."""
        file = self._found.get(fullname)
        return None if file is None else spec_from_file_location(fullname, file)
