"""What EMPIAR's and the IDR's documents and a spec state of the catalogue's fields, and what they do not state."""

import json
from collections import defaultdict
from xml.sax.saxutils import escape, quoteattr

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from em_assets.catalog.mapping.saying import canonical
from em_assets.catalog.statements import StatedDocument, statements_of
from em_assets.catalog.vocabulary import FIELDS
from em_assets.datasets.spec import DatasetSpec
from em_assets.formats._json import json_leaves, parse_json
from em_assets.settings import PACKAGED_DATASETS
from em_assets.sources.markup import xml_leaves
from em_assets.sources.tabular import study_leaves, table_leaves

EMPIAR, IDR = "empiar_11759", "idr_9846137"
XY, XZ = (f"Figure_S3B_FIB-SEM_U2OS_20x20x20nm_{cut}.tif" for cut in ("xy", "xz"))
READ = {
    "empiar_entry": lambda raw: json_leaves(parse_json(raw, "entry.json")),
    "empiar_xml": lambda raw: xml_leaves(raw, "entry.xml"),
    "idr_image": lambda raw: json_leaves(parse_json(raw, "imgData.json")),
    "omero_image": lambda raw: json_leaves(parse_json(raw, "omero_image.json")),
    "idr_annotations": lambda raw: json_leaves(parse_json(raw, "map_annotations.json")),
    "idr_study": lambda raw: study_leaves(raw, "study.txt"),
    "table": lambda raw: table_leaves(raw, "annotation.csv"),
}
PACKAGED = sorted(path.stem for path in PACKAGED_DATASETS.glob("**/*.yaml"))


def spec_of(name, **changes):
    values = yaml.safe_load(next(PACKAGED_DATASETS.glob(f"**/{name}.yaml")).read_text(encoding="utf-8"))
    return DatasetSpec.model_validate({**values, **changes})


def document(kind, content):
    """As its claims are handed on; content that is not bytes yet is a JSON document's."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return StatedDocument(f"documents/{kind}", kind, dict(READ[kind](raw)))


def stated(spec, *documents):
    """Values by field; of a field that several statements are about, all of them."""
    found = defaultdict(list)
    for statement in statements_of(documents, spec):
        assert (statement.authority, statement.volume) == ("publisher API", None)
        found[statement.field].append(statement.value)
    return {field: values[0] if len(values) == 1 else values for field, values in found.items()}


# -- EMPIAR


TITLE = "Developing retina in zebrafish 55 hpf larval eye."
ENTRY = {
    "title": TITLE,
    "doi": "10.6019/EMPIAR-11759",
    "deposited_on": "2023-11-01",
    "released_on": "2024-01-15",
    "updated_on": "2024-01-15",
    "modality": "SBF-SEM",
    "dataset_size_bytes": 1.2e9,
    "authors": "Wilsch-Bräuninger M",
    "file_format": "DM3",
    "dtype": "uint8",
    "image_count": 16.0,
    "source_size_x": 5628.0,
    "source_size_y": 5632.0,
    "voxel_size_x_nm": 8.0,
    "voxel_size_y_nm": 8.0,
}
"""`facts/sources.md`, section 2.2: also what is wrong there."""


def as_xml(name, value):
    """What xmltodict made a dictionary of."""
    if isinstance(value, list):
        return "".join(as_xml(name, item) for item in value)
    if not isinstance(value, dict):
        return f"<{name}>{escape(value or '')}</{name}>"
    attributes = "".join(f" {key[1:]}={quoteattr(item)}" for key, item in value.items() if key.startswith("@"))
    inside = "".join(as_xml(key, item) for key, item in value.items() if key[0] not in "@#")
    return f"<{name}{attributes}>{escape(value.get('#text', ''))}{inside}</{name}>"


def xml_of(payloads, **image_set):
    entry = json.loads((payloads / "empiar/entry_xml_as_xmltodict_EMPIAR-11759.json").read_text(encoding="utf-8"))
    entry = entry["raw_metadata"]["entry"]
    entry["imageSet"] |= image_set
    return document("empiar_xml", as_xml("entry", entry).encode())


def entry_of(payloads, **changes):
    reply = json.loads((payloads / "empiar/api_entry_EMPIAR-11759.json").read_text(encoding="utf-8"))
    (accession,) = reply
    return document("empiar_entry", {accession: reply[accession] | changes})


def test_empiars_entry_states_the_facts(payloads):
    """All of them, in nanometres, bytes and ISO dates; and nothing but them and the free text."""
    found = stated(spec_of(EMPIAR), entry_of(payloads))
    assert found.pop("description").startswith(f"{TITLE} \nIt is a SBF-SEM data set.")
    assert found == ENTRY


def test_empiars_xml_states_the_same(payloads):
    """The two documents are one entry: only the accession has no key of its own in the JSON."""
    spec = spec_of(EMPIAR)
    from_json = stated(spec, entry_of(payloads))
    assert stated(spec, xml_of(payloads)) == from_json | {"source_id": "EMPIAR-11759"}


def test_a_statement_says_where_it_is_from_and_in_which_unit(payloads):
    """80.0 is 8 nm because EMPIAR's pixel sizes are in angstrom."""
    statements = statements_of([entry_of(payloads)], spec_of(EMPIAR))
    (width,) = (statement for statement in statements if statement.field == "voxel_size_x_nm")
    assert (width.document, width.key) == ("documents/empiar_entry", "/EMPIAR-11759/imagesets/0/pixel_width")
    assert (width.value, width.stated, width.authority) == (8.0, "80.0 angstrom", "publisher API")


