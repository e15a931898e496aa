"""The file of an event log: begun by who leads, and no log that is there already is overwritten.

``FILE`` is the log of the scheduler that leads or led last. What it held before is moved to ``FILE.1``, ``FILE.2`` and
so on, the oldest first: after a restart, and when a standby with the same path takes over. A scheduler that still
writes goes on where its file was moved to.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from common import log
from common.errors import ConfigError

if TYPE_CHECKING:
    from typing import TextIO

_log = log.get(__name__)


def check_writable(path: str) -> None:
    """Touch nothing that is there; ConfigError if no log can be written to this path."""
    try:
        Path(path).open("a").close()
    except OSError as error:
        raise _refused(path, error) from error


def begin(path: str) -> TextIO:
    """Open a log, line-buffered, so that a crash loses no event that was applied; ConfigError if that fails."""
    file = Path(path)
    try:
        if file.is_file() and file.stat().st_size:  # not a pipe, nor a terminal
            kept = next(name for n in count(1) if not (name := file.with_name(f"{file.name}.{n}")).exists())
            file.rename(kept)
            _log.info("event_log_kept", path=path, moved_to=str(kept))
        return file.open("w", buffering=1, encoding="utf-8")
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: str, error: OSError) -> ConfigError:
    return ConfigError(f"--event-log={path!r}: {error.strerror or error}")
