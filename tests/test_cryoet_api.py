"""The portal's interface: what is found, whole lists over pages, and every way in which an answer cannot be believed.

The server executes the schema that the portal's own client carries, over a few dicts. Tests named after a defect of
that client say in their docstring what it does; those about downloads are in `test_cryoet_client_defects.py`.
"""

import contextlib
import copy
import fnmatch
import functools
import importlib.util
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_assets.errors import Malformed, Unsupported
from em_assets.fetch import attempts
from em_assets.fetch.hosts import HostUnreachable
from em_assets.fetch.http import HttpClient
from em_assets.settings import Settings
from em_assets.sources import _cryoet_entities as entities
from em_assets.sources._cryoet_api import NotInPortal, PortalClient, bucket_of, files_for, like_of
from em_assets.sources._graphql import Condition, list_query, nested_query, wheres

graphql = pytest.importorskip("graphql", reason="graphql-core is not installed")

DATE = "2023-04-01T00:00:00+00:00"
FILES = "https://files.example.org"
BUCKET = "s3://cryoet-data-portal-public"
DATES = {"depositionDate": DATE, "releaseDate": DATE, "lastModifiedDate": DATE}


def schema_text() -> str:
    spec = importlib.util.find_spec("cryoet_data_portal")
    if spec is None or spec.origin is None:
        pytest.skip("the portal's client, which carries the schema, is not installed")
    return (Path(spec.origin).parent / "data" / "schema.graphql").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def schema():
    return graphql.build_schema(schema_text())


# ---------------------------------------------------------------------------------------------------------------------
# A portal over dicts


def author(number: int, **of) -> dict:
    return {"id": number, "name": f"Author {number}", "authorListOrder": -number, "orcid": None, **of}


def prefixes(key: str) -> dict:
    return {"s3Prefix": f"{BUCKET}/{key}/", "httpsPrefix": f"{FILES}/{key}/"}


def dataset(number: int) -> dict:
    named = {"title": f"Dataset {number}", "description": "S. pombe", "organismName": "Schizosaccharomyces pombe"}
    return {"id": number, "depositionId": 300, **named, "fileSize": 5.0e9, **prefixes(str(number)), **DATES}


def run(number: int, name: str, of: int = 10000) -> dict:
    return {"id": number, "name": name, "datasetId": of, **prefixes(f"{of}/{name}")}


def tomogram(number: int, of: int, **changes) -> dict:
    key = f"10000/run{of}/Reconstructions/VoxelSpacing13.480/Tomograms/{number}/run{of}"
    return {
        "id": number,
        "name": f"run{of}",
        "runId": of,
        "depositionId": 300,
        "alignmentId": 70,
        "tomogramVoxelSpacingId": 50,
        "sizeX": 960,
        "sizeY": 928,
        "sizeZ": 1000,
        "voxelSpacing": 13.48,
        "offsetX": 1,
        "offsetY": 2,
        "offsetZ": 3,
        "fiducialAlignmentStatus": "NON_FIDUCIAL",
        "reconstructionMethod": "WBP",
        "reconstructionSoftware": "IMOD",
        "processing": "raw",
        "s3OmezarrDir": f"{BUCKET}/{key}.zarr",
        "httpsOmezarrDir": f"{FILES}/{key}.zarr",
        "s3MrcFile": f"{BUCKET}/{key}.mrc",
        "httpsMrcFile": f"{FILES}/{key}.mrc",
        "fileSizeMrc": 1781761024.0,
        "scale0Dimensions": "960,928,1000",
        **changes,
    }


def annotation(number: int, of: int, name: str) -> dict:
    key = f"10000/run{of}/Annotations/{number}/{name}-1.0.json"
    return {
        "id": number,
        "runId": of,
        "objectId": "GO:0022626",
        "objectName": name,
        "objectCount": 25,
        "annotationMethod": "by eye",
        "annotationIngestId": f"{name}-1",
        "methodType": "manual",
        **DATES,
        "s3MetadataPath": f"{BUCKET}/{key}",
        "httpsMetadataPath": f"{FILES}/{key}",
    }


def annotation_file(number: int, of: int, kind: str, **changes) -> dict:
    paths = {"s3Path": f"{BUCKET}/a/{number}.{kind}", "httpsPath": f"{FILES}/a/{number}.{kind}"}
    ids = {"annotationShapeId": of, "alignmentId": 70, "tomogramVoxelSpacingId": 50}
    return {"id": number, "format": kind, **ids, **paths, **changes}