def test_authors_are_joined_in_their_order(payloads):
    """Ten and more: the second is not the last one."""
    names = [f"Author {number}" for number in range(12)]
    joined = {"authors": "; ".join(names)}
    authors = [{"author": {"author_orcid": None, "name": name}} for name in names]
    assert stated(spec_of(EMPIAR), entry_of(payloads, authors=authors)).items() >= joined.items()
    listed = as_xml("entry", {"admin": {"authorsList": {"author": names}}}).encode()
    assert stated(spec_of(EMPIAR), document("empiar_xml", listed)) == joined


def test_a_unit_that_the_xml_names_goes_before_the_usual_one(payloads):
    """The dataset's size always has one, a pixel's does not."""
    sizes = {"dimensions": {"pixelWidth": {"@units": "nm", "#text": "8.5"}, "pixelHeight": "85"}}
    found = stated(spec_of(EMPIAR), xml_of(payloads, **sizes))
    assert (found["voxel_size_x_nm"], found["voxel_size_y_nm"]) == (8.5, 8.5)


CAROTID = "empiar_13192_carotid2"
IMAGE_SETS = {
    "one, wherever it is": (CAROTID, ["elsewhere"], 1),
    "one without a folder": (CAROTID, [None], 1),
    "the one of the files' folder": (CAROTID, ["data/Stalker_SBF-SEM/Vein1", "data/Stalker_SBF-SEM/Carotid2"], 2),
    "with slashes around": (CAROTID, ["/data/Stalker_SBF-SEM/Vein1/", "/data/Stalker_SBF-SEM/Carotid2/"], 2),
    "the nearest of those around it": (CAROTID, ["data", "data/Stalker_SBF-SEM"], 2),
    "not one of a longer name": (CAROTID, ["data/Stalker_SBF-SEM/Carotid", "data/Stalker"], None),
    "several and none fits": (CAROTID, ["data/a", "data/b"], None),
    "two of one folder": (CAROTID, ["data/Stalker_SBF-SEM/Carotid2"] * 2, None),
    "several without a folder": (CAROTID, [None, ""], None),
    "no image set": (CAROTID, [], None),
    "a container elsewhere, one": ("empiar_10392", ["data"], 1),
    "a container elsewhere, several": ("empiar_10392", ["data/a", "data/b"], None),
}


