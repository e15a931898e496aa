"""Published traces as they lie on disk: counts per minute, or one timestamp per request."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadgen.errors import InputError

_UTC_SUFFIX = re.compile(r"(Z|[+-]00:?00)$")


def read_minutes(path: Path, column: str = "") -> NDArray[np.float64]:
    """Counts per minute, in file order, from `column` (by default the second one, or the only one).

    The first line names the columns. InputError when the column is not there or a count is not a number >= 0.
    """
    header, rows = _read(path)
    at = _column(path, header, column, default=min(1, len(header) - 1))
    counts = np.array([_count(path, line, row[at]) for line, row in rows], dtype=np.float64)
    if counts.sum() <= 0:
        raise InputError("minutes: FILE", path, f"column {header[at]!r} holds no requests")
    return counts


def read_timestamps(path: Path, column: str = "") -> NDArray[np.float64]:
    """Seconds since the first request, sorted, from `column` (by default the first one).

    The first line names the columns. A stamp is ISO 8601 in UTC (fractions down to 1 ns) or a number of seconds.
    InputError when the column is not there, a stamp cannot be read, or fewer than two differ.
    """
    header, rows = _read(path)
    at = _column(path, header, column, default=0)
    cells = [row[at] for _, row in rows]
    try:
        seconds = np.array([float(cell) for cell in cells])
    except ValueError:
        seconds = _iso_seconds(path, rows, at)
    if not np.isfinite(seconds).all():
        raise InputError("timestamps: FILE", path, "holds a stamp that is not finite")
    seconds.sort()
    if len(seconds) < 2 or seconds[0] == seconds[-1]:
        raise InputError("timestamps: FILE", path, "needs at least two different stamps")
    since_first: NDArray[np.float64] = seconds - seconds[0]
    return since_first


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Column names, and the other lines with their line numbers; blank lines are skipped."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("FILE", path, f"cannot be read: {error}") from None
    if len(lines) < 2:
        raise InputError("FILE", path, "needs a line of column names and at least one line of data")
    header = [name.strip() for name in lines[0][1]]
    for line, row in lines[1:]:
        if len(row) != len(header):
            raise InputError(f"{path}, line {line}", ",".join(row), f"has {len(row)} cells, not {len(header)}")
    return header, lines[1:]


def _column(path: Path, header: list[str], name: str, default: int) -> int:
    if not name:
        return default
    if name not in header:
        raise InputError("column", name, f"{path} has {', '.join(header)}")
    return header.index(name)


def _count(path: Path, line: int, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise InputError(f"{path}, line {line}", cell, "is no count")
    return value


def _iso_seconds(path: Path, rows: list[tuple[int, list[str]]], at: int) -> NDArray[np.float64]:
    stamps = np.empty(len(rows), dtype="datetime64[ns]")
    for position, (line, row) in enumerate(rows):
        cell = row[at].strip()
        try:
            stamps[position] = np.datetime64(_UTC_SUFFIX.sub("", cell), "ns")
        except ValueError:
            raise InputError(f"{path}, line {line}", cell, "is no ISO timestamp in UTC") from None
    if np.isnat(stamps).any():
        raise InputError("timestamps: FILE", path, "holds a stamp that is no time")
    seconds: NDArray[np.float64] = (stamps - stamps.min()).astype(np.int64) / 1e9
    return seconds