def tables() -> dict[str, list[dict]]:
    """By type, as the portal's database has them: relations by id."""
    runs = [run(2, "TS_026"), run(4, "TS_027"), run(6, "TSx028"), run(8, "ts_029"), run(9, "TS_1", 10001)]
    shapes = [(31, 21, "Point"), (32, 21, "SegmentationMask"), (33, 22, "OrientedPoint")]
    scope = {"microscopeManufacturer": "TFS", "microscopeModel": "Krios", "microscopeEnergyFilter": "GIF"}
    tilts = {"tiltMin": -60.0, "tiltMax": 60.0, "tiltRange": 120.0, "tiltStep": 2.0, "tiltAxis": 84.7}
    more = {"tiltingScheme": "dose symmetric", "totalFlux": 122.0, "dataAcquisitionSoftware": "SerialEM"}
    series = {**scope, **tilts, **more, "cameraManufacturer": "Gatan", "cameraModel": "K2", "isAligned": False}
    return {
        "Deposition": [{"id": 300, "title": "DeePiCt", "description": "...", **DATES}],
        "DepositionType": [{"id": 1, "depositionId": 300, "type": "dataset"}],
        "Dataset": [dataset(10000), dataset(10001)],
        "DatasetAuthor": [author(1, datasetId=10000), author(2, datasetId=10000)],
        "DatasetFunding": [{"id": 1, "datasetId": 10000, "fundingAgencyName": "ERC", "grantId": "760067"}],
        "Run": runs,
        "Alignment": [
            {"id": 70, "runId": 2, "volumeXDimension": 1.0, "volumeYDimension": 2.0, "volumeZDimension": 3.0}
        ],
        "PerSectionAlignmentParameters": [
            {"id": 5 - z, "alignmentId": 70, "zIndex": z, "tiltAngle": 2.0 * z, "inPlaneRotation": [[1, 0], [0, 1]]}
            for z in range(5)
        ],
        "TomogramVoxelSpacing": [{"id": 50, "runId": 2, "voxelSpacing": 13.48, **prefixes("10000/TS_026/v")}],
        "Tomogram": [
            *(tomogram(number, 2) for number in (11, 12)),
            tomogram(13, 2, voxelSpacing=7.84, processing="denoised"),
            *(tomogram(number, 4) for number in (14, 15, 16, 17)),
            tomogram(18, 9),
        ],
        "TomogramAuthor": [author(1, tomogramId=11)],
        "Annotation": [annotation(21, 2, "ribosome"), annotation(22, 2, "membrane"), annotation(23, 4, "ribosome")],
        "AnnotationShape": [{"id": key, "annotationId": of, "shapeType": kind} for key, of, kind in shapes],
        "AnnotationFile": [
            annotation_file(41, 31, "ndjson", fileSize=1000.0),
            annotation_file(42, 32, "mrc"),
            annotation_file(43, 32, "zarr"),
            annotation_file(44, 33, "ndjson", tomogramVoxelSpacingId=51),
        ],
        "AnnotationAuthor": [author(3, annotationId=21)],
        "AnnotationMethodLink": [{"id": 1, "annotationId": 21, "linkType": "source_code", "link": "https://x.example"}],
        "Tiltseries": [
            {"id": 61, "runId": 2, **series, "accelerationVoltage": 300000, "sphericalAberrationConstant": 2.7}
            | {"tiltSeriesQuality": 5, "pixelSpacing": 3.3702, "sizeX": 10, "sizeY": 20, "sizeZ": 4}
        ],
        "IdentifiedObject": [{"id": 81, "runId": 2, "objectId": "GO:0022626", "objectName": "ribosome"}],
    }


def like(pattern: str, flags: int = 0) -> re.Pattern:
    return re.compile(".*".join(".".join(map(re.escape, part.split("_"))) for part in pattern.split("%")), flags)


HOLDS = {
    "_eq": lambda value, wanted: value == wanted,
    "_neq": lambda value, wanted: value != wanted,
    "_in": lambda value, wanted: value in wanted,
    "_gt": lambda value, wanted: value > wanted,
    "_gte": lambda value, wanted: value >= wanted,
    "_lt": lambda value, wanted: value < wanted,
    "_lte": lambda value, wanted: value <= wanted,
    "_like": lambda value, wanted: bool(like(wanted).fullmatch(value)),
    "_ilike": lambda value, wanted: bool(like(wanted, re.IGNORECASE).fullmatch(value)),
}


