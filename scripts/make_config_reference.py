"""Make `docs/configuration.md`: every flag and environment variable of every service, from the settings classes.

    scripts/make-config-reference             writes the file anew
    scripts/make-config-reference --out -     to standard output

A settings class that is new in `common.settings` gets a section by itself.
"""

from __future__ import annotations

import argparse
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from common.compiled import SWITCH
from common.settings import ENV_PREFIX, REDIS_URL, ServiceSettings

FILE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = f"""\
# Configuration

<!-- Made by scripts/make-config-reference from common/settings.py: change that, not this. -->

Every flag of a service is an environment variable too. There is nothing else: no file, and nothing that is read later.
A flag wins over its variable, which wins over the default; `{REDIS_URL}` counts where neither `--redis` nor
`{ENV_PREFIX}REDIS` is given. A wrong value ends the process at its start with exit code 2 and a line that names key
and value. What holds is logged once, as the event `settings`, without the password in the URL of Redis.

Beside these there is `{SWITCH}=0`, which runs the core from its sources where it is compiled (`scripts/compile`).

`superserve COMMAND --help` says the same. The variables of containers are in [.env.example](../.env.example), those of
pods in [settings.env](../deploy/kubernetes/base/settings.env), the options of policies in `superserve policies`.
"""
TABLE = "| flag | environment | type | default | range | meaning |\n|---|---|---|---|---|---|"
EVERY = "Every service"
NOTES = {
    "up": """\
`up` starts the others. It gives them its own values of the settings below, and hands its environment on, so that a
variable sets for all what has no flag here: `{prefix}GRPC_PORT=8001 superserve up`. `{prefix}NAME` and
`{prefix}METRICS_PORT` are left out, since they must differ.""",
}
RANGE = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}", "max_length": "up to {} characters of"}


def main() -> None:
    """Write the reference."""
    parser = argparse.ArgumentParser(prog="scripts/make-config-reference", description="Make docs/configuration.md.")
    parser.add_argument("--out", type=Path, default=FILE, help="file to write; - is standard output")
    out = parser.parse_args().out
    if str(out) == "-":
        print(reference(), end="")
    else:
        out.write_text(reference())


def reference() -> str:
    """Return the page."""
    parts = [HEAD, section(EVERY, ServiceSettings), *map(service, ServiceSettings.__subclasses__())]
    return "\n".join(parts)


def service(kind: type[ServiceSettings]) -> str:
    """Return the section of a service, named as its command is."""
    return section(f"superserve {kind.__name__.removesuffix('Settings').lower()}", kind)


def section(title: str, kind: type[ServiceSettings]) -> str:
    """Return what a class says of itself, and a table of the settings that it adds or changes."""
    about, _, examples = (kind.__doc__ or "").partition("Examples:")
    lines = [f"## {title}", " ".join(about.split())]
    if note := NOTES.get(title.rpartition(" ")[2]):
        lines += ["", note.format(prefix=ENV_PREFIX)]
    if commands := [line.strip() for line in examples.splitlines() if line.strip()]:
        lines += ["", "Examples:", "", *(f"- `{command}`" for command in commands)]
    own = [name for name in kind.model_fields if name in kind.__annotations__]
    return "\n".join([*lines, "", TABLE, *(row(name, kind.model_fields[name]) for name in own), ""])


def row(name: str, field: FieldInfo) -> str:
    """Return a setting as a row."""
    flag = name.replace("_", "-")
    kinds = [kind for kind in options(field.annotation) if kind is not type(None)]
    flags = f"`--{flag}`, `--no-{flag}`" if kinds == [bool] else f"`--{flag}`"
    default = "" if field.default is None else f"`{shown(field.default)}`"
    cells = [flags, f"`{ENV_PREFIX}{name.upper()}`", " or ".join(map(type_name, kinds)), default]
    return f"| {' | '.join([*cells, limits(field), field.description or ''])} |"


def options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; anything else alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def type_name(kind: Any) -> str:
    """Return `text`, `integer`, `number`, `true or false`, or the values of a Literal."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    kind = get_args(kind)[0] if get_args(kind) else kind  # Annotated
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[kind]


def limits(field: FieldInfo) -> str:
    """Return the bounds of a number, or how long a text may be and what it looks like."""
    metadata = [*field.metadata, *(item for kind in options(field.annotation) for item in inner(kind))]
    found = {key: getattr(item, key) for item in metadata for key in (*RANGE, "pattern") if hasattr(item, key)}
    words = [text.format(shown(found[key])) for key, text in RANGE.items() if found.get(key) is not None]
    pattern = found.get("pattern")
    return " ".join(words if pattern is None else [*words, "`{}`".format(pattern.replace("|", "\\|"))])


def inner(kind: Any) -> list[Any]:
    """The metadata inside an Annotated member of a union, a Field's own unpacked."""
    found: list[Any] = []
    for item in getattr(kind, "__metadata__", ()):
        found += item.metadata if isinstance(item, FieldInfo) else [item]
    return found


def shown(value: object) -> str:
    """A value as one would type it: 10, not 10.0; booleans in small letters."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
