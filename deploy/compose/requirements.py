#!/usr/bin/env python3
"""Print the requirements of pyproject.toml and of some of its extras, for a layer of an image that the code is not in.

usage: requirements.py PYPROJECT [EXTRA...]
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """Return what the project needs, then what each extra adds; KeyError for an unknown extra."""
    project = tomllib.loads(pyproject.read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), sys.argv[2:])))
