"""The metadata files of the portal's tree: models beside the portal's schema and its own files; and numbers."""

import copy
import datetime as dt
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest

from em_assets.errors import Malformed
from em_assets.portal.entities import ENTITIES, AnnotationMetadata, TomogramMetadata, as_json, parse_entity
from em_assets.portal.ids import CLAIM, FIRST, IDENTITY, claim_id, find_id, identity_of, reclaim_id, release_id
from em_assets.store import LocalStore, open_store

AUTHORS = [
    {
        "name": "Ada",
        "ORCID": "0000-0002-1825-0097",
        "email": "a@b.org",
        "affiliation_name": "X",
        "affiliation_address": "Y",
        "affiliation_identifier": "https://ror.org/1",
        "corresponding_author_status": True,
        "primary_author_status": True,
        "kaggle_id": "ada",
    }
]
DATES = {"deposition_date": "2023-04-01", "last_modified_date": "2023-06-01", "release_date": "2023-06-01"}
REFERENCES = {
    "publications": "doi:10.1101/2022.04.12.488077, 10.1038/s41592-022-01746-2",
    "related_database_entries": "EMPIAR-10988, EMD-14412",
    "related_database_links": "https://example.org",
    "dataset_citations": "someone",
}
IDENTITY4 = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
PICTURES = {"snapshot": "10000/Images/snapshot.png", "thumbnail": None}
SIZE = {"z": 1, "y": 2, "x": 3}
PLACE = {"x": 1.5, "y": 2, "z": -3}
WRITTEN = {"deposition_id": 10000, "last_updated_at": 1728676818}

