"""The commands about blocks: what is written and said, equal to what Python reads, and what is refused."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import em_assets.blocks as em
from conftest import ROOT
from em_assets import cli, cli_read
from em_assets.blocks.index import write_index
from em_assets.blocks.sheet import SPLIT_COLOURS, contact_sheet, sheet_of
from em_assets.cli_block_index import _Chosen
from em_assets.cli_geometry import _geometry_row
from em_assets.errors import Mismatch
from em_assets.records import DatasetFolder, VolumeSummary
from em_assets.settings import Settings
from em_assets.store import open_store
from em_assets.volume import Box
from faulty import FaultyServer
from ome_volumes import halved, write_ome_zarr
from test_stage import SIZE_NM, store_dataset, store_volume, voxels_of

SHAPE = (70, 100, 300)
GAP = Box((0, 64, 64), (70, 100, 170))
COMMANDS = ("read", "blocks", "geometry", "stage", "serve")
CORNER_NM = (100.0 + 10 * SIZE_NM[0], 20 * SIZE_NM[1], -3.0 + 30 * SIZE_NM[2])
"""Of the stored volume `em`: `test_stage.store_volume` says why."""


@pytest.fixture
def run(monkeypatch, capsysbinary, tmp_path):
    """Runs a command line in this process, in an empty folder with a store: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EM_ASSETS_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("EM_ASSETS_CACHE", str(tmp_path / "cache"))

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["em-assets", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsysbinary.readouterr()
        command.out = out
        return ended.value.code or 0, out.decode(errors="replace"), err.decode()

    return command


def grown(shape=SHAPE, dtype="uint8") -> np.ndarray:
    """Voxels that differ from block to block, as tissue does."""
    z, y, x = (np.linspace(0, 1, n) for n in shape)
    slow = 60 + 100 * (z[:, None, None] + y[None, :, None] + x[None, None, :]) / 3
    return (slow + np.random.default_rng(1).normal(0, 8, shape)).clip(1, 254).astype(dtype)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A store with the dataset `em`, part of it missing, and the labels `em/nuc` of its first voxels; for copying."""
    root = tmp_path_factory.mktemp("made")
    folder = store_dataset(root, grown(), gap=GAP)
    labels = np.zeros((32, 40, 50), "uint16")
    labels[4:20, 10:30, 5:25], labels[22:, :8, 30:] = 7, 300
    store_volume(folder.further("nuc"), labels, content="labels")
    nuc = VolumeSummary(
        title="nuclei",
        content="labels",
        shape=labels.shape,
        dtype="uint16",
        voxel_size_nm=SIZE_NM,
        corner_nm=(100.0, 0.0, -3.0),
        source_box=Box((10, 20, 30), (42, 60, 80)),
        coverage_sha256="0" * 64,
    )
    whole = {"corner_nm": (100.0, 0.0, -3.0), "source_box": Box((10, 20, 30), (80, 120, 330))}
    folder.write_record(folder.read_record().with_status("complete", volumes={"nuc": nuc}, **whole))
    return root


@pytest.fixture(scope="module")
def made_with_index(made, tmp_path_factory) -> Path:
    """The same with indexes: blocks of 32, and of 16."""
    root = tmp_path_factory.mktemp("indexed") / "data"
    shutil.copytree(made, root)
    folder = DatasetFolder(open_store(str(root)), "em")
    here = Settings(root=str(root))
    write_index(folder, em.open("em", settings=here), block=(32, 32, 32), margin=4)
    write_index(folder.further("nuc"), em.open("em/nuc", settings=here), block=(16, 16, 16))
    return root


@pytest.fixture
def stored(run, made, tmp_path) -> DatasetFolder:
    """`made`, to be changed."""
    shutil.copytree(made, tmp_path / "data")
    return DatasetFolder(open_store(str(tmp_path / "data")), "em")


@pytest.fixture
def indexed(run, made_with_index, tmp_path) -> DatasetFolder:
    """`made_with_index`, to be changed."""
    shutil.copytree(made_with_index, tmp_path / "data")
    return DatasetFolder(open_store(str(tmp_path / "data")), "em")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run, command):
    """What it does in one whole sentence, and an example that names it."""
    code, out, _ = run(command, "--help")
    assert code == 0
    assert re.search(rf"Example: em-assets {command}\b", out)
    assert re.search(rf"^  {command} +\S.*[^.]\.$", run()[1], re.MULTILINE)


# read


def test_read_writes_what_python_reads(run, stored):
    """The .npy is `Block.npy()` byte for byte, and the digest the block's own."""
    code, out, err = run("read", "em", "--start", "3,5,7", "--shape", "32", "-o", "block.npy")
    assert (code, err) == (0, "")
    block = em.open("em").read((3, 5, 7), shape=32)
    assert Path("block.npy").read_bytes() == block.npy()
    assert np.array_equal(np.load("block.npy"), grown()[3:35, 5:37, 7:39])
    assert block.digest in out
    assert "block.npy: 32 x 32 x 32 voxels (z, y, x) of uint8, 32.9 kB" in out
    assert "voxels 3:35, 5:37, 7:39 (z, y, x)" in out
    assert "100 % of the voxels" in out
    assert "voxel   50 x 7.998250424861908 x 2.96 nm" in out


def test_read_to_stdout(run, stored):
    """The array alone; what is to be said goes to stderr."""
    code, _, err = run("read", "em", "--start", "0,0,0", "--shape", "16,8,4", "-o", "-")
    assert code == 0
    assert np.array_equal(np.load(io.BytesIO(run.out)), grown()[:16, :8, :4])
    assert "digest  sha256:" in err


def test_read_without_a_file(run, stored):
    """Says what the block is, and writes nothing."""
    before = sorted(Path.cwd().rglob("*"))
    assert "not written" in run("read", "em", "--start", "0,0,0", "--shape", "16")[1]
    assert sorted(Path.cwd().rglob("*")) == before


def test_read_as_json(run, stored):
    """Every number in full."""
    _, out, _ = run("read", "em", "--start", "3,5,7", "--shape", "4,5,6", "-o", "b.npy", "--json")
    facts = json.loads(out)
    block = em.open("em").read((3, 5, 7), shape=(4, 5, 6))
    assert facts["start_nm"] == list(block.box_nm.start)
    assert facts["stop_nm"] == list(block.box_nm.stop)
    assert facts["voxel_size_nm"] == list(SIZE_NM)
    assert (facts["start"], facts["stop"], facts["shape"]) == ([3, 5, 7], [7, 10, 13], [4, 5, 6])
    assert (facts["digest"], facts["valid_fraction"], facts["dtype"]) == (block.digest, 1.0, "uint8")
    assert facts["neuroglancer_url"] is None  # a browser reads no folder of this machine
    assert facts["view"] == f"em-assets view em --at {','.join(f'{n:.10g}' for n in block.box_nm.center)} --shape 4,5,6"
    assert facts["file"] == str(Path("b.npy").absolute())
    assert facts["size_bytes"] == Path("b.npy").stat().st_size


def test_read_gives_the_long_link_in_json_alone(run, tmp_path):
    """A link of a thousand characters is for programs; what a person reads has none."""
    write_ome_zarr(tmp_path / "site/v.zarr", [np.zeros((8, 16, 16), np.uint8)], chunk=(8, 16, 16))
    with FaultyServer(tmp_path / "site") as server:
        asked = ("read", f"{server.url}/v.zarr", "--start", "0,0,0", "--shape", "4")
        _, plain, _ = run(*asked)
        facts = json.loads(run(*asked, "--json")[1])
    assert facts["neuroglancer_url"].startswith("https://")
    assert "4 x 4 x 4 voxels" in plain and "link" not in plain and "https://" not in plain


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        pytest.param(["--start", "0,0,0", "--level", "1"], {"start": (0, 0, 0), "level": 1}, id="level"),
        pytest.param(["--center-nm", "1800,500,500"], {"center_nm": (1800, 500, 500)}, id="place"),
        pytest.param(
            ["--center-nm", "1800,500,500", "--voxel-size-nm", "100,16,6"],
            {"center_nm": (1800, 500, 500), "voxel_size_nm": (100, 16, 6)},
            id="nearest level",
        ),
        pytest.param(
            ["--center-nm", "1800,500,500", "--voxel-size-nm", "60", "--resample", "--pad=edge", "--missing=mask"],
            {"center_nm": (1800, 500, 500), "voxel_size_nm": 60, "resample": True, "pad": "edge", "missing": "mask"},
            id="resampled",
        ),
        pytest.param(
            ["--start=-5,0,0", "--pad", "constant", "--fill", "9"],
            {"start": (-5, 0, 0), "pad": "constant", "fill": 9},
            id="padded",
        ),
        pytest.param(["--start", "0,60,60", "--missing", "mask"], {"start": (0, 60, 60), "missing": "mask"}, id="mask"),
        pytest.param(["--start", "0,0,0", "--dtype", "float32"], {"start": (0, 0, 0), "dtype": "float32"}, id="dtype"),
        pytest.param(
            ["--start", "0,0,0", "--normalize", "20,200"], {"start": (0, 0, 0), "normalize": (20, 200)}, id="normalized"
        ),
    ],
)
def test_every_option_means_what_it_means_in_python(run, stored, arguments, asked):
    """Equal questions have equal digests."""
    code, out, err = run("read", "em", "--shape", "16", *arguments, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["digest"] == em.open("em").read(shape=16, **asked).digest


def test_a_mask_needs_npz(run, stored):
    """Which voxels are real is in the .npz; where it is lost that is said."""
    place = ["read", "em", "--start", "0,60,60", "--shape", "32", "--missing", "mask"]
    _, out, _ = run(*place, "-o", "a.npy")
    block = em.open("em").read((0, 60, 60), shape=32, missing="mask")
    assert 0 < block.valid_fraction < 1
    assert f"real    {block.valid_fraction * 100:.3g} % of the voxels" in out
    assert "careful: which voxels are real is not in this file" in out
    _, out, _ = run(*place, "-o", "a.npz")
    assert "careful" not in out
    with np.load("a.npz") as found:
        assert np.array_equal(found["data"], block.data)
        assert np.array_equal(found["valid"], block.valid)
        assert tuple(found["start_nm"]) == block.box_nm.start
        assert tuple(found["voxel_size_nm"]) == SIZE_NM


def test_labels_come_beside_the_voxels(run, stored):
    """In the .npz, at the same nanometres."""
    run("read", "em", "--start", "2,3,4", "--shape", "20", "--labels", "em/nuc", "-o", "a.npz")
    with np.load("a.npz") as found:
        assert set(np.unique(found["labels"])) == {0, 7}
        assert np.array_equal(found["labels"] > 0, em.open("em/nuc").read((2, 3, 4), shape=20).data > 0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int16", "uint32"])
def test_tiff_has_the_voxels_and_their_size(run, tmp_path, dtype):
    """As ImageJ writes it, or OME-TIFF; read back by tifffile."""
    import tifffile

    voxels = voxels_of(dtype, (20, 22, 24))
    store_dataset(tmp_path / "data", voxels)
    assert run("read", "em", "--start", "1,2,3", "--shape", "16,17,3", "-o", "b.tif")[0] == 0
    with tifffile.TiffFile("b.tif") as file:
        assert np.array_equal(file.asarray(), voxels[1:17, 2:19, 3:6], equal_nan=np.dtype(dtype).kind == "f")
        if dtype in cli_read.TIFF_DTYPES:
            assert file.imagej_metadata["spacing"] == SIZE_NM[0]
            assert file.imagej_metadata["unit"] == "nm"
            across = file.pages[0].tags["XResolution"].value
            assert across[1] / across[0] == pytest.approx(SIZE_NM[2], rel=1e-6)
        else:
            assert f'PhysicalSizeX="{SIZE_NM[2]}"' in file.ome_metadata
            assert 'PhysicalSizeXUnit="nm"' in file.ome_metadata


def test_any_zarr_is_read(run, tmp_path):
    """A path, and an address of another tool's volume."""
    levels = [grown((40, 50, 60))]
    write_ome_zarr(tmp_path / "other.zarr", levels, chunk=(16, 16, 16))
    code, _, err = run("read", "other.zarr", "--start", "1,2,3", "--shape", "20", "-o", "b.npy")
    assert (code, err) == (0, "")
    assert np.array_equal(np.load("b.npy"), levels[0][1:21, 2:22, 3:23])
    assert json.loads(run("read", "other.zarr", "--start", "1,2,3", "--shape", "20", "--json")[1])["view"] is None


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        pytest.param(2, [], "say where: either start=z,y,x", id="no place"),
        pytest.param(2, ["--start", "0,0,0", "--center-nm", "0,0,0"], "say where: either", id="two places"),
        pytest.param(2, ["--start", "0,0"], "three whole numbers of voxels", id="two numbers"),
        pytest.param(2, ["--start", "0,0,x"], "'x' is not a whole number", id="no number"),
        pytest.param(2, ["--start", "0,0,0", "--shape", "0"], "none below 1", id="no voxels"),
        pytest.param(2, ["--start", "0,0,0", "--pad", "zero"], "one of constant, edge, reflect", id="no such padding"),
        pytest.param(
            2, ["--start", "0,0,0", "--level", "0", "--voxel-size-nm", "8"], "leave one of them out", id="both"
        ),
        pytest.param(2, ["--start", "0,0,0", "--resample"], "resample is for voxel_size_nm", id="resample to what"),
        pytest.param(2, ["--start", "0,0,0", "-o", "block.jpg"], "written as .npy, .npz or .tif", id="no such format"),
        pytest.param(2, ["--start", "0,0,0", "--labels", "em/nuc", "-o", "a.npy"], "--output x.npz", id="two arrays"),
        pytest.param(1, ["--start", "0,0,0"], "shape=(70, 100, 128)", id="leaves the volume"),
        pytest.param(1, ["--start", "0,60,60", "--shape", "32"], "the publisher does not have", id="missing"),
        pytest.param(
            1, ["--start", "0,0,0", "--shape", "8", "--level", "9"], "has the levels 0 to 2, not 9", id="level"
        ),
        pytest.param(1, ["--start", "0,0,0", "--shape", "8", "-o", "no/b.npy"], "no is not a folder", id="no folder"),
    ],
)
def test_read_refuses(run, stored, code, arguments, says):
    """In a sentence on the last line, with nothing written."""
    before = sorted(Path.cwd().iterdir())
    found, out, err = run("read", "em", *arguments)
    assert found == code, err
    assert says in err.strip().splitlines()[-1]
    assert out == ""
    assert "Traceback" not in err
    assert sorted(Path.cwd().iterdir()) == before