class Portal:
    """`POST /graphql`. What goes wrong is set between tests: `reset` puts all of it right."""

    def __init__(self, schema) -> None:
        self.whole_schema = schema
        self.reset()
        portal = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, kind, body = portal.answer(asked)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # who has read enough goes
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/graphql"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        self.schema = self.whole_schema
        self.tables = tables()
        self.asked: list[dict] = []
        self.most = self.most_nested = 1000
        self.ignores: set[str] = set()
        self.change = lambda reply: reply
        self.instead = None

    def answer(self, asked: dict) -> tuple[int, str, bytes]:
        self.asked.append(asked)
        if self.instead is not None:
            return self.instead(len(self.asked))
        query, errors = self.checked(self.schema, asked["query"])
        done = graphql.ExecutionResult(None, errors) if errors else self.executed(query, asked["variables"])
        return 200, "application/json", json.dumps(self.change(copy.deepcopy(done.formatted))).encode()

    @staticmethod
    @functools.cache  # half of the time of these tests
    def checked(schema, text: str) -> tuple:
        query = graphql.parse(text)
        return query, graphql.validate(schema, query)

    def executed(self, query, variables: dict):
        return graphql.execute_sync(self.schema, query, variable_values=variables, field_resolver=self.resolve)

    def resolve(self, source, info, **asked):
        """Of any field: lists by their type, what an entity belongs to by its id, else what the dict holds."""
        kind = graphql.get_named_type(info.return_type).name
        if kind.endswith("Connection"):
            back = f"{info.parent_type.name[0].lower()}{info.parent_type.name[1:]}Id"
            rows = [row for row in self.rows(kind.removesuffix("Connection")) if row.get(back) == source["id"]]
            return self.connection(self.picked(rows, asked), asked.get("first"), asked.get("after"))
        if info.parent_type.name == "Query":
            return self.paged(self.picked(self.rows(kind), asked), asked.get("limitOffset"))
        if f"{info.field_name}Id" in info.parent_type.fields:
            key = source.get(f"{info.field_name}Id")
            return next((row for row in self.rows(kind) if row["id"] == key), None)
        return source.get(info.field_name)

    def rows(self, kind: str) -> list[dict]:
        return self.tables.get(kind, [])

    def picked(self, rows: list[dict], asked: dict) -> list[dict]:
        if "where" not in self.ignores:
            rows = [row for row in rows if self.holds(row, asked.get("where") or {})]
        for clause in reversed([] if "order" in self.ignores else asked["orderBy"]):
            ((field, direction),) = clause.items()
            rows = sorted(rows, key=lambda row: row[field], reverse=direction == "desc")
        return rows

    def holds(self, row: dict, where: dict) -> bool:
        for field, part in where.items():
            if all(operator in HOLDS for operator in part):
                if not all(HOLDS[operator](row.get(field), wanted) for operator, wanted in part.items()):
                    return False
            else:
                (owner,) = [one for one in self.rows(field.capitalize()) if one["id"] == row[f"{field}Id"]]
                if not self.holds(owner, part):
                    return False
        return True

    def paged(self, rows: list[dict], clause) -> list[dict]:
        offset = 0 if "offset" in self.ignores else (clause or {}).get("offset") or 0
        limit = min(self.most, (clause or {}).get("limit") or self.most)
        return rows[offset : offset + limit]

    def connection(self, rows: list[dict], first, after) -> dict:
        start = 0 if "after" in self.ignores else int(after or 0)
        stop = start + min(self.most_nested, first or self.most_nested)
        page = {"hasNextPage": stop < len(rows), "endCursor": str(stop)}
        return {"pageInfo": page, "edges": [{"node": row} for row in rows[start:stop]]}


@pytest.fixture(scope="module")
def running(schema):
    with Portal(schema) as portal:
        yield portal


@pytest.fixture
def portal(running, monkeypatch):
    monkeypatch.setattr(attempts, "BACKOFF_SECONDS", 0.02)
    running.reset()
    return running


QUICK = Settings(unreachable_seconds=0.3, retry_seconds=2.0, connect_seconds=1.0, read_seconds=1.0)


def client(portal, **options) -> PortalClient:
    return PortalClient(portal.url, QUICK, **options)


def ids(found) -> list[int]:
    return [one.id for one in found]


# ---------------------------------------------------------------------------------------------------------------------
# What is found