FULL = {
    "DatasetMetadata": {
        "dataset_identifier": 10000,
        "dataset_title": "S. pombe",
        "dataset_description": "Cells",
        "sample_type": "primary_cell_culture",
        "organism": {"name": "S. pombe", "taxonomy_id": 284812},
        "tissue": {"name": "blood", "id": "BTO:0000089"},
        "cell_type": {"name": "vegetative", "id": "CL:0000334"},
        "cell_strain": {"name": "972h-", "id": "NCBITaxon:284812"},
        "cell_component": {"name": "nucleus", "id": "GO:0005634"},
        "assay": {"name": "microscopy assay", "id": "EFO:0002909"},
        "disease": {"name": "normal", "id": "PATO:0000461"},
        "development_stage": {"name": "unknown", "id": "unknown"},
        "authors": AUTHORS,
        "funding": [{"funding_agency_name": "ERC", "grant_id": "760067"}],
        "cross_references": REFERENCES,
        "dates": DATES,
        "sample_preparation": "buffer",
        "grid_preparation": "grid",
        "other_setup": None,
        "key_photos": PICTURES,
    },
    "DepositionMetadata": {
        "deposition_identifier": 10000,
        "deposition_title": "T",
        "deposition_description": "D",
        "deposition_types": ["dataset", "annotation", "tomogram"],
        "tag": "t",
        "authors": AUTHORS,
        "dates": DATES,
        "cross_references": REFERENCES,
        "key_photos": PICTURES,
    },
    "RunMetadata": {
        "run_name": "TS_026",
        "identified_objects": [
            {"object_id": "GO:0005634", "object_name": "n", "object_description": "d", "object_state": None}
        ],
    },
    "FramesMetadata": {
        "dose_rate": 2.392,
        "is_gain_corrected": False,
        "frames_acquisition_file": "10000/TS_026/Frames/TS_026.mdoc",
        "frames": [
            {
                "acquisition_order": 0,
                "accumulated_dose": 0,
                "exposure_dose": 1.5,
                "is_gain_corrected": True,
                "path": None,
            }
        ],
    },
    "TiltSeriesMetadata": {
        "acceleration_voltage": 300000,
        "spherical_aberration_constant": 2.7,
        "microscope": {"manufacturer": "TFS", "model": "Krios", "additional_info": None},
        "microscope_optical_setup": {"energy_filter": "GIF", "phase_plate": None, "image_corrector": "c"},
        "camera": {"manufacturer": "Gatan", "model": "K2 SUMMIT", "acquire_mode": "counting"},
        "data_acquisition_software": "SerialEM",
        "tilt_axis": 84.7,
        "tilt_step": 2,
        "tilt_range": {"min": -60.5, "max": 60},
        "tilting_scheme": "dose symmetric",
        "total_flux": 122,
        "tilt_series_quality": 5,
        "pixel_spacing": 3.3702,
        "is_aligned": False,
        "aligned_tiltseries_binning": 4,
        "binning_from_frames": 1,
        "tilt_alignment_software": "IMOD",
        "related_empiar_entry": "EMPIAR-10988",
        "scales": [SIZE, SIZE, SIZE],
        "size": SIZE,
        "omezarr_dir": "a.zarr",
        "mrc_file": "a.mrc",
        "run_name": "TS_026",
        "frames_count": 41,
        "raw_tlt_path": "a.rawtlt",
        "ctf_path": None,
        "per_section_parameter": [
            {
                "z_index": 0,
                "frame_acquisition_order": 3,
                "raw_angle": -60.5,
                "astigmatic_angle": -180,
                "cross_correlation": 0.1,
                "major_defocus": 1.0,
                "minor_defocus": 2,
                "max_resolution": 3.5,
                "phase_shift": 0,
            }
        ],
    },
    "AlignmentMetadata": {
        "format": "IMOD",
        "alignment_type": "GLOBAL",
        "method_type": "patch_tracking",
        "is_portal_standard": False,
        "affine_transformation_matrix": IDENTITY4,
        "volume_dimension": PLACE,
        "volume_offset": PLACE,
        "tilt_offset": 0.5,
        "x_rotation_offset": 0,
        "per_section_alignment_parameters": [
            {
                "z_index": 0,
                "in_plane_rotation": [[0.1, 0.2], [-0.3, 0.4]],
                "x_offset": -4.3,
                "y_offset": 5,
                "tilt_angle": None,
                "volume_x_rotation": 0,
                "beam_tilt": 0.0,
            }
        ],
        "alignment_path": "a.xf",
        "tilt_path": None,
        "tiltx_path": None,
        "tiltseries_path": "t.json",
        "files": ["a.xf"],
    },
    "TomogramMetadata": {
        "voxel_spacing": 13.48,
        "reconstruction_method": "WBP",
        "reconstruction_software": "IMOD",
        "fiducial_alignment_status": "NON_FIDUCIAL",
        "ctf_corrected": None,
        "processing": "raw",
        "processing_software": None,
        "align_software": "IMOD",
        "tomogram_version": 1,
        "is_visualization_default": True,
        "offset": {"x": 0, "y": -1, "z": 2},
        "affine_transformation_matrix": IDENTITY4,
        "authors": AUTHORS,
        "dates": DATES,
        "cross_references": REFERENCES,
        "scales": [SIZE, SIZE, SIZE],
        "size": SIZE,
        "omezarr_dir": "a.zarr",
        "mrc_file": "a.mrc",
        "run_name": "TS_026",
        "key_photo": PICTURES,
        "alignment_metadata_path": "10000/TS_026/Alignments/100/alignment_metadata.json",
        "neuroglancer_config_path": "c.json",
    },
    "AnnotationMetadata": {
        "annotation_ingest_id": "ribosome-1",
        "annotation_object": {"id": "GO:0022626", "name": "ribosome", "description": None, "state": None},
        "annotation_method": "template matching",
        "method_type": "hybrid",
        "method_links": [{"link": "https://example.org", "link_type": "source_code", "custom_name": None}],
        "annotation_software": "pyTOM",
        "annotation_publications": "EMPIAR-10988, doi:10.1101/2022.04.12.488077",
        "confidence": {"ground_truth_used": None, "precision": 99.5, "recall": 100},
        "ground_truth_status": True,
        "is_curator_recommended": True,
        "version": 1.0,
        "authors": AUTHORS,
        "dates": DATES,
        "object_count": 16,
        "files": [{"format": "mrc", "path": "a.mrc", "shape": "SegmentationMask", "is_visualization_default": True}],
        "alignment_metadata_path": None,
    },
}
"""Every field of every entity for which the schema has a model."""
BEYOND_THE_SCHEMA = {"RunMetadata": {"deposition_id", "last_updated_at"}}
"""What the portal writes into every file, this one included, although its schema does not have it there."""

