"""The service's addresses: datasets, blocks, volumes, the viewer, what it does and how it is asked. Read-only.

Every refusal is one sentence as `{"error": ...}`, but for objects of a volume that are not there. `build_app` is the
whole application; who it listens to and for how long is in `__init__.py`.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from em_assets.errors import EmAssetsError, Malformed, Mismatch, Unavailable, Unsupported
from em_assets.records import DatasetFolder, DatasetRecord
from em_assets.serve import block
from em_assets.serve.limits import Busy, Gate, Limits
from em_assets.serve.metrics import CONTENT_TYPE, Counted, Metrics
from em_assets.serve.openapi import document
from em_assets.serve.parameters import LONGEST_QUERY, BadRequest, parse_block, parse_nothing, parse_view
from em_assets.serve.pictures import OnlyHosts, link, picture_routes, route
from em_assets.serve.representation import chosen_coding
from em_assets.serve.shelf import Entry, NotServed, Shelf

LOOPBACK_ORIGINS = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?"
"""Pages that this machine serves itself, such as a notebook's."""
EXPOSED_HEADERS = (
    *block.DESCRIBING,
    *("ETag", "Accept-Ranges", "Content-Range", "Content-Length", "Content-Encoding", "Retry-After"),
)
ASKED_HEADERS = ("Range", "If-Range", "If-None-Match")
PREFLIGHT_SECONDS = 600


class Service:
    """What the addresses answer."""

    def __init__(self, shelf: Shelf, limits: Limits, *, has_client: bool) -> None:
        self.shelf, self.gate, self.metrics = shelf, Gate(limits), Metrics()
        self.has_client = has_client

    def home(self, request: Request) -> Response:
        parse_nothing(request.query_params.multi_items())
        links = {
            "datasets": "/v1/datasets",
            "openapi": "/openapi.json",
            "metrics": "/metrics",
            "health": "/healthz",
        }
        return JSONResponse({"name": "em_assets", "links": links})

    def datasets(self, request: Request) -> Response:
        parse_nothing(request.query_params.multi_items())
        return JSONResponse({"datasets": [entry.describe() for entry in self.shelf.entries()]})

    def dataset(self, request: Request) -> Response:
        parse_nothing(request.query_params.multi_items())
        entry = self._entry(request)
        volume = self.shelf.volume(entry)
        levels = [
            {
                "level": level.number,
                "shape": list(level.grid.shape),
                "voxel_size_nm": list(level.grid.voxel_size_nm),
                "corner_nm": list(level.grid.corner_nm),
                "chunk": list(level.chunk),
            }
            for level in volume.levels
        ]
        box_nm = {"start": list(volume.box_nm.start), "stop": list(volume.box_nm.stop)}
        about = {"content": volume.content, "axes": "zyx", "box_nm": box_nm, "levels": levels}
        return JSONResponse(entry.describe() | about)

    async def voxels(self, request: Request) -> Response:
        asked = parse_block(request.query_params.multi_items())
        limits = self.gate.limits
        block.check_size(asked, limits.voxels)
        coding = chosen_coding(", ".join(request.headers.getlist("accept-encoding")) or None)
        if coding is None:
            raise HTTPException(406, "no coding is left that may be sent: accept identity, gzip or zstd.")

        def work() -> block.Answer:
            entry = self._entry(request)
            labels = self.shelf.entry(*asked.labels.split("/")) if asked.labels is not None else None
            volume, other = self.shelf.volume(entry), self.shelf.volume(labels) if labels is not None else None
            try:
                return block.read(asked, volume, other, coding, limits)
            except (Malformed, Unavailable):  # moved, or staged anew, since it was opened?
                self.shelf.forget(entry)
                raise

        return await block.respond(request, self.gate, work, self._note)

    def _note(self, answer: block.Answer) -> None:
        self.metrics.voxels += answer.voxels

    def view(self, request: Request) -> Response:
        at_nm, shape = parse_view(request.query_params.multi_items())
        if not self.has_client:
            raise HTTPException(404, "the viewer is not installed here: `pip install 'em_assets[view]'` brings it.")
        # as the browser calls this server: through a forwarded port the address is another one than here
        origin = str(request.base_url).rstrip("/")
        return RedirectResponse(link(self._entry(request).folder, origin, at_nm, shape), 302)

    def openapi(self, request: Request) -> Response:
        parse_nothing(request.query_params.multi_items())
        return JSONResponse(document(self.gate.limits))

    async def measured(self, request: Request) -> Response:
        gauges = {
            "em_assets_block_requests_in_flight": ("Blocks being read, waited for or sent.", self.gate.inside),
            "em_assets_block_reads_in_flight": ("Blocks being read and packed.", self.gate.reading),
        }
        return Response(self.metrics.text(gauges), headers={"content-type": CONTENT_TYPE})

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    def find(self, name: str) -> DatasetFolder | None:
        """A dataset whose volumes may be looked at."""
        try:
            return self.shelf.entry(name).folder
        except NotServed:
            return None

    def record(self, folder: DatasetFolder) -> DatasetRecord | None:
        try:
            return self.shelf.entry(folder.name).record
        except NotServed:  # since it was found
            return None

    def _entry(self, request: Request) -> Entry:
        return self.shelf.entry(request.path_params["name"], request.path_params.get("sub"))


