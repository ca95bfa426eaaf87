"""What a dataset keeps beside its volumes and the portal's tree has a place for: points, and a tilt series' side files.

Most datasets have none of it. The files are taken as they are; points are counted in the voxels of the tomogram that
they lie in, as the portal counts them: location i is the middle of voxel i.
"""

from __future__ import annotations

import io
import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from em_assets.portal.stored import StoredImage
from em_assets.records import DatasetFolder

PointShape = Literal["Point", "OrientedPoint", "InstanceSegmentation"]
SHAPES: dict[str, PointShape] = {
    "point": "Point",
    "orientedPoint": "OrientedPoint",
    "instancePoint": "InstanceSegmentation",
}
"""Of the portal, by what its lines call them."""
ALIGNMENT_ENDINGS = ("xf", "tlt", "xtilt", "aln")
POINTS = "points"


@dataclass(frozen=True, slots=True)
class KeptPoints:
    """One table of points, as the portal's ndjson."""

    name: str
    files: dict[PointShape, bytes]
    """A file for each kind of point that there is."""
    count: int
    """In all files."""
    outside: int
    """Left out, because they do not lie in the tomogram."""


def kept_points(folder: DatasetFolder, image: StoredImage) -> Iterator[KeptPoints]:
    """Of every table of the dataset, the points that lie in this volume of it."""
    prefix = folder.path(f"{POINTS}/")
    for path, _ in folder.store.list(folder.path(POINTS)):
        name, dot, ending = path.removeprefix(prefix).partition(".")
        if dot and ending == "parquet":
            yield _points(name, folder.store.read(path), image)


def _points(name: str, table: bytes, image: StoredImage) -> KeptPoints:
    import pyarrow.parquet as pq

    lines: dict[PointShape, list[str]] = {}
    outside = 0
    for row in pq.read_table(io.BytesIO(table)).to_pylist():
        places = (row["z_nm"], row["y_nm"], row["x_nm"])
        voxels = [(nm - at) / size for nm, at, size in zip(places, image.corner_nm, image.voxel_size_nm, strict=True)]
        if all(0 <= voxel <= n for voxel, n in zip(voxels, image.levels[0].info.shape, strict=True)):
            lines.setdefault(SHAPES[row["kind"]], []).append(_line(row, voxels))
        else:
            outside += 1
    files = {shape: "".join(found).encode() for shape, found in lines.items()}
    return KeptPoints(name, files, sum(map(len, lines.values())), outside)


def _line(row: dict[str, Any], voxels: list[float]) -> str:
    z, y, x = (round(voxel - 0.5, 6) for voxel in voxels)
    point: dict[str, Any] = {"type": row["kind"], "location": {"x": x, "y": y, "z": z}}
    if row["kind"] == "orientedPoint":
        numbers = row["rotation"]
        point["xyz_rotation_matrix"] = [numbers[at : at + 3] for at in (0, 3, 6)]
    if row["instance_id"] is not None:
        point["instance_id"] = row["instance_id"]
    return json.dumps(point) + "\n"


@dataclass(frozen=True, slots=True)
class SideFiles:
    """Files of a tilt series and its alignment, by what they are."""

    mdoc: bytes | None
    rawtlt: bytes | None
    alignment: dict[str, bytes]
    """By their endings."""


def kept_side_files(folder: DatasetFolder) -> SideFiles:
    """Of the dataset's kept documents."""
    by_ending: dict[str, str] = {}
    for path in folder.documents():
        by_ending.setdefault(posixpath.splitext(path)[1].removeprefix("."), path)
    found = {
        ending: folder.read(path)
        for ending, path in by_ending.items()
        if ending in ("mdoc", "rawtlt", *ALIGNMENT_ENDINGS)
    }
    alignment = {ending: data for ending, data in found.items() if ending in ALIGNMENT_ENDINGS}
    return SideFiles(found.get("mdoc"), found.get("rawtlt"), alignment)
