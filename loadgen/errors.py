"""What can go wrong before a run; during a run nothing raises, failures are counted.

LoadgenError                exit code 1
+-- InputError              2  a SPEC, option or file that cannot be used: names its key and value
+-- MissingExtraError       2  a feature whose optional package is not installed
+-- ServerError             3  the server cannot take the load
    +-- UnreachableError       nothing that speaks HTTP answers at the URL
    +-- NotReadyError          the server or the model says that it is not ready
    +-- ModelNotFoundError     the server does not have the model
"""

from __future__ import annotations


class LoadgenError(Exception):
    """Base of every error that a user is shown as one line."""

    exit_code = 1


class InputError(LoadgenError):
    """`key` had `value`, which cannot be used because of `why`."""

    exit_code = 2

    def __init__(self, key: str, value: object, why: str) -> None:
        super().__init__(f"{key}={value}: {why}")
        self.key = key
        self.value = value
        self.why = why

    def __reduce__(self) -> tuple[type[InputError], tuple[str, object, str]]:
        """Travel between processes: a pool waits for ever for an error that cannot be made again."""
        return type(self), (self.key, self.value, self.why)


class MissingExtraError(LoadgenError):
    """`package` is not installed; the distribution's `extra` brings it."""

    exit_code = 2

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'superserve-mesh[{extra}]'")
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Travel between processes, as `InputError` does."""
        return type(self), (self.package, self.extra)


class ServerError(LoadgenError):
    """The server cannot take the load."""

    exit_code = 3


class UnreachableError(ServerError):
    """Nothing that speaks HTTP answers at the URL."""


class NotReadyError(ServerError):
    """The server, or the model on it, says that it is not ready."""


class ModelNotFoundError(ServerError):
    """The server does not have the model."""
