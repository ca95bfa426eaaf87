"""Looking at stored volumes: Neuroglancer's states and links, and a small server of its client and the voxels.

`em-assets view` serves both on one loopback origin, from a folder or from S3; nothing but the dataset's own volumes
can be read, and nothing leaves the machine. `hosted_url` needs no server: it opens the publisher's own volume.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from em_assets.datasets.fields import NAME_PATTERN
from em_assets.datasets.source import FilesSource, PrecomputedSource
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import EmAssetsError, Malformed, Unavailable, Unsupported
from em_assets.records import DatasetFolder, DatasetRecord, PartitionRecord, VoxelStatistics
from em_assets.volume import Box, VoxelSize, Zyx, zyx

if TYPE_CHECKING:
    from socket import socket

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOSTED_CLIENT = "https://neuroglancer-demo.appspot.com"
FRAGMENT_SAFE = "~@$&()*!+=:;,.?/'"
LOOPBACK = "127.0.0.1"
LOCAL = (LOOPBACK, "localhost")
VIEW_EXTRA = ("neuroglancer", "starlette", "uvicorn")
NANOMETRES = {"nanometer": 1.0, "micrometer": 1e3, "angstrom": 0.1}
LABEL_PYRAMID = "nearest"
"""The multiscale's `type` of volumes whose coarser levels are voxels of the finer ones: labels."""
SAMPLED_RECORDS = 64
"""Shards whose statistics decide the contrast: enough of them, and few requests to S3."""
SPREAD = 3.0
"""Standard deviations around the mean that are shown from black to white."""
PANEL_PIXELS = 400
SEND_BYTES = 4 * 2**20
KEEP_ALIVE_SECONDS = 15.0
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".map": "application/json",
    ".json": "application/json",
    ".wasm": "application/wasm",
}


# States and links


@dataclass(frozen=True, slots=True)
class Picture:
    """A volume as a Neuroglancer state shows it."""

    name: str
    source: str
    """As Neuroglancer takes it: `zarr3://http://...`, `precomputed://https://...`."""
    voxel_size_nm: VoxelSize
    box: Box | None
    """What to look at, in voxels of this size in the frame of the source; None: let Neuroglancer choose."""
    value_range: tuple[float, float] | None = None
    """Shown from black to white; None: the whole range of the dtype."""
    outlined: bool = False
    """Draw the box: it is a part of something larger."""
    is_labels: bool = False
    """Each value in a colour of its own, 0 clear."""
    corner_nm: VoxelSize = (0.0, 0.0, 0.0)
    """(z, y, x) place of the corner of voxel (0, 0, 0) in the frame of the source."""


def neuroglancer_state(picture: Picture, further: Sequence[Picture] = ()) -> dict[str, Any]:
    """The state that shows a picture in four panels, as a whole and centred, at its right scale.

    The `further` ones lie where their sources say, labels over the picture, images hidden until they are asked for.
    Axes are listed x, y, z: Neuroglancer draws the first to the right and the second down.
    """
    dimensions = {axis: [size * 1e-9, "m"] for axis, size in zip("xyz", reversed(picture.voxel_size_nm), strict=True)}
    hidden = [_layer(other) | ({} if other.is_labels else {"visible": False}) for other in further]
    state: dict[str, Any] = {"dimensions": dimensions, "layers": [_layer(picture), *hidden], "layout": "4panel"}
    state["selectedLayer"] = {"layer": picture.name, "visible": False}
    if picture.box is None:
        return state
    lengths = zip(picture.box.shape, picture.voxel_size_nm, strict=True)
    longest = max(length * size for length, size in lengths) / min(picture.voxel_size_nm)
    start, stop = _in_frame(picture, picture.box.start), _in_frame(picture, picture.box.stop)
    state |= {
        "position": [(a + b) / 2 for a, b in zip(start, stop, strict=True)],
        # both count voxels (of the smallest side): per pixel, and per height of the panel
        "crossSectionScale": max(longest / PANEL_PIXELS, 0.05),
        "projectionScale": longest * 1.5,
    }
    if picture.outlined:
        state["layers"].append(_outline_layer(start, stop, dimensions))
    return state