def test_read_of_what_is_not_there(run):
    """Neither a dataset nor a folder."""
    code, _, err = run("read", "hemibrain_corp", "--start", "0,0,0")
    assert code == 1
    assert "there is neither a dataset nor a folder 'hemibrain_corp'; `em-assets list` shows the datasets." in err


def test_a_file_is_replaced_only_when_told_and_only_by_a_whole_one(run, stored, monkeypatch):
    """Without --force it stays; and it stays if the new one cannot be written."""
    place = ["read", "em", "--start", "0,0,0", "--shape", "8", "-o", "b.npy"]
    Path("b.npy").write_text("mine")
    code, _, err = run(*place)
    assert (code, Path("b.npy").read_text()) == (1, "mine")
    assert "replace it with --force" in err
    monkeypatch.setattr(cli_read.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    code, _, err = run(*place, "--force")
    assert (code, Path("b.npy").read_text()) == (1, "mine")
    assert "No space left on device" in err
    monkeypatch.setattr(cli_read.os, "fsync", lambda _: None)
    assert run(*place, "--force")[0] == 0
    assert np.load("b.npy").shape == (8, 8, 8)
    assert [file.name for file in Path.cwd().iterdir() if "partial" in file.name] == []


# geometry


def test_geometry_of_a_dataset(run, stored):
    """Each level's shape, size, corner and first centre; what the convention is, and where the crop begins."""
    _, out, _ = run("geometry", "em")
    assert re.search(r"convention +centre: offsets place the centre .*; from level to level they move", out)
    assert "first voxel is the publisher's (10, 20, 30): corner = 100 + 10 x 50, 0 + 20 x 7.998250424861908" in out
    assert re.search(r"^0 +70 x 100 x 300 +50 x 7.998250424861908 x 2.96 +600, 159.965008497, 85.8 ", out, re.MULTILINE)
    rows = json.loads(run("geometry", "em", "--format", "json")[1])
    assert rows[0]["corner_nm"] == pytest.approx(CORNER_NM, abs=1e-9)
    assert [row["shape"] for row in rows] == [[70, 100, 300], [35, 50, 150], [18, 25, 75]]


# Sizes that are published, among them such as no float has exactly.
SIZES = st.sampled_from([2.96, 3.24, 4.0, 7.998250424861908, 13.48, 50.0])
CORNERS = st.floats(-1e5, 1e5)


@settings(max_examples=50, deadline=None)  # each writes files
@given(
    size=st.tuples(SIZES, SIZES, SIZES),
    corner=st.tuples(CORNERS, CORNERS, CORNERS),
    convention=st.sampled_from(["centre", "corner", "scale-only"]),
    share=st.tuples(*[st.floats(0.01, 0.99)] * 3),
)
def test_a_place_is_one_place_at_all_levels(tmp_path_factory, size, corner, convention, share):
    """The voxel that is said to hold a point holds it, at every level, whatever the volume's convention."""
    folder = tmp_path_factory.mktemp("place")
    levels = [np.zeros((8, 12, 16), np.uint8)]
    levels += [halved(levels[0]).astype(np.uint8)]
    levels += [halved(levels[1]).astype(np.uint8)]
    at = (0.0, 0.0, 0.0) if convention == "scale-only" else corner
    write_ome_zarr(folder / "v.zarr", levels, chunk=(4, 4, 4), voxel_size_nm=size, corner_nm=at, convention=convention)
    volume = em.open(str(folder / "v.zarr"))
    assert volume.convention == convention or not any(abs(c) > 0.01 for c in at)
    place = tuple(a + f * n * s for a, f, n, s in zip(at, share, levels[0].shape, size, strict=True))
    rows = [_geometry_row(level, place) for level in volume.levels]
    for number, row in enumerate(rows):
        assert row["corner_nm"] == pytest.approx(at, abs=1e-6)
        for voxel, a, s, point in zip(row["voxel_at_place"], at, row["voxel_size_nm"], place, strict=True):
            assert a + voxel * s - 1e-6 <= point <= a + (voxel + 1) * s + 1e-6
        centre = [a + s / 2 for a, s in zip(at, row["voxel_size_nm"], strict=True)]
        assert row["first_centre_nm"] == pytest.approx(centre, abs=1e-6)
        assert row["voxel_size_nm"] == [pytest.approx(s * 2**number) for s in size]


@pytest.mark.parametrize(
    ("convention", "says"),
    [
        pytest.param("centre", "from level to level they move", id="centre"),
        pytest.param("corner", "they do not move from level to level", id="corner"),
        pytest.param("scale-only", "nothing is offset", id="scale-only"),
    ],
)
def test_geometry_says_how_it_was_found_out(run, tmp_path, convention, says):
    """What the offsets place, and why that is so."""
    levels = [np.zeros((8, 12, 16), np.uint8), np.zeros((4, 6, 8), np.uint8)]
    write_ome_zarr(tmp_path / "v.zarr", levels, chunk=(4, 4, 4), corner_nm=(80.0, 40.0, 8.0), convention=convention)
    _, out, _ = run("geometry", "v.zarr", "--at", "84,44,12")
    assert f"convention  {convention}: " in out
    assert says in out
    assert "the place: 84, 44, 12 nm (z, y, x)" in out
    assert re.search(rf"^0 .* {'outside' if convention == 'scale-only' else '0, 0, 0'}$", out, re.MULTILINE)


def test_geometry_outside(run, stored):
    """A place that is not in the volume is said to be outside; one that is no place is refused."""
    assert out_of(run("geometry", "em", "--at", "0,0,0")).count("outside") == 3
    code, _, err = run("geometry", "em", "--at", "0,0")
    assert code == 2
    assert "three numbers" in err


def out_of(result: tuple[int, str, str]) -> str:
    assert result[0] == 0, result[2]
    return result[1]


# blocks


def test_blocks_without_an_index(run, stored):
    """Says how to make it."""
    code, out, err = run("blocks", "em")
    assert (code, out) == (1, "")
    assert "`em-assets blocks em --build` makes it" in err


def test_blocks_builds_the_index(run, stored):
    """And tells of it at once; a second time nothing is made."""
    code, out, err = run("blocks", "em", "--build")
    assert code == 0, err
    assert "blocks.parquet is made in" in err
    assert "em: blocks of 70 x 100 x 128 voxels (z, y, x), level 0, 50 x 7.998250424861908 x 2.96 nm" in out
    assert "is made in" not in run("blocks", "em", "--build")[2]


def test_blocks_counts_what_the_index_has(run, indexed):
    """Blocks of each split, how real they are, and the range of each number, as the Parquet has them."""
    from em_assets.blocks.index import read_index

    table = read_index(indexed).to_pandas()
    facts = json.loads(run("blocks", "em", "--json")[1])
    assert facts["blocks"] == len(table) == 3 * 4 * 10
    assert facts["not_whole"] == int((table.coverage < 1).sum()) > 0
    assert facts["without_a_real_voxel"] == int((table.coverage == 0).sum()) > 0
    counts = table.split.fillna("margin").value_counts().to_dict()
    assert {one["split"]: one["blocks"] for one in facts["splits"]} == counts
    for column in ("mean", "entropy_bits", "sharpness", "coverage"):
        assert facts["numbers"][column] == pytest.approx(
            [table[column].min(), table[column].median(), table[column].max()]
        )
    _, out, _ = run("blocks", "em")
    assert f"{facts['not_whole']} of them with missing voxels, {facts['without_a_real_voxel']} with no real one" in out
    assert "label_fraction" not in out
    assert "label_fraction" in run("blocks", "em/nuc")[1]


def test_blocks_that_are_chosen(run, indexed):
    """By split and by a condition of the user's own, a comment at its end included."""
    from em_assets.blocks.index import read_index

    table = read_index(indexed).to_pandas()
    wanted = table[(table.split == "train") & (table["mean"] > 110)]
    facts = json.loads(run("blocks", "em", "--split", "train", "--where", "mean > 110 -- bright", "--json")[1])
    assert facts["blocks"] == len(wanted) > 0
    margin = json.loads(run("blocks", "em", "--split", "margin", "--json")[1])
    assert margin["blocks"] == int(table.split.isna().sum())


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        pytest.param(1, ["em", "--where", "mean > 1e9"], "no block of em is such", id="none"),
        pytest.param(1, ["em", "--where", "meen > 1"], "meen", id="no such column"),
        pytest.param(1, ["em", "--where", "1=1); drop table blocks; --"], "", id="more than a condition"),
        pytest.param(1, ["em", "--like", "99999"], "em has no block 99999", id="no such block"),
        pytest.param(1, ["em/nuc", "--like", "0"], "has no features", id="labels"),
        pytest.param(2, ["em", "-o", "a.jpg"], "a contact sheet is a PNG", id="no such format"),
        pytest.param(1, ["em", "-o", "no/a.png"], "no is not a folder", id="no folder"),
        pytest.param(2, ["em/nucc"], "em has no further volume 'nucc'; it has nuc.", id="no such volume"),
        pytest.param(2, ["emm"], "there is no dataset 'emm'; did you mean em?", id="no such dataset"),
        pytest.param(2, ["em", "--split", "all"], "'train', 'val', 'test', 'margin'", id="no such split"),
    ],
)
def test_blocks_refuses(run, indexed, code, arguments, says):
    """In words, and nothing is written."""
    found, out, err = run("blocks", *arguments)
    assert (found, out) == (code, "")
    assert says in err
    assert "Traceback" not in err
    assert not list(Path.cwd().glob("*.png"))
    assert json.loads(run("blocks", "em", "--json")[1])["blocks"] == 120


