"""What passes between the HTTP server and its handler: requests, responses, and errors as responses."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

import orjson

from common.errors import ClientError, SuperServeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.gateway.connection import Connection

JSON = b"content-type: application/json\r\n"
STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}


class MethodNotAllowed(ClientError):
    """The route exists, for other methods."""

    status = 405

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(ClientError):
    """The request did not arrive in time."""

    status = 408


class HeadersTooLarge(ClientError):
    """Request line and headers exceed what a connection keeps."""

    status = 431


class Response(NamedTuple):
    """What a handler answers; ``headers`` are whole lines, each with its CRLF, without length and connection."""

    status: int
    body: bytes
    headers: bytes = JSON


class Request:
    """One request, whole; header names are in lower case."""

    __slots__ = (
        "_connection", "body", "chunks", "headers", "keep_alive", "method", "on_left", "path", "query", "refusal",
        "size", "target", "version",
    )  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection | None = connection
        self.method = b""
        self.target = b""  # as sent; ``path`` and ``query`` are its parts
        self.path = b""
        self.query = b""
        self.version = "1.1"
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.chunks: list[bytes] = []  # of a body that is still coming
        self.size = 0
        self.keep_alive = False
        self.refusal: SuperServeError | None = None  # set by the connection: no handler shall see this request
        self.on_left: Callable[[], object] | None = None  # set by the handler: the client left before its answer

    def respond(self, response: Response) -> None:
        """Answer; does nothing if the client has left."""
        if (connection := self._connection) is not None:
            self._connection = None
            connection.answer(self, response)

    def left(self) -> None:
        """Tell the handler that nobody waits for the answer any more."""
        self._connection = None
        if self.on_left is not None:
            self.on_left()


def error_response(error: SuperServeError) -> Response:
    """Return the protocol's ``{"error": ...}`` with the error's status and the headers that belong to it."""
    headers = JSON
    if isinstance(error, MethodNotAllowed):
        headers += b"allow: %s\r\n" % error.allow.encode()
    elif (retry_after_s := getattr(error, "retry_after_s", None)) is not None:
        headers += b"retry-after: %d\r\n" % retry_after_s
    return Response(error.status, orjson.dumps({"error": error.message}), headers)
