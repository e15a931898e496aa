"""What ``superserve doctor`` finds: a list of findings, each with what to do if it is not well."""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """One check. ``advice`` is what to do, "" where there is nothing to do."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""
