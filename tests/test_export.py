"""A stored volume in plain formats: read back by independent readers, voxel for voxel and in its place."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import ROOT
from em_assets import export
from em_assets.datasets.spec import Output, VolumeLayout
from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.export import SUFFIXES, export_volume
from em_assets.records import DatasetFolder, DatasetRecord, VolumeSummary, now, partition_key
from em_assets.standardize.ome import write_metadata
from em_assets.standardize.pyramid import build_pyramid
from em_assets.standardize.region import write_region
from em_assets.standardize.stored import shard_path
from em_assets.store import open_store
from em_assets.volume import Box
from published import CONSTANT, LABELS, ODD, Publishers, write_once

SHAPE = (70, 133, 150)
SIZE_NM = (50.0, 7.998250424861908, 8.5)
ORIGIN = (10, 20, 30)
CORNER_NM = (100.0, 0.0, -3.0)
GAP = Box((0, 64, 128), (70, 128, 150))
"""Part of the volume that the publisher does not have: shards, and parts of shards, to the volume's end."""
FORMATS = tuple(SUFFIXES)
DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "float32")


def voxels_of(dtype: str, shape=SHAPE, seed: int = 3) -> np.ndarray:
    """Over the whole range of the dtype, and different along each axis."""
    kind = np.dtype(dtype)
    generator = np.random.default_rng(seed)
    if kind.kind == "f":
        return generator.normal(0, 1e3, shape).astype(dtype)
    limits = np.iinfo(kind)
    return generator.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)


def store_volume(folder: DatasetFolder, voxels: np.ndarray, *, gap=None, content="image", shard=64) -> None:
    """A finished volume as the pipeline leaves one."""
    layout = VolumeLayout(
        name=folder.title,
        shape=voxels.shape,
        dtype=voxels.dtype.name,
        voxel_size_nm=SIZE_NM,
        content=content,
        output=Output(shard=(shard,) * 3, chunk=(32, 32, 32)),
        missing_policy="record",
        digest="0" * 16,
    )
    if gap is not None:
        voxels[gap.slices] = 0
    records = []
    for index in layout.shard_indices():
        box = layout.shard_box(index)
        inside = gap.intersection(box) if gap is not None else None
        missing = [] if inside is None else [inside]
        records.append(write_region(folder, layout, index, voxels[box.slices], missing=missing))
    build_pyramid(folder, layout, records, workers=2)
    write_metadata(folder, layout, ORIGIN, CORNER_NM)


def store_dataset(root: Path | str, voxels: np.ndarray, *, name: str = "em", **options) -> DatasetFolder:
    """A complete dataset of one volume."""
    folder = DatasetFolder(open_store(str(root)), name)
    store_volume(folder, voxels, **options)
    folder.write_record(record_of(folder, voxels))
    return folder


