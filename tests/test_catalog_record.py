"""The records of the five datasets, from publishers' real replies and headers alone: no voxel is read, nobody asked.

What is expected here is what independent clients recorded about the data.
"""

import json
from datetime import date

import pytest

from em_assets.catalog.build import CATALOG, build_catalog
from em_assets.catalog.claims import write_claims
from em_assets.catalog.query import query
from em_assets.datasets.loading import load_specs
from em_assets.formats._json import json_leaves
from em_assets.records import DatasetFolder
from em_assets.settings import PACKAGED_DATASETS, Settings
from em_assets.sources.claims import claims_of
from em_assets.store import LocalStore
from em_assets.volume import Claim
from payload_claims import dm_values, idr_document, tiff_values

EMPIAR, EPFL, HEMIBRAIN = "empiar_11759", "epfl_hippocampus", "hemibrain_crop"
IDR, NACC = "idr_9846137", "jrc_mus_nacc_2"
SLICE = "original/F57-8_test1_3VBSED_slice_{}.dm3"
GROUP = "recon-2__em__fibsem-int16__"


def tags(path, extractor, values):
    return [Claim(key, value, path, "https://example.org", extractor) for key, value in values.items()]


def empiar(folder):
    entry = (folder / "empiar/api_entry_EMPIAR-11759.json").read_bytes()
    claims = claims_of("documents/entry.json", "empiar_entry", entry, "https://example.org")
    for number in ("0000", "0015"):
        dump = json.loads((folder / f"empiar/dm3_full_tags_slice_{number}.json").read_text())
        claims += tags(SLICE.format(number), "dm", dm_values(dump["full_original_tags"]))
    return claims


def idr(folder):
    claims = []
    for name, kind, file in (
        ("imgData.json", "idr_image", "imgData_9846137_RECONSTRUCTED.json"),
        ("study.txt", "idr_study", "idr0086-study.txt"),
        ("annotation.csv", "table", "idr0086-experimentD-annotation.csv"),
    ):
        raw = (folder / "idr" / file).read_bytes()
        claims += claims_of(f"documents/{name}", kind, raw, "https://example.org")
    for cut in ("xy", "xz"):
        document = idr_document(folder, cut)
        claims += tags(document.path, "tiff", document.values)
    return claims


def epfl(folder):
    pages = {n: json.loads((folder / f"epfl/tiff_page{n}_tags.json").read_text()) for n in (0, 1064)}
    return tags("original/volumedata.tif", "tiff", tiff_values(pages))


def nacc(folder):
    attributes = (folder / f"openorganelle/jrc_mus-nacc-2.zarr__{GROUP}.zattrs.json").read_bytes()
    claims = claims_of(f"documents/{GROUP}.zattrs", "zarr", attributes, "s3://example")
    tree = json.loads((folder / "openorganelle/zarr_tree_fibsem-int16_helensilva.json").read_text())
    children = tree["children"]
    for child in children.values() if isinstance(children, dict) else children:
        array = {"zarr_format": 2, "shape": child["shape"], "chunks": child["chunks"], "dtype": "<i2"}
        array |= {"compressor": {"id": "zstd", "level": 1}}
        path = f"documents/{GROUP}{child['path'].split('/')[-1]}__.zarray"
        claims += tags(path, "zarr", dict(json_leaves(array)))
    return claims


@pytest.fixture(scope="module")
def database(realdata, tmp_path_factory):
    """The catalogue of the packaged specs over a store that holds claims only."""
    folder = realdata.parent / "payloads"
    if not folder.is_dir():
        pytest.skip(f"no publishers' replies at {folder}")
    root = tmp_path_factory.mktemp("store")
    store = LocalStore(root)
    for name, read in {EMPIAR: empiar, IDR: idr, EPFL: epfl, NACC: nacc}.items():
        write_claims(DatasetFolder(store, name), read(folder))
    build_catalog(load_specs([PACKAGED_DATASETS]), store, Settings(root=str(root)))
    return root / CATALOG


