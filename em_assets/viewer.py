"""Looking at a volume: `em-assets view`, in Neuroglancer from this machine, or in napari.

Neuroglancer's client and the voxels are served on one loopback origin, from a folder or from S3; nothing but the
dataset's own volumes can be read, and nothing leaves the machine. Of a dataset that is not stored here the browser
reads its publisher's own volume, where that has a format that browsers read. What is shown is decided in
`neuroglancer.py`, the routes are those of `em-assets serve` (`serve/pictures.py`).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_assets.blocks.geometry import BoxNm, Nm3
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import EmAssetsError, Mismatch, Unsupported
from em_assets.neuroglancer import Picture, block_box_nm, grid_of, hosted_url, read_picture, read_pictures
from em_assets.records import DatasetFolder
from em_assets.serve import LOCAL, LOOPBACK, address_of, is_local, listen, new_server
from em_assets.serve.client import client_folder
from em_assets.serve.shelf import data_address
from em_assets.settings import Settings, read_settings
from em_assets.volume import Box, VoxelSize, Zyx

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["build_app", "can_view", "hosted_url", "napari_layers", "view", "view_in_napari"]

Opens = Callable[[str], str]
"""From the address by which a browser calls the server to the link that opens the client."""
BLOCK_SHAPE: Zyx = (128, 128, 128)
LINGER_SECONDS = 1


def view(
    folder: DatasetFolder,
    *,
    spec: DatasetSpec | None = None,
    settings: Settings | None = None,
    at_nm: Nm3 | None = None,
    shape: Zyx = BLOCK_SHAPE,
    host: str = LOOPBACK,
    port: int = 0,
    open_browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serves one dataset's volumes with Neuroglancer's client until it is interrupted.

    If none is stored, and the `spec` says that a browser can read the publisher's, the client alone. `at_nm` draws the
    block of `shape` voxels around that place in the volume that `folder` means, and looks there. Raises Unavailable if
    there is nothing to show, the publisher does not answer or the port is taken, Unsupported if the extra `view` is
    missing, Mismatch if there is no such place.
    """
    client = client_folder()
    is_stored = is_stored_here(folder)
    if is_stored or not can_view(folder, spec):
        opens = stored_link(folder, at_nm, shape)
        opens("")  # nothing to show is said here, not in the browser
    else:
        opens = published_link(folder, settings or read_settings(), at_nm, shape)
    with listen(host, port) as listening:
        url = address_of(listening)
        say(f"{folder.title}: {url}   (Ctrl-C ends it)")
        if is_stored:
            say(f"  read    em.open({url.rstrip('/') + data_address(folder)!r})")
        else:
            say("  careful: it is not stored here; the browser reads it from its publisher")
        if open_browser:
            _open_browser(url)
        app = build_app(folder, client, opens, allowed_hosts=LOCAL if is_local(host) else ["*"])
        new_server(app, LINGER_SECONDS).run(sockets=[listening])


def can_view(folder: DatasetFolder, spec: DatasetSpec | None) -> bool:
    """Whether `view` has something to show: a stored volume, or a publisher's that browsers read."""
    return is_stored_here(folder) or (spec is not None and hosted_url(spec, None) is not None)


def is_stored_here(folder: DatasetFolder) -> bool:
    """As far as there is something to look at, be it whole or not."""
    return folder.store.size_bytes(folder.path(f"{folder.volume}/zarr.json")) is not None


def stored_link(folder: DatasetFolder, at_nm: Nm3 | None, shape: Zyx) -> Opens:
    """Of a stored dataset: `serve.pictures.link`."""

    def opens(origin: str) -> str:
        from em_assets.serve.pictures import link

        return link(folder, origin, at_nm, shape)

    return opens


def published_link(folder: DatasetFolder, settings: Settings, at_nm: Nm3 | None, shape: Zyx) -> Opens:
    """Of a dataset at its publisher, with the box of the volume that a download would make, or of a block in it.

    Raises as `em.open`, and Mismatch.
    """
    from em_assets.blocks.opening import open as open_volume

    volume = open_volume(folder.title, settings=settings)
    grid = volume.levels[0].grid
    box = grid.box if at_nm is None else Box.from_shape(shape, at=grid.start_around(at_nm, shape))
    if box.intersection(grid.box) is None:
        raise Mismatch(
            f"the block around {', '.join(f'{nm:g}' for nm in at_nm or ())} nm (z, y, x) lies outside {folder.title}, "
            f"which fills {volume.box_nm}; choose a place in it."
        )
    box_nm = grid.box_nm(box)
    return lambda origin: volume.neuroglancer_url(box_nm, f"{origin}/v/{folder.name}")


