"""The CryoET Data Portal's own Python client reads the sample: what it finds, and that it downloads what is served."""

import copy
import hashlib
from pathlib import Path

import pytest

from em_assets.sample import cryoet
from em_assets.sample.origin import Request
from em_assets.sample.server import OriginServer

portal = pytest.importorskip("cryoet_data_portal", reason="the portal's client is an extra for tests")

RUN = "TS_027"
"""The smaller one."""


class Served:
    """The sample, its tree on disk and a client of it."""

    def __init__(self, folder: Path, server: OriginServer, prefix: str) -> None:
        self.tree, self.server = folder / cryoet.BUCKET_NAME / prefix, server
        self.client = portal.Client(f"{server.url}/graphql")

    def tomogram(self, run=RUN):
        (found,) = portal.Tomogram.find(self.client, [portal.Tomogram.run.name == run])
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("origin")
    facts = cryoet.write(folder, Request(seed=1, volume=None))
    with OriginServer(folder) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOTO_ENDPOINT_URL", server.url)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield Served(folder, server, facts["prefix"])


def files_below(folder):
    """sha256 of every file, by path."""
    files = (file for file in Path(folder).rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_client_finds_the_dataset_by_its_number(served):
    """10000, with its deposition, authors, funding and runs; dates are dates."""
    dataset = portal.Dataset.get_by_id(served.client, 10000)
    assert dataset.title.startswith("SAMPLE") and dataset.deposition.id == dataset.deposition_id == 10000
    assert {run.name for run in dataset.runs} == {"TS_026", "TS_027"}
    assert [author.name for author in dataset.authors] == ["SAMPLE, nobody"]
    assert dataset.release_date.year == 2023
    assert portal.Dataset.get_by_id(served.client, 10001) is None


FILTERS = {
    "through three relations": (lambda t: [t.run.dataset.deposition.id == 10000, t.run.name == "TS_026"], {"TS_026"}),
    "like": (lambda t: [t.name.like("TS\\_02%"), t.size_x > 50], {"TS_026"}),
    "ilike": (lambda t: [t.name.ilike("ts_027")], {"TS_027"}),
    "in": (lambda t: [t.name._in(["TS_026", "TS_027", "TS_028"])], {"TS_026", "TS_027"}),
    "an enum": (lambda t: [t.processing == "raw"], {"TS_026", "TS_027"}),
    "null": (lambda t: [t.processing_software.is_null(True)], {"TS_026", "TS_027"}),
    "not null": (lambda t: [t.processing_software.is_null(False)], set()),
    "not equal": (lambda t: [t.name != "TS_026"], {"TS_027"}),
    "through a list": (lambda t: [t.run.annotations.object_name == "nucleus"], {"TS_027"}),
    "a float": (lambda t: [t.voxel_spacing == 13.48], {"TS_026", "TS_027"}),
}


@pytest.mark.parametrize("case", FILTERS)
def test_client_filters_tomograms(served, case):
    """Every operator the client has means here what it means at the portal."""
    expressions, names = FILTERS[case]
    found = portal.Tomogram.find(served.client, expressions(portal.Tomogram))
    assert {tomogram.name for tomogram in found} == names


def test_client_gets_more_than_a_page_without_asking_for_pages(served):
    """It never gives a limit, and relies on getting everything."""
    assert len(portal.Annotation.find(served.client)) == 10
    assert len(portal.Frame.find(served.client)) == 10


def test_client_follows_relations_of_every_kind(served):
    """From a tomogram to its alignment's tilt series, and from there to the sections' frames."""
    tomogram = served.tomogram()
    series = tomogram.alignment.tiltseries
    assert series.run.name == RUN and (series.size_z, series.tilt_min, series.tilt_max) == (5, -40, 40)
    sections = sorted(series.per_section_parameters, key=lambda section: section.z_index)
    assert [section.raw_angle for section in sections] == [-40, -20, 0, 20, 40]
    assert [section.frame.acquisition_order for section in sections] == [3, 1, 0, 2, 4]
    matrices = [section.in_plane_rotation for section in tomogram.alignment.per_section_alignments]
    assert matrices == [[[0.029, 1.0], [-1.0, 0.029]]] * 5
    assert tomogram.tomogram_voxel_spacing.voxel_spacing == 13.48


def test_client_downloads_the_mrc_file_as_it_is_served(served, tmp_path):
    """Byte for byte, under the run's name, of the size that the API stated."""
    tomogram = served.tomogram("TS_026")
    tomogram.download_mrcfile(str(tmp_path))
    (file,) = tmp_path.iterdir()
    (stored,) = served.tree.rglob("Tomograms/100/TS_026.mrc")
    assert file.name == "TS_026.mrc" and file.read_bytes() == stored.read_bytes()
    assert tomogram.file_size_mrc == file.stat().st_size


def test_client_downloads_every_object_of_the_zarr(served, tmp_path):
    """Through a listing of the bucket: all of them and no others."""
    tomogram = served.tomogram()
    tomogram.download_omezarr(str(tmp_path))
    (stored,) = served.tree.rglob(f"Tomograms/100/{RUN}.zarr")
    assert files_below(tmp_path / f"{RUN}.zarr") == files_below(stored)
    assert tomogram.file_size_omezarr == sum(file.stat().st_size for file in stored.rglob("*") if file.is_file())


def test_client_downloads_all_annotations(served, tmp_path):
    """Masks in both forms, points, and each annotation's metadata."""
    served.tomogram().download_all_annotations(str(tmp_path))
    (stored,) = served.tree.rglob(f"{RUN}/Reconstructions/*/Annotations")
    expected = {path.partition("/")[2]: digest for path, digest in files_below(stored).items()}
    assert files_below(tmp_path) == expected and len(expected) > 10


def test_client_downloads_what_the_microscope_wrote(served, tmp_path):
    """Frames by prefix, the tilt angles and the tilt series by address."""
    (run,) = portal.Run.find(served.client, [portal.Run.name == RUN])
    run.download_frames(str(tmp_path))
    assert files_below(tmp_path) == {
        path: digest for path, digest in files_below(served.tree / "10000" / RUN).items() if path.startswith("Frames/")
    }
    (series,) = run.tiltseries
    series.download_angle_list(str(tmp_path))
    assert (tmp_path / f"{RUN}.rawtlt").read_text() == "-40.00\n-20.00\n0.00\n20.00\n40.00\n"


def test_client_raises_for_errors_in_a_reply_of_status_200(served):
    """As at the portal: the error is in the body."""
    from gql.transport.exceptions import TransportQueryError

    broken = copy.copy(served.client)
    broken.url += "?fault=errors"
    with pytest.raises(TransportQueryError, match="statement timeout"):
        portal.Dataset.find(broken)