def test_an_index_of_an_earlier_state(run, indexed):
    """Is not told of; the way out is named."""
    indexed.write_record(indexed.read_record().with_status("complete", sha256="cd" * 32))
    code, _, err = run("blocks", "em")
    assert code == 1
    assert "make it anew with `em-assets blocks em --build`" in err


def test_blocks_that_look_alike(run, indexed):
    """Itself first, then the nearest by features, as NumPy finds them."""
    from em_assets.blocks.index import read_index

    rows = json.loads(run("blocks", "em", "--like", "5", "-n", "6", "--json")[1])
    table = read_index(indexed).to_pandas()
    known = table[table.features.notna()]
    mine = known[known.id == 5].features.iloc[0]
    distance = known.features.map(lambda other: float(np.linalg.norm(other.astype(float) - mine.astype(float))))
    expected = sorted(distance.tolist())[:7]
    assert [row["distance"] for row in rows] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert rows[0]["id"] == 5
    train = json.loads(run("blocks", "em", "--like", "5", "--split", "train", "--json")[1])
    assert {row["split"] for row in train[1:]} == {"train"}


def test_a_contact_sheet_is_written(run, indexed):
    """A PNG of blocks from all over the volume; an older one stays without --force."""
    code, _, err = run("blocks", "em", "-o", "sheet.png", "-n", "20")
    assert code == 0, err
    assert re.search(r"sheet\.png: 20 blocks, \d", err)
    with Image.open("sheet.png") as picture:
        assert picture.format == "PNG"
        assert picture.height > 3 * 128
    assert run("blocks", "em", "-o", "sheet.png")[0] == 1
    assert run("blocks", "em", "--like", "5", "-o", "sheet.png", "--force")[0] == 0


