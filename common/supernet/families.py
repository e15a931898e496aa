"""The families of networks whose supernets can be written as artifacts: who builds them again from a description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from common.supernet import bert, ofa, resnet
from common.supernet.actuate import Elastic
from common.supernet.spec import Space

# By the name in supernet.json: architecture, as JSON, and space -> the untrained supernet; SpecError if they are wrong.
FAMILIES: dict[str, Callable[[Mapping[str, Any], Space], Elastic]] = {
    resnet.FAMILY: resnet.from_json,
    bert.FAMILY: bert.from_json,
    ofa.FAMILY: ofa.from_json,
}