class TestFinding:
    def test_a_tomogram_says_where_it_lies(self, portal):
        """Orders are turned around to (z, y, x), sizes are whole bytes, its run and dataset come along."""
        found = client(portal).tomogram(11)
        assert found.shape == found.level_shapes[0] == (1000, 928, 960)
        assert found.offset == (3, 2, 1)
        assert (found.voxel_spacing_angstrom, found.mrc_bytes) == (13.48, 1781761024)
        assert (found.run.name, found.run.dataset.title) == ("TS_026", "Dataset 10000")
        assert found.alignment.volume_size_angstrom == (3.0, 2.0, 1.0)
        assert bucket_of(found.s3_omezarr).key.endswith("Tomograms/11/run2.zarr")
        assert found.raw["scale0Dimensions"] == "960,928,1000"

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [
            ({"dataset": 10000, "run": "TS_026"}, [11, 12, 13]),
            ({"dataset": 10000, "run": "TS_026", "voxel_spacing": 13.48}, [11, 12]),
            ({"dataset": 10000, "run": "TS_026", "voxel_spacing": 13.4796}, [11, 12]),
            ({"dataset": 10000, "run": "TS_026", "voxel_spacing": 13.49}, []),
            ({"run_id": 2, "processing": "denoised"}, [13]),
            ({"dataset": 10001}, [18]),
            ({"ids": [17, 11]}, [17, 11]),
            ({"ids": []}, []),
            ({"where": [Condition("run.name", "_ilike", "ts_02_"), Condition("processing", "_neq", "raw")]}, [13]),
        ],
    )
    def test_tomograms_that_fulfil_all_conditions(self, portal, asked, expected):
        """Of a dataset, run, voxel spacing, processing, by id, and by any field."""
        assert ids(client(portal).tomograms(**asked)) == expected

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("TS_*", ["TS_026", "TS_027"]),
            ("TS?02[78]", ["TS_027", "TSx028"]),
            ("*9", ["ts_029"]),
            ("TS_%", []),
            ("TS_[!6]26", ["TS_026"]),
            (None, ["TS_026", "TS_027", "TSx028", "ts_029"]),
        ],
    )
    def test_runs_by_a_pattern_of_the_shell(self, portal, pattern, expected):
        """`_` is itself, not any character as in LIKE; case matters."""
        assert [one.name for one in client(portal).runs(10000, pattern)] == expected

    @given(st.text("aA_%?*[]!-\\", max_size=8), st.text("aA_%-]", max_size=8))
    def test_the_server_leaves_out_no_run_that_fits(self, pattern, name):
        """What LIKE is asked for contains what the shell's pattern means."""
        asked = like_of(pattern)
        if fnmatch.fnmatchcase(name, pattern) and asked is not None:
            assert like(asked).fullmatch(name)

    def test_annotations_come_with_shapes_and_files(self, portal):
        """And their authors in the order of the list, in one query."""
        first, second = client(portal).annotations(2)
        assert [(shape.shape_type, [file.format for file in shape.files]) for shape in first.shapes] == [
            ("Point", ["ndjson"]),
            ("SegmentationMask", ["mrc", "zarr"]),
        ]
        assert first.files[0].voxel_spacing.angstrom == 13.48
        assert (first.method_links[0].link, first.authors[0].name) == ("https://x.example", "Author 3")
        assert second.files[0].size_bytes is None
        assert len(portal.asked) == 1

    def test_annotations_of_a_tomogram_have_its_coordinates(self, portal):
        """A file of another voxel spacing is not for it."""
        asking = client(portal)
        chosen = asking.tomogram(11)
        (found,) = asking.annotations(tomogram=chosen)
        assert (found.id, ids(files_for(found, chosen))) == (21, [41, 42, 43])

    def test_what_else_there_is(self, portal):
        """Datasets with authors and funding, depositions, tilt series, alignments with their sections."""
        asking = client(portal)
        found = asking.dataset(10000)
        assert [one.name for one in found.authors] == ["Author 2", "Author 1"]  # by authorListOrder
        assert (found.funding[0].grant, found.size_bytes) == ("760067", 5_000_000_000)
        assert [one.type for one in asking.deposition(300).types] == ["dataset"]
        (series,) = asking.tilt_series(2)
        assert (series.shape, series.microscope, series.pixel_spacing_angstrom) == ((4, 20, 10), "TFS Krios", 3.3702)
        (alignment,) = asking.alignments(2)
        assert [section.z_index for section in alignment.sections] == [0, 1, 2, 3, 4]
        assert alignment.sections[0].in_plane_rotation == ((1.0, 0.0), (0.0, 1.0))
        assert ids(asking.datasets([Condition("organismName", "_ilike", "%POMBE%")])) == [10000, 10001]
        assert (asking.run(4).name, asking.annotation(22).object_name) == ("TS_027", "membrane")

    @pytest.mark.parametrize("ask", ["deposition", "dataset", "run", "tomogram", "annotation"])
    def test_an_id_that_is_not_there_is_named(self, portal, ask):
        """The portal's client gives None, which fails somewhere else."""
        with pytest.raises(NotInPortal, match=rf"has no {ask} with the id 999; correct"):
            getattr(client(portal), ask)(999)

    def test_replies_are_kept_as_received(self, portal):
        """For the records: one document per reply, each JSON."""
        kept = {}
        client(portal, keep=kept.__setitem__, page_entities=3).tomograms(10000)
        assert sorted(kept) == ["tomograms-0001.json", "tomograms-0002.json", "tomograms-0003.json"]
        assert json.loads(kept["tomograms-0001.json"])["data"]["items"][0]["id"] == 11


