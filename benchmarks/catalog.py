"""The catalogue against a crawl of JSON side-cars with pandas, and against bare DuckDB over Parquet files.

    python benchmarks/catalog.py --quick
    python benchmarks/catalog.py --work ../benchmark --rounds 5 --out catalog.md

A store of twenty datasets with 10,000 received files and 100,000 claims is made. Then, each in a fresh process: its
catalogue is built, and the README's six questions are asked of it, of the side-cars and of Parquet files of the same
tables. All must answer alike. README.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    from contest import Contest, Row

    from em_assets.datasets.spec import DatasetSpec
    from em_assets.volume import Claim

DATASETS, FILES, QUICK_FILES = 20, 10_000, 1_000
UNFINISHED_EVERY, NOT_RECEIVED = 5, 10
"""Every so many datasets one has failed with so many of its files still to come."""
DISAGREEING_EVERY = 3
"""In every so many datasets the publisher's page states another size than the files."""
ROWS, COLUMNS = 4096, 6144
PIXEL_NM, SLICE_NM, OTHER_SLICE_NM = (4.0, 8.0, 16.0), (5.0, 25.0, 50.0), 60.0
"""The last is what one file of each series says."""
LICENCES = ("CC0-1.0", "CC-BY-4.0", "CC-BY-NC-4.0")
CONTENTS = b"voxels, but for the benchmark's purpose only so many bytes of them\n"
RECEIVED_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
URL = "https://data.example.org/archive"
ASKED = "bench_03"
"""The dataset of the question where a value came from: the publisher contradicts its files."""
AGAIN = 5
"""So often a question is asked again in the process that has just asked it."""

QUESTIONS = {
    "resolution and pixel type": "select name, volume_shape, voxel_size_nm, dtype from datasets "
    "order by max_voxel_size_nm",
    "shared and unique metadata": "select field, module, datasets, names from field_presence "
    "where datasets in (1, (select count(*) from datasets)) order by datasets desc, field",
    "where a value is from": "select value, unit, authority, stated, document, key, chosen from statements "
    f"where name = '{ASKED}' and field = 'voxel_size_z_nm' order by rank",
    "conflicts": "select name, field, value_a, authority_a, value_b, authority_b, chosen, reason from conflicts "
    "where authority_a = 'file header' and authority_b like 'publisher%'",
    "complete, failed, missing": "select name, status, status_reason, partitions_stored, partitions, "
    "partitioned_by, missing_fraction from datasets",
    "commercial use below 10 nm": "select name, max_voxel_size_nm, license from datasets "
    "where max_voxel_size_nm < 10 and commercial_use",
}
"""The README's, word for word but for the dataset that the third one names."""
RELATIONS = {
    "resolution and pixel type": ("datasets",),
    "shared and unique metadata": ("vocabulary", "statements", "datasets", "field_presence"),
    "where a value is from": ("statements",),
    "conflicts": ("statements", "vocabulary", "conflicts"),
    "complete, failed, missing": ("datasets",),
    "commercial use below 10 nm": ("datasets",),
}
"""What each needs, so that bare DuckDB opens no file for nothing."""
PRODUCT, CRAWL, BARE = "em_assets", "crawl", "bare DuckDB"
PACKAGES = ("em_assets", "duckdb", "pyarrow", "pandas")
BUILD_SECONDS, CRAWL_RATIO, BARE_RATIO = 10.0, 50.0, 2.0
"""The targets: a build in seconds, so many times faster than the crawl, at most so many times bare DuckDB's time."""


# What is described: twenty series of files, in turn Gatan's DM3 and ImageJ's TIFF.


