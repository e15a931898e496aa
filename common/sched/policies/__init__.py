"""Policies: one file each, one registry, one way to name them.

A spec is `name`, or `name:` and comma-separated options: `slackfit:buckets=16,quantile=p95`, `fixed:smallest`,
`fixed:73.82,late=shrink`. An option that needs no name comes first. Values cannot contain a comma: a policy inside
another one has `;` in its place, as in `coarse:slackfit:buckets=4;quantile=median`.

A policy of the user's own is named by where it can be imported from: `package.module:Class`, and behind a second colon
its options. It is a frozen dataclass with `cheapest` and `choose` (`base.Policy`), and needs no registration.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from common.sched.policies.base import Policy, PolicyError, View
from common.sched.policies.brownout import Brownout
from common.sched.policies.coarse import Coarse
from common.sched.policies.fixed import Fixed
from common.sched.policies.foresight import Foresight
from common.sched.policies.infaas import Infaas
from common.sched.policies.maxacc import MaxAcc
from common.sched.policies.maxbatch import MaxBatch
from common.sched.policies.proteus import Proteus
from common.sched.policies.slackfit import SlackFit

__all__ = ["DEFAULT", "Policy", "PolicyError", "View", "available", "parse_policy", "spec_of"]

DEFAULT = "foresight"
"""What a scheduler uses unless told otherwise; docs/scheduling.md has the measurements that chose it."""

_REGISTRY: dict[str, type[Any]] = {
    "foresight": Foresight,
    "slackfit": SlackFit,
    "maxbatch": MaxBatch,
    "maxacc": MaxAcc,
    "fixed": Fixed,
    "infaas": Infaas,
    "coarse": Coarse,
    "proteus": Proteus,
    "brownout": Brownout,
}


def parse_policy(spec: str) -> Policy:
    """Return the policy that a spec names. Raises PolicyError that names what is unknown, and what is legal."""
    name, _, rest = spec.partition(":")
    attribute, _, options = rest.partition(":")
    if name in _REGISTRY:
        kind = _REGISTRY[name]
    elif attribute.isidentifier():
        kind, name, rest = _imported(name, attribute), f"{name}:{attribute}", options
    else:
        raise PolicyError(f"policy: unknown {name!r}, expected {_known()}")
    legal = {option.name: option for option in fields(kind) if option.init}
    hints = _hints(name, kind, legal)
    given: dict[str, Any] = {}
    for position, item in enumerate(rest.split(",") if rest else []):
        key, equals, text = item.partition("=")
        if not equals or ":" in key:
            unnamed = [option.name for option in legal.values() if position == 0 and option.metadata.get("positional")]
            key, text = (unnamed[0], item) if unnamed else (item, "")
        if key not in legal:
            raise PolicyError(f"{name}: unknown option {key!r}, expected one of {', '.join(legal)}")
        given[key] = _value(name, key, hints[key], text)
    missing = [
        option.name
        for option in legal.values()
        if option.default is MISSING and option.default_factory is MISSING and option.name not in given
    ]
    if missing:
        raise PolicyError(f"{name}: needs {missing[0]}, as in {name}:<{missing[0]}>")
    try:
        policy: Policy = kind(**given)
    except PolicyError:
        raise
    except Exception as error:  # a user's class can fail in any way when it is made
        raise PolicyError(f"{name}: {type(error).__name__}: {error}") from error
    return policy


def spec_of(policy: Policy) -> str:
    """Return the full spec of a policy, every option spelled out: `parse_policy` reads it back to an equal one."""
    kind: type[Any] = type(policy)
    names = [name for name, registered in _REGISTRY.items() if registered is kind]
    name = names[0] if names else f"{kind.__module__}:{kind.__qualname__}"
    options = [option.name for option in fields(kind) if option.init]
    return f"{name}:" + ",".join(f"{option}={getattr(policy, option)}" for option in options)


def available() -> dict[str, str]:
    """Return, for each registered name, what the policy does and its options with their defaults, ready to print."""
    return {name: _describe(kind) for name, kind in _REGISTRY.items()}


def _known() -> str:
    return f"one of {', '.join(_REGISTRY)}, or module:Class of your own"


def _imported(module: str, attribute: str) -> type[Any]:
    """A policy's class by where it is. Raises PolicyError that says what is not there, or what the class lacks."""
    where = f"policy: {module}:{attribute}"
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a user's file can fail in any way when it is run
        kind_of = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise PolicyError(f"{where}: {kind_of}{error}; expected {_known()}") from error
    kind = getattr(found, attribute, None)
    if kind is None:
        raise PolicyError(f"{where}: {module} has no {attribute!r}")
    lacks = [method for method in ("cheapest", "choose") if not callable(getattr(kind, method, None))]
    if not (isinstance(kind, type) and is_dataclass(kind)) or lacks:
        raise PolicyError(f"{where}: expected a dataclass with cheapest and choose, got {kind!r}")
    return kind


def _hints(name: str, kind: type[Any], options: Collection[str]) -> dict[str, Any]:
    """The type of each option. Raises PolicyError for one that a spec could not be read back to."""
    try:
        hints = get_type_hints(kind)
    except Exception as error:  # a user's annotation can name what is not there
        raise PolicyError(f"{name}: {type(error).__name__}: {error}") from error
    for option in options:
        if hints[option] not in (int, float, str) and get_origin(hints[option]) is not Literal:
            raise PolicyError(f"{name}: {option}: an option is int, float, str or a Literal, not {hints[option]}")
    return hints


def _describe(kind: type[Any]) -> str:
    hints = get_type_hints(kind)
    lines = [(kind.__doc__ or "").partition("\n")[0]]
    for option in fields(kind):
        default = "required" if option.default is MISSING else f"default {option.default}"
        lines.append(f"  {option.name}: {_legal(hints[option.name])} ({default}): {option.metadata.get('doc', '')}")
    return "\n".join(lines)


def _legal(kind: Any) -> str:
    return " or ".join(get_args(kind)) if get_origin(kind) is Literal else str(kind.__name__)


def _value(policy: str, key: str, kind: Any, text: str) -> Any:
    if get_origin(kind) is Literal:
        if text in get_args(kind):
            return text
    elif text:
        try:
            return kind(text)
        except ValueError:
            pass
    raise PolicyError(f"{policy}: {key}: expected {_legal(kind)}, got {text!r}")