@pytest.mark.parametrize("count", [1, 7, 64, 119, 120, 500])
def test_blocks_are_shown_from_all_over(run, indexed, count):
    """As many as are asked for, the first among them, in even steps."""
    run("blocks", "em")
    rows = _Chosen("em", None, None).spread(Path("data/metadata.duckdb"), count)
    ids = [row["id"] for row in rows]
    assert len(ids) == min(count, 120)
    assert ids[0] == 0
    steps = np.diff(ids)
    assert not len(steps) or steps.max() - steps.min() <= 1


# The sheet itself


def rows_of(*starts, shape=(8, 24, 24), split="train", coverage=1.0, name="v") -> list[dict]:
    """Rows of the index, as far as a sheet uses them."""
    return [
        {
            "name": name,
            "id": number,
            "level": 0,
            **{f"start_{axis}": at for axis, at in zip("zyx", start, strict=True)},
            **{f"shape_{axis}": n for axis, n in zip("zyx", shape, strict=True)},
            "split": split,
            "coverage": coverage,
        }
        for number, start in enumerate(starts)
    ]


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.fixture
def volume(tmp_path):
    """Eight planes of 24 x 48 voxels of 8 nm, each plane of one value, with a chunk that is not stored."""
    voxels = np.broadcast_to(np.arange(10, 90, 10, dtype=np.uint8)[:, None, None], (8, 24, 48)).copy()
    voxels[:, :, 24:] = 200
    write_ome_zarr(tmp_path / "v.zarr", [voxels], chunk=(8, 24, 24), absent=[(0, 0, 1)])
    return em.open(str(tmp_path / "v.zarr"))


