"""Logging as data: one structured line per fact, JSON for machines and readable columns for a terminal."""

import logging
import sys
from typing import Any

import structlog

from common.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")


def configure(service: str, level: str = "info", *, json: bool | None = None) -> None:
    """Send structlog to stderr at ``level``; ``json`` None means: unless stderr is a terminal, which has colours.

    Raises ConfigError for a level that is none of ``LEVELS``.
    """
    if level not in LEVELS:
        raise ConfigError(f"log level {level!r}: expected one of {', '.join(LEVELS)}")
    terminal = sys.stderr.isatty()
    as_json = not terminal if json is None else json
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=structlog.dev.plain_traceback)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if as_json else _keep,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)


def _keep(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    return event


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of one module; cheap, lazy until its first line."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=name)
    return logger