def _in_frame(picture: Picture, place: Zyx) -> list[float]:
    """A corner of a voxel as Neuroglancer counts: x, y, z, in voxels from the origin of the source's frame."""
    shifts = zip(place, picture.corner_nm, picture.voxel_size_nm, strict=True)
    return [n + corner / size for n, corner, size in shifts][::-1]


def neuroglancer_url(client_url: str, state: dict[str, Any]) -> str:
    """The link that opens a state in the client at `client_url` (which ends with `/`)."""
    text = json.dumps(state, separators=(",", ":"))
    return f"{client_url}#!{quote(text, safe=FRAGMENT_SAFE)}"


def hosted_url(spec: DatasetSpec, record: DatasetRecord | None) -> str | None:
    """A link to the publisher's own volume at the place of the crop, in the public Neuroglancer. No server needed.

    None where files are published: Neuroglancer reads none of them.
    """
    main = _published(spec, None)
    if main is None:
        return None
    # Neuroglancer counts an N5 volume from its own corner, whatever its attributes translate
    corner_nm = record.corner_nm if record is not None and spec.source.kind != "n5" else None
    picture = Picture(
        name=spec.publisher,
        source=main,
        voxel_size_nm=spec.voxel_size_nm,
        box=record.source_box if record is not None else None,
        outlined=spec.crop is not None,
        is_labels=spec.content == "labels",
        corner_nm=corner_nm or (0.0, 0.0, 0.0),
    )
    others = [
        Picture(f"{spec.name}/{name}", source, volume.voxel_size_nm, None, is_labels=volume.content == "labels")
        for name, volume in spec.volumes.items()
        if (source := _published(spec, name)) is not None
    ]
    return neuroglancer_url(f"{HOSTED_CLIENT}/", neuroglancer_state(picture, others))


def _published(spec: DatasetSpec, name: str | None) -> str | None:
    """Where the publisher serves one of the dataset's volumes (None: the main one), as Neuroglancer takes it."""
    source = spec.source
    if isinstance(source, PrecomputedSource):
        return f"precomputed://{source.url}"
    if isinstance(source, FilesSource):
        return None
    from em_assets.sources.chunked import container_url, joined

    group = source.group if name is None else spec.volumes[name].group or ""
    return f"{source.kind}://{joined(container_url(source), quote(group))}"


def _layer(picture: Picture) -> dict[str, Any]:
    layer = {"type": "segmentation" if picture.is_labels else "image", "source": picture.source, "name": picture.name}
    if picture.is_labels:
        return layer
    limits = "" if picture.value_range is None else "(range=[{:.12g},{:.12g}])".format(*picture.value_range)
    shader = f"#uicontrol invlerp normalized{limits}\nvoid main(){{emitGrayscale(normalized());}}"
    return layer | {"shader": shader}


def _outline_layer(start: list[float], stop: list[float], dimensions: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "annotation",
        "name": "crop",
        "source": {"url": "local://annotations", "transform": {"outputDimensions": dimensions}},
        "annotations": [{"type": "axis_aligned_bounding_box", "id": "crop", "pointA": start, "pointB": stop}],
    }


def read_pictures(folder: DatasetFolder, origin: str) -> tuple[Picture, list[Picture]]:
    """The dataset's main volume, and its further ones as far as they are stored, as `build_app` serves them.

    `origin` is the address of the server. Raises as `read_picture`.
    """
    main = read_picture(folder, f"zarr3://{origin}/{folder.name}.ome.zarr/")
    record = folder.read_record()
    names = record.volumes if record is not None else ()
    further = [
        read_picture(volume, f"zarr3://{origin}/{folder.name}/{volume.volume}/")
        for volume in (folder.further(name) for name in names if re.fullmatch(NAME_PATTERN, name))
        if volume.store.size_bytes(volume.path(f"{volume.volume}/zarr.json")) is not None
    ]
    return main, further


