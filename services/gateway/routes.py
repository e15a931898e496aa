"""Every endpoint but inference: what the server is, how it is, and which models it has."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import orjson
from prometheus_client import CONTENT_TYPE_LATEST

from common.errors import NotFound, Unavailable
from services.gateway import openapi
from services.gateway.http import JSON, MethodNotAllowed, Request, Response
from services.gateway.model import VERSION
from services.gateway.static import Page

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from common.overview import Document
    from services.gateway.history import History
    from services.gateway.link import ModelLink
    from services.gateway.metrics import Metrics
    from services.gateway.model import Model

SERVER_NAME = "superserve"
EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics", "parameters", "schedule_policy"]
_METRICS_TYPE = {"Content-Type": CONTENT_TYPE_LATEST}


class Target(NamedTuple):
    """A path below a model."""

    link: ModelLink
    verb: str  # "" for the model itself


class Routes:
    """Answers GET requests; ``links``: the models known by name. ``version``: the distribution's.

    ``overview`` returns the document of ``common.overview``; ``history``: its samples.
    """

    def __init__(
        self,
        links: Mapping[str, ModelLink],
        metrics: Metrics,
        version: str,
        max_slo_ms: float,
        overview: Callable[[], Document],
        history: History,
    ) -> None:
        self._links = links
        self._metrics = metrics
        self._version = version
        described = _json(openapi.document(version, max_slo_ms))
        page = Page()
        self._fixed: dict[str, tuple[str, Callable[[Request], Response]]] = {
            "/v2": ("GET", self._server),
            "/v2/health/live": ("GET", lambda _: _json({"live": True})),
            "/v2/health/ready": ("GET", self._ready),
            "/v2/overview": ("GET", lambda _: _json(overview())),
            "/v2/overview/history": ("GET", lambda asked: Response(200, history.after(asked.query))),
            "/v2/models": ("GET", lambda _: _json({"models": self._index()})),
            "/v2/models/stats": ("GET", lambda _: _json({"model_stats": [self._stats(name) for name in self._links]})),
            "/v2/repository/index": ("POST", lambda _: _json(self._index())),
            "/openapi.json": ("GET", lambda _: described),
            **{path: ("GET", partial(page.serve, path)) for path in page.paths},
            "/metrics": ("GET", lambda _: Response(200, self._metrics.exposition(), _METRICS_TYPE)),
        }
        self._of_model: dict[str, Callable[[ModelLink], Response]] = {
            "": lambda link: _json(_described(link).metadata()),
            "ready": _model_ready,
            "config": lambda link: _json(_described(link).config()),
            "stats": lambda link: _json({"model_stats": [self._stats(link.name)]}),
        }

    def answer(self, request: Request) -> Response:
        """Return the response; NotFound or MethodNotAllowed if there is none."""
        path = unquote(request.path)
        if (route := self._fixed.get(path.rstrip("/") if path != "/" else path)) is not None:
            method, respond = route
            _allow(request, method)
            return respond(request)
        target = self._target(path)
        if target.verb == "infer":
            _allow(request, "POST")
        if target.verb not in self._of_model:
            raise NotFound(f"no route {path[:200]!r}")
        _allow(request, "GET")
        return self._of_model[target.verb](target.link)

    def _target(self, path: str) -> Target:
        """Return which model a path names, and what of it; NotFound if it is none."""
        root, *parts = path.strip("/").split("/")
        if root != "v2" or len(parts) < 2 or parts[0] != "models":
            raise NotFound(f"no route {path[:200]!r}; see /v2")
        name, parts = parts[1], parts[2:]
        version = VERSION
        if parts[:1] == ["versions"] and len(parts) > 1:
            version, parts = parts[1], parts[2:]
        link = self.model(name, version)
        return Target(link, "/".join(parts))

    def model(self, name: str, version: str) -> ModelLink:
        """Return a model by its name; NotFound if there is none, or none of this version."""
        link = self._links.get(name)
        if link is None:
            known = ", ".join(sorted(self._links)) or "none"
            raise NotFound(f"no model {name[:200]!r}; known models: {known}")
        if version != VERSION:
            raise NotFound(f"model {name!r} has no version {version[:40]!r}, only {VERSION!r}")
        return link

    def inferring(self, request: Request) -> ModelLink | None:
        """Return the model that a request wants inference from, however its path is spelt; NotFound as ``answer``."""
        if request.method != "POST" or not request.path.rstrip("/").endswith("/infer"):
            return None
        target = self._target(unquote(request.path))
        return target.link if target.verb == "infer" else None

    # -- fixed paths --------------------------------------------------------------------------------------------------

    def _server(self, _: Request) -> Response:
        return _json({"name": SERVER_NAME, "version": self._version, "extensions": EXTENSIONS})

    def _ready(self, _: Request) -> Response:
        ready = any(link.unavailable is None for link in self._links.values())
        return _json({"ready": ready}, 200 if ready else 503)

    def _index(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "version": VERSION,
                "state": "UNAVAILABLE" if link.unavailable else "READY",
                "reason": link.unavailable or "",
            }
            for name, link in sorted(self._links.items())
        ]

    def _stats(self, name: str) -> dict[str, Any]:
        return self._metrics.of(name).statistics(name)


def _model_ready(link: ModelLink) -> Response:
    ready = link.unavailable is None
    return _json({"name": link.name, "ready": ready}, 200 if ready else 503)


def _described(link: ModelLink) -> Model:
    if link.model is None:
        raise Unavailable(link.unavailable or f"model {link.name!r} is not known yet")
    return link.model


def _allow(request: Request, method: str) -> None:
    given = request.method
    if given != method and not (method == "GET" and given == "HEAD"):
        allow = "GET, HEAD" if method == "GET" else method
        raise MethodNotAllowed(f"{given} is not allowed here, only {allow}", allow)


def _json(document: Any, status: int = 200) -> Response:
    return Response(status, orjson.dumps(document), JSON)