BEYOND_THE_WORDS = {("AnnotationMetadata.files", "format"), ("AnnotationMetadata.files", "shape")}
"""There the schema has the words for what is read, and the portal's files those for what was written."""


def full(name: str) -> dict:
    return copy.deepcopy(FULL[name]) | WRITTEN


@pytest.fixture(scope="module")
def schema(payloads) -> dict:
    return json.loads((payloads / "cryoet/schema/metadata_files.schema.json").read_text())


@pytest.fixture(scope="module")
def complaints(schema):
    """What the portal's schema has against a file: a function of the entity's name and the file's values."""

    def of(name: str, values: dict) -> list[str]:
        values = {key: value for key, value in values.items() if key not in BEYOND_THE_SCHEMA.get(name, ())}
        validator = jsonschema.Draft201909Validator({"$ref": f"#/$defs/{name}", "$defs": schema["$defs"]})
        return [error.message for error in validator.iter_errors(values)]

    return of


# -- models


@pytest.mark.parametrize("name", FULL)
def test_models_have_the_schemas_fields(name, schema):
    """Every model, and every one within it, has the properties, the required ones and the words of the schema."""
    ours = ENTITIES[name].model_json_schema()

    def compare(mine: dict, theirs: dict, where: str) -> None:
        extra = BEYOND_THE_SCHEMA.get(where, set())
        assert set(mine["properties"]) == set(theirs["properties"]) | extra, where
        assert set(mine.get("required", ())) == set(theirs.get("required", ())) | extra, where
        for key, value in theirs["properties"].items():
            if (where, key) not in BEYOND_THE_WORDS:
                assert _words(mine["properties"][key], {}) == _words(value, schema["$defs"]), f"{where}.{key}"
            pairs = zip(_models(mine["properties"][key]), _models(value), strict=False)
            for my_name, their_name in pairs:
                their = schema["$defs"][their_name]
                if "properties" in their:
                    compare(ours["$defs"][my_name], their, f"{where}.{key}")

    compare(ours, schema["$defs"][name], name)


def _words(node, definitions: dict) -> set[str]:
    """Those that a property may be, here and in the enumerations it refers to."""
    if isinstance(node, list):
        return {word for one in node for word in _words(one, definitions)}
    if not isinstance(node, dict):
        return set()
    named = definitions.get(node.get("$ref", "").rpartition("/")[2], {})
    here = {*node.get("enum", ()), *named.get("enum", ())}
    return here.union(*(_words(node[key], definitions) for key in ("anyOf", "items") if key in node))


def _models(node) -> list[str]:
    """Names of the models that a property refers to."""
    if isinstance(node, dict):
        here = [node["$ref"].rpartition("/")[2]] if "$ref" in node else []
        return [name for name in [*here, *(n for v in node.values() for n in _models(v))] if name != "Any"]
    return [name for one in node for name in _models(one)] if isinstance(node, list) else []


@pytest.mark.parametrize("name", FULL)
def test_a_full_file_is_valid(name, complaints):
    """By the schema, and it comes out as it was given: whole numbers whole, nulls as nulls."""
    entity = parse_entity(ENTITIES[name], full(name), "test")
    written = json.loads(as_json(entity))
    assert complaints(name, written) == []
    assert json.dumps(written, sort_keys=True) == json.dumps(full(name), sort_keys=True)
    assert list(written)[-2:] == ["deposition_id", "last_updated_at"]