def read_picture(folder: DatasetFolder, source: str) -> Picture:
    """The folder's stored volume as its own OME-Zarr 0.5 metadata and records describe it.

    Raises Unavailable if there is no whole volume, Malformed if its metadata is not what OME-Zarr 0.5 asks for.
    """
    where = f"{folder.volume}/zarr.json"
    try:
        multiscale = json.loads(folder.read(where))["attributes"]["ome"]["multiscales"][0]
        finest = multiscale["datasets"][0]
        where = f"{folder.volume}/{finest['path']}/zarr.json"
        array = json.loads(folder.read(where))
        shape, is_float = zyx(array["shape"]), array["data_type"].startswith("float")
        size_nm, start, corner_nm = _place(multiscale)
        is_labels = multiscale.get("type") == LABEL_PYRAMID and not is_float
    except FileNotFoundError:
        raise Unavailable(f"{folder.uri(where)} is not there: {_why_not(folder)}") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(
            f"{folder.uri(where)} is not the metadata of an OME-Zarr 0.5 volume ({type(error).__name__}: {error}); "
            f"remove it and run `em-assets get {folder.name}`."
        ) from None
    limits = value_range(folder)
    if limits is not None and not is_float:
        limits = (math.floor(limits[0]), math.ceil(limits[1]))
    box = Box.from_shape(shape, at=start)
    return Picture(folder.title, source, size_nm, box, limits, is_labels=is_labels, corner_nm=corner_nm)


def _place(multiscale: Any) -> tuple[VoxelSize, Zyx, VoxelSize]:
    """Of level 0: its voxel size, its first voxel, and where the corner of voxel (0, 0, 0) would be, in nanometres."""
    units = [NANOMETRES[axis["unit"]] for axis in multiscale["axes"]]
    transformations = {
        item["type"]: item[item["type"]] for item in multiscale["datasets"][0]["coordinateTransformations"]
    }
    scale = [float(value) for value in transformations["scale"]]
    # a translation is the centre of the first voxel; boxes are counted from corners
    centre = transformations.get("translation", [value / 2 for value in scale])
    places = [t / s for t, s in zip(centre, scale, strict=True)]
    start = zyx([math.floor(place) for place in places])
    z, y, x = (s * unit for s, unit in zip(scale, units, strict=True))
    rest = (round(place - 0.5 - n, 6) for place, n in zip(places, start, strict=True))
    corner_z, corner_y, corner_x = (r * size for r, size in zip(rest, (z, y, x), strict=True))
    return (z, y, x), start, (corner_z, corner_y, corner_x)


def value_range(folder: DatasetFolder) -> tuple[float, float] | None:
    """Most of the grey values, from the statistics taken when the voxels were written; None if there are none."""
    found = [record.statistics for record in _some_records(folder) if record.statistics is not None]
    voxels = sum(one.voxels for one in found)
    if not voxels:
        return None
    mean = sum(one.mean * one.voxels for one in found) / voxels
    variance = sum(_second_moment(one) * one.voxels for one in found) / voxels - mean**2
    spread = SPREAD * math.sqrt(max(variance, 0.0))
    low = max(mean - spread, min(one.minimum for one in found))
    high = min(mean + spread, max(one.maximum for one in found))
    return (low, high) if low < high else None


def _second_moment(statistics: VoxelStatistics) -> float:
    return statistics.standard_deviation**2 + statistics.mean**2


