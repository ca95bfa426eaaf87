"""IDR, EMPIAR, EPFL and OpenOrganelle from their servers to checked volumes, and what may happen on the way."""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr

from em_assets import pipeline
from em_assets.errors import Mismatch
from em_assets.records import DatasetFolder
from em_assets.sample.server import Reply
from em_assets.store import LocalStore, open_store
from faulty import Fault, FaultyHandler
from published import CONSTANT, EMPIAR, EPFL, IDR, JRC, LABELS, MODULES, ODD, Publishers, stored_level, write_once
from small import quick_settings

XY = "Figure_S3B_FIB-SEM_U2OS_20x20x20nm_xy.tif"
XZ = "Figure_S3B_FIB-SEM_U2OS_20x20x20nm_xz.tif"
SLICE_4, SLICE_5 = (f"F57-8_test1_3VBSED_slice_000{number}.dm3" for number in (4, 5))
EVERY = list(MODULES)
FILES = [IDR, EMPIAR, EPFL]
OBJECTS = re.compile(r"/\d+/\d+/\d+$")


@pytest.fixture
def publishers(tmp_path_factory, tmp_path):
    with Publishers(write_once(tmp_path_factory.getbasetemp()), tmp_path) as publishers:
        yield publishers


@pytest.fixture
def own_publishers(tmp_path_factory, tmp_path):
    """The same over a copy of the served files, which the test may change."""
    written = write_once(tmp_path_factory.getbasetemp())
    shutil.copytree(written.folder, tmp_path / "origin")
    with Publishers(written, tmp_path, tmp_path / "origin") as publishers:
        yield publishers


def independent(publishers: Publishers, name: str) -> dict[str | None, np.ndarray]:
    """What other libraries read from the served files: each volume's level 0."""
    spec = publishers.spec(name)
    if name == JRC:
        groups = {None: spec.source.group, "nuc": spec.volumes["nuc"].group}
        return {
            sub: zarr.open_array(publishers.container() / group / "s0", mode="r", zarr_format=2)[:]
            for sub, group in groups.items()
        }
    if name == EMPIAR:
        return {None: np.stack([dm3_pixels(publishers.served(name, path)) for path in spec.source.volume.paths()])}
    files = {None: spec.source.volume, **{sub: volume.source for sub, volume in spec.volumes.items()}}
    return {sub: tifffile.imread(publishers.served(name, part.files[0])) for sub, part in files.items()}


def dm3_pixels(file: Path) -> np.ndarray:
    """The one array of a DM3 that has as many bytes as the image has pixels."""
    _, height, width = MODULES[EMPIAR].SHAPE
    array_of_octets = b"%%%%" + b"".join(n.to_bytes(4) for n in (3, 20, 10, height * width))
    at = file.read_bytes().index(array_of_octets) + len(array_of_octets)
    return np.fromfile(file, np.uint8, height * width, offset=at).reshape(height, width)


def multiscale(folder: DatasetFolder, sub: str | None = None) -> dict:
    document = json.loads(folder.read(f"{folder.further(sub).volume}/zarr.json"))
    return document["attributes"]["ome"]["multiscales"][0]


def places_nm(image: dict, what: str) -> list[list[float]]:
    """The scale or translation of every level."""
    return [
        transformation[what]
        for dataset in image["datasets"]
        for transformation in dataset["coordinateTransformations"]
        if transformation["type"] == what
    ]


# From the publisher to the volume


@pytest.mark.parametrize("name", EVERY)
def test_every_volume_is_what_other_readers_read(publishers, name):
    """Complete; level 0 of every volume is voxel for voxel that of the published files; nothing of it is red."""
    record, result = publishers.materialize(name)
    assert (record.status, result.failures) == ("complete", {})
    spec, folder = publishers.spec(name), publishers.folder(name)
    published = independent(publishers, name)
    assert set(published) == set(spec.layouts())
    for sub, voxels in published.items():
        stored = stored_level(folder, 0, sub)
        assert (stored.shape, stored.dtype) == (spec.layouts()[sub].shape, voxels.dtype)
        np.testing.assert_array_equal(stored, voxels)
        made = [item for item in folder.further(sub).partition_records() if item.level == 0]
        assert all(item.source_url.startswith(("http://", "s3://")) for item in made)
    assert set(record.volumes) == set(spec.volumes)
    assert publishers.red(name) == {}