@pytest.mark.parametrize("name", FULL)
def test_a_file_needs_no_more_than_the_schema_asks_for(name, schema, complaints):
    """With the required fields alone it is valid, and nothing else is written."""
    required = {*schema["$defs"][name].get("required", ()), *WRITTEN}
    least = {key: value for key, value in full(name).items() if key in required}
    written = json.loads(as_json(parse_entity(ENTITIES[name], least, "test")))
    assert written == least and complaints(name, written) == []


BAD = [
    ("DatasetMetadata", "sample_type", "cells"),
    ("DatasetMetadata", "tissue.id", 1234),
    ("DatasetMetadata", "tissue.id", "BTO:89"),
    ("DatasetMetadata", "cell_type.id", "GO:0005634"),
    ("DatasetMetadata", "cell_strain.id", "strain"),
    ("DatasetMetadata", "cell_component.id", "CL:0000334"),
    ("DatasetMetadata", "assay.id", "EFO:1"),
    ("DatasetMetadata", "disease.id", "DOID:1"),
    ("DatasetMetadata", "development_stage.id", "HsapDv:1"),
    ("DatasetMetadata", "organism.taxonomy_id", 0),
    ("DatasetMetadata", "organism.name", None),
    ("DatasetMetadata", "authors", []),
    ("DatasetMetadata", "authors.0.ORCID", "0000-0002-1825"),
    ("DatasetMetadata", "cross_references.publications", "test"),
    ("DatasetMetadata", "cross_references.related_database_entries", "EMPIAR-1"),
    ("DatasetMetadata", "dataset_identifier", "10000"),
    ("DatasetMetadata", "more", 1),
    ("DepositionMetadata", "deposition_types", ["run"]),
    ("DepositionMetadata", "deposition_types", []),
    ("RunMetadata", "identified_objects.0.object_id", "FB:1"),
    ("FramesMetadata", "frames.0.acquisition_order", 0.5),
    ("TiltSeriesMetadata", "acceleration_voltage", 300),
    ("TiltSeriesMetadata", "camera.model", "K2 Summit"),
    ("TiltSeriesMetadata", "camera.manufacturer", "gatan"),
    ("TiltSeriesMetadata", "camera.acquire_mode", "fast"),
    ("TiltSeriesMetadata", "microscope.manufacturer", "Zeiss"),
    ("TiltSeriesMetadata", "tilt_axis", 400),
    ("TiltSeriesMetadata", "tilt_step", -1),
    ("TiltSeriesMetadata", "tilt_range.max", 91),
    ("TiltSeriesMetadata", "tilt_series_quality", 6),
    ("TiltSeriesMetadata", "pixel_spacing", 0),
    ("TiltSeriesMetadata", "related_empiar_entry", "EMPIAR-XYZ"),
    ("TiltSeriesMetadata", "size.x", -1),
    ("TiltSeriesMetadata", "per_section_parameter.0.raw_angle", 91),
    ("TiltSeriesMetadata", "per_section_parameter.0.astigmatic_angle", 181),
    ("AlignmentMetadata", "format", "DYNAMO"),
    ("AlignmentMetadata", "format", None),
    ("AlignmentMetadata", "alignment_type", "global"),
    ("AlignmentMetadata", "method_type", "manual"),
    ("AlignmentMetadata", "x_rotation_offset", 0.5),
    ("TomogramMetadata", "voxel_spacing", 0),
    ("TomogramMetadata", "reconstruction_method", "wbp"),
    ("TomogramMetadata", "fiducial_alignment_status", "none"),
    ("TomogramMetadata", "processing", "binned"),
    ("TomogramMetadata", "offset.x", 0.5),
    ("TomogramMetadata", "align_softwares", ["RAPTOR"]),
    ("TomogramMetadata", "is_visualization_default", "yes"),
    ("AnnotationMetadata", "annotation_object.id", "GO:000000"),
    ("AnnotationMetadata", "annotation_publications", "EMPIAR-XYZ"),
    ("AnnotationMetadata", "method_type", "none"),
    ("AnnotationMetadata", "method_links.0.link_type", "paper"),
    ("AnnotationMetadata", "confidence.precision", 101),
    ("AnnotationMetadata", "version", "1.0"),
    ("AnnotationMetadata", "files.0.format", "tif"),
    ("AnnotationMetadata", "files.0.shape", "Sphere"),
]