def build_app(folder: DatasetFolder, client: Path, opens: Opens, *, allowed_hosts: Sequence[str]) -> Starlette:
    """The ASGI application: `/` leads to the client; the rest is `serve.pictures.picture_routes` for this dataset
    alone.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import RedirectResponse, Response

    from em_assets.serve.pictures import OnlyHosts, picture_routes, route

    def home(request: Request) -> Response:
        # as the browser calls this server: through a forwarded port the address is another one than here
        return RedirectResponse(opens(str(request.base_url).rstrip("/")), 302)

    def explained(_: Request, error: Exception) -> Response:
        return Response(str(error), status_code=503, media_type="text/plain")

    def find(name: str) -> DatasetFolder | None:
        return folder.further(None) if name == folder.name else None

    return Starlette(
        routes=[route("/", home), *picture_routes(find, DatasetFolder.read_record, client, lambda: False)],
        middleware=[Middleware(OnlyHosts, hosts=list(allowed_hosts))],
        exception_handlers={EmAssetsError: explained},
    )


# napari


def view_in_napari(folder: DatasetFolder, *, at_nm: Nm3 | None = None, shape: Zyx = BLOCK_SHAPE) -> None:
    """Opens the dataset's volumes in napari, and returns when its window is closed.

    Raises Unsupported where napari is not installed, and as `view`.
    """
    if importlib.util.find_spec("napari") is None:
        raise Unsupported(
            "napari is not installed here: run `pip install 'napari[all]'` beside em_assets, or leave out --napari to "
            "look with Neuroglancer."
        )
    layers = napari_layers(folder, at_nm=at_nm, shape=shape)
    napari: Any = importlib.import_module("napari")  # whoever has it: no dependency, and nothing else needs it
    viewer = napari.Viewer(title=folder.title)
    show_layers(viewer, layers, at_nm)
    napari.run()


def napari_layers(
    folder: DatasetFolder, *, at_nm: Nm3 | None = None, shape: Zyx = BLOCK_SHAPE
) -> list[tuple[Any, dict[str, Any], str]]:
    """(data, options, kind) of each volume, in nanometres of the publisher's frame, as napari's plugins give them.

    Levels are read as they are looked at. A place adds a layer that fills its block: an empty one with a frame.
    """
    from em_assets.standardize.opening import open_level

    main, further = read_pictures(folder.further(None), "")
    subs = [None, *(picture.name.partition("/")[2] for picture in further)]
    layers: list[tuple[Any, dict[str, Any], str]] = []
    for sub, picture in zip(subs, [main, *further], strict=True):
        one = folder.further(sub)
        levels = [open_level(one, level) for level in range(len(level_paths(one)))]
        options = _placed(picture.name, _box_of(picture), picture.voxel_size_nm) | {"multiscale": True}
        if picture.is_labels:
            layers.append((levels, options, "labels"))
        else:
            limits: dict[str, Any] = {} if picture.value_range is None else {"contrast_limits": picture.value_range}
            layers.append((levels, options | limits | {"visible": sub is None}, "image"))
    if at_nm is not None:
        own = main if folder.sub is None else read_picture(folder, "")
        import numpy as np

        options = _placed("block", block_box_nm(own, at_nm, shape), own.voxel_size_nm)
        layers.append((np.broadcast_to(np.uint8(0), shape), options | {"blending": "additive"}, "image"))
    return layers


def show_layers(viewer: Any, layers: Sequence[tuple[Any, dict[str, Any], str]], at_nm: Nm3 | None) -> None:
    """Into a napari viewer, which then looks at the place."""
    for data, options, kind in layers:
        added = (viewer.add_labels if kind == "labels" else viewer.add_image)(data, **options)
        if options["name"] == "block":
            added.bounding_box.visible = True
    if at_nm is not None:
        viewer.dims.set_point(range(3), at_nm)
        getattr(viewer, "scene", viewer).camera.center = at_nm  # napari 0.9 moved it


def level_paths(folder: DatasetFolder) -> list[str]:
    """The names of the stored volume's levels, finest first."""
    import json

    document = json.loads(folder.read(f"{folder.volume}/zarr.json"))
    return [level["path"] for level in document["attributes"]["ome"]["multiscales"][0]["datasets"]]


def _box_of(picture: Picture) -> BoxNm:
    assert picture.box is not None  # of a stored volume it is known
    return grid_of(picture).box_nm(grid_of(picture).box)


def _placed(name: str, box_nm: BoxNm, voxel_size_nm: VoxelSize) -> dict[str, Any]:
    """Where napari puts a layer: its translation is the middle of the first voxel."""
    middle = [corner + size / 2 for corner, size in zip(box_nm.start, voxel_size_nm, strict=True)]
    return {
        "name": name,
        "scale": list(voxel_size_nm),
        "translate": middle,
        "units": ["nm"] * 3,
        "axis_labels": ["z", "y", "x"],
    }


def _open_browser(url: str) -> None:
    """In a graphical browser, if there is one; a text browser in this terminal would only be in the way."""
    import webbrowser

    if (
        sys.platform == "darwin"
        or os.name == "nt"
        or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    ):
        webbrowser.open(url)