def test_all_names_are_in_the_schema(schema):
    """Every query that is sent, further pages included, is valid for what the portal's own client carries."""
    classes = [value for value in vars(entities).values() if hasattr(value, "KIND") and hasattr(value, "__slots__")]
    kinds = [entities.kind_of(one) for one in classes if one is not entities.PortalEntity]
    queries = [list_query(kind) for kind in kinds if kind.root]
    queries += [nested_query(kind, field, part) for kind in kinds for field, part in kind.many]
    assert len(queries) > 20
    assert [graphql.validate(schema, graphql.parse(query)) for query in queries] == [[]] * len(queries)


# ---------------------------------------------------------------------------------------------------------------------
# Whole lists


class TestPages:
    @pytest.mark.parametrize("asked", [1, 2, 7, 100])
    @pytest.mark.parametrize("most", [1, 3, 1000])
    def test_pages_make_the_whole_list(self, portal, asked, most):
        """Of whatever length they are asked for, and also where the server gives fewer than that."""
        portal.most = most
        assert ids(client(portal, page_entities=asked).tomograms()) == list(range(11, 19))
        assert len(portal.asked) == -(-8 // min(asked, most))

    def test_nested_lists_are_whole_at_every_depth(self, portal):
        """Shapes of annotations and files of shapes, though the server gives one at a time."""
        portal.most_nested = 1
        first, second = client(portal).annotations(2)
        assert (ids(first.shapes), ids(first.files)) == ([31, 32], [41, 42, 43])
        assert ids(second.files) == [44]
        assert all("pageInfo" not in json.dumps(one.raw) for one in (first, second))

    def test_the_same_page_for_ever_is_no_list(self, portal):
        """B32: an offset that is ignored is seen at the second page."""
        portal.ignores = {"offset"}
        with pytest.raises(Malformed, match=r"pages that do not end .*: id 11 comes again"):
            client(portal, page_entities=3).tomograms()
        assert len(portal.asked) == 2

    def test_the_same_nested_page_for_ever_is_no_list(self, portal):
        """B32: neither is a cursor that is ignored."""
        portal.ignores, portal.most_nested = {"after"}, 1
        with pytest.raises(Malformed, match="id 31 comes again in annotationShapes of annotation 21"):
            client(portal).annotations(2)

    def test_a_list_that_breaks_off_is_not_taken_for_whole(self, portal):
        """An empty page before the last entity is an error."""
        portal.change = lambda reply: {"data": {**reply["data"], "items": reply["data"]["items"][:0]}}
        with pytest.raises(Malformed, match="nothing comes after id -1, though id 18 is the last one"):
            client(portal).tomograms()

    def test_pages_in_another_order_are_no_list(self, portal):
        """Without an order, pages overlap and skip."""
        portal.tables["Tomogram"].reverse()
        portal.ignores = {"order"}
        with pytest.raises(Malformed, match="out of order"):
            client(portal).tomograms()

    def test_new_entities_for_ever_end(self, portal, monkeypatch):
        """More than any list can have."""
        monkeypatch.setattr("em_assets.sources._graphql.MAX_ENTITIES", 4)
        with pytest.raises(Malformed, match="more than 4 came"):
            client(portal, page_entities=3).tomograms()

    def test_an_entity_that_a_join_finds_twice_is_one(self, portal):
        """As conditions on lists make some servers do, also at a page's end."""
        portal.tables["Tomogram"] = [row for row in portal.tables["Tomogram"] for _ in range(2)]
        assert ids(client(portal, page_entities=3).tomograms()) == list(range(11, 19))


# ---------------------------------------------------------------------------------------------------------------------
# B32: what is no answer


def document(value) -> tuple[int, str, bytes]:
    return 200, "application/json", value if isinstance(value, bytes) else json.dumps(value).encode()


ERROR = {"message": "the database\nis tired", "path": ["items", 3, "run"]}


@pytest.mark.parametrize(
    ("reply", "error", "said"),
    [
        (document({"errors": [ERROR, {}]}), Malformed, r"'the database\\nis tired' at 'items.3.run' \(and 1 more\)"),
        (document({"data": {"items": []}, "errors": [ERROR]}), Malformed, "with an error, 'the database"),
        (document({"data": None, "errors": "no"}), Malformed, "with an error, 'no'"),
        (document({"errors": [{"message": "x" * 9000}]}), Malformed, f"'{'x' * 300}';"),
        (document({"data": None}), Malformed, "has null as its `data`"),
        (document({}), Malformed, "has null as its `data`"),
        (document([1]), Malformed, r"is \[1\], expected an object with `data`"),
        (document({"data": {"items": None, "last": []}}), Malformed, "the list of tomograms is null, expected a list"),
        (document({"data": {"items": [7], "last": []}}), Malformed, "is 7, expected an object"),
        (document({"data": {"items": [{"id": "11"}], "last": []}}), Malformed, "an entity with the id '11'"),
        (document(b"oops"), Malformed, "line 1 column 1: not JSON"),
        (document(b'{"data": {"items": NaN}}'), Malformed, "NaN is not JSON"),
        (document(b'{"data": ' + b"[" * 200_000), Malformed, "nested more than 64 deep"),
        (document(b'{"data": {}, "data": {}}'), Malformed, "'data' is given twice"),
        (document(b" " * (16 * 2**20 + 1)), Malformed, "expected at most 16777216"),
        ((200, "text/html", b"<html>maintenance"), Malformed, "a web page where data was expected"),
        (document(b"<!DOCTYPE html><p>maintenance"), Malformed, "a web page where data was expected"),
        ((400, "application/json", b'{"errors": [{"message": "Syntax Error"}]}'), Malformed, "'Syntax Error'"),
        (
            (400, "application/json", b'{"errors": [{"message": "Cannot query field \'x\' on type \'Tomogram\'."}]}'),
            Unsupported,
            "schema of .* changed.*Cannot query field 'x'",
        ),
    ],
    ids=[
        *("errors", "errors beside data", "errors are text", "long message", "data null", "no data", "a list"),
        *("list null", "no entity", "id is text", "not JSON", "NaN", "brackets", "twins", "large"),
        *("page", "page as JSON", "400", "400, schema"),
    ],
)
def test_b32_what_is_no_answer_is_said_and_not_used(portal, reply, error, said):
    """B32, B33: the first error is quoted, on one line, and nothing of such a reply is used; it is asked for once."""
    portal.instead = lambda _: reply
    with pytest.raises(error, match=said) as caught:
        client(portal).tomograms()
    assert "\n" not in str(caught.value)
    assert len(portal.asked) == 1


def test_b32_a_field_that_the_schema_no_longer_has_is_said_so(portal):
    """B32: not `AttributeError`, not None: the server's own words, and that the portal's schema changed."""
    gone = re.sub(r'  """[^"]*"""\n  httpsMrcFile: String\n', "", schema_text())
    portal.schema = graphql.build_schema(gone)
    with pytest.raises(
        Unsupported, match=r"schema of .* changed.*Cannot query field 'httpsMrcFile' on type 'Tomogram'"
    ):
        client(portal).tomogram(11)


def test_a_condition_that_the_schema_does_not_have_is_said_so(portal):
    """A misspelt or renamed field of a condition is never ignored."""
    with pytest.raises(Unsupported, match=r"schema of .* changed.*voxelsize"):
        client(portal).tomograms(where=[Condition("voxelsize", "_eq", 1.0)])


def test_a_short_outage_does_not_matter(portal):
    """The portal's client gives up; people wrapped retries around it."""
    portal.instead = lambda number: (
        (503, "text/plain", b"") if number < 3 else document({"data": {"items": [], "last": []}})
    )
    assert client(portal).tomograms() == []
    assert len(portal.asked) == 3


def test_an_interface_that_is_not_there_is_given_up(portal):
    """So that the address of the spec can be used instead."""
    with pytest.raises(HostUnreachable):
        PortalClient("http://127.0.0.1:9/graphql", QUICK).tomogram(11)


# ---------------------------------------------------------------------------------------------------------------------
# Entities that cannot be believed


def changing(portal, **changes) -> None:
    """Tomogram 12 of each reply is changed so."""

    def change(reply):
        for item in reply["data"]["items"]:
            if item["id"] == 12:
                item.update(changes)
        return reply

    portal.change = change


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"voxelSpacing": None}, "voxelSpacing is absent, expected a value, which the portal's schema requires"),
        ({"voxelSpacing": "13.48"}, "voxelSpacing is '13.48', expected a finite number"),
        ({"voxelSpacing": 0}, "voxelSpacing is 0, expected a number above 0"),
        ({"voxelSpacing": True}, "voxelSpacing is True"),
        ({"sizeZ": 0}, "sizeZ is 0, expected a number of voxels above 0"),
        ({"sizeY": 928.5}, "sizeY is 928.5, expected a whole number"),
        ({"sizeX": 10**390}, "sizeX is 1000"),
        ({"fileSizeMrc": -1}, "fileSizeMrc is -1, expected a number of bytes"),
        ({"processing": None}, "processing is absent"),
        ({"processing": 7}, "processing is 7, expected text"),
        ({"isPortalStandard": "yes"}, "isPortalStandard is 'yes', expected true or false"),
        ({"scale0Dimensions": "960x928x1000"}, "scale0Dimensions is '960x928x1000', expected three whole numbers"),
        ({"run": [1]}, r"run is \[1\], expected an object"),
        ({"run": {"id": 2, "name": "TS_026"}}, "run 2, field datasetId is absent"),
        ({"authors": None}, "tomogram 12, authors is null, expected an object"),
        ({"authors": {"pageInfo": {"hasNextPage": True, "endCursor": None}, "edges": []}}, "endCursor null"),
        ({"s3MrcFile": "s3://bucket/../../etc/passwd"}, r"s3MrcFile is .*its path has empty, `.` or `..` parts"),
        ({"s3MrcFile": "s3://bucket/a\\b"}, "s3MrcFile is"),
        ({"s3MrcFile": "s3://bucket/a\nb"}, "characters that cannot be shown"),
        ({"s3MrcFile": "https://b/a"}, "expected s3://bucket/key"),
        ({"s3MrcFile": "gs://bucket/a"}, "expected s3://bucket/key"),
        ({"httpsMrcFile": "file:///etc/passwd"}, "expected https://host/path"),
        ({"httpsMrcFile": "javascript:alert(1)"}, "expected https://host/path"),
        ({"httpsMrcFile": "//evil.example/x"}, "expected https://host/path"),
        ({"httpsMrcFile": "https://u:p@evil.example/x"}, "expected no user, query or fragment"),
        ({"httpsMrcFile": "https://8.8.8.8/a/%2e%2e/b"}, "its path has empty, `.` or `..` parts"),
    ],
)
def test_what_cannot_be_believed_is_named(portal, changes, said):
    """Entity, id and field; with somebody to tell, it is left out and the rest goes on."""
    changing(portal, **changes)
    with pytest.raises(Malformed, match=said):
        client(portal).tomograms(run="TS_026")
    told = []
    assert ids(client(portal, refused=told.append).tomograms(run_id=2)) == [11, 13]
    assert [("tomogram 12" in str(error) or "run 2" in str(error)) for error in told] == [True]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://8.8.8.8/a", "expected https"),
        ("https://127.0.0.1/a", "private network"),
        ("https://169.254.169.254/latest", "private network"),
        ("https://[::ffff:10.0.0.1]/a", "private network"),
        ("https://8.8.8.8/10000/TS_026/a.mrc", None),
    ],
)
def test_a_public_interface_names_no_private_address(address, said):
    """B35: nor one that is not encrypted; the sample's own server is private and may."""
    refusal = entities.Addresses("https://8.8.8.8/graphql").https_refusal(address)
    assert (refusal is None) if said is None else (said in refusal)
    assert entities.Addresses("http://127.0.0.1:8000/graphql").https_refusal("http://127.0.0.1:8000/a") is None