@pytest.mark.parametrize(("name", "directories", "expected"), IMAGE_SETS.values(), ids=IMAGE_SETS)
def test_which_image_set_is_ours(name, directories, expected):
    """Only what is said of the image set that the volume lies in is said of the volume."""
    spec = spec_of(name)
    sets = [{"directory": path, "image_width": str(number)} for number, path in enumerate(directories, 1)]
    wanted = {} if expected is None else {"source_size_x": expected}
    assert stated(spec, document("empiar_entry", {"EMPIAR-1": {"imagesets": sets}})) == wanted
    sets = [
        {"directory": path, "dimensions": {"imageWidth": item["image_width"]}}
        for path, item in zip(directories, sets, strict=True)
    ]
    assert stated(spec, document("empiar_xml", as_xml("entry", {"imageSet": sets}).encode())) == wanted


ODD = [None, "", " ", "unknown", 0, -1, 1.5, True, "NaN", "1e400", "x" * 20]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_odd_values_of_an_entry_state_nothing(value):
    """Neither a count nor a date nor a size: it stays a claim, and stops nothing."""
    keys = ("image_width", "image_height", "voxel_type", "num_images_or_tilt_series")
    entry = dict.fromkeys(("deposition_date", "release_date", "update_date", "entry_doi"), value)
    entry |= {"dataset_size": None if value == 1.5 else value, "imagesets": [dict.fromkeys(keys, value)]}
    entry["imagesets"][0] |= {"pixel_width": None if value == 1.5 else value}
    assert stated(spec_of(EMPIAR), document("empiar_entry", {"EMPIAR-11759": entry})) == {}


# -- the IDR


IMAGE = {
    "source_id": "9846137",
    "dtype": "uint8",
    "source_size_z": 184.0,
    "source_size_y": 775.0,
    "source_size_x": 1121.0,
    "channels": 1.0,
    "voxel_size_z_nm": 20.0,
    "voxel_size_y_nm": 20.0,
    "voxel_size_x_nm": 20.0,
}
"""`facts/sources.md`, section 1.2."""
STUDY = {
    "license": "CC-BY-4.0",
    "released_on": "2020-07-22",
    "publisher_name": "University of Dundee",
    "publication_doi": "10.1126/sciadv.aba8811",
    "doi": "10.17867/10000141d",
    "organism": "Homo sapiens",
    "organism_taxid": "NCBITaxon:9606",
    "description": "Electron Micrographs of the nucleus",
}


def image_data(payloads, **meta):
    reply = json.loads((payloads / "idr/imgData_9846137_RECONSTRUCTED.json").read_text(encoding="utf-8"))
    return document("idr_image", reply | {"meta": reply["meta"] | meta})


def omero(payloads, **changes):
    reply = json.loads((payloads / "idr/api_v0_m_images_DOC_EXAMPLE.json").read_text(encoding="utf-8"))
    return document("omero_image", {"data": reply["data"][0] | changes})


def study_file(payloads):
    return document("idr_study", (payloads / "idr/idr0086-study.txt").read_bytes())


def test_imgdata_states_the_facts(payloads):
    """Sizes in micrometres become nanometres. Its time stamp may be the import's, and its name is the file's."""
    assert stated(spec_of(IDR), image_data(payloads, imageTimestamp=1595376000.0)) == IMAGE


def test_an_image_without_physical_sizes_states_none(payloads):
    """A null is no size: the well of a screen has pixels, and nobody says how large they are along z."""
    raw = (payloads / "idr/imgData_9762957_REAL_EXAMPLE_other_image.json").read_bytes()
    found = stated(spec_of(IDR), document("idr_image", raw))
    assert found["dtype"] == "uint16" and found["channels"] == 4
    assert "voxel_size_z_nm" not in found and "description" not in found


def test_omeros_image_states_its_own_units(payloads):
    """Each length has its unit; the acquisition is in milliseconds since 1970."""
    found = stated(spec_of(IDR), omero(payloads))
    assert found == {
        "source_id": "16783",
        "dtype": "uint16",
        "source_size_z": 29,
        "source_size_y": 512,
        "source_size_x": 512,
        "channels": 2,
        "voxel_size_z_nm": 200.0,
        "voxel_size_y_nm": pytest.approx(126.98),
        "voxel_size_x_nm": pytest.approx(126.98),
        "acquired_on": "2009-02-27",
    }