@pytest.mark.parametrize(("name", "path", "value"), [pytest.param(*bad, id=f"{bad[1]}={bad[2]}") for bad in BAD])
def test_what_the_schema_refuses_is_refused(name, path, value, complaints):
    """And named by its place; both refuse the same values."""
    values = full(name)
    *above, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    place = values
    for part in above:
        place = place[part]
    place[last] = value
    assert complaints(name, values)
    with pytest.raises(Malformed, match=path.replace(".", r"\.")):
        parse_entity(ENTITIES[name], values, "test")


OBJECT_IDS = ["UniProtKB:P12345", "UBERON:0000955", "CHEBI:5", "CDPO:0000001", "CL:0000540", "PDB-6ms4"]
GOOD = [
    *(("AnnotationMetadata", "annotation_object", {"id": one, "name": "x"}) for one in OBJECT_IDS),
    *(("DatasetMetadata", "cell_type", {"id": one, "name": "x"}) for one in ["WBbt:0005062", "ZFA:0009000"]),
    *(("DatasetMetadata", "cell_strain", {"id": one, "name": "x"}) for one in ["WBStrain00000001", "CVCL_0030"]),
    *(("DatasetMetadata", "development_stage", {"id": one}) for one in ["WBls:0000041", "FBdv:00005369", None]),
    ("DatasetMetadata", "disease", {}),
    ("AlignmentMetadata", "per_section_alignment_parameters", [{"z_index": 0, "in_plane_rotation": [1, 0, 0, 1]}]),
]


@pytest.mark.parametrize(("name", "key", "value"), [pytest.param(*good, id=str(good[2])) for good in GOOD])
def test_what_the_schema_accepts_is_accepted(name, key, value, complaints):
    """Every kind of id that it names."""
    values = full(name) | {key: value}
    assert json.loads(as_json(parse_entity(ENTITIES[name], values, "test"))) == values
    assert complaints(name, values) == []


def test_the_schema_lags_behind_the_portals_files(complaints):
    """Points, meshes and instance masks are in no valid annotation by the schema, but in the portal's own."""
    for form, shape in [("ndjson", "Point"), ("glb", "TriangularMesh"), ("mrc", "InstanceSegmentationMask")]:
        file = {"format": form, "path": "a", "shape": shape, "is_visualization_default": False}
        values = full("AnnotationMetadata") | {"files": [file]}
        parse_entity(AnnotationMetadata, values, "test")
        assert complaints("AnnotationMetadata", values)


def test_dates_exist():
    """A date of YAML is written as text; the 30th of February is refused, with everything else that is wrong."""
    values = full("TomogramMetadata")
    values["dates"]["release_date"] = dt.date(2024, 2, 29)
    assert json.loads(as_json(parse_entity(TomogramMetadata, values, "x")))["dates"]["release_date"] == "2024-02-29"
    values["dates"]["release_date"] = "2024-02-30"
    del values["processing"]
    with pytest.raises(Malformed, match=r"T/tomogram_metadata\.json .*processing is missing.*dates\.release_date is"):
        parse_entity(TomogramMetadata, values, "T/tomogram_metadata.json")


def test_a_number_that_json_lacks_is_refused():
    """NaN would make a file that nobody reads."""
    with pytest.raises(Malformed, match="voxel_spacing is nan"):
        parse_entity(TomogramMetadata, full("TomogramMetadata") | {"voxel_spacing": float("nan")}, "x")


# -- the portal's own files

