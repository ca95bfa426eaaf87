"""The CryoET Data Portal's part of the sample: its tree, read by other people's libraries, and its GraphQL."""

import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from urllib.parse import urlsplit

import mrcfile
import numpy as np
import pytest
import urllib3
import zarr

from em_assets.errors import Malformed, Unsupported
from em_assets.sample import cryoet, graphql
from em_assets.sample.cryoet_entities import entities_of_tree, metadata_files
from em_assets.sample.cryoet_run import HEADER_SPACING_ANGSTROM
from em_assets.sample.cryoet_volumes import pyramid
from em_assets.sample.origin import Request
from em_assets.sample.publishing import Addresses
from em_assets.sample.server import OriginServer

SPACING = "Reconstructions/VoxelSpacing13.480"
EVEN, ODD = cryoet.RUNS


class Served:
    """The sample's tree on disk and its server."""

    def __init__(self, folder, server, facts):
        self.folder, self.server, self.facts = folder, server, facts
        self.tree = folder / cryoet.BUCKET_NAME / facts["prefix"]
        self.pool = urllib3.PoolManager(retries=False, timeout=10)

    def run(self, run, path):
        return self.tree / run.key / path

    def tomogram(self, run):
        return zarr.open_group(self.tree / run.tomogram / f"{run.name}.zarr", mode="r")

    def post(self, query, path="/graphql", **variables):
        """(status, JSON) of a query."""
        body = json.dumps({"query": query, "variables": variables})
        reply = self.pool.request("POST", self.server.url + path, body=body)
        return reply.status, reply.json()

    def ask(self, query, path="/graphql", **variables):
        """The data of an answer without errors."""
        status, answer = self.post(query, path, **variables)
        assert status == 200 and set(answer) == {"data"}, answer
        return answer["data"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("origin")
    facts = cryoet.write(folder, Request(seed=1, volume=None))
    with OriginServer(folder) as server:
        served = Served(folder, server, facts)
        yield served
        served.pool.clear()


# The tree


LAYOUT = [
    "depositions_metadata/10000/deposition_metadata.json",
    "depositions_metadata/10000/Images/snapshot.png",
    "10000/dataset_metadata.json",
    "10000/Images/thumbnail.png",
    "10000/TS_026/run_metadata.json",
    "10000/TS_026/Frames/TS_026.mdoc",
    "10000/TS_026/Frames/frames_metadata.json",
    "10000/TS_026/Gains/CountRef.mrc",
    "10000/TS_026/TiltSeries/100/TS_026.mrc",
    "10000/TS_026/TiltSeries/100/TS_026.rawtlt",
    "10000/TS_026/TiltSeries/100/TS_026.zarr/.zattrs",
    "10000/TS_026/TiltSeries/100/tiltseries_metadata.json",
    "10000/TS_026/Alignments/100/TS_026.xf",
    "10000/TS_026/Alignments/100/TS_026.tlt",
    "10000/TS_026/Alignments/100/alignment_metadata.json",
    f"10000/TS_026/{SPACING}/Tomograms/100/TS_026.mrc",
    f"10000/TS_026/{SPACING}/Tomograms/100/TS_026.zarr/0/0/0/0",
    f"10000/TS_026/{SPACING}/Tomograms/100/tomogram_metadata.json",
    f"10000/TS_026/{SPACING}/Images/100/key-photo-original.png",
    f"10000/TS_026/{SPACING}/Annotations/100/cytosolic_ribosome-1.0_point.ndjson",
    f"10000/TS_026/{SPACING}/Annotations/102/nucleosome-1.0_orientedpoint.ndjson",
    f"10000/TS_026/{SPACING}/Annotations/117/cytoplasm-1.0.json",
    f"10000/TS_026/{SPACING}/Annotations/117/cytoplasm-1.0_segmentationmask.mrc",
    f"10000/TS_026/{SPACING}/Annotations/117/cytoplasm-1.0_segmentationmask.zarr/2/.zarray",
    f"10000/TS_027/{SPACING}/Annotations/114/cytoplasm-1.0_segmentationmask.zarr/.zgroup",
]


def test_every_kind_of_file_lies_where_the_portal_puts_it(served):
    """The layout of the portal's bucket, over HTTP."""
    for key in LAYOUT:
        url = f"{served.server.url}/{served.tree.relative_to(served.folder).as_posix()}/{key}"
        assert served.pool.request("HEAD", url).status == 200, key


def test_zarr_says_what_the_portals_writer_says(served):
    """Attributes and array metadata to the letter, three levels, in angstrom and without a translation."""
    group = served.tomogram(EVEN)
    scales = [13.48, 26.96, 53.92]
    assert dict(group.attrs) == {
        "multiscales": [
            {
                "axes": [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"],
                "datasets": [
                    {"coordinateTransformations": [{"scale": [scale] * 3, "type": "scale"}], "path": str(level)}
                    for level, scale in enumerate(scales)
                ],
                "metadata": {},
                "name": "/",
                "version": "0.4",
            }
        ]
    }
    assert [group[str(level)].shape for level in range(3)] == [(100, 92, 96), (50, 46, 48), (25, 23, 24)]
    assert json.loads((served.tree / EVEN.tomogram / "TS_026.zarr/0/.zarray").read_text()) == {
        "chunks": [16, 16, 16],
        "compressor": {"blocksize": 0, "clevel": 5, "cname": "lz4", "id": "blosc", "shuffle": 1},
        "dimension_separator": "/",
        "dtype": "<f4",
        "fill_value": 0.0,
        "filters": None,
        "order": "C",
        "shape": [100, 92, 96],
        "zarr_format": 2,
    }


def test_zarr_is_the_portals_but_for_size(served, payloads):
    """The files that the portal's own writer made differ in shape and chunk only."""
    real = payloads / "cryoet/ngff/tomogram_9x37x41_v0.4.zarr"
    ours = served.tree / EVEN.tomogram / "TS_026.zarr"
    assert json.loads((ours / ".zattrs").read_text()) == json.loads((real / ".zattrs").read_text())
    for level in range(3):
        ours_array, real_array = (json.loads((group / f"{level}/.zarray").read_text()) for group in (ours, real))
        sizes = ("shape", "chunks")
        assert {k: v for k, v in ours_array.items() if k not in sizes} == {
            k: v for k, v in real_array.items() if k not in sizes
        }
    real_series, ours_series = (
        json.loads((folder / ".zattrs").read_text())
        for folder in (payloads / "cryoet/ngff/tiltseries_v0.4.zarr", served.run(EVEN, "TiltSeries/100/TS_026.zarr"))
    )
    assert real_series == ours_series


@pytest.mark.parametrize("run", cryoet.RUNS, ids=lambda run: run.name)
def test_coarser_levels_are_means_with_zeros_beyond_the_edge(served, run):
    """As the portal's: sides rounded up, so that odd ones end in darker voxels."""
    group = served.tomogram(run)
    for level in (0, 1):
        fine, coarse = (np.asarray(group[str(number)]).astype(np.float64) for number in (level, level + 1))
        padded = np.pad(fine, [(0, size % 2) for size in fine.shape])
        z, y, x = padded.shape
        means = padded.reshape(z // 2, 2, y // 2, 2, x // 2, 2).mean((1, 3, 5))
        np.testing.assert_allclose(coarse, means, atol=1e-6)


def test_odd_edges_of_a_constant_volume_are_too_dark():
    """What was seen of the portal's writer: 100 becomes 50 at an odd edge, 12.5 in the corner, then 1.5625."""
    _, first, second = pyramid(np.full((5, 5, 5), 100, np.float32), "image")
    assert first[0, 0].tolist() == [100, 100, 50]
    assert (first[-1, -1, -1], second[-1, -1, -1]) == (12.5, 1.5625)


@pytest.mark.parametrize("level", range(3))
def test_a_chunk_is_missing_if_it_is_all_zero(served, level):
    """At least one at each level of the first run, and never another."""
    array = served.tomogram(EVEN)[str(level)]
    voxels = np.asarray(array)
    missing = 0
    for index in itertools.product(*(range(math.ceil(size / 16)) for size in voxels.shape)):
        file = served.tree.joinpath(EVEN.tomogram, "TS_026.zarr", str(level), *map(str, index))
        part = voxels[tuple(slice(16 * i, 16 * i + 16) for i in index)]
        assert file.is_file() == part.any(), index
        missing += not part.any()
    assert missing >= 1


@pytest.mark.parametrize(
    ("run", "dtype", "depth"), [(EVEN, np.int16, 50), (ODD, np.float16, 40)], ids=["TS_026", "TS_027"]
)
def test_mrc_differs_from_the_zarr(served, run, dtype, depth):
    """Another dtype, fewer slices, a header that is not the folder's name: the same scene nevertheless."""
    file = served.tree / run.tomogram / f"{run.name}.mrc"
    assert mrcfile.validate(file)
    with mrcfile.open(file) as mrc:
        assert (mrc.data.dtype, mrc.data.shape) == (dtype, (depth, *run.shape[1:]))
        size = mrc.voxel_size
        np.testing.assert_allclose([size.x, size.y, size.z], HEADER_SPACING_ANGSTROM, rtol=1e-6)
        assert mrc.is_volume() and f"{size.x:.3f}" == "13.481"
        scale = 0.001 if dtype is np.int16 else 1
        voxels = np.asarray(served.tomogram(run)["0"])[(run.shape[0] - depth) // 2 :][:depth]
        np.testing.assert_allclose(mrc.data.astype(np.float64) * scale, voxels, atol=2e-3)


def test_tilt_series_is_a_stack_of_images(served):
    """Its header says so, and has the pixel size that the Zarr rounds; frames are stacks, too."""
    with mrcfile.open(served.run(EVEN, "TiltSeries/100/TS_026.mrc")) as mrc:
        assert mrc.is_image_stack() and mrc.data.shape == (5, 37, 41)
        assert float(mrc.voxel_size.x) == pytest.approx(3.3702, rel=1e-6)
        stack = mrc.data.copy()
    group = zarr.open_group(served.run(EVEN, "TiltSeries/100/TS_026.zarr"), mode="r")
    np.testing.assert_array_equal(np.asarray(group["0"]), stack)
    assert [group[str(level)].shape for level in range(3)] == [(5, 37, 41), (5, 19, 21), (5, 10, 11)]
    frames = sorted(served.run(EVEN, "Frames").glob("*.mrc"))
    assert len(frames) == 5 and all(mrcfile.validate(frame) for frame in frames)


def test_masks_are_the_same_in_both_forms(served):
    """int8 of 0 and 1; a coarser voxel is 1 where any finer one is."""
    for run in cryoet.RUNS:
        for number, name in run.masks.items():
            stem = f"{SPACING}/Annotations/{number}/{name}-1.0_segmentationmask"
            group = zarr.open_group(served.run(run, f"{stem}.zarr"), mode="r")
            fine, coarse = (np.asarray(group[str(level)]) for level in (0, 1))
            np.testing.assert_array_equal(mrcfile.read(served.run(run, f"{stem}.mrc")), fine)
            assert fine.dtype == np.int8 and set(np.unique(fine)) == {0, 1}
            blown_up = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[tuple(map(slice, fine.shape))]
            assert (blown_up >= fine).all()
            assert all(coarse[tuple(at // 2)] for at in np.argwhere(fine)[::97])


def test_points_lie_in_the_tomogram(served):
    """As many lines as the metadata counts; rotations turn and do not mirror."""
    for run in cryoet.RUNS:
        for file in served.run(run, SPACING).glob("Annotations/*/*.ndjson"):
            points = [json.loads(line) for line in file.read_text().splitlines()]
            metadata = json.loads(next(file.parent.glob("*.json")).read_text())
            assert len(points) == metadata["object_count"]
            for point in points:
                assert all(0 <= point["location"][axis] < n for axis, n in zip("zyx", run.shape, strict=True))
                if "oriented" in file.name:
                    matrix = np.array(point["xyz_rotation_matrix"])
                    np.testing.assert_array_equal(matrix @ matrix.T, np.eye(3))
                    assert np.linalg.det(matrix) == pytest.approx(1)


METADATA_KINDS = {
    "deposition_metadata.json": "DepositionMetadata",
    "dataset_metadata.json": "DatasetMetadata",
    "run_metadata.json": "RunMetadata",
    "frames_metadata.json": "FramesMetadata",
    "tiltseries_metadata.json": "TiltSeriesMetadata",
    "alignment_metadata.json": "AlignmentMetadata",
    "tomogram_metadata.json": "TomogramMetadata",
}


def test_metadata_is_valid_by_the_portals_schema(served, payloads):
    """Each file by the definition of its kind, as far as the portal's own files keep to it: the definition of a run
    lacks the two keys that every file has, and that of an annotation the format in which the portal writes points.
    """
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((payloads / "cryoet/schema/metadata_files.schema.json").read_text())
    validators = {
        kind: jsonschema.Draft201909Validator({"$defs": schema["$defs"], "$ref": f"#/$defs/{kind}"})
        for kind in {*METADATA_KINDS.values(), "AnnotationMetadata"}
    }
    files = metadata_files(served.tree)
    assert len(files) == 2 + 2 * (1 + 1 + 1 + 1 + 1 + 5)
    for file in files:
        kind = METADATA_KINDS.get(file.name, "AnnotationMetadata")
        content = json.loads(file.read_text())
        if kind == "RunMetadata":
            content = {"run_name": content["run_name"]}
        for entry in content.get("files", []) if kind == "AnnotationMetadata" else []:
            entry["format"] = {"ndjson": "csv"}.get(entry["format"], entry["format"])
        assert [error.message for error in validators[kind].iter_errors(content)] == [], file


def test_paths_in_the_metadata_are_there(served):
    """Every key that a metadata file names is a file or a folder of the tree."""
    named = [
        path
        for file in metadata_files(served.tree)
        for path in re.findall(r'"(10000/[^"]+|dep[^"]+/[^"]+)"', file.read_text())
    ]
    assert len(named) > 60
    assert [path for path in named if not (served.tree / path).exists()] == []


def test_ome_zarr_models_accept_what_is_served(served):
    """Tomograms, masks and tilt series are images of OME-NGFF 0.4."""
    models = pytest.importorskip("ome_zarr_models.v04", reason="ome-zarr-models is an extra for tests")
    groups = sorted({file.parent for file in served.tree.rglob(".zattrs")})
    assert len(groups) == 8
    for group in groups:
        models.Image.from_zarr(zarr.open_group(group, mode="r"))


def test_the_spec_has_what_the_api_says(served):
    """The tomogram's id, where it lies, its shape at the spec's level; the masks' and points' addresses, too."""
    document = cryoet.spec(served.facts, Addresses(served.server.url, "ftp://127.0.0.1:1"))
    source, portal_choice = document["source"], document["source"]["portal"]
    query = """query($id: Int) { tomograms(where: {id: {_eq: $id}}) { s3OmezarrDir scale2Dimensions }
        annotationFiles { s3Path httpsPath } }"""
    data = served.ask(query, urlsplit(portal_choice["api"]).path, id=portal_choice["tomogram"])
    (tomogram,) = data["tomograms"]
    assert tomogram["s3OmezarrDir"] == f"{source['url']}/{source['group']}"
    assert source["level"] == 2 and document["expected"]["source_shape"] == [25, 23, 24]
    assert tomogram["scale2Dimensions"] == "24,23,25"
    addresses = {address for row in data["annotationFiles"] for address in row.values()}
    assert {f"{source['url']}/{volume['group']}" for volume in document["volumes"].values()} <= addresses
    assert {points["url"] for points in document["points"].values()} <= addresses and document["points"]


# The entities


def test_entities_are_read_from_the_tree_alone(served):
    """Keys below the root without bases; sizes are those of what lies there."""
    entities = entities_of_tree(served.tree)
    (tomogram,) = (row for row in entities["Tomogram"] if row["name"] == "TS_026")
    assert tomogram["s3MrcFile"] == tomogram["httpsMrcFile"] == f"{EVEN.tomogram}/TS_026.mrc"
    assert tomogram["fileSizeMrc"] == 1024 + 50 * 92 * 96 * 2
    counts = {kind: len(rows) for kind, rows in entities.items()}
    assert counts["Run"] == 2 and counts["Annotation"] == 10 and counts["AnnotationFile"] == 14


def ids_of(entities):
    return {kind: [row["id"] for row in rows] for kind, rows in entities.items()}


def test_ids_follow_the_tree_and_what_they_are_of(served, tmp_path):
    """The same again in the same tree, others in a tree of another name; a run that is gone changes no other's."""
    copy = tmp_path / served.tree.name
    shutil.copytree(served.tree, copy, ignore=shutil.ignore_patterns("*.zarr"))
    assert ids_of(entities_of_tree(copy)) == ids_of(entities_of_tree(served.tree))
    shutil.rmtree(copy / "10000/TS_026")
    ids = {row["id"] for row in entities_of_tree(served.tree)["Tomogram"]}
    (left,) = entities_of_tree(copy)["Tomogram"]
    assert left["id"] in ids
    (elsewhere,) = entities_of_tree(copy.rename(tmp_path / "other"))["Tomogram"]
    assert elsewhere["id"] not in ids


def test_entities_of_the_portals_own_metadata(payloads, tmp_path):
    """Files of the portal's tests, put where they belong: with a bucket before some paths, a flat matrix, no frame."""
    metadata = payloads / "cryoet/metadata"
    run, spacing = "30001/RUN1", "30001/RUN1/Reconstructions/VoxelSpacing12.300"
    places = {
        "deposition_metadata.json": "depositions_metadata/300/deposition_metadata.json",
        "dataset_metadata.json": "30001/dataset_metadata.json",
        "run_metadata.json": f"{run}/run_metadata.json",
        "frames_metadata.json": f"{run}/Frames/frames_metadata.json",
        "tiltseries_metadata.json": f"{run}/TiltSeries/100/tiltseries_metadata.json",
        "alignment_metadata.json": f"{run}/Alignments/100/alignment_metadata.json",
        "tomogram_metadata.json": f"{spacing}/Tomograms/100/tomogram_metadata.json",
        "annotation_foo-1.0.json": f"{spacing}/Annotations/100/foo-1.0.json",
        "100-foo-1.0_globalcaption.json": f"{spacing}/Annotations/100/foo-1.0_globalcaption.json",
    }
    for name, key in places.items():
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(metadata / name, tmp_path / key)
    entities = entities_of_tree(tmp_path, s3_base="s3://b", https_base="https://h")
    (tomogram,), (annotation,), (alignment,) = (entities[kind] for kind in ("Tomogram", "Annotation", "Alignment"))
    assert tomogram["alignmentId"] == alignment["id"] and tomogram["scale2Dimensions"] == "245,254,125"
    assert tomogram["s3MrcFile"] == f"s3://b/{spacing}/Tomograms/100/RUN1.mrc" and tomogram["fileSizeMrc"] is None
    assert {row["alignmentId"] for row in entities["AnnotationFile"]} == {alignment["id"]}
    assert annotation["httpsMetadataPath"] == f"https://h/{spacing}/Annotations/100/foo-1.0.json"
    assert {row["source"] for row in entities["AnnotationFile"]} == {"community"}
    assert entities["PerSectionAlignmentParameters"][0]["inPlaneRotation"] == [[0.1, 0.2], [-0.3, 0.4]]
    assert [row["fileSize"] for row in entities["Frame"]] == [None] * 3
    assert entities["Frame"][2]["s3FramePath"] is None
    assert [row["name"] for row in entities["DatasetAuthor"]] == ["Jane Eyre", "Virginia Woolf", "Julia Child"]


def test_metadata_that_is_no_object_is_named(tmp_path):
    """The file is in the message."""
    (tmp_path / "10000").mkdir()
    (tmp_path / "10000/dataset_metadata.json").write_text("[]")
    with pytest.raises(Malformed, match=r"10000/dataset_metadata\.json is no JSON object"):
        entities_of_tree(tmp_path)


# GraphQL


def test_addresses_are_of_the_server_that_was_asked(served):
    """HTTPS by the name that the client calls it, S3 in the bucket; every one of them answers."""
    query = """{ tomograms { httpsMrcFile keyPhotoUrl } annotations { httpsMetadataPath }
        annotationFiles(where: {format: {_neq: "zarr"}}) { httpsPath } tiltseries { httpsMrcFile httpsAngleList }
        frames { httpsFramePath } gainFiles { httpsFilePath } frameAcquisitionFiles { httpsMdocPath }
        alignments { httpsAlignmentMetadata } datasets { keyPhotoThumbnailUrl } depositions { keyPhotoUrl } }"""
    urls = [url for rows in served.ask(query).values() for row in rows for url in row.values()]
    assert len(urls) == 46
    assert all(served.pool.request("HEAD", url).status == 200 for url in urls)
    body = json.dumps({"query": "{ runs { httpsPrefix s3Prefix } }"})
    reply = served.pool.request("POST", f"{served.server.url}/graphql", body=body, headers={"Host": "sample.test:81"})
    prefix = f"{cryoet.BUCKET_NAME}/{served.tree.name}/10000/"
    for run in reply.json()["data"]["runs"]:
        assert run["httpsPrefix"].startswith(f"http://sample.test:81/{prefix}")
        assert run["s3Prefix"].startswith(f"s3://{prefix}") and run["s3Prefix"].endswith("/")


def test_the_tree_is_named_by_the_path(served, tmp_path):
    """The folder before /graphql; alone it means the only tree, and with two of them none."""
    own = f"/{cryoet.BUCKET_NAME}/{served.tree.name}/graphql"
    assert served.ask("{ runs { name } }", own) == served.ask("{ runs { name } }")
    status, answer = served.post("{ runs { name } }", "/elsewhere/graphql")
    assert status == 404 and "/elsewhere/graphql" in answer["errors"][0]["message"]
    outside = graphql.answer(served.folder / "empty", f"/..{own}", "", b"{}", "http://h")
    assert outside.status == 404
    for bucket in ("one", "two"):
        (tmp_path / bucket / "10000").mkdir(parents=True)
        (tmp_path / bucket / "10000/dataset_metadata.json").write_text("{}")
    assert graphql.answer(tmp_path, "/graphql", "", b"{}", "http://h").status == 404


def test_lists_come_in_pages_only_if_a_limit_is_asked_for(served):
    """Two at once whatever the limit, all of them in the end; all at once without a limit."""
    query = "query($n: Int) { frames(limitOffset: {limit: 100, offset: $n}) { id } }"
    pages = [served.ask(query, n=offset)["frames"] for offset in range(0, 12, 2)]
    assert [len(page) for page in pages] == [2, 2, 2, 2, 2, 0]
    assert [row for page in pages for row in page] == served.ask("{ frames { id } }")["frames"]


def test_relations_come_in_pages(served):
    """By cursor, forwards and backwards, each row once."""
    query = """query($after: String) { runs(where: {name: {_eq: "TS_026"}}) { annotations(first: 50, after: $after) {
        pageInfo { hasNextPage endCursor } edges { cursor node { id } } } } }"""
    found, after = [], None
    for _ in range(3):
        page = served.ask(query, after=after)["runs"][0]["annotations"]
        found += [edge["node"]["id"] for edge in page["edges"]]
        after = page["pageInfo"]["endCursor"]
    assert len(set(found)) == 5 and not page["pageInfo"]["hasNextPage"]
    back = '{ runs(where: {name: {_eq: "TS_026"}}) { annotations(last: 1) { edges { node { id } } } } }'
    assert served.ask(back)["runs"][0]["annotations"]["edges"][0]["node"]["id"] == found[-1]


WHERE = {
    "in": ('name: {_in: ["TS_026"]}', ["TS_026"]),
    "not in": ('name: {_nin: ["TS_026"]}', ["TS_027"]),
    "greater": ("sizeX: {_gt: 41}", ["TS_026"]),
    "at least": ("sizeX: {_gte: 41}", ["TS_026", "TS_027"]),
    "two at once": ("sizeX: {_gt: 40, _lt: 50}", ["TS_027"]),
    "regex": ('name: {_iregex: "ts_.*7$"}', ["TS_027"]),
    "not like": ('name: {_nilike: "%6"}', ["TS_027"]),
    "a null equals nothing": ('processingSoftware: {_neq: "x"}', []),
    "is null": ("processingSoftware: {_is_null: true}", ["TS_026", "TS_027"]),
    "a date": ('releaseDate: {_gte: "2023-06-01", _lt: "2023-06-02T00:00:00Z"}', ["TS_026", "TS_027"]),
    "an enum": ("processing: {_in: [denoised, filtered]}", []),
    "a relation": ("alignment: {tiltseries: {pixelSpacing: {_lt: 3}}}", []),
    "a list's relation": ('run: {annotations: {objectName: {_like: "vesi%"}}}', ["TS_026"]),
    "a count": (
        'run: {annotationsAggregate: {count: {filter: {objectName: {_eq: "nucleus"}}, predicate: {_eq: 0}}}}',
        ["TS_026"],
    ),
}


@pytest.mark.parametrize("case", WHERE)
def test_where(served, case):
    """Each operator, and what is asked of relations."""
    clause, names = WHERE[case]
    found = served.ask(f"{{ tomograms(where: {{{clause}}}, orderBy: [{{name: asc}}]) {{ name }} }}")
    assert [row["name"] for row in found["tomograms"]] == names


def test_order_goes_through_relations(served):
    """The first key first; nulls where they are asked to be."""
    query = "{ annotations(orderBy: [{run: {name: desc}}, {objectName: asc}]) { objectName run { name } } }"
    rows = [(row["run"]["name"], row["objectName"]) for row in served.ask(query)["annotations"]]
    assert rows == sorted(sorted(rows, key=lambda row: row[1]), key=lambda row: row[0], reverse=True)
    assert rows[0][0] == "TS_027" and rows[0][1] == "cytoplasm"


def test_aggregates_count_and_group(served):
    """Also of a relation, of distinct values, and by a column of something related."""
    query = """{ annotationsAggregate { aggregate { count groupBy { run { name } } } }
        annotationFilesAggregate(where: {format: {_eq: "mrc"}}) { aggregate { count } }
        tomogramsAggregate { aggregate { count(distinct: true, columns: voxelSpacing) sum { sizeX } max { name } } }
        datasets { runsAggregate { aggregate { count } } } }"""
    data = served.ask(query)
    groups = data["annotationsAggregate"]["aggregate"]
    assert sorted((group["groupBy"]["run"]["name"], group["count"]) for group in groups) == [
        ("TS_026", 5),
        ("TS_027", 5),
    ]
    assert data["annotationFilesAggregate"]["aggregate"] == [{"count": 4}]
    assert data["tomogramsAggregate"]["aggregate"] == [{"count": 1, "sum": {"sizeX": 137}, "max": {"name": "TS_027"}}]
    assert data["datasets"][0]["runsAggregate"]["aggregate"] == [{"count": 2}]


ERRORS = {
    "an unknown field": "{ tomograms { nothing } }",
    "a syntax error": "{ tomograms {",
    "an offset without a limit": "{ tomograms(limitOffset: {offset: 1}) { id } }",
    "a wrong type": '{ tomograms(where: {id: {_eq: "a"}}) { id } }',
    "a cursor that is none": '{ runs { frames(after: "x") { edges { cursor } } } }',
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_come_with_status_200(served, case):
    """As GraphQL's do: no data, and what is wrong in words."""
    status, answer = served.post(ERRORS[case])
    assert status == 200 and answer["data"] is None and answer["errors"][0]["message"]


def test_what_is_no_query_is_refused(served):
    """400 for a body that is none, 405 for a POST elsewhere; the connection goes on."""
    pool = urllib3.HTTPConnectionPool(served.server.host, served.server.port, maxsize=1, retries=False)
    for body in (b"", b"{", b"[]", b'{"query": 1}', b"{}"):
        assert pool.request("POST", "/graphql", body=body).status == 400
    reply = pool.request("POST", "/somewhere", body=b"{}")
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    assert pool.request("POST", "/graphql", body=b'{"query": "{ runs { id } }"}').status == 200
    assert pool.num_connections == 1
    pool.close()


def test_a_query_that_is_too_long_is_not_read(served):
    """Nor one whose length nobody says: 400, and the connection ends."""
    pool = urllib3.PoolManager(retries=False)
    for headers in ({"Content-Length": str(1 << 30)}, {"Transfer-Encoding": "chunked"}):
        reply = pool.request("POST", f"{served.server.url}/graphql", body=b"", headers=headers)
        assert (reply.status, reply.headers["Connection"]) == (400, "close")
    pool.clear()


def test_faults_on_request(served):
    """Each of the wrong answers, and 400 for one that is not known."""
    query = """{ tomograms(limitOffset: {limit: 9, offset: 4}) { id s3MrcFile }
        runs { frames { pageInfo { hasNextPage } } } }"""
    answers = {}
    for fault in graphql.FAULTS:
        body = json.dumps({"query": query})
        answers[fault] = served.pool.request("POST", f"{served.server.url}/graphql?fault={fault}", body=body)
    assert {answer.status for answer in answers.values()} == {200}
    assert answers["errors"].json()["errors"][0]["message"] and answers["errors"].json()["data"] is None
    assert answers["null"].json() == {"data": None}
    assert answers["page"].headers["Content-Type"].startswith("text/html") and answers["page"].data.startswith(
        b"<!DOCTYPE"
    )
    endless = answers["endless"].json()["data"]
    assert len(endless["tomograms"]) == 2 and endless["runs"][0]["frames"]["pageInfo"]["hasNextPage"]
    missing = served.ask("{ tomograms { id s3MrcFile httpsOmezarrDir name } }", "/graphql?fault=missing")
    assert all(
        row["id"] and [row["s3MrcFile"], row["httpsOmezarrDir"], row["name"]] == [None] * 3
        for row in missing["tomograms"]
    )
    assert served.post(query, "/graphql?fault=other")[0] == 400


def test_a_changed_tree_is_read_again(served, tmp_path):
    """Entities are kept until a metadata file changes: the next answer has the new words."""
    tree = tmp_path / "bucket/tree"
    (tree / "10000").mkdir(parents=True)
    file = tree / "10000/dataset_metadata.json"
    metadata = json.loads((served.tree / "10000/dataset_metadata.json").read_text())
    titles = []
    for title in ("first", "the second"):
        file.write_text(json.dumps(metadata | {"dataset_title": title}))
        query = b'{"query": "{ datasets { title } }"}'
        body = graphql.answer(tmp_path.resolve(), "/bucket/tree/graphql", "", query, "http://h").body
        titles.append(json.loads(body)["data"]["datasets"][0]["title"])
    assert titles == ["first", "the second"]


def test_a_browser_may_ask(served):
    """A preflight allows POST, and the answer may be read by any page."""
    preflight = served.pool.request("OPTIONS", f"{served.server.url}/graphql")
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    reply = served.pool.request("POST", f"{served.server.url}/graphql", body=b'{"query": "{ runs { id } }"}')
    assert reply.headers["Access-Control-Allow-Origin"] == "*"


def test_nothing_of_it_is_loaded_before_a_query():
    """Starting the server loads neither GraphQL nor the client; the schema never loads the client."""
    code = """import sys
from em_assets.sample import cryoet, origin, server
assert not {"graphql", "numpy", "cryoet_data_portal"} & set(sys.modules), "on import"
from em_assets.sample.graphql import schema
schema()
assert "graphql" in sys.modules and not {"cryoet_data_portal", "boto3"} & set(sys.modules), "with the schema"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_the_libraries_the_sample_says_what_to_install(monkeypatch):
    """One sentence with the way out."""
    monkeypatch.setattr(graphql, "CLIENT", "no_such_package")
    with pytest.raises(Unsupported, match=r"cryoet-data-portal; install them with `pip install 'em_assets\[sample\]'`"):
        graphql.require_graphql()
