"""The stored OME-Zarr volumes and Neuroglancer's client over HTTP: what a browser needs to look at them.

Shared by `em-assets view`, for one dataset, and `em-assets serve`, for all of them: a volume has the same address
below both, and `em.open` of it knows which voxels are real. Nothing but the objects of volumes and the documents that
say so can be read, and nothing can be written.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from em_assets.blocks.geometry import Nm3
from em_assets.datasets.fields import NAME_PATTERN
from em_assets.neuroglancer import (
    block_box_nm,
    block_state,
    neuroglancer_state,
    neuroglancer_url,
    read_picture,
    read_pictures,
)
from em_assets.records import DatasetFolder, DatasetRecord
from em_assets.serve.metrics import ROUTE
from em_assets.serve.representation import framing
from em_assets.serve.shelf import DATA, data_address
from em_assets.standardize.intensity import INTENSITY
from em_assets.volume import Zyx

Find = Callable[[str], DatasetFolder | None]
"""The folder of a dataset that may be looked at, None of any other."""
ReadRecord = Callable[[DatasetFolder], DatasetRecord | None]
"""The record of a dataset that was found, as it is believed here; None if it has none."""
RECORD = "metadata.json"
DOCUMENTS = re.compile(rf"{re.escape(INTENSITY)}|(volumes/{NAME_PATTERN.strip('^$')}\.)?coverage\.parquet")
"""What `em.open` of a volume's address looks for beside it, besides the record."""
READ_BYTES = 4 * 2**20
SEND_BYTES = 2**20
"""Of which a client has to accept one in the time that `Limits` gives; fewer reads are better, where they are far."""
LONGEST_PATH = 250
"""Bytes of an object's address: far more than a dataset's and a volume's name and a chunk's place have."""
KEEP_ALIVE_SECONDS = 15.0
LOOK_SECONDS = 0.2
"""How often a stream in which nothing happens looks whether the server is to end."""
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".map": "application/json",
    ".json": "application/json",
    ".wasm": "application/wasm",
}


def link(folder: DatasetFolder, origin: str, at_nm: Nm3 | None, shape: Zyx) -> str:
    """What opens the client on a dataset, and on a block of the volume `folder` means if a place is given.

    `origin` is the server's address. Raises as `read_picture`, and Mismatch.
    """
    main, further = read_pictures(folder.further(None), f"{origin}{DATA}")
    if at_nm is None:
        state = neuroglancer_state(main, further)
    else:
        own = main if folder.sub is None else read_picture(folder, "")
        state = block_state(main, block_box_nm(own, at_nm, shape), further)
    return neuroglancer_url(f"{origin}/v/{folder.name}/", state)


def picture_routes(
    find: Find, read_record: ReadRecord, client: Path | None, is_ending: Callable[[], bool]
) -> list[Route]:
    """The client at `/v/NAME/`; below `DATA` the volumes at `NAME.ome.zarr/` and, further ones,
    `NAME/volumes/SUB.ome.zarr/`, and in `NAME/` what `em.open` looks for beside them.

    The client of the wheel is made for Python's server: it takes its state from the link, but wants to live below
    `/v/` and to hold a line open to `/events/`, which ends when `is_ending`.
    """
    files = {file.name: file for file in client.iterdir() if file.is_file()} if client is not None else {}

    def client_file(request: Request) -> Response:
        file = files.get(request.path_params["file"] or "index.html")
        if file is None or find(request.path_params["name"]) is None:
            return Response(status_code=404)
        return Response(file.read_bytes(), media_type=CONTENT_TYPES.get(file.suffix))

    def events(request: Request) -> Response:
        if find(request.path_params["name"]) is None:
            return Response(status_code=404)
        return StreamingResponse(_silent_events(is_ending), media_type="text/event-stream")

    def voxels(request: Request) -> Response:
        raw = request.scope.get("raw_path", b"").lower()
        folder = find(request.path_params["name"])
        # an encoded separator is nobody's honest path, and file systems refuse long names in words of their own
        if folder is None or b"%2f" in raw or b"%5c" in raw or len(raw) > LONGEST_PATH:
            return Response(status_code=404)
        sub = request.path_params.get("sub")
        if sub is not None and not re.fullmatch(NAME_PATTERN, sub):
            return Response(status_code=404)
        volume = folder.further(sub).volume
        return _object_response(folder, f"{volume}/{request.path_params['path']}", request)

    def beside(request: Request) -> Response:
        folder = find(request.path_params["name"])
        document = request.path_params["document"]
        if folder is None:
            return Response(status_code=404)
        return _record_response(folder, read_record) if document == RECORD else _document_response(folder, document)

    return [
        route("/v/{name}/{file:path}", client_file),
        route("/events/{name}", events),
        route(f"{DATA}/{{name}}.ome.zarr/{{path:path}}", voxels),
        route(f"{DATA}/{{name}}/volumes/{{sub}}.ome.zarr/{{path:path}}", voxels),
        route(f"{DATA}/{{name}}/{{document:path}}", beside),  # last: volumes lie below it, too
    ]