def test_missing_voxels_are_hatched_never_black(volume):
    """In both colours of the hatch, and no grey in their place."""
    colours = {
        tuple(colour) for colour in pixels_of(contact_sheet(volume, rows_of((0, 0, 24), split="test"))).reshape(-1, 3)
    }
    assert {(255, 176, 64), (214, 96, 16), SPLIT_COLOURS["test"]} <= colours
    assert (0, 0, 0) not in colours


def test_the_middle_plane_at_its_scale(tmp_path):
    """Plane 4 of 8, and a voxel twice as high as wide is drawn so."""
    voxels = np.zeros((8, 16, 16), np.uint8)
    voxels[4, :, 8:] = 200
    write_ome_zarr(tmp_path / "v.zarr", [voxels], chunk=(8, 16, 16), voxel_size_nm=(8.0, 8.0, 4.0))
    shown = pixels_of(contact_sheet(em.open(str(tmp_path / "v.zarr")), rows_of((0, 0, 0), shape=(8, 16, 16))))
    black, white = ((shown == value).all(axis=2) for value in (0, 255))
    rows, columns = np.nonzero(black)
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (128, 32)
    assert white[rows.min() : rows.max() + 1, columns.max() + 1 : columns.max() + 33].all()


def test_labels_have_colours_of_their_own(tmp_path):
    """The same in every sheet, 0 is clear, and neighbours in number differ."""
    labels = np.zeros((2, 16, 16), np.uint64)
    labels[:, :8, :8], labels[:, 8:, 8:], labels[:, 8:, :8] = 1, 2, 2**63 + 4
    write_ome_zarr(tmp_path / "v.zarr/labels/nuc", [labels], chunk=(2, 16, 16))
    volume = em.open(str(tmp_path / "v.zarr/labels/nuc"))
    assert volume.content == "labels"
    shown = pixels_of(contact_sheet(volume, rows_of((0, 0, 0), shape=(2, 16, 16)), pixels=16))
    tile = shown[-22:-6, 6:22]
    one, two, large = tile[0, 0], tile[-1, -1], tile[-1, 0]
    assert tuple(tile[0, -1]) == (255, 255, 255)
    assert all(np.abs(a.astype(int) - b).sum() > 60 for a, b in ((one, two), (one, large), (two, large)))


