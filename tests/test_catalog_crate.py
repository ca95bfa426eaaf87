"""A finished dataset's folder is an RO-Crate 1.2 that another reader understands."""

import json
from pathlib import Path

import pytest

from em_assets.catalog.build import CATALOG
from em_assets.catalog.crate import CRATE, VERSION, write_crates
from em_assets.store import LocalStore
from test_catalog_build import build, make_spec, store_dataset
from test_catalog_exports import ONE, TWO, make_database, paths_below, store_with

FILES = [
    {
        "name": "retina",
        "path": "original/slice 0000.dm3",
        "size_bytes": 5,
        "sha256": "aa" * 32,
        "source_url": "https://e.org/0",
    },
    {"name": "retina", "path": "original/notes.xml.gz", "size_bytes": 7, "sha256": "bb" * 32, "source_url": None},
    {"name": "retina", "path": "volume.ome.zarr/0/c/0/0/0", "size_bytes": 9, "sha256": "cc" * 32},
]
DOCUMENTS = [
    {"name": "retina", "path": "documents/entry.json", "size_bytes": 2, "sha256": "dd" * 32, "text": "{}"},
    {"name": "retina", "path": "documents/entry.xml", "problem": "the publisher did not answer"},
]


def write(root: Path, *rows: dict, files=FILES, documents=DOCUMENTS) -> LocalStore:
    """The crates of these rows of `datasets`."""
    database, store = store_with(root, datasets=list(rows), files=files, documents=documents)
    write_crates(database, store)
    return store


def finished(root: Path, **changes) -> dict:
    return ONE | {"local_paths": paths_below(root)} | changes


def entities(store: LocalStore, name: str = "retina") -> dict[str, dict]:
    graph = json.loads(store.read(f"{name}/{CRATE}"))["@graph"]
    found = {entity["@id"]: entity for entity in graph}
    assert len(found) == len(graph)
    return found


def test_the_root_has_what_the_specification_asks_for(tmp_path: Path):
    """Descriptor, name, description, datePublished, license as an entity, authors, DOI."""
    found = entities(write(tmp_path, finished(tmp_path)))
    descriptor, root = found[CRATE], found["./"]
    assert descriptor["conformsTo"] == {"@id": VERSION} and descriptor["about"] == {"@id": "./"}
    assert root["@type"] == "Dataset"
    assert (root["name"], root["datePublished"]) == ("Developing retina", "2024-01-16")
    assert root["description"] == ONE["description"]
    assert root["license"] == {"@id": "https://spdx.org/licenses/CC0-1.0"}
    assert found["https://spdx.org/licenses/CC0-1.0"]["@type"] == "CreativeWork"
    assert [found[author["@id"]]["name"] for author in root["author"]] == ["Wilsch-Bräuninger M", "Schmidt, Anna"]
    assert found[root["identifier"]["@id"]]["value"] == "doi:10.6019/EMPIAR-11759"


def test_parts_are_files_and_whole_volumes(tmp_path: Path):
    """A volume is one entity, a received file one each with size and checksum; a document that is missing is none."""
    volumes = json.dumps({"nuc": {"content": "labels", "shape": [4, 5, 6], "dtype": "uint16"}})
    (tmp_path / "retina").mkdir(parents=True)
    (tmp_path / "retina/preview.png").write_bytes(b"png")
    found = entities(write(tmp_path, finished(tmp_path, volumes=volumes)))
    assert [part["@id"] for part in found["./"]["hasPart"]] == [
        "volume.ome.zarr/",
        "volumes/nuc.ome.zarr/",
        "original/notes.xml.gz",
        "original/slice%200000.dm3",
        "documents/entry.json",
        "preview.png",
    ]
    assert found["volume.ome.zarr/"]["@type"] == "Dataset"
    dm3 = found["original/slice%200000.dm3"]
    assert (dm3["@type"], dm3["contentSize"], dm3["sha256"]) == ("File", "5", "aa" * 32)
    assert not any("/c/" in id_ for id_ in found)


def test_a_published_container_is_one_part(tmp_path: Path):
    """Thousands of kept chunks are one entity with their size."""
    chunks = [{"name": "retina", "path": f"original/s0/{n}", "size_bytes": 10, "sha256": "aa"} for n in range(20)]
    found = entities(write(tmp_path, finished(tmp_path, partitioned_by="chunk"), files=chunks, documents=[]))
    assert [part["@id"] for part in found["./"]["hasPart"]] == ["volume.ome.zarr/", "original/"]
    assert found["original/"]["contentSize"] == "200"


def test_every_reference_is_described(tmp_path: Path):
    """Whatever an entity refers to is in the graph."""
    found = entities(
        write(tmp_path, finished(tmp_path, doi="10.7554/eLife.57443", publication_doi="10.7554/eLife.57443"))
    )

    def references(value):
        if isinstance(value, dict):
            yield from [value["@id"]] if set(value) == {"@id"} else []
        elif isinstance(value, list):
            for item in value:
                yield from references(item)

    for entity in found.values():
        for value in entity.values():
            for id_ in references(value):
                assert id_ in found or id_ in (VERSION, "obo:FBbi"), f"{entity['@id']} refers to {id_}"
    assert "identifier" not in found["./"] and found["./"]["citation"] == {"@id": "https://doi.org/10.7554/eLife.57443"}