FACTS = {
    EMPIAR: {
        "title": "Developing retina in zebrafish 55 hpf larval eye.",
        "authors": "Wilsch-Br\u00e4uninger M",
        "license": "CC0-1.0",
        "doi": "10.6019/EMPIAR-11759",
        "source_shape": (16, 5500, 5496),
        "volume_shape": (16, 5500, 5496),
        "voxel_size_nm": (50.0, 7.998250424861908, 7.998250424861908),
        "dtype": "uint8",
        "file_format": "DM3",
        "modality": "SBF-SEM",
        "organism": "Danio rerio",
        "instrument": "FEI Quanta",
        "accelerating_voltage_v": 1900.0,
        "dwell_time_s": 5e-07,
        "magnification": 2159.0,
        "acquired_on": date(2018, 6, 11),
        "deposited_on": date(2023, 11, 1),
        "released_on": date(2024, 1, 15),
        "updated_on": date(2024, 1, 15),
        "image_count": 16.0,
        "dataset_size_bytes": 1.2e9,
        "commercial_use": True,
    },
    IDR: {
        "license": "CC-BY-4.0",
        "doi": "10.17867/10000141d",
        "publication_doi": "10.1126/sciadv.aba8811",
        "publisher_name": "University of Dundee",
        "released_on": date(2020, 7, 22),
        "source_shape": (184, 775, 1121),
        "volume_shape": (184, 775, 1121),
        "voxel_size_nm": (20.0, 20.0, 20.0),
        "dtype": "uint8",
        "channels": 1.0,
        "file_format": "TIFF",
        "organism": "Homo sapiens",
        "organism_taxid": "NCBITaxon:9606",
        "cell_line": "U2OS",
        "modality": "FIB-SEM",
        "commercial_use": True,
    },
    EPFL: {
        "license": "LicenseRef-non-commercial",
        "source_shape": (1065, 1536, 2048),
        "volume_shape": (1065, 1536, 2048),
        "voxel_size_nm": (5.0, 5.0, 5.0),
        "dtype": "uint8",
        "file_format": "TIFF",
        "acquisition_software": "InsightToolkit",
        "modality": "FIB-SEM",
        "organism": None,
        "sample": "CA1 hippocampus",
        "commercial_use": False,
    },
    NACC: {
        "license": "CC-BY-4.0",
        "doi": "10.25378/janelia.24222898",
        "source_shape": (564, 2520, 2596),
        "volume_shape": (564, 2520, 2596),
        "voxel_size_nm": (2.96, 4.0, 4.0),
        "dtype": "int16",
        "source_levels": 9.0,
        "source_chunk": "64 x 64 x 64",
        "organism": "Mus musculus",
        "modality": "FIB-SEM",
        "acquired_on": date(2015, 3, 9),
        "primary_energy_ev": 200.0,
        "bias_voltage_v": 500.0,
        "scan_rate_hz": 400_000.0,
        "beam_current_a": 2.2e-10,
        "instrument": None,
        "commercial_use": True,
    },
    HEMIBRAIN: {
        "license": "CC-BY-4.0",
        "doi": "10.7554/eLife.57443",
        "source_shape": (41394, 39725, 34427),
        "volume_shape": (1000, 1000, 1000),
        "voxel_size_nm": (8.0, 8.0, 8.0),
        "dtype": "uint8",
        "modality": "FIB-SEM",
        "organism": "Drosophila melanogaster",
        "commercial_use": True,
    },
}


@pytest.mark.parametrize("name", FACTS)
def test_each_record_equals_the_facts(database, name):
    """Field by field, whatever the publisher, the file and third parties say."""
    table = query(database, f"from datasets where name = '{name}'")
    [row] = table.rows
    record = dict(zip(table.columns, row, strict=True))
    found = {field: record[field] for field in FACTS[name]}
    assert found == FACTS[name]


NAMED = [
    (EMPIAR, "source_size_x", "5496", "5628"),
    (EMPIAR, "source_size_y", "5500", "5632"),
    (EMPIAR, "instrument", "FEI Quanta", "FEI Magellan400"),
    (EMPIAR, "voxel_size_x_nm", "7.998250424861908", "8"),
    (EMPIAR, "voxel_size_y_nm", "7.998250424861908", "8"),
    (EMPIAR, "acquired_on", "2018-06-11", "2018-11-06"),
    (EMPIAR, "file_format", "DM3", "BM3"),
    (IDR, "voxel_size_x_nm", "20", "22"),
    (IDR, "file_format", "TIFF", "OME-TIFF"),
    (EPFL, "source_size_y", "1536", "2048"),
    (EPFL, "source_size_x", "2048", "1536"),
    (EPFL, "organism", "Homo sapiens", "rodent"),
    (NACC, "compression", "zstd 1", "blosc lz4"),
    (HEMIBRAIN, "source_size_x", "34427", "34428"),
    (HEMIBRAIN, "source_size_x", "34427", "34432"),
    (HEMIBRAIN, "source_size_x", "34427", "34431"),
    (HEMIBRAIN, "source_size_y", "39725", "39726"),
    (HEMIBRAIN, "source_size_y", "39725", "39552"),
    (HEMIBRAIN, "source_size_y", "39725", "39743"),
    (HEMIBRAIN, "source_size_z", "41394", "41408"),
    (HEMIBRAIN, "source_size_z", "41394", "41407"),
]
"""What is known to be contradicted: (dataset, field, the value that is right, another that is stated)."""


@pytest.mark.parametrize(("name", "field", "right", "other"), NAMED)
def test_every_known_conflict_is_listed_with_the_right_choice(database, name, field, right, other):
    """Both values, who states them, what was taken: of EPFL's organism nothing, as nobody who should know says it."""
    sql = f"select value_a, value_b, chosen from conflicts where name = '{name}' and field = '{field}'"
    found = {(a.casefold(), b.casefold()): chosen for a, b, chosen in query(database, sql).rows}
    assert (right.casefold(), other.casefold()) in found
    expected = None if field == "organism" else right
    assert found[right.casefold(), other.casefold()] == expected


def test_a_clash_within_one_file_is_listed(database):
    """The same slice states its working distance as 5.5 and as 5591.26 mm."""
    sql = f"""
        select value_a, value_b, document_a = document_b from conflicts
        where name = '{EMPIAR}' and field = 'working_distance_mm'
    """
    [(one, other, is_one_file)] = query(database, sql).rows
    assert {round(float(one), 2), round(float(other), 2)} == {5.5, 5591.26}
    assert is_one_file


def test_every_choice_names_its_claim(database):
    """Each chosen statement joins a claim, by document and key; what it says can be read there word for word."""
    sql = """
        select s.name, s.field, s.stated, c.value_text from statements s
        left join claims c on c.name = s.name and c.document = s.document and c.key = s.key
        where s.chosen
    """
    rows = query(database, sql).rows
    assert len(rows) > 100
    assert not [row for row in rows if row[3] is None]


def test_personal_values_are_marked_in_the_headers(database):
    """A slice's header holds the path of somebody's folder."""
    sql = f"select key, mark from claims where name = '{EMPIAR}' and extractor = 'dm' and mark is not null"
    marks = dict(query(database, sql).rows)
    assert marks["/ImageList/1/ImageTags/SBFSEM/Record/Base file name"] == "local path"