LEGACY = {
    "alignment_metadata": ("AlignmentMetadata", {}),
    "annotation_foo-1.0": (
        "AnnotationMetadata",
        {
            "annotation_object": {"id": "GO:0000000", "name": "foo"},  # has six digits
            "annotation_publications": "EMPIAR-10000",  # EMPIAR-XYZ
            "version": 1.0,  # text
            # of SegmentationMask and saber alone the schema has the shape, of ndjson none of the formats
        },
    ),
    "dataset_metadata": (
        "DatasetMetadata",
        {
            "cell_component": {"id": "GO:0123435", "name": "tail"},  # these four have ids that no ontology has
            "cell_strain": {"name": "test value"},
            "cell_type": {"name": "foo"},
            "tissue": {"name": "test-tissue1"},
            "cross_references": {"dataset_citations": "10.1101/2024.01.12.111111"},  # the others are no identifiers
            "last_updated_at": 0,  # is not there
        },
    ),
    "deposition_metadata": ("DepositionMetadata", {"last_updated_at": 0}),  # is not there
    "frames_metadata": ("FramesMetadata", WRITTEN),  # are not there
    "run_metadata": ("RunMetadata", {}),
    "tiltseries_metadata": (
        "TiltSeriesMetadata",
        {
            "camera": {"manufacturer": "Gatan", "model": "K2 SUMMIT"},  # "K2 Summit"
            "related_empiar_entry": "EMPIAR-10000",  # EMPIAR-XYZ
        },
    ),
    "tomogram_metadata": ("TomogramMetadata", {"align_softwares": None}),  # the older name of align_software
}
"""The portal's test files, and what is replaced in each (None: left out), because the schema of today refuses it."""


@pytest.mark.parametrize("file", LEGACY)
def test_the_portals_files_come_out_equal(file, payloads, complaints):
    """Read and written again they say the same, apart from legacy spots; these the schema refuses, nothing else."""
    name, replaced = LEGACY[file]
    there = json.loads((payloads / f"cryoet/metadata/{file}.json").read_text())
    values = {key: value for key, value in (there | replaced).items() if value is not None or key not in replaced}
    assert json.loads(as_json(parse_entity(ENTITIES[name], values, file))) == values
    if replaced:
        assert complaints(name, there)
    if name == "AnnotationMetadata":
        values["files"] = [one for one in values["files"] if one["format"] in ("mrc", "zarr")]
        values["files"] = [one for one in values["files"] if one["shape"] == "SegmentationMask"]
    assert complaints(name, values) == []


# -- numbers

FOLDER = "10000/TS_026/Reconstructions/VoxelSpacing13.480/Tomograms"


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    return LocalStore(tmp_path) if request.param == "folder" else open_store(request.getfixturevalue("moto_s3"))


def tomogram(**changes) -> dict:
    return full("TomogramMetadata") | changes


def finish(store, number: int, metadata: dict) -> None:
    store.write(f"{FOLDER}/{number}/TS_026.zarr/.zattrs", b"{}")
    store.write(f"{FOLDER}/{number}/tomogram_metadata.json", json.dumps(metadata).encode())
    release_id(store, FOLDER, number)


def test_numbers_are_found_again(store):
    """From 100 on, one for each identity: by its claim while it is written, by its metadata afterwards."""
    raw, filtered = tomogram(), tomogram(processing="filtered")
    identities = [identity_of("tomogram", one) for one in (raw, filtered)]
    assert find_id(store, FOLDER, identities[0]) is None
    assert [claim_id(store, FOLDER, one) for one in identities] == [FIRST, FIRST + 1]
    assert [claim_id(store, FOLDER, one) for one in identities] == [FIRST, FIRST + 1]
    finish(store, FIRST, raw)
    finish(store, FIRST + 1, filtered)
    assert [path for path, _ in store.list(FOLDER) if path.endswith(CLAIM)] == []
    assert [find_id(store, FOLDER, one) for one in identities] == [FIRST, FIRST + 1]
    assert claim_id(store, FOLDER, identity_of("tomogram", tomogram(processing_software="x"))) == FIRST + 2
    at_once = (
        6 if store.local_path("") is not None else 1
    )  # moto looks and writes in two steps, so two may both be first
    with ThreadPoolExecutor(at_once) as pool:
        others = [identity_of("tomogram", tomogram(deposition_id=n % 3)) for n in range(6)]
        numbers = list(pool.map(lambda one: claim_id(store, FOLDER, one), others))
    assert numbers[:3] == numbers[3:] and sorted(set(numbers)) == [FIRST + 3, FIRST + 4, FIRST + 5]