@pytest.mark.parametrize(
    ("name", "sub", "scale", "translation"),
    [
        (IDR, None, [20.0, 20.0, 20.0], [10.0, 10.0, 10.0]),
        (EMPIAR, None, [50.0, 7.998250424861908, 7.998250424861908], [25.0, 3.999125212430954, 3.999125212430954]),
        (EPFL, None, [5.0, 5.0, 5.0], [2.5, 2.5, 2.5]),
        (EPFL, "testing_groundtruth", [5.0, 5.0, 5.0], [2.5, 2.5, 2.5]),
        (JRC, None, [2.96, 4.0, 4.0], [0.0, 0.0, 0.0]),
        (JRC, "nuc", [23.68, 32.0, 32.0], [10.36, 14.0, 14.0]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_metadata_say_where_a_voxel_lies(publishers, name, sub, scale, translation):
    """OME-Zarr 0.5 by another library's rules, in nanometres; the container's own places, centres as it has them."""
    from ome_zarr_models.v05.image import Image

    publishers.finished(name)
    folder = publishers.folder(name)
    image = multiscale(folder, sub)
    assert [axis["unit"] for axis in image["axes"]] == ["nanometer"] * 3
    assert places_nm(image, "scale")[0] == pytest.approx(scale, abs=1e-9)
    assert places_nm(image, "translation")[0] == pytest.approx(translation, abs=1e-9)
    Image.from_zarr(zarr.open_group(folder.uri(folder.further(sub).volume), mode="r"))


@pytest.mark.parametrize("name", EVERY)
def test_a_second_run_receives_nothing(publishers, name):
    """Not one request, not one byte written to a volume or a file, the same digest."""
    first, _ = publishers.materialize(name)
    root = Path(publishers.settings.root) / name
    files = {file: file.stat().st_mtime_ns for file in root.rglob("*") if file.is_file()}
    before = publishers.requests
    second, result = publishers.materialize(name)
    assert (publishers.requests, result.fetched, result.received_bytes) == (before, [], 0)
    assert second.sha256 == first.sha256
    assert {file: file.stat().st_mtime_ns for file in files} == files


@pytest.mark.parametrize("name", FILES)
def test_the_plan_is_what_is_received(publishers, name):
    """Objects, bytes and requests of the plan are those of the receipts and those that the server counted."""
    plan = publishers.plan(name)
    before = len(publishers.http.log)
    _, result = publishers.materialize(name)
    spec = publishers.spec(name)
    receipts = [
        json.loads(publishers.folder(name).read(f"original/{path}.receipt.json")) for path in spec.source.by_path()
    ]
    asked = [name for name in publishers.requested(since=before) if name in spec.source.by_path()]
    assert not plan.is_upper_bound
    assert plan.objects == len(receipts) == len(result.fetched)
    assert plan.received_bytes == sum(receipt["received_bytes"] for receipt in receipts) == result.received_bytes
    assert plan.requests == len(asked)
    for receipt in receipts:
        data = publishers.served(name, receipt["path"]).read_bytes()
        assert (receipt["size_bytes"], receipt["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_plan_of_chunks_is_exact_in_objects_and_an_upper_bound_in_bytes(publishers):
    """A bucket is asked for every chunk once, those of the labels included; how well they compress nobody says."""
    plan = publishers.plan(JRC)
    before = len(publishers.http.log)
    _, result = publishers.materialize(JRC)
    chunks = [path for _, path, _ in list(publishers.http.log)[before:] if OBJECTS.search(path)]
    assert (plan.objects, plan.requests) == (len(chunks), len(chunks))
    assert plan.is_upper_bound and result.received_bytes <= plan.received_bytes
    assert len(set(chunks)) == len(chunks)


# Pyramids


def mean_of(finer: np.ndarray) -> np.ndarray:
    """The level above: means of 2 x 2 x 2 voxels, of what there is at odd ends."""
    padded = np.pad(finer.astype(float), [(0, side % 2) for side in finer.shape], constant_values=np.nan)
    z, y, x = (side // 2 for side in padded.shape)
    return np.rint(np.nanmean(padded.reshape(z, 2, y, 2, x, 2), axis=(1, 3, 5))).astype(finer.dtype)


@pytest.mark.parametrize("name", [IDR, JRC])
def test_a_level_of_an_image_is_the_mean_of_the_one_below(publishers, name):
    """Odd ends included; signed 16 bit stays signed 16 bit, and voxels longer along one axis stay so."""
    publishers.finished(name)
    folder, spec = publishers.folder(name), publishers.spec(name)
    image = multiscale(folder)
    scales = places_nm(image, "scale")
    for level in range(1, len(image["datasets"])):
        finer, stored = stored_level(folder, level - 1), stored_level(folder, level)
        assert stored.dtype == np.dtype(spec.dtype)
        np.testing.assert_array_equal(stored, mean_of(finer))
        assert scales[level] == [size * 2**level for size in spec.voxel_size_nm]


def test_a_level_of_labels_takes_every_second_voxel(publishers):
    """No label that nobody drew; the first voxel stays where it is."""
    publishers.finished(ODD)
    folder = publishers.folder(ODD)
    image = multiscale(folder, "labels")
    levels = len(image["datasets"])
    assert levels > 1
    for level in range(levels):
        step = 2**level
        np.testing.assert_array_equal(stored_level(folder, level, "labels"), LABELS[::step, ::step, ::step])
    assert places_nm(image, "translation") == [[2.5, 2.5, 2.5]] * levels


def test_a_constant_volume_of_odd_sides_is_constant_at_every_level(publishers):
    publishers.finished(ODD)
    folder = publishers.folder(ODD)
    levels = len(multiscale(folder)["datasets"])
    assert levels > 2
    for level in range(levels):
        assert set(np.unique(stored_level(folder, level))) == {CONSTANT[0, 0, 0]}


# What is lost or damaged afterwards


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def alter(file: Path) -> None:
    """One bit, with the time as it was."""
    stat, data = file.stat(), bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path", "damage", "red"),
    [
        (IDR, XY, alter, {"checksums"}),
        (IDR, XZ, Path.unlink, {"files", "checksums"}),
        (EMPIAR, SLICE_4, truncate, {"files", "checksums"}),
        (EPFL, "testing.tif", alter, {"checksums"}),
        (EPFL, "volumedata.tif", Path.unlink, {"files", "checksums"}),
    ],
    ids=["idr altered", "idr deleted", "empiar truncated", "epfl altered", "epfl deleted"],
)
def test_only_a_damaged_file_comes_back(publishers, name, path, damage, red):
    """The checks are red and say which; the next run fetches that file alone, and the dataset is what it was."""
    first = publishers.finished(name)
    original = publishers.file(name, f"original/{path}")
    data = original.read_bytes()
    damage(original)
    found = publishers.red(name)
    assert set(found) == red
    assert all(path in outcome.message for outcome in found.values())
    record = publishers.folder(name).read_record()
    assert record.status == "error" and path in record.status_reason
    healed, result = publishers.materialize(name)
    assert set(publishers.requested()) == {path}
    assert [item.key for item in result.fetched] == [path]
    assert (healed.status, healed.sha256) == ("complete", first.sha256)
    assert original.read_bytes() == data
    assert publishers.red(name) == {}


@pytest.mark.parametrize("damage", [Path.unlink, truncate], ids=["deleted", "truncated"])
def test_a_file_that_comes_back_the_same_builds_nothing_again(publishers, damage):
    """Its digest is the one that the volume was made from."""
    first = publishers.finished(EMPIAR)
    volume = publishers.file(EMPIAR, "volume.ome.zarr")
    shards = {file: file.stat().st_mtime_ns for file in volume.rglob("c/**/*") if file.is_file()}
    damage(publishers.file(EMPIAR, f"original/{SLICE_4}"))
    healed, _ = publishers.materialize(EMPIAR)
    assert publishers.requested() == [SLICE_4]
    assert (healed.status, healed.sha256) == ("complete", first.sha256)
    assert {file: file.stat().st_mtime_ns for file in shards} == shards


@pytest.mark.parametrize("name", EVERY)
def test_a_finished_dataset_needs_no_network(publishers, name):
    """Nobody listens any more: another run and every check succeed."""
    first = publishers.finished(name)
    publishers.down()
    assert publishers.materialize(name)[0].sha256 == first.sha256
    assert publishers.red(name) == {}
    described = pipeline.describe_dataset(
        publishers.spec(name), publishers.settings, publishers.folder(name).store, fetch=False
    )
    assert (described.claims > 50, described.received, described.missing) == (True, (), {})


@pytest.mark.slow
@pytest.mark.parametrize("sub", [None, "training", "testing_groundtruth"])
def test_a_lost_shard_is_made_again_without_the_network(publishers, sub):
    """Of any volume: the files it is made from are here."""
    first = publishers.finished(EPFL)
    publishers.down()
    volume = publishers.folder(EPFL).further(sub).volume
    publishers.file(EPFL, f"{volume}/0/c/0/1/1").unlink()
    healed, result = publishers.materialize(EPFL)
    assert (healed.status, healed.sha256, result.fetched) == ("complete", first.sha256, [])
    assert publishers.red(EPFL) == {}


# A publisher that changes


def test_other_bytes_under_a_pinned_checksum_are_named_and_kept_out(publishers):
    """Same size, one bit: both digests are in the sentence; the other files are kept, nothing has the final name."""
    pinned = publishers.spec(EPFL).source.by_path()["volumedata.tif"].checksum.removeprefix("md5:")
    publishers.fail("volumedata.tif", Fault(flip_bit_at=100_000))
    with pytest.raises(pipeline.PartitionsFailed, match=rf"volumedata\.tif has md5 \w+, .* states {pinned}") as failure:
        publishers.materialize(EPFL)
    assert isinstance(failure.value.result.failures["volumedata.tif"], Mismatch)
    assert len(failure.value.result.fetched) == 4
    assert not publishers.file(EPFL, "original/volumedata.tif").exists()
    assert publishers.folder(EPFL).read_record().status == "error"
    publishers.heal()
    _, result = publishers.materialize(EPFL)
    assert [item.key for item in result.fetched] == ["volumedata.tif"]


def test_other_voxels_than_somebody_published_are_named_and_kept_out(publishers):
    """`pixels_sha256` of one slice is another: that one is an error, the others are kept."""
    publishers.pin(EMPIAR, SLICE_5, pixels_sha256="0" * 64)
    with pytest.raises(
        pipeline.PartitionsFailed, match=rf"1 of 17 partitions .*{SLICE_5}: its decoded voxels"
    ) as failure:
        publishers.materialize(EMPIAR)
    assert list(failure.value.result.failures) == [SLICE_5]
    originals = {file.name for file in publishers.file(EMPIAR, "original").glob("*.dm3")}
    assert len(originals) == 15 and SLICE_5 not in originals
    assert not publishers.file(EMPIAR, "volume.ome.zarr").exists()


def test_a_cut_with_another_voxel_is_found(publishers):
    """One voxel of the file cut along xz is another one: a check warns, how many of how many, and which first."""
    at = (17, 30, 40)
    z, y, x = at
    _, height, width = tifffile.imread(publishers.served(IDR, XZ)).shape
    with tifffile.TiffFile(publishers.served(IDR, XZ)) as tiff:
        offset = tiff.pages[0].dataoffsets[0] + (y * height + z) * width + x
    publishers.fail(XZ, Fault(flip_bit_at=offset))
    record, _ = publishers.materialize(IDR)
    assert record.status == "complete"  # the volume is the file cut along xy, and that is whole
    (red,) = publishers.red(IDR).values()
    assert red.name == "same_volume" and red.found["different_voxels"] == 1
    assert red.message.startswith("1 of 1768085 voxels differ in 1 of 1 other files, first at (17, 30, 40)")
    assert record.additional_metadata["same_volume"][0]["first_difference"] == list(at)


# What is known besides the voxels


def documents_missing(publishers, name):
    return publishers.folder(name).read_record().additional_metadata["documents_missing"]


def test_a_document_that_cannot_be_had_stops_nothing(publishers):
    """The dataset is complete and says what is left out and why; the next run asks for just that."""
    publishers.fail("annotations", Fault(status=404))
    record, _ = publishers.materialize(IDR)
    assert record.status == "complete"
    (reason,) = documents_missing(publishers, IDR).values()
    assert list(documents_missing(publishers, IDR)) == ["documents/map_annotations.json"] and "404" in reason
    assert any(reason in line for line in publishers.lines)
    publishers.heal()
    before = len(publishers.http.log)
    again, result = publishers.materialize(IDR)
    assert result.fetched == []
    assert [path.rpartition("/webclient/")[2] for _, path, _ in list(publishers.http.log)[before:]] == [
        "api/annotations/"
    ]
    assert documents_missing(publishers, IDR) == {}
    assert again.sha256 == record.sha256
    assert json.loads(publishers.folder(IDR).read("documents/map_annotations.json"))["annotations"]


def test_a_session_is_begun_where_it_is_asked_for(publishers, monkeypatch):
    """An API that answers 403 without its front page's cookie: that page is asked once, then all three replies come."""
    reply_to = FaultyHandler.reply_to

    def with_cookie(handler, path):
        needs_cookie = re.search(r"/imgData/|/images/|/annotations/", path)
        if needs_cookie and "sessionid=sample" not in handler.headers.get("Cookie", ""):
            return Reply.text(HTTPStatus.FORBIDDEN)
        return reply_to(handler, path)

    monkeypatch.setattr(FaultyHandler, "reply_to", with_cookie)
    publishers.materialize(IDR)
    assert documents_missing(publishers, IDR) == {}
    assert sum(path.endswith("/webclient/") for _, path, _ in publishers.http.log) == 1
    assert len(publishers.folder(IDR).documents()) == 5


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            EMPIAR,
            {
                "documents/entry.json": ("image_width", "561"),
                "documents/entry.xml": ("imageWidth", "561"),
                "original/F57-8_test1_3VBSED_slice_0000.dm3": ("ImageData/Dimensions/0", "548"),
            },
        ),
        (
            IDR,
            {
                "documents/imgData.json": ("/size/width", "187"),
                "documents/omero_image.json": ("/data/Pixels/SizeX", "187"),
                f"original/{XY}": ("/0/ImageWidth", "187"),
                f"original/{XZ}": ("/0/ImageWidth", "187"),
            },
        ),
    ],
    ids=["empiar", "idr"],
)
def test_what_publisher_and_file_say_is_kept_side_by_side(publishers, name, said):
    """The entry's wrong width and the file's own, each with the document it is from."""
    publishers.finished(name)
    pipeline.describe_dataset(publishers.spec(name), publishers.settings, publishers.folder(name).store, fetch=False)
    rows = pq.read_table(publishers.file(name, "claims.parquet")).to_pylist()
    spec = publishers.spec(name)
    places = {f"documents/{document.path}": document.url for document in spec.documents}
    places |= {f"original/{path}": spec.source.file_url(path) for path in spec.source.by_path()}
    for document, (key, value) in said.items():
        found = [row for row in rows if row["document"] == document and row["key"].endswith(key)]
        assert value in [row["value_text"] for row in found], document
        # the sample may have been served on another port when the file came
        assert {urlsplit(row["source_url"]).path for row in found} == {urlsplit(places[document]).path}


# Ends in the middle, and several at once

CHILD = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from small import materialize, quick_settings
from em_assets.datasets.loading import load_spec
materialize(load_spec(Path({spec!r})), quick_settings({root!r}, unreachable_seconds=5.0))
"""


def child(publishers: Publishers, name: str, root: Path) -> subprocess.Popen:
    here, spec = Path(__file__).parent, publishers.specs_folder / f"{name}.yaml"
    code = CHILD.format(path=[str(here), str(here.parent)], spec=str(spec), root=str(root))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def leftovers(root: Path) -> list[Path]:
    return [*root.rglob("*.em-part"), *root.rglob("*.em-partial")]


@pytest.mark.parametrize("moments", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_next_run_finishes(publishers, tmp_path, moments):
    """SIGKILL at random moments: the digest is that of an undisturbed run, and nothing is left lying about."""
    undisturbed, root = publishers.finished(EMPIAR), tmp_path / "killed"
    # as slow as a network, so that there are moments between the first byte and the last
    publishers.fail(r"\.dm3$", Fault(stall_seconds=0.1, stall_after=200_000))
    generator, killed = random.Random(7), 0
    for _ in range(moments):
        goal = publishers.requests + generator.randrange(17)
        process = child(publishers, EMPIAR, root)
        while process.poll() is None and publishers.requests <= goal:
            time.sleep(0.002)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=generator.uniform(0, 0.8))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        process.stderr.close()
        record = DatasetFolder(open_store(str(root)), EMPIAR).read_record()
        assert record is None or record.visible_status in ("interrupted", "complete")
        if generator.random() < 0.5:  # start over now and then, so that early moments are hit too
            LocalStore(root).delete_all(EMPIAR)
    assert killed >= moments // 3
    publishers.heal()
    record, _ = publishers.materialize(EMPIAR, quick_settings(root))
    assert (record.status, record.sha256) == ("complete", undisturbed.sha256)
    assert leftovers(root) == []


@pytest.mark.slow
def test_two_processes_at_once_make_one_result(publishers, tmp_path):
    """Both end well, and each file came once."""
    alone, root = publishers.finished(EMPIAR), tmp_path / "shared"
    processes = [child(publishers, EMPIAR, root) for _ in range(2)]
    for process in processes:
        assert process.wait(timeout=60) == 0, process.stderr.read().decode()
        process.stderr.close()
    record = DatasetFolder(open_store(str(root)), EMPIAR).read_record()
    assert (record.status, record.sha256) == ("complete", alone.sha256)
    slices = [name for name in publishers.requested() if name.endswith(".dm3")]
    assert len(slices) == len(set(slices)) == 16
    assert leftovers(root) == []


# Other places


@pytest.mark.slow
def test_a_bucket_gets_the_same_datasets(publishers, moto_s3, tmp_path):
    """The digest of a local store; originals with receipts in the bucket, and nothing left where they were received."""
    remote = publishers.settings.model_copy(update={"root": moto_s3, "cache": tmp_path / "cache"})
    for name in (IDR, EMPIAR):
        local = publishers.finished(name)
        record, _ = publishers.materialize(name, remote)
        assert (record.status, record.sha256) == ("complete", local.sha256)
        assert record.file_size_bytes == local.file_size_bytes
        folder = publishers.folder(name, remote)
        for path in publishers.spec(name).source.by_path():
            assert folder.read(f"original/{path}") == publishers.served(name, path).read_bytes()
            assert json.loads(folder.read(f"original/{path}.receipt.json"))["path"] == path
        left = [file for file in (tmp_path / "cache").rglob("*") if file.is_file() and file.suffix != ".lock"]
        assert left == []
        before = publishers.requests
        again, result = publishers.materialize(name, remote)
        assert (again.sha256, result.fetched, publishers.requests) == (local.sha256, [], before)


@pytest.mark.parametrize("status", [404, 500])
def test_a_mirror_delivers_what_the_first_address_does_not(publishers, status):
    """HTTPS answers with an error for one file: it comes over FTP, byte for byte, and the receipt says from where."""
    publishers.fail(XY, Fault(status=status))
    record, _ = publishers.materialize(IDR)
    assert record.status == "complete"
    receipts = {path: json.loads(publishers.folder(IDR).read(f"original/{path}.receipt.json")) for path in (XY, XZ)}
    assert receipts[XY]["url"].startswith(publishers.ftp.url) and receipts[XZ]["url"].startswith(publishers.http.url)
    assert any(str(status) in note for note in receipts[XY]["notes"])
    assert publishers.file(IDR, f"original/{XY}").read_bytes() == publishers.served(IDR, XY).read_bytes()


# Published chunks, byte for byte


def published_objects(publishers: Publishers) -> dict[str, bytes]:
    """Of the groups that the spec names, by path in the container."""
    spec, container = publishers.spec(JRC), publishers.container()
    groups = (spec.source.group, spec.volumes["nuc"].group)
    return {
        file.relative_to(container).as_posix(): file.read_bytes()
        for group in groups
        for file in (container / group).rglob("*")
        if file.is_file()
    }


def kept_objects(publishers: Publishers) -> dict[str, bytes]:
    """Below `original/`, by path in the container."""
    root = publishers.file(JRC, "original")
    files = [file for file in root.rglob("*") if file.is_file()]
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in files}


def shards_of(publishers: Publishers, sub: str | None = None) -> dict[tuple[int, str], tuple]:
    records = publishers.folder(JRC).further(sub).partition_records()
    return {(record.level, record.key): tuple(o.sha256 for o in record.objects) for record in records}


@pytest.mark.parametrize("keep", ["both", "original"])
def test_objects_are_kept_byte_for_byte(publishers, keep):
    """Every object of every published level, in the pinned number; with `both` the volume is that of `standard`."""
    publishers.finished(JRC)
    standard = {sub: shards_of(publishers, sub) for sub in (None, "nuc")}
    publishers.folder(JRC).store.delete_all(JRC)
    spec = publishers.spec(JRC, keep=keep)
    plan = publishers.plan(JRC)
    record, result = publishers.materialize(JRC)
    assert record.status == "complete"
    published, kept = published_objects(publishers), kept_objects(publishers)
    assert kept == published
    own = {path: data for path, data in kept.items() if path.startswith(f"{spec.source.group}/")}
    assert (len(own), sum(map(len, own.values()))) == (spec.expected.objects, spec.expected.object_bytes)
    assert (plan.objects, plan.received_bytes) == (len(kept), sum(map(len, kept.values())))
    assert result.received_bytes == plan.received_bytes
    if keep == "both":
        assert {sub: shards_of(publishers, sub) for sub in (None, "nuc")} == standard
        made = [record for record in publishers.folder(JRC).partition_records() if record.level == 0]
        assert {record.source_url for record in made} == {spec.source.volume_url}
    else:
        assert not publishers.file(JRC, "volume.ome.zarr").exists()
    assert publishers.red(JRC) == {}
    before = publishers.requests
    assert publishers.materialize(JRC)[1].fetched == []
    assert publishers.requests == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "damage"),
    [("both", Path.unlink), ("original", truncate), ("both", alter)],
    ids=["both deleted", "original truncated", "both altered"],
)
def test_a_damaged_object_brings_back_its_partition(publishers, keep, damage):
    """The chunk's region alone is fetched; the volume that was made from the same bytes stays."""
    first = publishers.finished(JRC, keep)
    published = published_objects(publishers)
    chunk = f"{publishers.spec(JRC).source.group}/s0/1/2/3"
    damage(publishers.file(JRC, f"original/{chunk}"))
    assert "checksums" in publishers.red(JRC)
    assert publishers.folder(JRC).read_record().status == "error"
    before = len(publishers.http.log)
    healed, result = publishers.materialize(JRC)
    assert [item.key for item in result.fetched] == ["z001_y001_x001"]
    chunks = [path for _, path, _ in list(publishers.http.log)[before:] if OBJECTS.search(path)]
    assert len(chunks) == 4 and any(path.endswith(chunk) for path in chunks)
    assert (healed.status, healed.sha256) == ("complete", first.sha256)
    assert kept_objects(publishers) == published
    assert publishers.red(JRC) == {}


def test_what_is_kept_is_enough_to_make_the_volume_again(publishers):
    """`both`, with a shard lost and nobody listening: it comes from the objects that are here."""
    first = publishers.finished(JRC, "both")
    publishers.down()
    publishers.file(JRC, "volume.ome.zarr/0/c/1/1/1").unlink()
    publishers.file(JRC, "volumes/nuc.ome.zarr/0/c/0/0/0").unlink()
    healed, result = publishers.materialize(JRC)
    assert (healed.status, healed.sha256, result.fetched) == ("complete", first.sha256, [])


def test_originals_join_a_volume_that_is_there(publishers):
    """`standard` first, `both` later: the objects come, and the volume has the same bytes."""
    publishers.finished(JRC)
    standard = shards_of(publishers)
    publishers.spec(JRC, keep="both")
    assert publishers.materialize(JRC)[0].status == "complete"
    assert kept_objects(publishers) == published_objects(publishers)
    assert shards_of(publishers) == standard
    assert publishers.red(JRC) == {}


def test_a_listing_that_forgets_an_object_is_found_out(own_publishers):
    """One fewer than pinned: both numbers are in the sentence, and nothing is fetched."""
    spec = own_publishers.spec(JRC, keep="both")
    (own_publishers.container() / spec.source.group / "s2" / "0" / "0" / "0").unlink()
    with pytest.raises(Mismatch, match=rf"lists {spec.expected.objects - 1} objects, .* {spec.expected.objects};"):
        own_publishers.materialize(JRC)
    assert not own_publishers.file(JRC, "original").exists()
