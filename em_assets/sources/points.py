"""Points of a spec: from the kept file to places in the dataset's frame, as a table; what the file states as a whole.

The frame is the publisher's: nanometres from the corner of voxel 0 of the tomogram. A crop keeps its place in it, so
points outside of one are kept, and say so by where they are. How the files are written is `formats/points.py`.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from em_assets.datasets.portal import PointSet
from em_assets.datasets.spec import DatasetSpec, points_document
from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.formats.points import Point, PointKind, PointOptions, read_points
from em_assets.formats.reader import Scalar
from em_assets.sources.cryoet import number_in

if TYPE_CHECKING:
    import pyarrow as pa

    from em_assets.records import DatasetFolder
    from em_assets.settings import Settings

POINTS = "points"
"""The folder of the tables, below the dataset's."""
DOCUMENTS = "documents"
CENTRE = 0.5
"""Of a voxel: the middle of voxel 0 is half a voxel from its corner."""
COLUMNS = ("z_nm", "y_nm", "x_nm", "z", "y", "x", "kind", "instance_id", "rotation", "line", "annotation")


def points_path(name: str) -> str:
    """Where the table lies, relative to the dataset's folder."""
    return f"{POINTS}/{name}.parquet"


def raw_points_path(name: str, points: PointSet) -> str:
    """Where the file is kept as it was received, likewise."""
    return f"{DOCUMENTS}/{points_document(name, points)}"


def named_by_document(spec: DatasetSpec, path: str) -> str | None:
    """Which of the spec's points a kept document lists; None for another document."""
    return next((name for name, points in spec.points.items() if raw_points_path(name, points) == path), None)


def points_of(spec: DatasetSpec, name: str) -> PointSet:
    """Raises Mismatch if the spec has none of this name."""
    if name not in spec.points:
        known = ", ".join(spec.points) or "none"
        raise Mismatch(f"{spec.name} has no points {name!r}; it has: {known}.")
    return spec.points[name]


def read_point_set(points: PointSet, raw: bytes, where: str) -> Iterator[Point]:
    """The points of the file, in its order. Raises Malformed, Unsupported, Mismatch as the format does."""
    return read_points(raw, points.format, where, options=PointOptions(**points.options()))


def kind_of(point: Point) -> PointKind:
    if point.rotation is not None:
        return "orientedPoint"
    return "point" if point.instance_id is None else "instancePoint"


def place_nm(points: PointSet, zyx: tuple[float, float, float]) -> tuple[float, float, float]:
    """(z, y, x) of a location in the dataset's frame."""
    shift = CENTRE if points.counted_from == "centre" else 0.0
    z, y, x = ((at + shift) * size for at, size in zip(zyx, points.voxel_size_nm, strict=True))
    return z, y, x


def points_table(points: PointSet, found: Iterable[Point], url: str) -> pa.Table:
    """One row per point: z_nm, y_nm, x_nm in the dataset's frame; z, y, x as published, in voxels; kind; instance_id;
    rotation (9 numbers, row by row, that turn (x, y, z); null without one); line of the file; the annotation's number,
    which the address `url` of the file has, where the spec does not.
    """
    import pyarrow as pa

    rotation = pa.list_(pa.float64(), 9)
    numbers = dict.fromkeys(COLUMNS[:6], pa.float64())
    types = {**numbers, "kind": pa.string(), "instance_id": pa.int64(), "rotation": rotation, "line": pa.int64()}
    columns: dict[str, list[object]] = {name: [] for name in COLUMNS[:-1]}
    for point in found:
        row = (*place_nm(points, point.zyx), *point.zyx, kind_of(point), point.instance_id)
        for name, value in zip(columns, (*row, point.rotation, point.line), strict=True):
            columns[name].append(value)
    arrays = {name: pa.array(values, types[name]) for name, values in columns.items()}
    number = points.annotation or number_in(url)
    return pa.table({**arrays, "annotation": pa.array([number] * len(columns["line"]), pa.int64())})