def test_equal_blocks_equal_sheets(volume):
    """Byte for byte; columns only arrange them."""
    rows = rows_of((0, 0, 0), (0, 0, 0), (0, 0, 0))
    assert contact_sheet(volume, rows) == contact_sheet(volume, rows)
    assert pixels_of(contact_sheet(volume, rows, columns=1)).shape[0] > pixels_of(contact_sheet(volume, rows)).shape[0]


def test_a_sheet_of_nothing(volume):
    """Is refused."""
    with pytest.raises(Mismatch, match="there is no block to show"):
        contact_sheet(volume, [])


def test_a_sheet_of_several_volumes(volume, tmp_path):
    """Each with its own greys: a dim one is not black beside a bright one."""
    dim = np.zeros((8, 24, 24), np.uint8)
    dim[:, :, 12:] = 3
    write_ome_zarr(tmp_path / "dim.zarr", [dim], chunk=(8, 24, 24))
    other = em.open(str(tmp_path / "dim.zarr"))
    (row,) = rows_of((0, 0, 0))
    shown = pixels_of(sheet_of([(volume, row), (other, {**row, "name": "dim"})]))
    right = shown[-40:-10, 6 + 128 + 6 :][:, :128]
    assert {tuple(colour) for colour in right.reshape(-1, 3)} == {(0, 0, 0), (255, 255, 255)}


