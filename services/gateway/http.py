"""What passes between the HTTP server and its handler: requests, responses, and errors as responses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import orjson

from common.errors import ClientError, SuperServeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from services.gateway.watch import Call

JSON: Mapping[str, str] = {"Content-Type": "application/json"}


class MethodNotAllowed(ClientError):
    """The route exists, for other methods."""

    status = 405

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(ClientError):
    """The request did not arrive in time."""

    status = 408


class Response(NamedTuple):
    """What a handler answers; ``headers`` without length and connection."""

    status: int
    body: bytes
    headers: Mapping[str, str] = JSON


class Request:
    """One request, whole. Its handler calls ``respond`` once: at once, or from any later callback."""

    __slots__ = ("body", "headers", "method", "on_left", "path", "query", "response", "watched")

    def __init__(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> None:
        self.method = method
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        self.body = body
        self.response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.watched: Call | None = None  # set by the handler if it is to be told of beside its answer
        self.on_left: Callable[[], object] | None = None  # set by the handler: the client left before its answer

    def respond(self, response: Response) -> None:
        """Answer; does nothing if the client has left."""
        # Breaks the cycle request -> on_left -> query -> done -> request, else only the collector frees all four.
        self.on_left = None
        if not self.response.done():
            self.response.set_result(response)

    def left(self) -> None:
        """Tell the handler that nobody waits for the answer any more."""
        on_left, self.on_left = self.on_left, None
        if on_left is not None:
            on_left()


def error_response(error: SuperServeError) -> Response:
    """Return the protocol's ``{"error": ...}`` with the error's status and the headers that belong to it."""
    headers = dict(JSON)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allow
    elif (retry_after_s := getattr(error, "retry_after_s", None)) is not None:
        headers["Retry-After"] = str(retry_after_s)
    return Response(error.status, orjson.dumps({"error": error.message}), headers)