def test_what_the_schema_lets_be_absent_may_be_absent(portal):
    """A tomogram without an OME-Zarr, with the empty text that the portal has in places."""
    changing(portal, s3OmezarrDir=None, httpsOmezarrDir="", alignment=None, scale0Dimensions="")
    found = client(portal).tomogram(12)
    assert (found.s3_omezarr, found.https_omezarr, found.alignment, found.level_shapes[0]) == (None, None, None, None)


def test_what_was_asked_for_by_id_is_not_left_out(portal):
    """Where it cannot be believed, that is the error."""
    changing(portal, voxelSpacing=None)
    with pytest.raises(Malformed, match="tomogram 12, field voxelSpacing"):
        client(portal, refused=print).tomograms(ids=[11, 12])


def test_a_server_that_ignores_conditions_is_not_believed(portal):
    """Its whole list would be taken for the answer."""
    portal.ignores = {"where"}
    with pytest.raises(Malformed, match=r"tomogram 14, run.name is 'TS_027', but 'TS_026' was asked for"):
        client(portal).tomograms(run="TS_026")


# ---------------------------------------------------------------------------------------------------------------------
# Defects of the portal's client (4.8 and 4.9) that concern queries; the test's name is the defect


def test_filters_with_the_same_field_and_operator_merge_silently(portal):
    """There, the last of them wins without a word; here all hold."""
    both = [Condition("processing", "_neq", "raw"), Condition("processing", "_neq", "denoised")]
    assert client(portal).tomograms(run="TS_026", where=both) == []
    names = [Condition("name", "_like", "TS%"), Condition("name", "_like", "%7")]
    assert [one.name for one in client(portal).runs(10000, where=names)] == ["TS_027"]