def make_specs(files: int) -> list[DatasetSpec]:
    from em_assets.datasets.spec import DatasetSpec

    return [DatasetSpec.model_validate(_spec(number, files // DATASETS)) for number in range(DATASETS)]


def _spec(number: int, received: int) -> dict[str, Any]:
    planes = received + (NOT_RECEIVED if _is_unfinished(number) else 0)
    series = f"plane_{{0000..{planes - 1:04d}}}.{_suffix(number)}"
    spec = {
        "name": _name(number),
        "title": f"Neuropil, block {number}",
        "description": "A block of neuropil, drawn for a benchmark.",
        "publisher": "empiar",
        "source_id": f"EMPIAR-{90000 + number}",
        "page_url": f"https://example.org/EMPIAR-{90000 + number}/",
        "license": LICENCES[number % len(LICENCES)],
        "citation": f"Someone et al. Block {number} (2026).",
        "doi": f"10.1234/block-{number}",
        "modality": "SBF-SEM",
        "source": {"kind": "files", "url": URL, "files": [{"path": series}], "volume": {"files": [series]}},
        "keep": "original",
        "expected": {
            "source_shape": [planes, ROWS, COLUMNS],
            "dtype": "uint8",
            "voxel_size_nm": [_slice_nm(number), _pixel_nm(number), _pixel_nm(number)],
        },
        "output": {"shard": (64, 1024, 1024), "chunk": (64, 64, 64)},
    }
    return spec | ({"organism": "Danio rerio"} if number == 0 else {})


def _name(number: int) -> str:
    return f"bench_{number:02d}"


def _suffix(number: int) -> str:
    return "tif" if number % 2 else "dm3"


def _pixel_nm(number: int) -> float:
    return PIXEL_NM[number % len(PIXEL_NM)]


def _slice_nm(number: int) -> float:
    return SLICE_NM[number // 2 % len(SLICE_NM)]


def _is_unfinished(number: int) -> bool:
    return number % UNFINISHED_EVERY == UNFINISHED_EVERY - 1


def _tags(number: int, *, is_odd: bool) -> list[tuple[str, str, str | float]]:
    """(the file's own key, the name that a side-car has for it, value): ten of what one file states."""
    pixel_nm, slice_nm = _pixel_nm(number), OTHER_SLICE_NM if is_odd else _slice_nm(number)
    if _suffix(number) == "tif":
        return [
            ("/0/ImageWidth", "width", COLUMNS),
            ("/0/ImageLength", "height", ROWS),
            ("/0/BitsPerSample", "bits_per_sample", 8),
            ("/0/Compression", "compression", 1),
            ("/0/SampleFormat", "sample_format", 1),
            ("/0/XResolution", "x_resolution", 1 / pixel_nm),
            ("/0/YResolution", "y_resolution", 1 / pixel_nm),
            ("/0/ImageDescription/ImageJ", "imagej", "1.53t"),
            ("/0/ImageDescription/unit", "resolution_unit", "nm"),
            ("/0/ImageDescription/spacing", "slice_thickness_nm", slice_nm),
        ]
    data, tags = "/ImageList/1/ImageData", "/ImageList/1/ImageTags"
    return [
        (f"{data}/Calibrations/Dimension/0/Scale", "scale_x", pixel_nm / 1000),
        (f"{data}/Calibrations/Dimension/0/Units", "units_x", "µm"),
        (f"{data}/Calibrations/Dimension/1/Scale", "scale_y", pixel_nm / 1000),
        (f"{data}/Calibrations/Dimension/1/Units", "units_y", "µm"),
        (f"{data}/DataType", "data_type", 6),
        (f"{data}/Dimensions/0", "width", COLUMNS),
        (f"{data}/Dimensions/1", "height", ROWS),
        (f"{tags}/Microscope Info/Name", "microscope", "Quanta FEG"),
        (f"{tags}/Microscope Info/Voltage", "voltage_v", 1900.0),
        (f"{tags}/SBFSEM/Record/Slice thickness", "slice_thickness_nm", slice_nm),
    ]


def _entry(number: int) -> dict[str, str | float]:
    """What the publisher's API states."""
    disagrees = number % DISAGREEING_EVERY == 0
    return {
        "title": f"Neuropil, block {number}",
        "deposition_date": "2026-01-01",
        "imagesets/0/voxel_type": "UNSIGNED BYTE",
        "imagesets/0/image_width": COLUMNS + (132 if disagrees else 0),
        "imagesets/0/image_height": ROWS + (132 if disagrees else 0),
        "imagesets/0/pixel_width": 10 * _pixel_nm(number) + (5 if disagrees else 0),
        "imagesets/0/pixel_height": 10 * _pixel_nm(number),
    }


# The same in a store, and as side-cars.


def write_store(root: Path, sidecars: Path, files: int) -> int:
    """The received files with their receipts, claims, manifests and records; how many claims the files make."""
    from em_assets.catalog.claims import Origin, write_claims
    from em_assets.records import DatasetFolder
    from em_assets.store import LocalStore

    received, claims_written = files // DATASETS, 0
    for number, spec in enumerate(make_specs(files)):
        folder = DatasetFolder(LocalStore(root), spec.name)
        below, beside = root / spec.name / "original", sidecars / spec.name
        below.mkdir(parents=True)
        beside.mkdir(parents=True)
        paths = [f"plane_{plane:04d}.{_suffix(number)}" for plane in range(received)]
        claims, origins = list(_entry_claims(number)), {}
        for plane, path in enumerate(paths):
            tags = _tags(number, is_odd=plane == received - 1)
            sha256 = hashlib.sha256(CONTENTS + path.encode()).hexdigest()
            _receive(below, path, sha256)
            claims += _file_claims(number, path, tags)
            claims_written += len(tags)
            origins[f"original/{path}"] = Origin(sha256, f"{URL}/{path}", RECEIVED_AT)
            _write_sidecar(beside, spec, path, sha256, tags)
        write_claims(folder, claims, origins)
        folder.write("documents/entry.json", json.dumps({spec.source_id: _entry(number)}).encode())
        _write_record(folder, spec, number, paths)
        _write_description(beside, spec, number)
    return claims_written


def _receive(below: Path, path: str, sha256: str) -> None:
    """As the downloader leaves it; not synced, which is not what is measured."""
    from em_assets.fetch.receipts import Receipt

    file = below / path
    file.write_bytes(CONTENTS)
    receipt = Receipt(
        path=path,
        url=f"{URL}/{path}",
        size_bytes=len(CONTENTS),
        sha256=sha256,
        modified_ns=file.stat().st_mtime_ns,
        downloaded_at=RECEIVED_AT,
        seconds=0.5,
        received_bytes=len(CONTENTS),
    )
    (below / f"{path}.receipt.json").write_text(receipt.model_dump_json(indent=1))


def _file_claims(number: int, path: str, tags: Sequence[tuple[str, str, str | float]]) -> Iterator[Claim]:
    from em_assets.volume import Claim

    extractor = "tiff" if _suffix(number) == "tif" else "dm"
    for key, _, value in tags:
        yield Claim(key, value, f"original/{path}", f"{URL}/{path}", extractor)


def _entry_claims(number: int) -> Iterator[Claim]:
    from em_assets.volume import Claim

    accession = f"EMPIAR-{90000 + number}"
    for key, value in _entry(number).items():
        where = f"https://example.org/api/entry/{accession}/"
        unit = "angstrom" if "pixel" in key else None
        yield Claim(f"/{accession}/{key}", value, "documents/entry.json", where, "empiar_entry", unit)


def _write_record(folder: Any, spec: DatasetSpec, number: int, paths: Sequence[str]) -> None:
    from em_assets.originals import file_key
    from em_assets.records import DatasetRecord, StoredObject
    from em_assets.standardize.finish import Original, write_manifest

    known = ("name", "source_id", "title", "description", "license", "citation", "doi", "page_url")
    values = {key: getattr(spec, key) for key in known} | {
        "source": spec.publisher,
        "volume_shape": spec.shape,
        "voxel_size_nm": spec.voxel_size_nm,
        "dtype": spec.dtype,
        "download_url": URL,
        "local_paths": {},
        "timestamp": RECEIVED_AT,
        "identity": spec.identity(),
    }
    if _is_unfinished(number):
        folder.write_record(DatasetRecord(**values, status="error", status_reason=_reason(number)))
        return
    originals = [
        Original(
            StoredObject(
                path=f"original/{path}",
                size_bytes=len(CONTENTS),
                sha256=hashlib.sha256(CONTENTS + path.encode()).hexdigest(),
            ),
            file_key(path),
            f"{URL}/{path}",
            RECEIVED_AT,
        )
        for path in paths
    ]
    manifest = write_manifest(folder, [], [], originals)
    folder.write_record(
        DatasetRecord(**values, status="complete", sha256=manifest.sha256, file_size_bytes=manifest.size_bytes)
    )


def _reason(number: int) -> str:
    return f"{NOT_RECEIVED} files of {_name(number)} could not be downloaded: the server did not answer."


def _write_sidecar(
    beside: Path, spec: DatasetSpec, path: str, sha256: str, tags: Sequence[tuple[str, str, str | float]]
) -> None:
    """What people write beside a file: where it is from, its checksum, and its tags by shorter names."""
    facts = {
        "dataset": spec.name,
        **{key: getattr(spec, key) for key in ("title", "license", "doi", "modality")},
        "path": path,
        "source_url": f"{URL}/{path}",
        "size_bytes": len(CONTENTS),
        "sha256": sha256,
        "downloaded_at": RECEIVED_AT.isoformat(),
        "format": "TIFF" if path.endswith("tif") else "DM3",
        **{short: value for _, short, value in tags},
    }
    (beside / f"{path}.json").write_text(json.dumps(facts, indent=1))


def _write_description(beside: Path, spec: DatasetSpec, number: int) -> None:
    """One more of each dataset: what spec, publisher and record say of it as a whole."""
    entry = {f"entry:{key.rpartition('/')[2]}": value for key, value in _entry(number).items()}
    facts = {
        "dataset": spec.name,
        "status": "error" if _is_unfinished(number) else "complete",
        "status_reason": _reason(number) if _is_unfinished(number) else None,
        "files": len(spec.source.by_path()),  # type: ignore[union-attr]  # files they are
        "shape": list(spec.shape),
        "voxel_size_nm": list(spec.voxel_size_nm),
        "dtype": spec.dtype,
        **{key: getattr(spec, key) for key in (*_PLAIN_FIELDS, "organism")},
        **entry,
    }
    (beside / "dataset.json").write_text(json.dumps(facts, indent=1))


_PLAIN_FIELDS = ("title", "description", "source_id", "license", "citation", "doi", "modality")
"""That a spec states under the name of the catalogue's field."""


def export_tables(catalog: Path, folder: Path) -> None:
    """Parquet files of all tables, for bare DuckDB."""
    import duckdb

    from em_assets.catalog.schema import TABLES

    folder.mkdir(exist_ok=True)
    with duckdb.connect(catalog, read_only=True) as database:
        for table in TABLES:
            database.execute(f"copy {table.name} to '{folder / table.name}.parquet' (format parquet)")


# The contestants. Each is a fresh process that imports what it needs, asks one question, and asks it again.


def ask_product(folder: Path, question: str) -> dict[str, Any]:
    """`em_assets.catalog.query`, which keeps one locked-down engine and opens the database anew for each question."""
    started = perf_counter()
    import duckdb

    from em_assets.catalog.query import query

    imports = perf_counter() - started
    path, sql = folder / "store" / "metadata.duckdb", QUESTIONS[question]
    times = _timed(lambda: query(path, sql))
    with duckdb.connect(path, read_only=True) as database:
        alone = _timed(lambda: database.execute(sql).fetchall())
    answer = query(path, sql)
    return _reply(imports, times, alone, answer.columns, answer.rows) | {"engine": _engine_seconds()}


def _engine_seconds() -> float:
    """What DuckDB takes to start with nothing in it and to end: part of the first question in a process."""
    import duckdb

    def start() -> None:
        duckdb.connect().close()

    return _timed(start)[1]


def ask_bare(folder: Path, question: str) -> dict[str, Any]:
    """DuckDB without a database: tables are views over Parquet files, views those of the catalogue."""
    started = perf_counter()
    import duckdb

    imports = perf_counter() - started
    from em_assets.catalog.schema import DERIVED

    sql, texts = QUESTIONS[question], {made.name: text.replace("create table", "create view") for made, text in DERIVED}
    views = [
        texts.get(name, f"create view {name} as from read_parquet('{folder / 'parquet' / name}.parquet')")
        for name in RELATIONS[question]
    ]
    engines: list[duckdb.DuckDBPyConnection] = []

    def opened() -> duckdb.DuckDBPyConnection:
        """The engine, started the first time; its views are made anew each time, which looks at the files again."""
        if not engines:
            engines.append(duckdb.connect())
        for view in views:
            engines[0].execute(view.replace("create view", "create or replace view"))
        return engines[0]

    times = _timed(lambda: opened().execute(sql).fetchall())
    database = opened()
    alone = _timed(lambda: database.execute(sql).fetchall())
    result = database.execute(sql)
    columns = [column[0] for column in result.description or ()]
    return _reply(imports, times, alone, columns, result.fetchall())


def ask_crawl(folder: Path, question: str) -> dict[str, Any]:
    """The usual: every JSON file below a folder into one pandas DataFrame."""
    started = perf_counter()
    import pandas as pd

    imports = perf_counter() - started
    import em_assets.catalog.vocabulary  # noqa: F401  # words that an answer needs: no part of its time

    answer_of = ANSWERS[question]

    def crawl() -> pd.DataFrame:
        return pd.DataFrame([json.loads(path.read_text()) for path in (folder / "sidecars").rglob("*.json")])

    times = _timed(lambda: answer_of(crawl()), again=1)
    facts = crawl()
    alone = _timed(lambda: answer_of(facts))
    columns, rows = answer_of(facts)
    return _reply(imports, times, alone, columns, rows)


def _timed(job: Callable[[], object], again: int = AGAIN) -> tuple[float, float]:
    """(seconds of the first time in this process, median of the next ones)."""
    seconds = []
    for _ in range(1 + again):
        started = perf_counter()
        job()
        seconds.append(perf_counter() - started)
    return seconds[0], statistics.median(seconds[1:])


def _reply(
    imports: float,
    times: tuple[float, float],
    alone: tuple[float, float],
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
) -> dict[str, Any]:
    """`rows` in the order of their text, because not every question asks for one."""
    named = sorted(
        ({name: _plain(value) for name, value in zip(columns, row, strict=True)} for row in rows),
        key=lambda row: json.dumps(row, sort_keys=True),
    )
    seconds = dict(zip(("first", "again", "alone_first", "alone"), (*times, *alone), strict=True))
    return {"imports": imports, **seconds, "rows": named}


def _plain(value: Any) -> Any:
    """As JSON has it, whoever computed it: numpy and pandas have types and nothings of their own."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


# The crawl's answers. Words that are in no side-car (`key`, `stated`) are left out and not compared.

Answer = tuple[Sequence[str], list[Sequence[Any]]]
MOST_PRECISE = 1e-4


def _halves(facts: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(datasets, files)."""
    is_file = facts["path"].notna()
    return facts[~is_file], facts[is_file]


def _header(files: pd.DataFrame) -> pd.DataFrame:
    """What the files' tags say, in the catalogue's fields and units."""
    import pandas as pd

    is_tiff = files["format"] == "TIFF"
    return pd.DataFrame(
        {
            "dataset": files["dataset"],
            "path": files["path"],
            "source_size_y": files["height"],
            "source_size_x": files["width"],
            "dtype": (is_tiff & (files["bits_per_sample"] == 8) | (files["data_type"] == 6)).map({True: "uint8"}),
            "voxel_size_z_nm": files["slice_thickness_nm"],
            "voxel_size_y_nm": (1 / files["y_resolution"]).where(is_tiff, files["scale_y"] * 1000),
            "voxel_size_x_nm": (1 / files["x_resolution"]).where(is_tiff, files["scale_x"] * 1000),
            "file_format": files["format"],
            "compression": files["compression"].map({1: "none"}),
            "instrument": files["microscope"],
            "accelerating_voltage_v": files["voltage_v"],
        }
    )


def _resolution(facts: pd.DataFrame) -> Answer:
    datasets, _ = _halves(facts)
    columns = ("name", "volume_shape", "voxel_size_nm", "dtype")
    ordered = datasets.assign(coarsest=datasets["voxel_size_nm"].map(max)).sort_values("coarsest")
    return columns, ordered[["dataset", "shape", "voxel_size_nm", "dtype"]].to_numpy().tolist()


def _shared(facts: pd.DataFrame) -> Answer:
    import pandas as pd

    from em_assets.catalog.vocabulary import FIELDS

    datasets, files = _halves(facts)
    said = datasets.set_index("dataset")
    described = said[[*_PLAIN_FIELDS, "organism", "dtype"]].notna()
    described["deposited_on"] = said["entry:deposition_date"].notna()
    for place, axis in enumerate("zyx"):
        described[f"source_size_{axis}"] = said["shape"].map(lambda shape, place=place: shape[place] is not None)
    found = _header(files).drop(columns="path").groupby("dataset").count() > 0
    known = pd.concat([described, found], axis=1).T.groupby(level=0).any().T.sort_index()
    numbers = known.sum()
    rows = [
        (field, FIELDS[field].module, count, ", ".join(known.index[known[field]]))
        for field, count in numbers.items()
        if count in (1, len(known))
    ]
    return ("field", "module", "datasets", "names"), rows


def _origin(facts: pd.DataFrame) -> Answer:
    datasets, files = _halves(facts)
    own = _header(files[files["dataset"] == ASKED]).sort_values("path")
    found = own.groupby("voxel_size_z_nm")["path"].agg(["size", "first"]).sort_values("size", ascending=False)
    rows = [
        (f"{value:g}", "nm", "file header", f"original/{path}", place == 0)
        for place, (value, path) in enumerate(zip(found.index, found["first"], strict=True))
    ]
    spec = datasets[datasets["dataset"] == ASKED]["voxel_size_nm"].iloc[0][0]
    return ("value", "unit", "authority", "document", "chosen"), [
        *rows,
        (f"{spec:g}", "nm", "spec", "spec.json", False),
    ]


def _conflicts(facts: pd.DataFrame) -> Answer:
    datasets, files = _halves(facts)
    stated = datasets.set_index("dataset")
    header = _header(files)
    rows = []
    for field, key, factor in (
        ("source_size_x", "entry:image_width", 1),
        ("source_size_y", "entry:image_height", 1),
        ("voxel_size_x_nm", "entry:pixel_width", 10),
        ("voxel_size_y_nm", "entry:pixel_height", 10),
    ):
        most = header.groupby("dataset")[field].agg(lambda values: values.mode().iloc[0])
        other = stated[key] / factor
        tolerance = MOST_PRECISE if field.startswith("voxel") else 0
        differs = (most - other).abs() / most.combine(other, max) > tolerance
        for name in differs.index[differs]:
            ours, theirs = f"{most[name]:g}", f"{other[name]:g}"
            reason = "file header goes before publisher API"
            rows.append((name, field, ours, "file header", theirs, "publisher API", ours, reason))
    columns = ("name", "field", "value_a", "authority_a", "value_b", "authority_b", "chosen", "reason")
    return columns, rows


def _progress(facts: pd.DataFrame) -> Answer:
    datasets, files = _halves(facts)
    stored = files.groupby("dataset").size()
    rows = [
        (name, status, reason, stored[name], int(wanted), "file", None)
        for name, status, reason, wanted in datasets[["dataset", "status", "status_reason", "files"]].to_numpy()
    ]
    columns = ("name", "status", "status_reason", "partitions_stored", "partitions", "partitioned_by")
    return (*columns, "missing_fraction"), rows


def _commercial(facts: pd.DataFrame) -> Answer:
    datasets, _ = _halves(facts)
    coarsest = datasets["voxel_size_nm"].map(max)
    fine = datasets.assign(coarsest=coarsest)[(coarsest < 10) & datasets["license"].isin(["CC0-1.0", "CC-BY-4.0"])]
    return ("name", "max_voxel_size_nm", "license"), fine[["dataset", "coarsest", "license"]].to_numpy().tolist()


ANSWERS: dict[str, Callable[[pd.DataFrame], Answer]] = dict(
    zip(QUESTIONS, (_resolution, _shared, _origin, _conflicts, _progress, _commercial), strict=True)
)
ASKERS = {PRODUCT: ask_product, CRAWL: ask_crawl, BARE: ask_bare}


# The measurement.


def build(folder: Path, files: int) -> dict[str, Any]:
    """The catalogue of the store, anew."""
    started = perf_counter()
    import duckdb  # noqa: F401  # what a build imports
    import pyarrow.parquet  # noqa: F401

    from em_assets.catalog.build import build_catalog
    from em_assets.settings import Settings
    from em_assets.store import LocalStore

    imports = perf_counter() - started
    root = folder / "store"
    specs = {spec.name: spec for spec in make_specs(files)}
    built = build_catalog(specs, LocalStore(root), Settings(root=str(root)))
    return {"imports": imports, "seconds": built.seconds, "tables": built.rows}


def main() -> int:
    arguments = _arguments()
    if arguments.client is not None:
        name, *question = arguments.client
        reply = build(arguments.work, arguments.files) if name == "build" else ASKERS[name](arguments.work, *question)
        print(json.dumps(reply))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the client ends too
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="em_assets_benchmark_", dir=arguments.work) as scratch:
        report, all_right = _measure(arguments, Path(scratch))
    print(report)
    if arguments.out is not None:
        arguments.out.write_text(report + "\n")
    return 0 if all_right else 1


def _measure(arguments: argparse.Namespace, scratch: Path) -> tuple[str, bool]:
    from contest import machine, say

    header = machine(PACKAGES, arguments.rounds)
    say(f"writing a store of {arguments.files:,} files")
    claims = write_store(scratch / "store", scratch / "sidecars", arguments.files)
    sizes = [path.stat().st_size for path in (scratch / "sidecars").rglob("*.json")]
    built = _build_contest(scratch, arguments.files, claims).run(arguments.rounds, arguments.repeats)
    if not built[0].is_right:
        return "\n".join([header, "", *_build_lines(built[0])]), False
    export_tables(scratch / "store" / "metadata.duckdb", scratch / "parquet")
    asked = {
        question: _question_contest(scratch, question).run(arguments.rounds, arguments.repeats)
        for question in arguments.questions
    }
    lines = [
        *(header, "", f"### {arguments.files:,} files, {claims:,} claims of them, {DATASETS} datasets", ""),
        *(f"{len(sizes):,} side-cars, {statistics.mean(sizes):.0f} bytes each.", ""),
        *(*_build_lines(built[0]), "", *_question_lines(asked), "", *_start_lines(asked), ""),
        *("### Against the targets", "", "| target | reached |", "|---|---|", *_target_lines(built[0], asked), ""),
    ]
    rows = [*built, *(row for rows in asked.values() for row in rows)]
    return "\n".join(lines), all(row.is_right for row in rows)


def _build_contest(scratch: Path, files: int, claims: int) -> Contest:
    from contest import Contest
    from measure import Usage

    def judge(client: str, usage: Usage) -> str:
        tables = json.loads(usage.output)["tables"]
        if tables["files"] == files and tables["claims"] >= claims:
            return "right"
        return f"WRONG: {tables['files']} files and {tables['claims']} claims instead of {files} and {claims} or more"

    return Contest("build", {PRODUCT: _command(scratch, "build", files=files)}, scratch / "result", judge)


def _question_contest(scratch: Path, question: str) -> Contest:
    """Whoever answers first is compared with all others, by the columns that both have."""
    from contest import Contest

    commands = {client: _command(scratch, client, question) for client in ASKERS}
    return Contest(question, commands, scratch / "result", partial(_judge, {}))


def _judge(answers: dict[str, Any], client: str, usage: Any) -> str:
    rows = json.loads(usage.output)["rows"]
    if not rows:
        return "WRONG: no answer"
    for other, theirs in answers.items():
        columns = sorted(rows[0].keys() & theirs[0].keys())
        one, two = (sorted(json.dumps([row[name] for name in columns]) for row in found) for found in (rows, theirs))
        if one != two:
            different = next((pair for pair in zip(one, two, strict=False) if pair[0] != pair[1]), (len(one), len(two)))
            return f"WRONG: another answer than {other}'s: {different[0]} instead of {different[1]}"
    answers.setdefault(client, rows)
    return "right"


def _command(scratch: Path, *client: str, files: int = FILES) -> list[str]:
    return [sys.executable, __file__, "--work", str(scratch), "--files", str(files), "--client", *client]


def _seconds(row: Row, key: str) -> float:
    return statistics.median(json.loads(run.usage.output)[key] for run in row.runs)


def _build_lines(row: Row) -> Iterator[str]:
    if not row.is_right:
        wrong = row.failure or next(run.verdict for run in row.runs if not run.verdict.startswith("right"))
        yield f"build: {wrong}"
        return
    yield "| | build s (min - max) | imports s | whole command s | cpu s | peak anonymous MB |"
    yield "|---|---|---|---|---|---|"
    seconds = [json.loads(run.usage.output)["seconds"] for run in row.runs]
    cpu = statistics.median(run.usage.cpu_seconds for run in row.runs)
    yield (
        f"| {row.client} | {statistics.median(seconds):.2f} ({min(seconds):.2f} - {max(seconds):.2f}){_busy(row)} | "
        f"{_seconds(row, 'imports'):.2f} | {row.wall_seconds:.2f} | {cpu:.2f} | {row.peak_anonymous_bytes / 1e6:.0f} |"
    )


def _question_lines(asked: dict[str, list[Row]]) -> Iterator[str]:
    """Times in milliseconds without process start and imports."""
    yield (
        f"| question | client | open and ask, first ms | speed, x {CRAWL} | again ms | speed, x {CRAWL} "
        f"| time, x {BARE} | ask alone ms | time, x {BARE} | result |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for question, rows in asked.items():
        of = {row.client: row for row in rows}
        for row in rows:
            if row.failure is not None:
                yield f"| {question} | {row.client} | failed: {row.failure} |" + " |" * 7
                continue
            first, again, alone = (_ratio(of, row.client, key) for key in ("first", "again", "alone"))
            verdict = next((run.verdict for run in row.runs if not run.verdict.startswith("right")), "right")
            yield (
                f"| {question} | {row.client} | {_seconds(row, 'first') * 1e3:.1f}{_busy(row)} | {first(CRAWL)} "
                f"| {_seconds(row, 'again') * 1e3:.1f} | {again(CRAWL)} | {again(BARE, is_time=True)} "
                f"| {_seconds(row, 'alone') * 1e3:.2f} | {alone(BARE, is_time=True)} | {verdict} |"
            )


def _ratio(rows: dict[str, Row], client: str, key: str) -> Callable[..., str]:
    def to(base: str, *, is_time: bool = False) -> str:
        value = _times(rows, client, base, key)
        return "-" if value is None else f"{value if is_time else 1 / value:.2g}"

    return to


def _times(rows: dict[str, Row], client: str, base: str, key: str) -> float | None:
    """The client's seconds over the base's; None where one did not run."""
    if not rows[client].runs or not rows[base].runs:
        return None
    return _seconds(rows[client], key) / _seconds(rows[base], key)


def _busy(row: Row) -> str:
    from contest import LOADED_ABOVE

    foreign = row.median.usage.foreign_load
    return f", others {foreign:.0%}" if foreign > LOADED_ABOVE else ""


def _start_lines(asked: dict[str, list[Row]]) -> Iterator[str]:
    yield "| client | imports s | whole command (start, imports, the question several times) s |"
    yield "|---|---|---|"
    for client in ASKERS:
        rows = _all_of(client, asked)
        if rows:
            imports = statistics.median(_seconds(row, "imports") for row in rows)
            yield f"| {client} | {imports:.2f} | {statistics.median(row.wall_seconds for row in rows):.2f} |"
    if rows := _all_of(PRODUCT, asked):
        engine = statistics.median(_seconds(row, "engine") for row in rows)
        yield ""
        yield f"To start DuckDB with nothing in it, and to end it, took {engine * 1e3:.1f} ms in the same processes."


def _all_of(client: str, asked: dict[str, list[Row]]) -> list[Row]:
    return [row for rows in asked.values() for row in rows if row.client == client and row.runs]


def _target_lines(built: Row, asked: dict[str, list[Row]]) -> Iterator[str]:
    seconds = _seconds(built, "seconds")
    yield f"| the catalogue is built within {BUILD_SECONDS:g} s | {_yes(seconds <= BUILD_SECONDS)}: {seconds:.2f} s |"
    for key, words in (("again", "DuckDB started"), ("first", "the first in a process, DuckDB's start included")):
        found = _of_each(asked, CRAWL, key)
        slowest = 1 / max(found.values())
        yield (
            f"| open and ask, {words}: at least {CRAWL_RATIO:g}x faster than the crawl "
            f"| {_yes(slowest >= CRAWL_RATIO)}: {slowest:.0f}x to {1 / min(found.values()):.0f}x |"
        )
    for key, words in (
        ("again", "open and ask, DuckDB started"),
        ("first", "open and ask, the first in a process"),
        ("alone", "ask alone"),
    ):
        found = _of_each(asked, BARE, key)
        worst = max(found, key=lambda question: found[question])
        yield (
            f"| {words}: at most {BARE_RATIO:g}x the time of bare DuckDB on Parquet "
            f"| {_yes(found[worst] <= BARE_RATIO)}: {min(found.values()):.2f}x to {found[worst]:.2f}x ({worst}) |"
        )
    started = _least_of_engine(asked)
    if started:
        yield (
            f"| what starting DuckDB alone allows: the crawl's time over the engine's | {min(started):.0f}x to "
            f"{max(started):.0f}x |"
        )


def _least_of_engine(asked: dict[str, list[Row]]) -> list[float]:
    """How many times faster than the crawl opening an empty DuckDB is, by question."""
    found = []
    for rows in asked.values():
        of = {row.client: row for row in rows if row.runs}
        if PRODUCT in of and CRAWL in of:
            found.append(_seconds(of[CRAWL], "again") / _seconds(of[PRODUCT], "engine"))
    return found


def _of_each(asked: dict[str, list[Row]], base: str, key: str) -> dict[str, float]:
    """The product's seconds over the base's, by question."""
    times = {
        question: _times({row.client: row for row in rows}, PRODUCT, base, key) for question, rows in asked.items()
    }
    return {question: value for question, value in times.items() if value is not None} or {"not measured": float("nan")}


def _yes(reached: bool) -> str:
    return "yes" if reached else "no"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=FILES, help=f"a multiple of {DATASETS}; ten claims of each")
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=list(QUESTIONS), metavar="QUESTION")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=0, help="of a run that other processes disturbed (%(default)s)")
    parser.add_argument("--work", type=Path, help="where the store is made (default: a temp folder)")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    parser.add_argument("--quick", action="store_true", help="a tenth of the files, three rounds, unless given")
    parser.add_argument("--client", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        parser.set_defaults(files=QUICK_FILES, rounds=3)
    arguments = parser.parse_args()
    if arguments.files % DATASETS or arguments.files < 2 * DATASETS:
        parser.error(f"--files is a multiple of {DATASETS}, at least {2 * DATASETS}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