def route(path: str, answer: Callable[[Request], Response | Awaitable[Response]]) -> Route:
    """A route for GET and HEAD that tells the metrics its name. Of what streams, HEAD runs nothing: it may not end."""
    name = path.replace(":path", "")

    async def endpoint(request: Request) -> Response:
        request.scope[ROUTE] = name
        if inspect.iscoroutinefunction(answer):
            response: Response = await answer(request)
        else:
            response = await run_in_threadpool(answer, request)  # type: ignore[arg-type]
        if request.method == "HEAD" and isinstance(response, StreamingResponse):
            response.body_iterator = _nothing()
        return response

    return Route(path, endpoint, name=name)


class OnlyHosts:
    """Middleware: answers requests that name this machine alone.

    On loopback a web page elsewhere could otherwise pose as this origin, by a name of its own that leads here.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "*" not in self.hosts:
            given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
            if re.sub(r":[0-9]*$", "", given.lower()) not in self.hosts:
                sentence = f"this server is {self.hosts[0]}, not {given[:80]!r}; ask for it by that name."
                await JSONResponse({"error": sentence}, 400)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _record_response(folder: DatasetFolder, read_record: ReadRecord) -> Response:
    """As it is in the store, but for where that lies on this machine."""
    record = read_record(folder)
    if record is None:
        return Response(status_code=404)
    public = record.model_copy(update={"local_paths": {"volume": data_address(folder)}})
    return Response(public.model_dump_json(indent=1), media_type="application/json")


def _document_response(folder: DatasetFolder, document: str) -> Response:
    """What says which voxels are real, and the statistics."""
    try:
        data = folder.read(document) if DOCUMENTS.fullmatch(document) else None
    except FileNotFoundError:
        data = None
    return Response(status_code=404) if data is None else Response(data, media_type="application/octet-stream")


def _object_response(folder: DatasetFolder, relative: str, request: Request) -> Response:
    """One object of the volume, or a part of it. 404 for what was never written: the viewer shows it as absent."""
    try:
        size = folder.store.size_bytes(folder.path(relative))
    except ValueError:  # `..` and other places outside the volume
        size = None
    if size is None:
        return Response(status_code=404)
    answer = framing(request.method, request.headers, size, _entity_tag(folder, relative, size))
    if answer.status in (304, 416):
        return Response(status_code=answer.status, headers=answer.headers)
    kind = CONTENT_TYPES.get(Path(relative).suffix, "application/octet-stream")
    return StreamingResponse(_pieces(folder, relative, answer.part), answer.status, answer.headers, kind)


def _pieces(folder: DatasetFolder, relative: str, part: range) -> Iterator[bytes]:
    for start in range(part.start, part.stop, READ_BYTES):
        data = folder.store.read_range(folder.path(relative), start, min(READ_BYTES, part.stop - start))
        for at in range(0, len(data), SEND_BYTES):
            yield data[at : at + SEND_BYTES]


def _entity_tag(folder: DatasetFolder, relative: str, size_bytes: int) -> str:
    """Changes with the object; on S3, with the dataset's commit."""
    file = folder.store.local_path(folder.path(relative))
    if file is not None:
        return f'"{file.stat().st_mtime_ns:x}-{size_bytes:x}"'
    record = folder.read_record()
    version = (record.sha256 or record.timestamp.isoformat()) if record is not None else "unknown"
    return f'"{version[:32]}-{size_bytes:x}"'


async def _nothing() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for piece in nothing:
        yield piece


async def _silent_events(is_ending: Callable[[], bool]) -> AsyncIterator[bytes]:
    """An event stream in which nothing happens: without one the client tells its user that it lost its server."""
    while not is_ending():
        yield b":\n\n"
        quiet_until = time.monotonic() + KEEP_ALIVE_SECONDS
        while time.monotonic() < quiet_until and not is_ending():  # noqa: ASYNC110  # a signal handler ends it
            await asyncio.sleep(LOOK_SECONDS)