def encode_points(name: str, points: PointSet, raw: bytes, where: str, url: str, *, sha256: str) -> bytes:
    """The table as Parquet; equal files of one address give equal bytes. `sha256` is the file's, by which it is known.

    `url` delivered the file, `where` it lies.
    """
    import pyarrow.parquet as pq

    table = points_table(points, read_point_set(points, raw, where), url)
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({b"em_assets": _about(name, points, sha256)}), buffer, compression="zstd"
    )
    return buffer.getvalue()


def is_made_of(encoded: bytes, name: str, points: PointSet, sha256: str) -> bool:
    """Whether a table was made of the file with this sha256, and as the spec now has it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(pa.BufferReader(encoded)).metadata or {}
    except (pa.ArrowException, OSError):
        return False
    return bool(metadata.get(b"em_assets") == _about(name, points, sha256))


def _about(name: str, points: PointSet, sha256: str) -> bytes:
    made_of = points.model_dump(mode="json", exclude={"title", "url"}, exclude_none=True)
    return json.dumps({"name": name, "sha256": sha256, **made_of}, sort_keys=True).encode()


def point_leaves(points: PointSet, raw: bytes, where: str) -> Iterator[tuple[str, Scalar]]:
    """What the file states as a whole: how many points of which kind, of how many objects, between which locations."""
    kinds: Counter[str] = Counter()
    instances: set[int] = set()
    low, high = [math.inf] * 3, [-math.inf] * 3
    for point in read_point_set(points, raw, where):
        kinds[kind_of(point)] += 1
        if point.instance_id is not None:
            instances.add(point.instance_id)
        low = [min(a, b) for a, b in zip(low, point.zyx, strict=True)]
        high = [max(a, b) for a, b in zip(high, point.zyx, strict=True)]
    yield "/points", kinds.total()
    for kind, count in sorted(kinds.items()):
        yield f"/kinds/{kind}", count
    if instances:
        yield "/instances", len(instances)
    if kinds:
        for side, corner in (("lowest", low), ("highest", high)):
            yield from ((f"/{side}/{axis}", value) for axis, value in zip("zyx", corner, strict=True))


def require_points(spec: DatasetSpec, path: str, raw: bytes, where: str) -> None:
    """Raises Malformed, naming the line, if a received file does not list points as the spec says it does."""
    name = named_by_document(spec, path)
    if name is None:
        return
    try:
        for _ in read_point_set(spec.points[name], raw, where):
            pass
    except (Unsupported, Mismatch) as error:
        raise Malformed(f"{error} The spec has it as points.{name}.") from None


def read_stored_points(folder: DatasetFolder, name: str) -> pa.Table:
    """The stored table. Raises Mismatch if there is none of this name, naming those that there are; Malformed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = points_path(name)
    try:
        return pq.read_table(pa.BufferReader(folder.read(path)))
    except FileNotFoundError:
        prefix = folder.path(f"{POINTS}/")
        listed = (where.removeprefix(prefix) for where, _ in folder.store.list(folder.path(POINTS)))
        names = ", ".join(sorted(one.removesuffix(".parquet") for one in listed)) or "none"
        raise Mismatch(
            f"{folder.name} has no points {name!r}; here are: {names}. The spec's are fetched with `em-assets get "
            f"{folder.name}`."
        ) from None
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise Malformed(
            f"{folder.uri(path)} is no table of points ({reason}); remove it and run `em-assets get {folder.name}`."
        ) from None


def fetch_points(spec: DatasetSpec, name: str, settings: Settings) -> pa.Table:
    """The same from the publisher; the spec has the addresses of now. Nothing is kept."""
    from em_assets.fetch.http import HttpClient
    from em_assets.sources.documents import fetch_documents

    points = points_of(spec, name)
    path = raw_points_path(name, points)
    wanted = [document for document in spec.all_documents if f"{DOCUMENTS}/{document.path}" == path]
    found, reasons = fetch_documents(spec, HttpClient(settings), wanted)
    if path in reasons:
        raise Unavailable(reasons[path])
    return points_table(points, read_point_set(points, found[path], points.url), points.url)