def _some_records(folder: DatasetFolder) -> Iterator[PartitionRecord]:
    """Records of level 0, evenly spread over the volume."""
    prefix = folder.path(folder.record_path(0, "")).rpartition("/")[0]
    paths = sorted(path for path, _ in folder.store.list(prefix) if "/" not in path.removeprefix(f"{prefix}/"))
    for path in itertools.islice(paths, 0, None, max(1, -(-len(paths) // SAMPLED_RECORDS))):
        try:
            yield PartitionRecord.model_validate_json(folder.store.read(path))
        except (ValueError, FileNotFoundError):
            continue  # of another version, or just replaced: the contrast does without it


def _why_not(folder: DatasetFolder) -> str:
    record = folder.read_record()
    if record is None:
        return f"download it with `em-assets get {folder.name}`."
    if record.status == "complete" and "volume" not in record.local_paths:
        return (
            f"{folder.name} keeps the publisher's files only, in {folder.uri('original')}; set `keep: both` in its "
            f"spec and run `em-assets get {folder.name}`."
        )
    reason = f" ({record.status_reason})" if record.status_reason else ""
    return f"{folder.name} is {record.visible_status}{reason}; finish it with `em-assets get {folder.name}`."


# The server


def view(
    folder: DatasetFolder,
    *,
    host: str = LOOPBACK,
    port: int = 0,
    open_browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serves one dataset's volumes with Neuroglancer's client until it is interrupted.

    Raises Unavailable if there is nothing to show or the port is taken, Unsupported if the extra `view` is missing.
    """
    client = client_folder()
    read_pictures(folder, "")  # nothing to show is said here, not in the browser
    import uvicorn

    with _listen(host, port) as listening:
        url = _url(listening)
        say(f"{folder.name}: {url}   (Ctrl-C ends it)")
        if open_browser:
            _open_browser(url)
        app = build_app(folder, client, allowed_hosts=["*"] if host not in LOCAL else LOCAL)
        config = uvicorn.Config(
            app, log_level="critical", access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1
        )
        uvicorn.Server(config).run(sockets=[listening])


def client_folder() -> Path:
    """Neuroglancer's built client within its wheel, found without importing it (which takes a second)."""
    missing = [name for name in VIEW_EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise Unsupported(
            f"the viewer needs {', '.join(missing)}, not installed here: run `pip install 'em_assets[view]'`, "
            "or open the volume in any other OME-Zarr viewer."
        )
    found = importlib.util.find_spec("neuroglancer")
    for location in (found.submodule_search_locations or []) if found is not None else []:
        folder = Path(location, "static", "client")
        if (folder / "index.html").is_file():
            return folder
    raise Unsupported(
        "the installed neuroglancer has no built client: install its wheel with `pip install --force-reinstall "
        "--only-binary neuroglancer neuroglancer`."
    )


def build_app(folder: DatasetFolder, client: Path, *, allowed_hosts: Sequence[str]) -> Starlette:
    """The ASGI application: `/` leads to the client at `/v/NAME/`, the voxels are below `/NAME.ome.zarr/` and, of
    further volumes, below `/NAME/volumes/SUB.ome.zarr/`.

    The client of the wheel is made for Python's server: it takes its state from the link, but wants to live below
    `/v/` and to hold a line open to `/events/`. On loopback only requests that name it are answered, so that a web
    page elsewhere cannot pose as this origin.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import RedirectResponse, Response, StreamingResponse
    from starlette.routing import Route

    files = {file.name: file for file in client.iterdir() if file.is_file()}

    def home(request: Request) -> Response:
        # as the browser calls this server: through a forwarded port the address is another one than here
        origin = str(request.base_url).rstrip("/")
        state = neuroglancer_state(*read_pictures(folder, origin))
        return RedirectResponse(neuroglancer_url(f"{origin}/v/{folder.name}/", state), 302)

    def client_file(request: Request) -> Response:
        file = files.get(request.path_params["file"] or "index.html")
        if file is None:
            return Response(status_code=404)
        return Response(file.read_bytes(), media_type=CONTENT_TYPES.get(file.suffix))

    def events(_: Request) -> Response:
        return StreamingResponse(_silent_events(), media_type="text/event-stream")

    def voxels(request: Request) -> Response:
        raw = request.scope.get("raw_path", b"").lower()
        if b"%2f" in raw or b"%5c" in raw:  # an encoded separator is nobody's honest path
            return Response(status_code=404)
        sub = request.path_params.get("sub")
        if sub is not None and not re.fullmatch(NAME_PATTERN, sub):
            return Response(status_code=404)
        volume = folder.further(sub).volume
        return _object_response(folder, f"{volume}/{request.path_params['path']}", request)

    def explained(_: Request, error: Exception) -> Response:
        return Response(str(error), status_code=503, media_type="text/plain")

    return Starlette(
        routes=[
            Route("/", home),
            Route(f"/v/{folder.name}/{{file:path}}", client_file),
            Route(f"/events/{folder.name}", events),
            Route(f"/{folder.name}.ome.zarr/{{path:path}}", voxels),
            Route(f"/{folder.name}/volumes/{{sub}}.ome.zarr/{{path:path}}", voxels),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)],
        exception_handlers={EmAssetsError: explained},
    )


def requested_range(header: str | None, size_bytes: int) -> range | None:
    """The bytes that a `Range` header asks for (RFC 9110, 14.1.2), None for the whole object.

    Empty if it cannot be satisfied. Several ranges, other units and nonsense are ignored, as the RFC allows.
    """
    unit, _, spec = (header or "").replace(" ", "").partition("=")
    first, dash, last = spec.partition("-")
    if unit.lower() != "bytes" or not dash or not (first + last).isdecimal() or not (first + last).isascii():
        return None
    if not first:
        return range(max(0, size_bytes - int(last)), size_bytes)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size_bytes) if last else size_bytes)


def _object_response(folder: DatasetFolder, relative: str, request: Request) -> Response:
    """One object of the volume, or a part of it. 404 for what was never written: the viewer shows it as absent."""
    from starlette.responses import Response, StreamingResponse

    try:
        size = folder.store.size_bytes(folder.path(relative))
    except ValueError:  # `..` and other places outside the volume
        size = None
    if size is None:
        return Response(status_code=404)
    tag = _entity_tag(folder, relative, size)
    headers = {"accept-ranges": "bytes", "etag": tag, "cache-control": "no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range") if request.headers.get("if-range", tag) == tag else None
    part = requested_range(asked, size)
    if part is not None and not part:
        return Response(status_code=416, headers=headers | {"content-range": f"bytes */{size}"})
    status: Literal[200, 206] = 200 if part is None else 206
    if part is None:
        part = range(size)
    else:
        headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    headers["content-length"] = str(len(part))
    kind = CONTENT_TYPES.get(Path(relative).suffix, "application/octet-stream")
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=kind)
    return StreamingResponse(_pieces(folder, relative, part), status, headers, kind)


def _pieces(folder: DatasetFolder, relative: str, part: range) -> Iterator[bytes]:
    for start in range(part.start, part.stop, SEND_BYTES):
        yield folder.store.read_range(folder.path(relative), start, min(SEND_BYTES, part.stop - start))


def _entity_tag(folder: DatasetFolder, relative: str, size_bytes: int) -> str:
    """Changes with the object; on S3, with the dataset's commit."""
    file = folder.store.local_path(folder.path(relative))
    if file is not None:
        return f'"{file.stat().st_mtime_ns:x}-{size_bytes:x}"'
    record = folder.read_record()
    version = (record.sha256 or record.timestamp.isoformat()) if record is not None else "unknown"
    return f'"{version[:32]}-{size_bytes:x}"'


async def _silent_events() -> AsyncIterator[bytes]:
    """An event stream in which nothing happens: without one the client tells its user that it lost its server."""
    import asyncio

    while True:
        yield b":\n\n"
        await asyncio.sleep(KEEP_ALIVE_SECONDS)


def _listen(host: str, port: int) -> socket:
    import socket

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise Unavailable(
            f"port {port} of {host} cannot be listened on ({getattr(error, 'strerror', None) or error}); "
            "choose another --port, or leave it out to take a free one."
        ) from error


def _url(listening: socket) -> str:
    import socket

    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  # asked for with --host
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _open_browser(url: str) -> None:
    """In a graphical browser, if there is one; a text browser in this terminal would only be in the way."""
    import webbrowser

    if (
        sys.platform == "darwin"
        or os.name == "nt"
        or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    ):
        webbrowser.open(url)