def record_of(folder: DatasetFolder, voxels: np.ndarray, status: str = "complete") -> DatasetRecord:
    return DatasetRecord(
        name=folder.name,
        source="test",
        source_id="1",
        title="A volume",
        description="For tests.",
        volume_shape=voxels.shape,
        voxel_size_nm=SIZE_NM,
        dtype=voxels.dtype.name,
        license="CC-BY-4.0",
        citation="Somebody (2026)",
        doi="10.5072/x",
        page_url="https://example.org/1",
        download_url="https://example.org/1/data",
        local_paths={"volume": folder.uri(folder.volume)},
        status=status,
        timestamp=now(),
        identity="0" * 16,
        sha256="ab" * 32,
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Datasets by dtype, made once; nothing changes them."""
    made: dict[str, tuple[DatasetFolder, np.ndarray]] = {}

    def get(dtype: str):
        if dtype not in made:
            voxels = voxels_of(dtype)
            made[dtype] = store_dataset(tmp_path_factory.mktemp(dtype), voxels), voxels
        return made[dtype]

    return get


@pytest.fixture
def here(monkeypatch, tmp_path):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def level_of(folder: DatasetFolder, level: int) -> np.ndarray:
    """As zarr-python reads the store."""
    import zarr

    return zarr.open_array(folder.uri(f"{folder.volume}/{level}"), mode="r")[:]


def read_back(path: Path, form: str, level: str = "0") -> np.ndarray:
    """The voxels as another program finds them."""
    if form == "npy":
        return np.load(path)
    if form == "tiff":
        import tifffile

        return tifffile.imread(path)
    if form == "mrc":
        import mrcfile

        with mrcfile.open(path, permissive=False) as opened:
            return opened.data.copy()
    import zarr

    return zarr.open_group(path, mode="r", zarr_format=2)[level][:]


def sidecar_of(path: Path) -> dict:
    return json.loads(Path(f"{path}.json").read_text())


# The voxels


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_voxel_is_the_stored_one(stores, here, form, dtype):
    """Each format and dtype, read by another program; or refused in one sentence that names formats which have it."""
    folder, voxels = stores(dtype)
    if dtype in export.WITHOUT[form]:
        with pytest.raises(Unsupported, match=rf"^{form} has no {dtype}, which em is; use npy or .*\.$"):
            export_volume(folder, form)
        assert not list(here.iterdir())
        return
    done = export_volume(folder, form, workers=2)
    back = read_back(done.path, form)
    if (form, dtype) == ("mrc", "uint8"):
        assert back.dtype == np.int8
        back = back.view(np.uint8)
    assert (back.dtype, back.shape) == (voxels.dtype, SHAPE)
    assert np.array_equal(back, voxels)


@pytest.mark.parametrize("form", FORMATS)
def test_a_box_of_a_level_keeps_its_voxels_and_its_place(stores, here, form):
    """Off every grid, at level 1: the same voxels, and the place of the first one in the publisher's frame."""
    folder, _ = stores("int16")
    done = export_volume(folder, form, level=1, box="3:34,5:66, 7:")
    cut = (slice(3, 34), slice(5, 66), slice(7, None))
    assert np.array_equal(read_back(done.path, form), level_of(folder, 1)[cut])
    # level 0 begins at voxel 10, 20, 30 behind the corner; a voxel of level 1 is two of them
    first = [c + (o + 0.5) * s for c, o, s in zip(CORNER_NM, ORIGIN, SIZE_NM, strict=True)]
    expected = [t + s / 2 + 2 * s * a for t, s, a in zip(first, SIZE_NM, (3, 5, 7), strict=True)]
    found, size = place_of(done.path, form)
    exact = 1e-6 if form == "mrc" else 1e-12  # MRC has float32
    assert found == pytest.approx(expected, rel=exact)
    assert size == pytest.approx([2 * s for s in SIZE_NM], rel=exact)
    facts = sidecar_of(done.path)
    assert facts["translation_nm"] == pytest.approx(expected, rel=1e-12)
    assert facts["voxel_size_nm"] == [2 * s for s in SIZE_NM]


def place_of(path: Path, form: str) -> tuple[list[float], list[float]]:
    """(first voxel's centre, voxel size), (z, y, x) in nm, as the format itself says."""
    if form == "npy":  # which says nothing
        facts = sidecar_of(path)
        return facts["translation_nm"], facts["voxel_size_nm"]
    if form == "tiff":
        import tifffile

        with tifffile.TiffFile(path) as opened:
            facts, tags = opened.imagej_metadata, opened.pages[0].tags
            assert facts["unit"] == "nm"
            size = [facts["spacing"], *(_inverse(tags[name].value) for name in ("YResolution", "XResolution"))]
            return [-facts[f"{axis}origin"] * s for axis, s in zip("zyx", size, strict=True)], size
    if form == "mrc":
        import mrcfile

        with mrcfile.open(path) as opened:
            origin, size = opened.header.origin, opened.voxel_size
            return [float(origin[a]) / 10 for a in "zyx"], [float(size[a]) / 10 for a in "zyx"]
    import zarr
    from ome_zarr_models.v04.image import Image

    scale, translation = (
        Image.from_zarr(zarr.open_group(path, mode="r")).ome_attributes.multiscales[0].datasets[0]
    ).coordinateTransformations
    return list(translation.translation), list(scale.scale)


def _inverse(ratio: tuple[int, int]) -> float:
    return ratio[1] / ratio[0]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_box_is_that_box(stores, tmp_path, data):
    """Whatever its corners and its level."""
    folder, _ = stores("uint8")
    level = data.draw(st.integers(0, 1))
    whole = level_of(folder, level)
    cuts = [
        data.draw(st.tuples(st.integers(0, n), st.integers(0, n)).filter(lambda c: c[0] < c[1])) for n in whole.shape
    ]
    box = ",".join(f"{a}:{b}" for a, b in cuts)
    form = data.draw(st.sampled_from(["npy", "tiff", "ome-zarr-0.4"]))
    done = export_volume(folder, form, tmp_path / f"out{SUFFIXES[form]}", level=level, box=box, force=True)
    back = read_back(done.path, form).reshape(done.shape)  # TIFF readers drop axes of one voxel
    assert np.array_equal(back, whole[tuple(slice(a, b) for a, b in cuts)])


@pytest.mark.parametrize(
    ("box", "message"),
    [
        pytest.param("0:10", "expected z0:z1,y0:y1,x0:x1", id="one axis"),
        pytest.param("0:10,0:10,-5:10", "expected z0:z1,y0:y1,x0:x1", id="negative"),
        pytest.param("0:10,0:10,0:1.5", "expected z0:z1,y0:y1,x0:x1", id="not whole"),
        pytest.param("5:5,0:10,0:10", "is empty or leaves the level", id="empty"),
        pytest.param("9:5,0:10,0:10", "is empty or leaves the level", id="backwards"),
        pytest.param("0:71,:,:", r"is empty or leaves the level, which has \(70, 133, 150\)", id="beyond the end"),
        pytest.param("70:,:,:", "is empty or leaves the level", id="from the end"),
    ],
)
def test_a_box_that_is_none_is_refused(stores, here, box, message):
    """One sentence with what was given and what there is; nothing is made."""
    with pytest.raises(Mismatch, match=message):
        export_volume(stores("uint8")[0], "npy", box=box)
    assert not list(here.iterdir())


def test_a_level_that_is_not_there_is_refused(stores, here):
    with pytest.raises(Mismatch, match="em has the levels 0 to 1, not 2"):
        export_volume(stores("uint8")[0], "npy", level=2)


@pytest.mark.parametrize("content", ["image", "labels"])
@pytest.mark.parametrize("form", FORMATS)
def test_missing_voxels_are_zero_and_counted(here, form, content):
    """At both levels: 0, and as many as have no real voxel under them."""
    voxels = voxels_of("uint16")
    folder = store_dataset(here / "store", voxels, gap=GAP, content=content)
    real = np.ones(SHAPE, bool)
    real[GAP.slices] = False
    if content == "labels":
        coarse = real[::2, ::2, ::2]
    else:
        even = np.pad(real, [(0, n % 2) for n in SHAPE])
        coarse = even.reshape(35, 2, 67, 2, 75, 2).any(axis=(1, 3, 5))
    for level, present in ((0, real), (1, coarse)):
        done = export_volume(folder, form, level=level)
        back = read_back(done.path, form)
        assert not back[~present].any()
        assert np.array_equal(back, level_of(folder, level))
        assert done.missing_voxels == sidecar_of(done.path)["missing_voxels"] == np.count_nonzero(~present)


# What the formats say


def test_tiff_is_imagejs_where_imagej_has_the_dtype(stores, here):
    """One page for each z, little endian, slices and sizes as ImageJ writes them."""
    import tifffile

    folder, _ = stores("uint16")
    with tifffile.TiffFile(export_volume(folder, "tiff").path) as opened:
        assert opened.is_imagej and not opened.is_bigtiff
        assert len(opened.pages) == SHAPE[0]
        assert opened.series[0].axes == "ZYX"
        assert opened.imagej_metadata["slices"] == SHAPE[0]


@pytest.mark.parametrize("dtype", ["uint32", "int8"])
def test_tiff_is_ome_where_imagej_has_not(stores, here, dtype):
    """Sizes, units and the place of every plane in the OME-XML."""
    import tifffile

    folder, _ = stores(dtype)
    done = export_volume(folder, "tiff", box="5:8,:,:")
    with tifffile.TiffFile(done.path) as opened:
        assert opened.is_ome and not opened.is_bigtiff
        pixels = tifffile.xml2dict(opened.ome_metadata)["OME"]["Image"]["Pixels"]
    assert [pixels[f"PhysicalSize{axis}"] for axis in "ZYX"] == pytest.approx(SIZE_NM)
    assert {pixels[f"PhysicalSize{axis}Unit"] for axis in "ZYX"} == {"nm"}
    z = sidecar_of(done.path)["translation_nm"][0]
    assert [plane["PositionZ"] for plane in pixels["Plane"]] == pytest.approx([z, z + 50, z + 100])


@pytest.mark.parametrize("limit", ["CLASSIC_TIFF_BYTES", "CLASSIC_TIFF_PAGES"])
def test_a_tiff_too_large_for_32_bits_is_a_bigtiff(stores, here, monkeypatch, limit):
    """With OME-XML, as ImageJ's own kind has no such form. (The limit is lowered instead of writing 4 GB.)"""
    import tifffile

    from em_assets.export import plain

    monkeypatch.setattr(plain, limit, 50)
    folder, voxels = stores("uint8")
    done = export_volume(folder, "tiff")
    with tifffile.TiffFile(done.path) as opened:
        assert opened.is_bigtiff and opened.is_ome
        assert len(opened.pages) == SHAPE[0]
    assert np.array_equal(read_back(done.path, "tiff"), voxels)


def test_planes_of_three_voxels_are_not_colours(here):
    """A width of 3 or 4 is a width."""
    import tifffile

    voxels = voxels_of("uint8", (5, 6, 4))
    folder = store_dataset(here / "store", voxels)
    with tifffile.TiffFile(export_volume(folder, "tiff").path) as opened:
        assert (opened.series[0].shape, len(opened.pages)) == ((5, 6, 4), 5)
        assert np.array_equal(opened.asarray(), voxels)


def test_mrc_says_what_it_is(stores, here):
    """A volume of the standard's version, valid, with its cell; statistics are marked as not determined."""
    import mrcfile

    done = export_volume(stores("float32")[0], "mrc")
    assert mrcfile.validate(done.path)
    with mrcfile.open(done.path) as opened:
        assert opened.is_volume()
        assert opened.header.dmax < opened.header.dmin


def test_mrc_marks_unsigned_bytes_as_imod_does_and_says_so(stores, here):
    """IMOD's stamp with its flag for signed bytes off; the note goes to the person and into the JSON."""
    done = export_volume(stores("uint8")[0], "mrc")
    header = done.path.read_bytes()[:1024]
    assert int.from_bytes(header[12:16], "little") == 0
    assert int.from_bytes(header[152:156], "little") == 1146047817
    assert int.from_bytes(header[156:160], "little") & 1 == 0
    assert "IMOD" in done.notes[0]
    assert sidecar_of(done.path)["notes"] == list(done.notes)
    assert not export_volume(stores("int16")[0], "mrc", Path("other.mrc")).notes


def test_ome_zarr_has_every_level_and_is_valid(stores, here):
    """Valid OME-Zarr 0.4 with all levels of the store, each at its place; nested chunks of 64^3."""
    import zarr
    from ome_zarr_models.v04.image import Image

    folder, _ = stores("uint8")
    done = export_volume(folder, "ome-zarr-0.4", workers=2)
    group = zarr.open_group(done.path, mode="r")
    image = Image.from_zarr(group)
    [multiscale] = image.ome_attributes.multiscales
    assert multiscale.version == "0.4"
    assert [(axis.name, axis.unit) for axis in multiscale.axes] == [(axis, "nanometer") for axis in "zyx"]
    stored = json.loads(folder.read(f"{folder.volume}/zarr.json"))["attributes"]["ome"]["multiscales"][0]
    written = json.loads((done.path / ".zattrs").read_text())["multiscales"][0]
    assert written["datasets"] == stored["datasets"]
    for level in (0, 1):
        assert np.array_equal(group[str(level)][:], level_of(folder, level))
        assert group[str(level)].chunks == (64, 64, 64)
    assert (done.path / "0" / "1" / "2" / "2").is_file()
    assert sidecar_of(done.path)["levels"] == [0, 1]


def test_ome_zarr_of_one_level_begins_at_0(stores, here):
    """Programs look for the finest array under `0`."""
    folder, _ = stores("uint8")
    done = export_volume(folder, "ome-zarr-0.4", level=1)
    assert sorted(path.name for path in done.path.iterdir()) == [".zattrs", ".zgroup", "0"]
    assert np.array_equal(read_back(done.path, "ome-zarr-0.4"), level_of(folder, 1))


def test_tensorstore_reads_the_chunks(stores, here):
    """A second decoder of Blosc and of nested keys."""
    ts = pytest.importorskip("tensorstore")
    folder, voxels = stores("int16")
    done = export_volume(folder, "ome-zarr-0.4")
    spec = {"driver": "zarr", "kvstore": f"file://{done.path.absolute()}/0/"}
    assert np.array_equal(ts.open(spec).result().read().result(), voxels)


# The JSON beside it


def test_the_sidecar_says_what_it_is_of(stores, here):
    """Dataset and its digest, level, box, place, licence, citation, and the file's own sha256."""
    folder, _ = stores("int16")
    done = export_volume(folder, "npy", level=1, box=":,:,10:20")
    assert (done.path, done.sidecar) == (Path("em.1.npy"), Path("em.1.npy.json"))
    facts = sidecar_of(done.path)
    assert facts["sha256"] == done.sha256 == hashlib.sha256(done.path.read_bytes()).hexdigest()
    assert facts["size_bytes"] == done.size_bytes == done.path.stat().st_size
    expected = {
        "dataset": "em",
        "dataset_sha256": "ab" * 32,
        "format": "npy",
        "level": 1,
        "box": [[0, 0, 10], [35, 67, 20]],
        "shape": [35, 67, 10],
        "axes": "zyx",
        "dtype": "int16",
        "missing_voxels": 0,
        "file": "em.1.npy",
        "license": "CC-BY-4.0",
        "citation": "Somebody (2026)",
        "doi": "10.5072/x",
    }
    assert {key: facts[key] for key in expected} == expected
    assert facts["tool"].startswith("em_assets ")


@pytest.mark.parametrize("form", FORMATS)
def test_equal_exports_have_equal_digests(stores, here, form):
    """No time and no chance is in what is written, and a folder's digest is the one that its files give."""
    folder, _ = stores("uint8")
    first = export_volume(folder, form, Path("first"))
    second = export_volume(folder, form, Path("second"), workers=2)
    assert first.sha256 == second.sha256
    if form == "ome-zarr-0.4":
        files = sorted(path for path in first.path.rglob("*") if path.is_file())
        lines = sorted(
            f"{file.relative_to(first.path)}\0{file.stat().st_size}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n"
            for file in files
        )
        assert first.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()
        assert first.size_bytes == sum(file.stat().st_size for file in files)


def test_a_further_volume_has_its_own_name_and_facts(here):
    """`em/nuc` is `em.nuc.npy`; labels stay what they are."""
    voxels = voxels_of("uint8")
    folder = store_dataset(here / "store", voxels)
    labels = voxels_of("uint64", (40, 50, 60))
    store_volume(folder.further("nuc"), labels, content="labels")
    summary = VolumeSummary(title="Nuclei", content="labels", shape=labels.shape, dtype="uint64", voxel_size_nm=SIZE_NM)
    folder.write_record(folder.read_record().model_copy(update={"volumes": {"nuc": summary}}))
    done = export_volume(folder.further("nuc"), "npy")
    assert done.path == Path("em.nuc.npy")
    assert np.array_equal(np.load(done.path), labels)
    facts = sidecar_of(done.path)
    assert (facts["dataset"], facts["title"], facts["doi"]) == ("em/nuc", "Nuclei", "10.5072/x")


# What is refused, and what is left


@pytest.mark.parametrize("status", ["interrupted", "error", "saving-data", None])
def test_only_a_complete_dataset_is_exported(here, status):
    """The sentence says which status it has."""
    voxels = voxels_of("uint8", (5, 6, 7))
    folder = store_dataset(here / "store", voxels)
    if status is None:
        folder.store.delete(folder.path("metadata.json"))
    else:
        folder.write_record(folder.read_record().with_status(status))
    shown = status or "listed"
    with pytest.raises(Unavailable, match=rf"em is {shown}.* only a complete dataset is exported.*`em-assets get em`"):
        export_volume(folder, "npy")
    assert [path.name for path in here.iterdir()] == ["store"]


def test_a_dataset_without_a_standard_volume_says_where_its_files_are(here):
    """`keep: original`: there is nothing to convert, and the sentence says what there is."""
    folder = store_dataset(here / "store", voxels_of("uint8", (5, 6, 7)))
    folder.write_record(folder.read_record().model_copy(update={"local_paths": {"original": folder.uri("original")}}))
    with pytest.raises(Unavailable, match=r"keeps the publisher's files only, in .*/em/original"):
        export_volume(folder, "npy")


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("damage", ["flipped", "gone", "record gone"])
def test_a_damaged_shard_is_never_exported(here, form, damage):
    """F34, F35: a flipped bit, an absent object or record: named, with what to do; nothing is left, old files stay."""
    folder = store_dataset(here / "store", voxels_of("uint8"))
    shard = shard_path(folder, 0, (1, 0, 2))
    if damage == "flipped":
        flip(Path(folder.uri(shard)), 100)
    elif damage == "gone":
        folder.store.delete(folder.path(shard))
    else:
        folder.delete_partition_record(0, partition_key((1, 0, 2)))
    target = Path("mine" + SUFFIXES[form])
    if form != "ome-zarr-0.4":
        target.write_bytes(b"precious")
    else:
        target.mkdir()
        (target / ".zgroup").write_bytes(b"precious")
    with pytest.raises(
        Malformed, match=r"0/c/1/0/2 is not the shard that was written .*`em-assets verify em --repair`"
    ):
        export_volume(folder, form, target, force=True)
    assert (target / ".zgroup" if target.is_dir() else target).read_bytes() == b"precious"
    assert sorted(path.name for path in here.iterdir()) == sorted([target.name, "store"])


@pytest.mark.parametrize(
    ("document", "content", "error"),
    [
        pytest.param("zarr.json", b"{", Malformed, id="group not JSON"),
        pytest.param("zarr.json", b"[]", Malformed, id="group not an object"),
        pytest.param(
            "zarr.json", b'{"attributes": {"ome": {"multiscales": [{"datasets": []}]}}}', Malformed, id="no levels"
        ),
        pytest.param("1/zarr.json", b'{"shape": [1, 2]}', Malformed, id="array with two axes"),
        pytest.param("0/zarr.json", None, Unavailable, id="array gone"),
    ],
)
def test_damaged_metadata_is_one_sentence(here, document, content, error):
    """The file is named, and what to do."""
    folder = store_dataset(here / "store", voxels_of("uint8"))
    file = Path(folder.uri(f"{folder.volume}/{document}"))
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(error, match=rf"{document} is not .*`em-assets verify em") as raised:
        export_volume(folder, "npy")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_overwritten_unless_forced(stores, here, form):
    """Without --force the old one stays; with it there is the new one, whole, and nothing else."""
    folder, voxels = stores("int16")
    first = export_volume(folder, form, level=1)
    before = sidecar_of(first.path)
    with pytest.raises(Mismatch, match=r"is there already; .*--force"):
        export_volume(folder, form, first.path)
    assert sidecar_of(first.path) == before
    export_volume(folder, form, first.path, force=True)
    assert np.array_equal(read_back(first.path, form), voxels)
    assert sidecar_of(first.path)["level"] == 0
    assert sorted(path.name for path in here.iterdir()) == [first.path.name, f"{first.path.name}.json"]


@pytest.mark.parametrize("form", FORMATS)
def test_force_replaces_only_its_like(stores, here, form):
    """A folder of other things is never removed, and a file makes no room for a folder."""
    Path("home").mkdir()
    Path("home/thesis.tex").write_text("...")
    Path("file").write_text("...")
    for target in ["home", "file"] if form == "ome-zarr-0.4" else ["home"]:
        with pytest.raises(Mismatch, match="a file by a file, or a Zarr group by a Zarr group only"):
            export_volume(stores("uint8")[0], form, Path(target), force=True)
    assert Path("home/thesis.tex").exists()
    assert Path("file").read_text() == "..."


def test_somebody_elses_json_is_not_replaced(stores, here):
    """What lies where the facts would go is as safe as what lies where the voxels would."""
    Path("em.npy.json").write_text("mine")
    with pytest.raises(Mismatch, match=r"^em\.npy\.json is there already"):
        export_volume(stores("uint8")[0], "npy")
    assert Path("em.npy.json").read_text() == "mine"
    assert not Path("em.npy").exists()


def test_a_place_that_cannot_be_written_is_one_sentence(stores, here):
    with pytest.raises(Unavailable, match=r"nowhere is not a folder; make it"):
        export_volume(stores("uint8")[0], "npy", Path("nowhere/em.npy"))


def test_too_small_a_disk_is_said_before_anything_is_written(stores, here, monkeypatch):
    """F27, at the start: how much is needed, how much is free, and what would help."""
    usage = type("Usage", (), {"free": 10_000})()
    monkeypatch.setattr(export.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(Unavailable, match=r"needs up to 1\.4 MB, where 10\.0 kB are free; .*--level"):
        export_volume(stores("uint8")[0], "npy")
    assert not list(here.iterdir())


@pytest.mark.parametrize("form", FORMATS)
def test_a_disk_that_fills_up_is_one_sentence(stores, here, form):
    """F27, in the middle: one sentence, no signal, nothing left. (A limit on the size of files stands for the disk.)"""
    script = f"""
import resource, signal, sys
sys.path[:0] = [{str(ROOT)!r}]
from pathlib import Path
from em_assets.errors import Unavailable
from em_assets.export import export_volume
from em_assets.records import DatasetFolder
from em_assets.store import LocalStore
import imagecodecs, numpy, tifffile, mrcfile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    export_volume(DatasetFolder(LocalStore({stores("uint8")[0].store.root!r}), "em"), {form!r})
except Unavailable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "could not be written (" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert not list(here.iterdir())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_volume(here):
    """F33: 27 times the voxels take no more memory than a part of them: one file, and a folder in blocks."""
    for edge in (128, 384):
        planes = np.arange(edge).astype("uint8")
        voxels = np.ascontiguousarray(np.broadcast_to(planes[:, None, None], (edge, edge, edge)))
        store_dataset(here / f"store{edge}", voxels, shard=128)
    for form, more_bytes in (("npy", 10e6), ("ome-zarr-0.4", 30e6)):  # a block of 256^3 has 17 MB
        small, large = (anonymous_peak(here / f"store{edge}", form) for edge in (128, 384))
        assert large - small < more_bytes < 384**3


def anonymous_peak(store: Path, form: str) -> int:
    """Largest RssAnon of a process that exports, in bytes."""
    script = f"""
import sys, threading
sys.path[:0] = [{str(ROOT)!r}]
from pathlib import Path
from em_assets.export import export_volume
from em_assets.records import DatasetFolder
from em_assets.store import LocalStore
peak, done = 0, threading.Event()
def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
export_volume(DatasetFolder(LocalStore({str(store)!r}), "em"), {form!r}, force=True)
done.set(); watcher.join()
print(peak)
"""
    if not Path("/proc/self/status").is_file():
        pytest.skip("memory is read from /proc, which is Linux's")
    done = subprocess.run([sys.executable, "-c", script], cwd=store.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_an_interrupted_export_leaves_nothing(here, monkeypatch):
    """F26: Ctrl-C in the middle goes through, and the folder is as it was."""
    from em_assets.export.stored import StoredVolume

    folder = store_dataset(here / "store", voxels_of("uint8"))
    original, count = StoredVolume.read_into, [0]

    def interrupted(self, *arguments):
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(StoredVolume, "read_into", interrupted)
    for form in FORMATS:
        count[0] = 0
        with pytest.raises(KeyboardInterrupt):
            export_volume(folder, form)
        assert [path.name for path in here.iterdir()] == ["store"]


def test_progress_reaches_the_end(stores, here):
    """The items that are announced are the items that are done, in every format."""

    class Watch:
        total = done = bytes = 0

        def start(self, total_bytes, total_items, what):
            self.total, self.total_bytes, self.done, self.bytes = total_items, total_bytes, 0, 0

        def advance(self, bytes=0, items=0):  # noqa: A002
            self.done, self.bytes = self.done + items, self.bytes + bytes

    for form in FORMATS:
        watch = Watch()
        export_volume(stores("int16")[0], form, progress=watch)
        assert (watch.done, watch.bytes) == (watch.total, watch.total_bytes)


def test_what_a_publishers_files_became(tmp_path_factory, here):
    """A dataset that was downloaded and made whole, and its labels, through the command's own way in."""
    with Publishers(write_once(tmp_path_factory.getbasetemp()), here) as publishers:
        publishers.finished(ODD)
        folder = publishers.folder(ODD)
    image, labels = export_volume(folder, "tiff"), export_volume(folder.further("labels"), "ome-zarr-0.4")
    assert np.array_equal(read_back(image.path, "tiff"), CONSTANT)
    assert np.array_equal(read_back(labels.path, "ome-zarr-0.4"), LABELS)
    assert place_of(image.path, "tiff")[1] == pytest.approx([5, 5, 5], rel=1e-12)
    assert sidecar_of(image.path)["dataset_sha256"] == folder.read_record().sha256


def test_from_s3(moto_s3, here):
    """The store may be a bucket; the export is a file here."""
    voxels = voxels_of("uint8")
    folder = store_dataset(moto_s3, voxels)
    assert np.array_equal(np.load(export_volume(folder, "npy", workers=2).path), voxels)


# The command


@pytest.fixture
def typed(here, monkeypatch, capsys):
    """Runs a command line on a store in `data`: (exit code, stdout, stderr)."""
    from em_assets import cli

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["em-assets", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


def test_the_command(typed, here):
    """What was written, its sha256, where its facts are; the notes; no file twice."""
    voxels = voxels_of("uint8")
    store_dataset(here / "data", voxels, gap=GAP)
    code, out, err = typed("export", "em", "--format", "mrc", "--output", "cut.mrc")
    assert (code, err) == (0, "")
    assert "cut.mrc is written: 70 x 133 x 150 uint8" in out
    assert hashlib.sha256(Path("cut.mrc").read_bytes()).hexdigest() in out
    assert f"{GAP.voxels} voxels that the publisher does not have are 0" in out
    assert "IMOD" in out
    assert "cut.mrc.json" in out
    code, out, err = typed("export", "em", "--format", "mrc", "--output", "cut.mrc")
    assert (code, out) == (1, "")
    assert err.strip().endswith("replace it with --force.")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        pytest.param(["em"], 2, "Missing option '--format'", id="no format"),
        pytest.param(["em", "--format", "png"], 2, "'npy', 'tiff', 'mrc', 'ome-zarr-0.4'", id="unknown format"),
        pytest.param(["em", "--format", "npy", "--level", "-1"], 2, "--level", id="negative level"),
        pytest.param(["en", "--format", "npy"], 2, "did you mean em?", id="name with a slip"),
        pytest.param(["em/nuc", "--format", "npy"], 2, "em has no further volume 'nuc'", id="unknown volume"),
        pytest.param(["em/", "--format", "npy"], 2, "em has no further volume ''", id="no volume after the slash"),
        pytest.param(["em", "--format", "npy", "--box", "1:2"], 1, "expected z0:z1,y0:y1,x0:x1", id="odd box"),
        pytest.param(["em", "--format", "npy", "--level", "9"], 1, "has the levels 0 to 0, not 9", id="no such level"),
    ],
)
def test_a_wrong_command_line_says_what_is_accepted(typed, here, arguments, code, said):
    """No traceback; nothing is made."""
    store_dataset(here / "data", voxels_of("uint8", (5, 6, 7)))
    found, _, err = typed("export", *arguments)
    assert found == code
    assert said in err
    assert "Traceback" not in err
    assert [path.name for path in here.iterdir()] == ["data"]


@pytest.mark.parametrize("command", ["export", "verify"])
def test_help_has_an_example_that_can_be_typed(typed, command):
    code, out, _ = typed(command, "--help")
    assert code == 0
    assert f"Example: em-assets {command} hemibrain_crop" in out