# stage


def test_stage_makes_a_copy_that_is_used(run, stored):
    """`open` takes it by itself: other chunks, equal digests, also of what is missing."""
    asked = {"start": (0, 60, 60), "shape": 32, "missing": "mask"}
    before = em.open("em")
    code, out, err = run("stage", "em", "--chunk", "32")
    assert code == 0, err
    after = em.open("em")
    assert (before.levels[0].chunk, after.levels[0].chunk) == ((16, 16, 16), (32, 32, 32))
    assert [level.grid for level in after.levels] == [level.grid for level in before.levels]
    for level in range(3):
        where = {**asked, "start": (0, 10, 20), "shape": (16, 14, 50), "level": level}
        assert after.read(**where).digest == before.read(**where).digest
    assert after.read(**asked).digest == before.read(**asked).digest
    assert "staged/volume.ome.zarr is made" in out
    assert "chunks  32 x 32 x 32 voxels at level 0, uncompressed" in out
    assert 'em_assets.blocks.open("em") takes it by itself' in out


def test_a_staged_copy_of_an_earlier_state_is_not_used(run, stored):
    """After the dataset has changed, `open` reads what is stored."""
    run("stage", "em", "--chunk", "32")
    stored.write_record(stored.read_record().with_status("complete", sha256="cd" * 32))
    assert em.open("em").levels[0].chunk == (16, 16, 16)


