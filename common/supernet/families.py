"""The families of networks whose supernets can be written as artifacts: who builds them again from a description.

A family of the user's own is a module, named by where it can be imported from, in which `FAMILY` is that name and
`from_json` does what those of FAMILIES do. It needs no registration.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from common.supernet import bert, ofa, resnet
from common.supernet.actuate import Elastic
from common.supernet.spec import Space, SpecError

Build: TypeAlias = Callable[[Mapping[str, Any], Space], Elastic]
"""Architecture, as JSON, and space -> the untrained supernet; SpecError if they are wrong."""

# By the name in supernet.json.
FAMILIES: dict[str, Build] = {
    resnet.FAMILY: resnet.from_json,
    bert.FAMILY: bert.from_json,
    ofa.FAMILY: ofa.from_json,
}


def builder(family: str) -> Build:
    """Return who builds a family's supernets. Raises SpecError if nobody does, or if a user's module says it does not.

    The second check keeps a model folder from having any module that can be imported called.
    """
    if family in FAMILIES:
        return FAMILIES[family]
    unknown = f"family {family!r} is unknown here, which knows {', '.join(FAMILIES)}"
    try:
        module = importlib.import_module(family)
    except Exception as error:  # a user's file can fail in any way when it is run
        raise SpecError(f"{unknown}, and it is no module: {type(error).__name__}: {error}") from error
    build: Build | None = getattr(module, "from_json", None)
    if getattr(module, "FAMILY", None) != family or build is None:
        raise SpecError(f"{unknown}; the module of that name has no from_json beside FAMILY = {family!r}")
    return build
