"""What can go wrong, whose fault it is, and which HTTP status says so.

::

    SuperServeError
    ├── ConfigError              a setting, flag or file at start: exit code 2, no HTTP status of its own
    ├── ClientError              the caller's fault: changing the request helps
    │   ├── BadRequest           400  malformed or contradictory input
    │   ├── NotFound             404  no such model, version or route
    │   ├── PayloadTooLarge      413
    │   ├── UnsupportedMediaType 415
    │   └── Overloaded           429  the bounded queue is full: try later, or elsewhere
    └── ServerError              not the caller's fault
        ├── Unavailable          503  no worker, no scheduler or no Redis; Retry-After says when to ask again
        └── DeadlineExceeded     504  the deadline passed, or cannot be met any more

A message names the field and the offending value. Bodies are ``{"error": message}``, as the Open Inference Protocol
has it.
"""


class SuperServeError(Exception):
    """Root of all errors that the project raises on purpose."""

    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigError(SuperServeError):
    """A setting, flag or file is wrong: the process must not start."""


class ClientError(SuperServeError):
    """The request is at fault."""

    status = 400


class BadRequest(ClientError):
    """The input is malformed; the message names the field."""


class NotFound(ClientError):
    """No such model, version or route."""

    status = 404


class PayloadTooLarge(ClientError):
    """The body exceeds the configured limit."""

    status = 413


class UnsupportedMediaType(ClientError):
    """The body's content type is none that the endpoint reads."""

    status = 415


class Overloaded(ClientError):
    """Admission refused: the bounded queue is full."""

    status = 429
    retry_after_s = 1


class ServerError(SuperServeError):
    """The service cannot answer; the request was fine."""


class Unavailable(ServerError):
    """No worker, no scheduler or no Redis at the moment."""

    status = 503
    retry_after_s = 1


class DeadlineExceeded(ServerError):
    """The query's deadline passed, or no subnet can meet it any more."""

    status = 504