def test_stage_twice(run, stored):
    """The second time it says that it is there."""
    run("stage", "em")
    assert "is there already" in run("stage", "em")[1]


def test_stage_elsewhere(run, stored):
    """In the folder that is named, with what says which voxels are real."""
    _, out, _ = run("stage", "em/nuc", "--to", "scratch", "--codec", "zstd")
    copy = Path("scratch/em.nuc.ome.zarr")
    assert str(copy) in out
    assert "scratch/em.nuc.coverage.parquet" in out
    volume = em.open(copy)
    assert volume.levels[0].grid == em.open("em/nuc").levels[0].grid
    assert (
        volume.read((0, 0, 0), shape=(32, 40, 50)).digest
        == em.open("em/nuc").read((0, 0, 0), shape=(32, 40, 50)).digest
    )


def test_du_counts_it_and_rm_removes_it(run, stored):
    """Like everything else of the dataset."""
    before = json.loads(run("du", "--format", "json")[1])
    run("stage", "em")
    after = json.loads(run("du", "--format", "json")[1])
    size = sum(file.stat().st_size for file in Path("data/em/staged").rglob("*") if file.is_file())
    assert after[0]["size_bytes"] - before[0]["size_bytes"] == size > 0
    assert run("rm", "em", "--yes")[0] == 0
    assert not Path("data/em").exists()


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        pytest.param(1, ["em", "--chunk", "48"], "does not divide the shards of em", id="chunk"),
        pytest.param(2, ["em", "--chunk", "x"], "is not a whole number", id="no number"),
        pytest.param(2, ["em", "--level", "1"], "'all', '0'", id="level"),
        pytest.param(2, ["em", "--codec", "gzip"], "'none', 'zstd'", id="codec"),
        pytest.param(2, ["em/x"], "em has no further volume 'x'", id="volume"),
        pytest.param(1, ["hemibrain_crop"], "hemibrain_crop is listed", id="not downloaded"),
    ],
)
def test_stage_refuses(run, stored, code, arguments, says):
    """In a sentence, with nothing left."""
    found, _, err = run("stage", *arguments)
    assert found == code, err
    assert says in err.strip().splitlines()[-1]
    assert not Path("data/em/staged").exists()


def test_stage_of_what_is_being_written(run, stored):
    """Waits for nobody: it says who writes."""
    stored.write_record(stored.read_record().with_status("saving-data"))
    code, _, err = run("stage", "em")
    assert code == 1
    assert f"em is being written (process {os.getpid()}" in err


# serve


def test_serve_answers_until_it_is_told(stored, tmp_path):
    """Blocks equal to those that `read` writes; SIGTERM ends it well."""
    pytest.importorskip("uvicorn", reason="the extra `view` is not installed")
    command = [sys.executable, "-m", "em_assets.cli", "serve", "--port", "0", "--max-voxels", "4096"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EM_ASSETS_ROOT": str(tmp_path / "data")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as service:
        try:
            line = service.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)
            assert address, line + service.stderr.read()
            block = f"{address[0]}v1/datasets/em/block?start=1,2,3&shape="
            with urllib.request.urlopen(f"{block}16", timeout=30) as reply:
                assert reply.read() == em.open("em").read((1, 2, 3), shape=16).npy()
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{block}17", timeout=30)
            assert 400 <= refused.value.code < 500
            refused.value.close()
        finally:
            service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0
        assert service.stderr.read() == ""


def test_serve_says_that_a_port_is_taken(run, stored):
    """In a sentence."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run("serve", "--port", str(taken.getsockname()[1]))
    assert code == 1
    assert "Traceback" not in err
    assert err.strip().endswith(".")