def test_filters_of_different_operators_are_one_object():
    """A range is one query, also through relations; equal conditions are one."""
    between = [Condition("run.id", "_gt", 1), Condition("run.id", "_lt", 9), Condition("run.id", "_gt", 1)]
    assert wheres(between) == [{"run": {"id": {"_gt": 1, "_lt": 9}}}]
    assert wheres([]) == [{}]


def test_n_plus_one_queries_on_relationships(portal):
    """There, `tomogram.run` and `annotation.files` are a query each; here their number does not grow."""
    client(portal).tomograms(run="TS_026")
    for_three = len(portal.asked)
    client(portal).tomograms()
    assert (for_three, len(portal.asked)) == (1, 2)
    assert client(portal).annotations(2)[0].files[0].voxel_spacing.angstrom == 13.48
    assert len(portal.asked) == 3


def test_each_find_is_one_unbounded_query(portal):
    """There, no limit is ever sent; here every list and every nested one has one."""
    client(portal).annotations(2)
    (asked,) = portal.asked
    assert asked["variables"]["limit"] == 100
    lists = re.findall(r"(\w+)\((first: 100|where)", asked["query"])
    assert {name for name, _ in lists} == {
        "annotations",
        "annotationShapes",
        "annotationFiles",
        "methodLinks",
        "authors",
    }