def build_app(
    shelf: Shelf,
    limits: Limits,
    client: Path | None,
    *,
    allowed_hosts: Sequence[str],
    cors_origins: Sequence[str] = (),
    is_ending: Callable[[], bool] = lambda: False,
) -> Starlette:
    """The ASGI application. `client` is Neuroglancer's (None: no viewer), `is_ending` ends what would go on for ever.

    Pages of `cors_origins` (`*`: all) may read answers, and so may those that this machine itself serves.
    """
    service = Service(shelf, limits, has_client=client is not None)
    routes = [
        route("/", service.home),
        route("/healthz", service.health),
        route("/metrics", service.measured),
        route("/openapi.json", service.openapi),
        route("/v1/datasets", service.datasets),
        route("/v1/datasets/{name}/block", service.voxels),
        route("/v1/datasets/{name}/{sub}/block", service.voxels),
        route("/v1/datasets/{name}", service.dataset),
        route("/v1/datasets/{name}/{sub}", service.dataset),
        route("/view/{name}", service.view),
        route("/view/{name}/{sub}", service.view),
        *picture_routes(service.find, service.record, client, is_ending),
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(cors_origins),
        allow_origin_regex=LOOPBACK_ORIGINS,
        allow_methods=["GET", "HEAD"],
        allow_headers=list(ASKED_HEADERS),
        expose_headers=list(EXPOSED_HEADERS),
        max_age=PREFLIGHT_SECONDS,
    )
    middleware = [
        Middleware(Counted, metrics=service.metrics),
        Middleware(OnlyHosts, hosts=allowed_hosts),
        cors,
        Middleware(ShortQueries),
    ]
    handlers: dict[Any, Any] = {
        HTTPException: refused,
        BadRequest: lambda _, error: _said(400, error),
        block.TooLarge: lambda _, error: _said(413, error),
        NotServed: lambda _, error: _said(409 if error.is_known else 404, error),
        Busy: _busy(service),
        EmAssetsError: explained,
        Exception: broken,
    }
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


class ShortQueries:
    """Middleware: refuses a query that is longer than any that means something."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and len(scope["query_string"]) > LONGEST_QUERY:
            error = f"the query has {len(scope['query_string'])} characters, more than {LONGEST_QUERY}; shorten it."
            await JSONResponse({"error": error}, 414)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def refused(request: Request, error: HTTPException) -> Response:
    """What no address answers, in a sentence as well."""
    path = request.url.path[:80]
    sentences = {
        404: f"there is nothing at {path!r}; /openapi.json says what there is.",
        405: f"{path!r} can be read with GET and HEAD, and nothing can be changed.",
    }
    known = error.detail in ("Not Found", "Method Not Allowed")
    sentence = sentences.get(error.status_code, error.detail) if known else error.detail
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


def explained(_: Request, error: EmAssetsError) -> Response:
    """422: such a request has no answer here. 503: not now. 500: what is stored is damaged."""
    if isinstance(error, Unavailable):
        return _said(503, error, {"retry-after": "5"})
    status = 422 if isinstance(error, Mismatch | Unsupported) else 500
    return _said(status, error)


def broken(request: Request, error: Exception) -> Response:
    """A fault of ours: told here in full, and out there that it happened."""
    sys.stderr.write("".join(traceback.format_exception(error)))
    return JSONResponse({"error": f"{request.url.path[:80]} failed for a reason that this server has noted."}, 500)


def _busy(service: Service) -> Callable[[Request, Exception], Response]:
    def answer(_: Request, error: Exception) -> Response:
        service.metrics.refused += 1
        return _said(503, error, {"retry-after": str(service.gate.limits.retry_seconds)})

    return answer


def _said(status: int, error: Exception, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": " ".join(str(error).split())}, status, headers)
