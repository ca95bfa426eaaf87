"""Neuroglancer states of the portal's tree: addresses, places, contrast, labels."""

import json

import numpy as np
import pytest

from em_assets.errors import Mismatch
from em_assets.neuroglancer import neuroglancer_url
from em_assets.portal.states import ShownVolume, source_urls, state_json, tomogram_state, with_base

KEY = "1234567/em/Reconstructions/VoxelSpacing80.000/Tomograms/100/em.zarr"
LABELS_KEY = "1234567/em/Reconstructions/VoxelSpacing160.000/Annotations/100/nuc-1.0_segmentationmask.zarr"
TOMOGRAM = ShownVolume("em", KEY, (100, 200, 400), (10.0, 8.0, 4.0), value_range=(12.0, 250.5))
NUC = ShownVolume("100 nuc", LABELS_KEY, (10, 20, 40), (20.0, 16.0, 16.0), (100.0, 0.0, -8.0), is_labels=True)
BASE = "https://example.org/tree"


def test_the_state_shows_the_tomogram_centred_and_to_scale():
    """Axes x, y, z in metres, the middle in voxels from the corner of voxel 0, the contrast that is given."""
    state = tomogram_state(TOMOGRAM)
    assert list(state["dimensions"]) == ["x", "y", "z"]
    assert [scale for scale, _ in state["dimensions"].values()] == pytest.approx([4e-9, 8e-9, 10e-9])
    assert state["position"] == [200, 100, 50]
    [layer] = state["layers"]
    assert (layer["name"], layer["type"]) == ("em", "image")
    assert "range=[12,250.5]" in layer["shader"]
    assert state["selectedLayer"]["layer"] == "em"


def test_labels_are_segmentations_and_other_images_hidden():
    """The tomogram, then what lies over it."""
    other = ShownVolume("training", "t.zarr", (5, 5, 5), (8.0, 8.0, 8.0))
    layers = tomogram_state(TOMOGRAM, [NUC, other])["layers"]
    assert [(layer["name"], layer["type"], layer.get("visible", True)) for layer in layers] == [
        ("em", "image", True),
        ("100 nuc", "segmentation", True),
        ("training", "image", False),
    ]


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        pytest.param("", f"zarr://{KEY}", id="relative to the tree's root"),
        pytest.param(BASE, f"zarr://{BASE}/{KEY}", id="https"),
        pytest.param(f"{BASE}/", f"zarr://{BASE}/{KEY}", id="a slash at its end"),
        pytest.param("http://127.0.0.1:8000", f"zarr://http://127.0.0.1:8000/{KEY}", id="a port"),
        pytest.param("s3://bucket/prefix", f"zarr://s3://bucket/prefix/{KEY}", id="s3"),
    ],
)
def test_addresses(base, expected):
    """The base and the key; the same whether the base is given at once or later."""
    state = tomogram_state(TOMOGRAM, [NUC], base)
    assert state["layers"][0]["source"]["url"] == expected
    if base:
        assert with_base(tomogram_state(TOMOGRAM, [NUC]), base) == state
        assert with_base(state, "https://other.org") == state
        assert list(source_urls(state)) == [f"{base.rstrip('/')}/{key}" for key in (KEY, LABELS_KEY)]


def test_keys_are_quoted():
    """A run may be called what no address may contain."""
    image = ShownVolume("a", "1/run #1 50%/a.zarr", (1, 1, 1), (1.0, 1.0, 1.0))
    assert list(source_urls(tomogram_state(image, base_url=BASE))) == [f"{BASE}/1/run%20%231%2050%25/a.zarr"]


@pytest.mark.parametrize(
    "base", ["example.org/tree", "/tmp/tree", "ftp://h/t", "https://", "https://h/t?x=1", "s3:// a"]
)
def test_a_base_that_neuroglancer_cannot_read_is_refused(base):
    """Named, with what is expected and which option to correct."""
    with pytest.raises(Mismatch, match="--base-url") as raised:
        tomogram_state(TOMOGRAM, base_url=base)
    assert repr(base) in str(raised.value)


@pytest.mark.parametrize(
    ("corner_nm", "shift"),
    [
        pytest.param((0, 0, 0), (0.5, 0.5, 0.5), id="the tomogram: Neuroglancer begins half a voxel early"),
        pytest.param((100.0, 0.0, -8.0), (5.5, 0.5, 0), id="labels of a part"),
    ],
)
def test_each_volume_is_put_in_its_place(corner_nm, shift):
    """From where its own metadata put it, in its own voxels, in the order of its axes."""
    sizes = (20.0, 16.0, 16.0)
    transform = tomogram_state(ShownVolume("v", "v.zarr", (9, 9, 9), sizes, corner_nm))["layers"][0]["source"][
        "transform"
    ]
    assert list(transform["outputDimensions"]) == ["z", "y", "x"]
    assert [scale for scale, _ in transform["outputDimensions"].values()] == [size * 1e-9 for size in sizes]
    matrix = np.array(transform["matrix"])
    assert (matrix[:, :3] == np.eye(3)).all()
    assert matrix[:, 3].tolist() == list(shift)


def test_the_document_is_as_the_portals_writer_leaves_it(payloads):
    """4 spaces, and the keys of the portal's own states that say what is shown, `deposition_id` and `last_updated_at`
    among them.
    """
    text = state_json(tomogram_state(TOMOGRAM, [NUC]), 1234567, 1763740800).decode()
    document = json.loads(text)
    theirs = json.loads((payloads / "cryoet/neuroglancer/100-neuroglancer_config.json").read_text())
    assert text == json.dumps(document, indent=4) + "\n"
    assert (document["deposition_id"], document["last_updated_at"]) == (1234567, 1763740800)
    assert set(theirs) - set(document) == {"projectionOrientation"}, "from where the 3D panel looks: a taste"
    assert set(theirs["layers"][0]["source"]) <= set(document["layers"][0]["source"])


def test_neuroglancer_reads_it():
    """The wheel's own parser understands the state, and nothing is lost."""
    neuroglancer = pytest.importorskip("neuroglancer", reason="neuroglancer (extra `view`) is not installed")
    state = tomogram_state(TOMOGRAM, [NUC], BASE)
    parsed = neuroglancer.parse_url(neuroglancer_url("http://h/v/em/", state)).to_json()
    assert parsed["layers"] == state["layers"]
    assert parsed["position"] == state["position"]