@pytest.mark.parametrize(
    ("unit", "nanometres"),
    [("MICROMETER", 20.0), ("NANOMETER", 0.02), ("ANGSTROM", 0.002), ("PIXEL", None), (None, None), (3, None)],
)
def test_omeros_unit_decides(payloads, unit, nanometres):
    """A unit that is none of length, or none at all, makes no voxel size of a number."""
    found = stated(spec_of(IDR), omero(payloads, Pixels={"PhysicalSizeZ": {"Value": 0.02, "Unit": unit}}))
    assert found.get("voxel_size_z_nm") == nanometres


@pytest.mark.parametrize("time", [1e30, -1e30, "yesterday", None, True], ids=str)
def test_a_time_that_is_none_is_no_day(payloads, time):
    """Milliseconds beyond the years that there are: nothing is stated, nothing raised."""
    assert "acquired_on" not in stated(spec_of(IDR), omero(payloads, AcquisitionDate=time))


def test_the_real_study_states_the_facts_of_its_own_experiment(payloads):
    """Of four experiments the one that imgData's project names; no contact, no paper's title, no imaging method."""
    found = stated(spec_of(IDR), image_data(payloads), study_file(payloads))
    assert found.pop("authors").startswith("Miron E; Oldenkamp R; Brown JM; ")
    preparation = found.pop("preparation")
    for words in ("high-pressure freezing", "2% OsO4, 0.1% uranyl acetate, and 3% water", "embedded in Eponate 12."):
        assert words in preparation
    assert found == IMAGE | STUDY


PROJECT = "idr0086-miron-micrographs/experiment"
EXPERIMENTS = {
    "as the project is called": (f"{PROJECT}A", "10.17867/10000141a"),
    "no project: as the folder is called": (None, "10.17867/10000141d"),
    "another study's project: likewise": ("idr0001/experimentB", "10.17867/10000141d"),
}


