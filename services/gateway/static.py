"""The live page at ``/``: files that are read once and served as they are; nothing beside them can be reached."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from services.gateway.bodies import deflate
from services.gateway.http import Response

if TYPE_CHECKING:
    from services.gateway.http import Request

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
}
# blob: is the picture that a person chose, shown beside its answer.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class File(NamedTuple):
    """A file of the page, and what is said of it."""

    body: bytes
    headers: dict[str, str]


class Page:
    """The page's files by their paths: its text at ``/``, the others under ``/page/``."""

    def __init__(self) -> None:
        self._files = {_path(file.name): _read(file) for file in sorted(FOLDER.iterdir())}

    @property
    def paths(self) -> list[str]:
        """All paths that ``serve`` knows."""
        return list(self._files)

    def serve(self, path: str, request: Request) -> Response:
        """Return a file, or 304 if the client has it."""
        body, headers = self._files[path]
        known = request.headers.get("If-None-Match", "")
        if headers["ETag"] in {tag.strip() for tag in known.split(",")}:
            return Response(304, b"", headers)
        return deflate(Response(200, body, headers), request.headers.get("Accept-Encoding", ""))


def _path(name: str) -> str:
    return "/" if name == INDEX else f"/page/{name}"


def _read(path: Path) -> File:
    body = path.read_bytes()
    headers = {
        "Content-Type": TYPES[path.suffix],
        "ETag": f'W/"{hashlib.sha256(body).hexdigest()[:16]}"',  # weak: the same file, compressed or not
        "Cache-Control": "no-cache",  # kept, and asked for again: a gateway that was updated shows its own page
        "Vary": "Accept-Encoding",
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return File(body, headers)