@pytest.mark.parametrize(
    ("changes", "taxon", "term"),
    [
        pytest.param({}, "NCBI:txid7955", "obo:FBbi_00000585", id="both known"),
        pytest.param({"organism_taxid": None}, "#taxon", "obo:FBbi_00000585", id="a name without a number"),
        pytest.param({"organism_taxid": None, "organism": None}, None, "obo:FBbi_00000585", id="no organism"),
        pytest.param({"modality": "FIB-SEM"}, "NCBI:txid7955", "obo:FBbi_00050000", id="FIB-SEM"),
        pytest.param({"modality": "X-ray"}, "NCBI:txid7955", None, id="a modality without a term"),
    ],
)
def test_organism_and_modality_as_the_ngff_challenge_has_them(tmp_path: Path, changes, taxon, term):
    """From the root through the acquisition and the specimen to the taxon; what is unknown is left out."""
    found = entities(write(tmp_path, finished(tmp_path, **changes)))
    acquisition = found[found["./"]["resultOf"]["@id"]]
    biosample = found[found[acquisition["specimen"]["@id"]]["biosample"]["@id"]]
    assert acquisition.get("fbbi_id", {}).get("@id") == term
    assert biosample.get("organism_classification", {}).get("@id") == taxon


@pytest.mark.parametrize(
    ("changes", "day", "why"),
    [
        pytest.param({}, "2024-01-16", "the day of the release", id="released"),
        pytest.param({"released_on": None}, "2024", "the year of the citation", id="cited"),
        pytest.param(
            {"released_on": None, "citation": "Somebody."}, "2026-02-03", "is not known; this is the day", id="unknown"
        ),
    ],
)
def test_where_the_date_is_from_is_said(tmp_path: Path, changes: dict, day: str, why: str):
    """RO-Crate requires a date; one that stands in for an unknown one says so."""
    found = entities(write(tmp_path, finished(tmp_path, **changes)))
    assert found["./"]["datePublished"] == day
    assert why in found["#date-published"]["description"]


def test_a_licence_without_an_identifier(tmp_path: Path):
    """It is an entity of the crate with the publisher's words, not an address that does not exist."""
    found = entities(write(tmp_path, finished(tmp_path, license="LicenseRef-non-commercial")))
    assert found["./"]["license"] == {"@id": "#licence"}
    assert found["#licence"]["name"] == "LicenseRef-non-commercial"


def test_only_complete_datasets_have_one(tmp_path: Path):
    """A crate goes when its dataset is no longer whole; an unchanged one is not written again."""
    database, store = store_with(tmp_path, datasets=[finished(tmp_path), TWO])
    assert [(e.path, e.changed) for e in write_crates(database, store)] == [(f"retina/{CRATE}", True)]
    assert [(e.path, e.changed) for e in write_crates(database, store)] == [(f"retina/{CRATE}", False)]
    database.unlink()
    make_database(database, datasets=[finished(tmp_path, status="error"), TWO])
    assert [(e.path, e.changed) for e in write_crates(database, store)] == [(f"retina/{CRATE}", True)]
    assert store.size_bytes(f"retina/{CRATE}") is None
    assert write_crates(database, store) == []


def test_nothing_personal_is_in_a_crate(tmp_path: Path):
    """Neither an address nor a path of this machine."""
    private = finished(tmp_path, description="Ask jane@example.org.", sample="in /home/jane/x")
    text = write(tmp_path, private).read(f"retina/{CRATE}").decode()
    assert "jane" not in text and str(tmp_path) not in text


def test_rocrate_reads_it(tmp_path: Path):
    """The reference library opens the folder, finds the version, the root's properties and every part."""
    rocrate = pytest.importorskip("rocrate.rocrate", reason="rocrate is not installed")
    folder = tmp_path / "retina"
    for path in (
        "original/slice 0000.dm3",
        "original/notes.xml.gz",
        "documents/entry.json",
        "volume.ome.zarr/zarr.json",
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"{}")
    write(tmp_path, finished(tmp_path))
    crate = rocrate.ROCrate(folder)
    assert crate.version == "1.2"
    assert crate.name == "Developing retina" and crate.root_dataset["license"].id.endswith("CC0-1.0")
    assert {entity.id for entity in crate.data_entities} == {
        "volume.ome.zarr/",
        "original/slice%200000.dm3",
        "original/notes.xml.gz",
        "documents/entry.json",
    }
    assert crate.dereference("#biosample")["organism_classification"].id == "NCBI:txid7955"


def test_a_dataset_that_was_stored(tmp_path: Path):
    """From a real store and its catalogue: root and volume are what the record says."""
    spec = make_spec()
    store_dataset(tmp_path, spec)
    build(tmp_path, spec)
    store = LocalStore(tmp_path)
    [export] = write_crates(tmp_path / CATALOG, store)
    found = entities(store, spec.name)
    assert export.path == f"{spec.name}/{CRATE}"
    assert found["./"]["name"] == spec.title and found["./"]["datePublished"] == "2020"
    assert found["#volume-shape"]["value"] == "100 x 64 x 100"
    assert found["#volume-voxel-size"]["value"] == "8.0 x 4.5 x 7.998250424861908"
    assert {"volume.ome.zarr/", "metadata.json", "manifest.parquet"} <= {part["@id"] for part in found["./"]["hasPart"]}
    for part in found["./"]["hasPart"]:
        assert (tmp_path / spec.name / part["@id"]).exists()