def test_transport_is_already_connected(portal):
    """#1130: there, until every query had a client of its own; here one is for many threads at once."""
    asking = client(portal)
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda number: asking.tomogram(11 + number % 8).id, range(36)))
    assert found == [11 + number % 8 for number in range(36)]


@pytest.mark.parametrize("value", ["10000/TS_026", "s3://b/10000", "", "1e4", -1, 10000.0, True, 2**31, "\uff11"])
def test_an_id_passed_as_a_path(portal, value):
    """#1309: there, it crashes in the server's words; here it is refused before anybody is asked. Digits are an id."""
    with pytest.raises(Malformed, match="is no id of a dataset: expected a whole number"):
        client(portal).dataset(value)
    assert portal.asked == []
    assert client(portal).dataset("10000").id == 10000


def test_identified_object_is_not_exported(portal):
    """There, it is in the models and cannot be imported."""
    (found,) = client(portal).identified_objects(2)
    assert (found.object_name, found.run_id) == ("ribosome", 2)


def test_download_alignment_file_reads_a_field_that_is_gone(portal, schema):
    """There, `tilt_series.download_alignment_file()` is an AttributeError; alignments are their own entities here."""
    assert "httpsAlignmentFile" not in schema.type_map["Tiltseries"].fields
    assert not [name for name in entities.kind_of(entities.PortalTiltSeries).scalars if "lignmentFile" in name]
    (found,) = client(portal).alignments(2)
    assert found.tilt_series_id is None
    assert len(found.sections) == 5


def test_voxel_spacing_13_48_is_not_a_folder(portal):
    """#306, #266: addresses are what the interface says, never built from a voxel spacing."""
    found = client(portal).tomograms(dataset=10000, run="TS_026", voxel_spacing=13.48)[0]
    assert found.s3_mrc == portal.tables["Tomogram"][0]["s3MrcFile"]


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_a_voxel_spacing_that_is_none_is_refused(portal, value):
    """Before anybody is asked."""
    with pytest.raises(Malformed, match="expected angstrom above 0"):
        client(portal).tomograms(voxel_spacing=value)


def test_a_client_can_be_shared(portal):
    """Its gates per host hold for downloads and queries alike."""
    http = HttpClient(QUICK)
    assert PortalClient(portal.url, http).tomogram(11).id == PortalClient(portal.url, http).tomogram(11).id == 11
