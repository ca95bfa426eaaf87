"""What Neuroglancer shows: states and links, of stored volumes, of blocks in them, and of the publishers' own volumes.

Pure but for the records and the metadata that are read; nothing is served here (`serve/`, `viewer.py`). Neuroglancer
counts x, y, z from the corner of a voxel, in voxels of its own frame; all that comes in is z, y, x in nanometres.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from em_assets.blocks.geometry import BoxNm, Grid, Nm3
from em_assets.datasets.fields import NAME_PATTERN
from em_assets.datasets.source import FilesSource, PrecomputedSource
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.records import DatasetFolder, DatasetRecord, PartitionRecord, VoxelStatistics
from em_assets.volume import Box, VoxelSize, Zyx, zyx

HOSTED_CLIENT = "https://neuroglancer-demo.appspot.com"
FRAGMENT_SAFE = "~@$&()*!+=:;,.?/'"
NANOMETRES = {"nanometer": 1.0, "micrometer": 1e3, "angstrom": 0.1}
LABEL_PYRAMID = "nearest"
"""The multiscale's `type` of volumes whose coarser levels are voxels of the finer ones: labels."""
SAMPLED_RECORDS = 64
"""Shards whose statistics decide the contrast: enough of them, and few requests to S3."""
SPREAD = 3.0
"""Standard deviations around the mean that are shown from black to white."""
PANEL_PIXELS = 400
BLOCK_IN_PANEL = 0.5
"""How much of a panel a block's box takes: what lies around it is seen, too."""


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
        state["layers"].append(_outline_layer("crop", start, stop, dimensions))
    return state


def block_state(picture: Picture, box_nm: BoxNm, further: Sequence[Picture] = ()) -> dict[str, Any]:
    """The same state, but with a block in its middle, drawn as a box that fills half of each panel.

    The box is in the frame of the picture's source: a block's own `box_nm`.
    """
    state = neuroglancer_state(picture, further)
    sizes = picture.voxel_size_nm
    start, stop = (
        [nm / size for nm, size in zip(place, sizes, strict=True)][::-1] for place in (box_nm.start, box_nm.stop)
    )
    longest = max(box_nm.shape) / min(sizes)
    state["position"] = [(a + b) / 2 for a, b in zip(start, stop, strict=True)]
    state["crossSectionScale"] = max(longest / (PANEL_PIXELS * BLOCK_IN_PANEL), 0.05)
    state["projectionScale"] = longest / BLOCK_IN_PANEL * 1.5
    state["layers"].append(_outline_layer("block", start, stop, state["dimensions"]))
    return state


def grid_of(picture: Picture) -> Grid:
    """The voxels of a picture in the frame of its source. Raises Mismatch if it has no box."""
    if picture.box is None:
        raise Mismatch(f"{picture.name}: what part of {picture.source} it is was not recorded, so it has no place.")
    sizes = picture.voxel_size_nm
    z, y, x = (shift + n * size for shift, n, size in zip(picture.corner_nm, picture.box.start, sizes, strict=True))
    return Grid(picture.box.shape, sizes, (z, y, x))


def block_box_nm(picture: Picture, at_nm: Nm3, shape: Zyx) -> BoxNm:
    """The space of the block of `shape` voxels around a place: the one that is read there, in the finest level.

    Raises Mismatch if it lies wholly outside the picture's volume.
    """
    grid = grid_of(picture)
    box = Box.from_shape(shape, at=grid.start_around(at_nm, shape))
    if box.intersection(grid.box) is None:
        raise Mismatch(
            f"the block around {', '.join(f'{nm:g}' for nm in at_nm)} nm (z, y, x) lies outside {picture.name}, which "
            f"fills {grid.box_nm(grid.box)}; choose a place in it."
        )
    return grid.box_nm(box)


def _in_frame(picture: Picture, place: Zyx) -> list[float]:
    """A corner of a voxel as Neuroglancer counts: x, y, z, in voxels from the origin of the source's frame."""
    shifts = zip(place, picture.corner_nm, picture.voxel_size_nm, strict=True)
    return [n + corner / size for n, corner, size in shifts][::-1]


def neuroglancer_url(client_url: str, state: dict[str, Any]) -> str:
    """The link that opens a state in the client at `client_url` (which ends with `/`)."""
    # Boxes come first: the client of the wheel (2.41) loses an image that still loads when it comes to one after it
    # ("Cannot read properties of undefined"), and draws them over images wherever they are listed.
    layers = sorted(state["layers"], key=lambda layer: layer["type"] != "annotation")
    text = json.dumps(state | {"layers": layers}, separators=(",", ":"))
    return f"{client_url}#!{quote(text, safe=FRAGMENT_SAFE)}"


def hosted_url(
    spec: DatasetSpec,
    record: DatasetRecord | None,
    box_nm: BoxNm | None = None,
    client_url: str | None = None,
    corner_nm: Nm3 | None = None,
) -> str | None:
    """A link to the publisher's own volume at the place of the crop, or at a block's box, which is drawn.

    In the public Neuroglancer, or in that at `client_url`; no server of ours is needed. None where files are
    published: Neuroglancer reads none of them. `corner_nm`: of the publisher's volume, where no record says it.
    """
    main = _published(spec, None)
    if main is None:
        return None
    # Neuroglancer counts an N5 volume from its own corner, whatever its attributes translate
    own_corner = record.corner_nm if record is not None else corner_nm
    shown_corner = own_corner if spec.source.kind != "n5" else None
    if box_nm is not None and own_corner is not None and spec.source.kind == "n5":
        box_nm = box_nm.shifted((-own_corner[0], -own_corner[1], -own_corner[2]))
    picture = Picture(
        name=spec.publisher,
        source=main,
        voxel_size_nm=spec.voxel_size_nm,
        box=record.source_box if record is not None else None,
        outlined=spec.crop is not None,
        is_labels=spec.content == "labels",
        corner_nm=shown_corner or (0.0, 0.0, 0.0),
    )
    others = [
        Picture(f"{spec.name}/{name}", source, volume.voxel_size_nm, None, is_labels=volume.content == "labels")
        for name, volume in spec.volumes.items()
        if (source := _published(spec, name)) is not None
    ]
    state = neuroglancer_state(picture, others) if box_nm is None else block_state(picture, box_nm, others)
    return neuroglancer_url(f"{(client_url or HOSTED_CLIENT).rstrip('/')}/", state)


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


def _outline_layer(name: str, start: list[float], stop: list[float], dimensions: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "annotation",
        "name": name,
        "source": {"url": "local://annotations", "transform": {"outputDimensions": dimensions}},
        "annotations": [{"type": "axis_aligned_bounding_box", "id": name, "pointA": start, "pointB": stop}],
    }


def read_pictures(folder: DatasetFolder, origin: str) -> tuple[Picture, list[Picture]]:
    """The dataset's main volume, and its further ones as far as they are stored, as `serve.pictures` serves them.

    `origin` is the address below which the volumes lie. Raises as `read_picture`.
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