def test_two_at_once_never_share_a_number(tmp_path):
    """Twenty identities, each asked for by two threads that begin together: twenty numbers without a gap."""
    barrier = threading.Barrier(8)

    def ask(identity: int) -> int:
        if identity < 4:
            barrier.wait(10)
        return claim_id(LocalStore(tmp_path), "T", {"deposition_id": identity})

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(ask, [n // 2 for n in range(40)]))
    assert numbers[::2] == numbers[1::2]
    assert sorted(numbers[::2]) == list(range(FIRST, FIRST + 20))


def test_a_claim_of_a_finished_number_is_given_up(tmp_path, monkeypatch):
    """Another run claims, writes and releases between our look and our claim: we get the next number."""
    from em_assets.portal import ids

    store, original = LocalStore(tmp_path), ids._create

    def overtaken(*arguments):
        monkeypatch.setattr(ids, "_create", original)
        finish(store, claim_id(store, FOLDER, identity_of("tomogram", tomogram())), tomogram())
        return original(*arguments)

    monkeypatch.setattr(ids, "_create", overtaken)
    assert claim_id(store, FOLDER, {"deposition_id": 5}) == FIRST + 1
    assert not (tmp_path / FOLDER / str(FIRST) / CLAIM).exists()


def test_a_number_is_had_again_unless_it_is_anothers_by_now(tmp_path):
    """Whoever kept a number while the folder was removed gets it back; not from somebody who took it meanwhile."""
    store, folder = LocalStore(tmp_path), "1/R/Tomograms"
    ours, other = {"deposition_id": 1}, {"deposition_id": 2}
    assert reclaim_id(store, folder, 100, ours) == 100 and find_id(store, folder, ours) == 100
    store.delete_all(folder)
    assert claim_id(store, folder, other) == 100
    assert reclaim_id(store, folder, 100, ours) == 101
    store.write(f"{folder}/103/left.mrc", b"files without a JSON are its own, if it says so")
    assert reclaim_id(store, folder, 103, {"deposition_id": 3}) == 103


def test_others_folders_keep_their_numbers(tmp_path):
    """One that nothing is known of is not taken, nor is a caption its metadata; a bucket before a path is no other."""
    store = LocalStore(tmp_path)
    annotation = full("AnnotationMetadata") | {"alignment_metadata_path": "bucket/10000/TS_026/Alignments/100/a.json"}
    store.write("A/104/cell-1.0_globalcaption.json", b'{"captions": []}')
    store.write("A/102/cell-1.0_globalcaption.json", b"[]")
    store.write("A/102/cell-1.0.json", json.dumps(annotation).encode())
    store.write("A/not a number/x.json", b"")
    same = identity_of("annotation", annotation | {"alignment_metadata_path": "10000/TS_026/Alignments/100/a.json"})
    assert claim_id(store, "A", same) == 102
    assert claim_id(store, "A", same | {"annotation_ingest_id": "other"}) == 105


def test_unreadable_metadata_are_named(tmp_path):
    """They may be of this very identity: nothing is claimed."""
    store = LocalStore(tmp_path)
    store.write("A/100/cell-1.0.json", b'{"deposition_id": 1')
    with pytest.raises(Malformed, match=r"A/100/cell-1\.0\.json is no JSON"):
        claim_id(store, "A", {"deposition_id": 1})
    assert [path for path, _ in store.list("")] == ["A/100/cell-1.0.json"]


def test_identities_are_fields_of_their_files():
    """Every field that makes an identity is one that the metadata file has."""
    models = {"tilt_series": "TiltSeries", "alignment": "Alignment", "tomogram": "Tomogram", "annotation": "Annotation"}
    for kind, fields in IDENTITY.items():
        assert set(fields) <= set(ENTITIES[f"{models[kind]}Metadata"].model_fields)