@pytest.mark.parametrize(("project", "doi"), EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_which_experiment_is_ours(payloads, project, doi):
    """The project's name, else the folder's letter."""
    found = stated(spec_of(IDR), image_data(payloads, projectName=project), study_file(payloads))
    assert found["doi"] == doi


def test_of_an_unknown_experiment_only_the_study_speaks(payloads):
    """The study's DOI stands for all of its data; which organism and preparation cannot be told."""
    spec = spec_of(IDR)
    spec = spec.model_copy(update={"source": spec.source.model_copy(update={"url": "https://host/idr0086/files"})})
    found = stated(spec, study_file(payloads))
    del found["authors"]
    wanted = {key: value for key, value in STUDY.items() if not key.startswith("organism") and key != "description"}
    assert found == wanted | {"doi": "10.17867/10000141"}


def test_a_mixture_of_organisms_is_no_organism(payloads):
    """Experiment A has mouse and human cells: which of them an image shows it does not say."""
    found = stated(spec_of(IDR), image_data(payloads, projectName=f"{PROJECT}A"), study_file(payloads))
    assert "organism" not in found and "organism_taxid" not in found
    assert found["preparation"].startswith("Cells were fixed in 2% formaldehyde")


def study_text(*lines):
    return document("idr_study", "\n".join("\t".join(line) for line in lines).encode())


AUTHORS = {
    "initials behind": ("Miron E, de Ornellas S", "Miron E; de Ornellas S"),
    "semicolons": ("Miron, E.; Brown, J.", "Miron, E.; Brown, J."),
    "initials behind a comma": ("Miron, E., Brown, J.", "Miron, E., Brown, J."),
    "one": ("Miron E", "Miron E"),
}


@pytest.mark.parametrize(("listed", "authors"), AUTHORS.values(), ids=AUTHORS)
def test_authors_of_a_study(listed, authors):
    """They are taken apart only where it is plain where one ends."""
    assert stated(spec_of(IDR), study_text(["Study Author List", listed])) == {"authors": authors}


def test_a_preparation_protocol_goes_before_a_treatment():
    """Where a protocol is named for it, a treatment is something else: a drug, say."""
    ours = [["Experiment Number", "4"], ["Comment[IDR Experiment Name]", f"{PROJECT}D"]]
    protocols = [
        ["Protocol Name", "treatment", "", "sample preparation", "EM"],
        ["Protocol Type", "treatment protocol", "growth protocol", "", "fixation protocol"],
        ["Protocol Description", "a drug", "a medium", "frozen", "fixed"],
    ]
    (statement,) = statements_of([study_text(*ours, *protocols)], spec_of(IDR))
    assert (statement.field, statement.value) == ("preparation", "frozen\n\nfixed")
    assert statement.key == "/experiment/4/Protocol Description/2"
    assert statement.note == "of the study's sample preparation, EM"


def annotations(*groups, name=XY):
    linked = {"parent": {"id": 9846137, "name": name, "class": "ImageI"}}
    return document("idr_annotations", {"annotations": [{"link": linked, "values": values} for values in groups]})


def test_map_annotations_state_what_the_curators_did():
    """The keys that are expected of image 9846137: pairs, in several annotations."""
    bulk = [["Cell Cycle Stage", "G1"], ["Image Description", "FIB-SEM chromatin"], ["Channels", "Channel 1"]]
    taxon = ["Term Source 1 Accession", "NCBITaxon_9606"]
    found = stated(spec_of(IDR), annotations([["Organism", "Homo sapiens"], taxon], [["Cell Line", "U2OS"]], bulk))
    assert found == {
        "organism": "Homo sapiens",
        "organism_taxid": "NCBITaxon:9606",
        "cell_line": "U2OS",
        "description": "FIB-SEM chromatin",
    }


def test_two_organisms_of_an_image_are_a_mixture():
    """The same one twice is one."""
    assert stated(spec_of(IDR), annotations([["Organism", "Homo sapiens"], ["Organism", "Mus musculus"]])) == {}
    assert stated(spec_of(IDR), annotations([["Organism", "a"]], [["Organism", " A"]])) == {"organism": "a"}


def test_the_real_annotation_table_states_its_row_of_the_main_file(payloads):
    """Eleven rows, of two cell lines: ours is the one of the xy file."""
    raw = (payloads / "idr/idr0086-experimentD-annotation.csv").read_bytes()
    statements = statements_of([document("table", raw)], spec_of(IDR))
    assert {statement.field: statement.value for statement in statements} == {
        "organism": "Homo sapiens",
        "organism_taxid": "NCBITaxon:9606",
        "cell_line": "U2OS",
        "description": "FIB-SEM chromatin IF image in U2OS cells in G1",
    }
    assert {statement.key.rpartition("/")[0] for statement in statements} == {"/rows/3"}


def test_what_is_about_another_file_states_nothing(payloads):
    """The xz file holds the same voxels cut another way: its 775 planes are not the volume's."""
    table = document("table", f"Image Name,Characteristics [Organism]\n{XZ},Homo sapiens\n".encode())
    others = [image_data(payloads, imageName=XZ), omero(payloads, Name=XZ), annotations([["Organism", "a"]], name=XZ)]
    for other in (*others, table):
        assert other.values and stated(spec_of(IDR), other) == {}


# -- the spec


def spec_document(spec):
    return StatedDocument("spec.json", "spec", dict(json_leaves(spec.model_dump(mode="json"))))


def stated_by(spec, authority=None, volume=None):
    """Values by field of the spec's own statements."""
    found = defaultdict(list)
    for statement in statements_of([spec_document(spec)], spec):
        if statement.volume == volume and authority in (None, statement.authority):
            found[statement.field].append(statement.value)
    return dict(found)


def claiming(*claims, **changes):
    return spec_of(EMPIAR, claims=list(claims), **changes)


@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_spec_states_its_own_facts(name):
    """What its author wrote as a fact, and the voxel size and type that were expected, under the spec's own keys."""
    spec = spec_of(name)
    found = stated_by(spec, "spec")
    for field in ("title", "description", "source_id", "citation", "modality", "organism", "sample", "instrument"):
        value = getattr(spec, field)
        assert found.get(field, [None])[0] == (
            value and (value if FIELDS[field].kind == "text" else " ".join(value.split()))
        )
    assert found["dtype"][0] == spec.dtype and found.get("doi", [None])[0] == spec.doi
    assert tuple(found[f"voxel_size_{axis}_nm"][0] for axis in "zyx") == spec.voxel_size_nm
    assert found["license"]


@pytest.mark.parametrize(
    ("name", "shape"), [("hemibrain_crop", [[41394], [39725], [34427]]), (EMPIAR, [[16], [5500], [5496]])]
)
def test_of_several_expected_shapes_the_first_is_stated(name, shape):
    """Two are accepted of the hemibrain, whose reports differ by a voxel; the first is the one that is believed."""
    sizes = stated_by(spec_of(name), "spec")
    assert [sizes[f"source_size_{axis}"] for axis in "zyx"] == shape


def test_the_authors_doubts_go_with_the_statement():
    """`notes` say how sure a fact is, key by key."""
    statements = statements_of([spec_document(spec_of("hemibrain_crop"))], spec_of("hemibrain_crop"))
    notes = {statement.field: statement.note for statement in statements if statement.authority == "spec"}
    assert notes["license"] == "as third parties state it; the publisher's own wording was not seen"
    assert notes["title"] is None


def test_a_voxel_size_against_the_publishers_own_metadata_is_a_decision():
    """Where the published one is known to be wrong, the record must not have it."""
    values = yaml.safe_load((PACKAGED_DATASETS / f"{EMPIAR}.yaml").read_text(encoding="utf-8"))
    spec = spec_of(EMPIAR, expected=values["expected"] | {"published_voxel_size_nm": [50.0, 80.0, 80.0]})
    decided = stated_by(spec, "override")
    assert decided == {f"voxel_size_{axis}_nm": [size] for axis, size in zip("zyx", spec.voxel_size_nm, strict=True)}


def test_further_volumes_state_of_themselves_only():
    """The nuclei are smaller than the volume, and that is no contradiction."""
    spec = spec_of("jrc_mus_nacc_2")
    found = stated_by(spec, "spec", volume="nuc")
    assert found == {
        "title": ["Nuclei, segmented by hand"],
        "doi": ["10.25378/janelia.26513209"],
        "dtype": ["uint8"],
        **{f"source_size_{axis}": [size] for axis, size in zip("zyx", (70.0, 315.0, 324.0), strict=True)},
        **{f"voxel_size_{axis}_nm": [size] for axis, size in zip("zyx", (23.68, 32.0, 32.0), strict=True)},
    }
    assert stated_by(spec, "spec")["source_size_z"] == [564]


def along(field, z, y, x):
    return {field.format(axis): value for axis, value in zip("zyx", (z, y, x), strict=True)}


SIZE, VOXEL = "source_size_{}", "voxel_size_{}_nm"
CLAIMS = {
    "EPFL's page": ("volume_shape", "1065x2048x1536", along(SIZE, 1065, 2048, 1536)),
    "hemibrain": ("source_shape", "34427 x 39725 x 41394 (x, y, z)", along(SIZE, 41394, 39725, 34427)),
    "a list of sizes": ("source_shape", [3, 4, 5], along(SIZE, 3, 4, 5)),
    "in voxels": ("source_shape", "3 x 4 x 5 voxels", along(SIZE, 3, 4, 5)),
    "in nanometres": ("source_shape", "3 x 4 x 5 nm", {}),
    "an order of two axes": ("source_shape", "3 x 4 x 5 (x, x, z)", {}),
    "half a voxel": ("source_shape", "3 x 4 x 5.5", {}),
    "two sizes": ("source_shape", [3, 4], {}),
    "four sizes": ("source_shape", [3, 4, 5, 6], {}),
    "four in a text": ("source_shape", "3 x 4 x 5 x 6", {}),
    "one size": ("source_shape", 3, {}),
    "nacc-2's page": ("voxel_size_nm", "(4, 4, 2.96) (x, y, z)", along(VOXEL, 2.96, 4.0, 4.0)),
    "IDR's third party": ("voxel_size_nm", 22.0, along(VOXEL, 22.0, 22.0, 22.0)),
    "a list": ("voxel_size_nm", [2.96, 4.0, 4.0], along(VOXEL, 2.96, 4.0, 4.0)),
    "one number as text": ("voxel_size_nm", "8", along(VOXEL, 8.0, 8.0, 8.0)),
    "another unit in the key": ("voxel_size_um", [0.05, 0.008, 0.008], along(VOXEL, 50.0, 8.0, 8.0)),
    "another unit in the text": ("voxel_size_nm", "0.008 um", along(VOXEL, 8.0, 8.0, 8.0)),
    "units on each": ("voxel_size_nm", "50 nm x 8 nm x 8 nm", along(VOXEL, 50.0, 8.0, 8.0)),
    "several units": ("voxel_size_nm", "50 nm x 8 um x 8 nm", {}),
    "no unit of length": ("voxel_size_nm", "8 s", {}),
    "words": ("voxel_size_nm", "about 5 in x", {}),
    "a truth for a length": ("voxel_size_nm", True, {}),
    "nothing large": ("voxel_size_nm", 0.0, {}),
    "one axis": ("z_step_nm", 200, {"voxel_size_z_nm": 200.0}),
    "angstrom": ("pixel_width_angstrom", 650.0, {"voxel_size_x_nm": 65.0}),
    "energy with its unit": ("primary_energy", "200 eV", {"primary_energy_ev": 200.0}),
    "energy in kilo": ("primary_energy", "1.2 keV", {"primary_energy_ev": 1200.0}),
    "energy without a unit": ("primary_energy", 200, {}),
    "energy in volts": ("primary_energy", "200 V", {}),
    "a field by its name": ("bias_voltage_v", 500, {"bias_voltage_v": 500.0}),
    "a field by its name, with a unit": ("primary_energy_ev", "0.9 keV", {"primary_energy_ev": 900.0}),
    "a rate in another unit": ("scan_rate_mhz", 0.4, {"scan_rate_hz": 400_000.0}),
    "a current in another unit": ("current_na", 0.22, {"beam_current_a": 2.2e-10}),
    "a unit of something else": ("current_mhz", 0.22, {}),
    "a day": ("imaging_start_date", "2015-03-09", {"acquired_on": "2015-03-09"}),
    "a day that may be another": ("acquired_on", "11.06.2018", {}),
    "a licence": ("license", "CC BY 4.0", {"license": "CC-BY-4.0"}),
    "a DOI": ("doi", "https://doi.org/10.6019/EMPIAR-11759", {"doi": "10.6019/EMPIAR-11759"}),
    "a DOI in brackets": ("doi", "(doi:10.6019/EMPIAR-11759).", {"doi": "10.6019/EMPIAR-11759"}),
    "half a DOI": ("doi", "10.1000/)", {}),
    "a microscope": ("instrument", "FEI Magellan400", {"instrument": "FEI Magellan400"}),
    "a type": ("dtype", "UNSIGNED BYTE", {"dtype": "uint8"}),
    "half a float": ("dtype", "<f2", {"dtype": "float16"}),
    "no type of numpy's": ("dtype", "float8", {}),
    "no code of numpy's": ("dtype", "|f1", {}),
    "a taxon": ("organism_taxid", "NCBITaxon_9606", {"organism_taxid": "NCBITaxon:9606"}),
    "a count": ("num_images_or_tilt_series", 1250, {"image_count": 1250.0}),
    "a size": ("dataset_size", "1.2 GB", {"dataset_size_bytes": 1.2e9}),
    "a compression": ("compression", "blosc lz4", {"compression": "blosc lz4"}),
    "something else": ("contrast_limits", [24444.0, 34078.0], {}),
    "a truth": ("aligned", True, {}),
    "a truth of a number": ("channels", True, {}),
}


@pytest.mark.parametrize(("key", "value", "wanted"), CLAIMS.values(), ids=CLAIMS)
def test_what_a_claim_states(key, value, wanted):
    """Under a field's name or one of its others, in the field's unit; what is not understood states nothing."""
    found = stated_by(claiming({"key": key, "value": value}), "publisher page")
    assert found == {field: [stated] for field, stated in wanted.items()}


@pytest.mark.parametrize(
    ("by", "authority"), [("publisher", "publisher page"), ("third party", "third party"), ("curator", "spec")]
)
def test_who_states_a_claim(by, authority):
    """A third party's word must not pass for the publisher's."""
    spec = claiming({"key": "instrument", "value": "X", "by": by, "note": "why"})
    (claim,) = (s for s in statements_of([spec_document(spec)], spec) if s.key == "/claims/0/value")
    assert (claim.authority, claim.value, claim.note) == (authority, "X", "why")


def test_a_claim_is_shown_as_it_was_stated():
    """With its unit, its place, and how it was read where that is not plain."""
    spec = claiming(
        {"key": "scan_rate_mhz", "value": 0.4},
        {"key": "voxel_size_nm", "value": [50.0, 8.0, 8.0]},
        {"key": "volume_shape", "value": "3x4x5", "note": "the page's order"},
    )
    found = {s.field: s for s in statements_of([spec_document(spec)], spec) if s.key.startswith("/claims")}
    assert (found["scan_rate_hz"].stated, found["scan_rate_hz"].key) == ("0.4 MHz", "/claims/0/value")
    assert (found["voxel_size_x_nm"].stated, found["voxel_size_x_nm"].key) == ("8 nm", "/claims/1/value/2")
    assert (found["source_size_z"].stated, found["source_size_z"].key) == ("3x4x5", "/claims/2/value")
    assert found["source_size_z"].note == "the page's order; taken as z, y, x"


OVERRIDES = {
    "a number": ("dwell_time_s", 5e-7, 5e-7),
    "a number with a unit": ("dwell_time_s", "0.5 us", 5e-7),
    "text": ("instrument", "FEI Magellan 400", "FEI Magellan 400"),
    "a day": ("acquired_on", "2018-06-11", "2018-06-11"),
    "a licence": ("license", "CC0", "CC0-1.0"),
    "a number for a name": ("source_id", 11759, "11759"),
    "no day": ("acquired_on", "soon", None),
    "no number": ("dwell_time_s", "short", None),
    "no field": ("mood", "good", None),
}


@pytest.mark.parametrize(("field", "value", "wanted"), OVERRIDES.values(), ids=OVERRIDES)
def test_a_decision_is_a_statement_with_its_reason(field, value, wanted):
    """In the field's form; one that is no value of the field decides nothing."""
    spec = spec_of(EMPIAR, overrides={field: {"value": value, "reason": "seen"}})
    found = [s for s in statements_of([spec_document(spec)], spec) if s.authority == "override"]
    assert [(s.field, s.value, s.note) for s in found] == ([] if wanted is None else [(field, wanted, "seen")])


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["CC BY 4.0", "1.2 GB", "200 eV", "8 nm", "2018-06-11", "<i2", "NCBITaxon_9606", "10.1000/x", "SBEM"]
    ),
)


@given(st.sampled_from(sorted(FIELDS)), scalars)
def test_the_canonical_form_is_the_fields_and_stays_as_it_is(field, value):
    """Whatever is stated: a number of a number's field, text of others, and bringing it into form twice is once."""
    found = canonical(field, value)
    assert found is None or isinstance(found, float if FIELDS[field].kind == "number" else str)
    assert found is None or canonical(field, found) == found


@given(
    st.dictionaries(
        st.sampled_from(["/claims/0/key", "/claims/0/value", "/claims/0/value/0", "/claims/0/by"]), scalars
    ),
    st.sampled_from(["voxel_size_nm", "source_shape", "current_na", "license", "/"]),
)
def test_no_spec_document_raises(values, key):
    """Stored claims may be those of an older spec, or damaged: they state what they can."""
    odd = StatedDocument("spec.json", "spec", {"/claims/0/key": key, "/claims/0/by": "publisher"} | values)
    for statement in statements_of([odd], spec_of(EMPIAR)):
        assert statement.field in FIELDS
