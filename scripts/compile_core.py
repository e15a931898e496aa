"""Compile `common.compiled.MODULES` by mypyc into the folder where `import common` looks for them."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from common.compiled import GROUP, MODULES, ROOT, directory, files, source

# Run in a copy of the packages, which mypyc types as a whole and of which it translates what it is told to.
SETUP = """\
import sys
from mypyc.build import mypycify
from setuptools import setup

group, *paths = sys.argv[1:]
modules = mypycify(paths, group_name=group, debug_level="0")
setup(name="core", packages=[], ext_modules=modules, script_args=["--quiet", "build_ext", "--inplace"])
"""


def main() -> None:
    """Read the command line, compile or remove."""
    parser = argparse.ArgumentParser(
        prog="scripts/compile", description="Compile the scheduling core and the simulator to machine code."
    )
    parser.add_argument("--remove", action="store_true", help="remove every build instead")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder of the packages, if not this checkout")
    args = parser.parse_args()
    if args.remove:
        shutil.rmtree(args.root / "build" / "compiled", ignore_errors=True)
        return
    target = directory(args.root)
    if all(file.is_file() for file in files(target).values()):
        return
    if lacking := lacks():
        sys.exit(f"compile: no {lacking}; on Debian: apt-get install gcc python3-dev")
    print(f"compile: {len(MODULES)} modules of the core by mypyc, about half a minute", file=sys.stderr)
    started_s = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = compile_copy(args.root, Path(folder))
        try:
            built.rename(target)  # whole or not at all
        except OSError:
            if not target.is_dir():  # or somebody else was first
                raise
    for other in target.parent.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)
    print(f"compile: done in {time.monotonic() - started_s:.0f} s: {target}", file=sys.stderr)


def lacks() -> str:
    """Return what this machine needs first to compile a module of Python; "" if nothing."""
    compiler = str(sysconfig.get_config_var("CC") or "cc").partition(" ")[0]
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if shutil.which(compiler) is None:
        return f"C compiler: {compiler} is not on PATH"
    return "" if headers.is_file() else f"headers of Python: {headers} is not there"


def compile_copy(root: Path, folder: Path) -> Path:
    """Compile a copy of the packages below `root` in a folder; return the folder of what was made."""
    for package in {module.partition(".")[0] for module in MODULES}:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "make.py").write_text(SETUP)
    paths = [str(source(module, folder).relative_to(folder)) for module in MODULES]
    command = [sys.executable, "make.py", GROUP, *paths]
    environment = os.environ | {"PYTHONPATH": str(folder), "MYPYPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"compile: mypyc or the C compiler failed; the sources run as before\n{done.stdout}{done.stderr}")
    made = folder / "made"
    for where, file in zip(files(folder).values(), files(made).values(), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        where.rename(file)
    return made


if __name__ == "__main__":
    main()
