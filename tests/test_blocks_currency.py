"""A dataset that is replaced while it is open is noticed: in a folder at once, elsewhere for a few requests."""

import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from em_assets.blocks._currency import Currency
from em_assets.blocks._web_store import WebStore
from em_assets.errors import Mismatch, Unavailable
from em_assets.fetch.http import HttpClient
from em_assets.fetch.streams import Version
from em_assets.records import DatasetFolder
from em_assets.store import LocalStore, open_store
from faulty import FaultyServer
from small import quick_settings
from test_catalog_volumes import write_record, zarr_spec

RECORDED = datetime(2024, 5, 1, 12, tzinfo=UTC)


def shard(seconds: float) -> Version:
    """One that was written so long after the record of `store_record`."""
    return Version("tag", format_datetime(RECORDED + timedelta(seconds=seconds), usegmt=True), 100)


def store_record(root: str) -> DatasetFolder:
    """A finished dataset, as far as its record says."""
    spec = zarr_spec()
    store = open_store(root)
    write_record(store, spec, sha256="a" * 64, timestamp=RECORDED)
    return DatasetFolder(store, spec.name)


class Watched:
    """A dataset's currency, its clock, and how often its server was asked."""

    def __init__(self, folder: DatasetFolder, **options) -> None:
        self.now, self.looks = 0.0, 0
        self.on_look = lambda: None
        self.currency = Currency(folder, "a" * 64, clock=lambda: self.now, **options)
        self._read, folder.read_record = folder.read_record, self._counted

    def _counted(self):
        self.looks += 1
        record = self._read()
        self.on_look()
        return record


@pytest.fixture
def far(tmp_path):
    """A dataset on a web server, which is asked as S3 is: (watched, the folder that is served)."""
    here = store_record(str(tmp_path))
    with FaultyServer(tmp_path) as server:
        client = HttpClient(quick_settings(tmp_path))
        yield Watched(DatasetFolder(WebStore(server.url, client), here.name)), here


def test_in_a_folder_each_change_is_noticed_at_once(tmp_path):
    """Being written, gone, of other voxels; and the same as before is the same again."""
    folder = store_record(str(tmp_path))
    currency, whole = Currency(folder, "a" * 64), folder.read_record()
    currency.require()
    folder.write_record(whole.with_status("saving-data", run="test"))
    for _ in range(2):  # it stays so until something changes
        with pytest.raises(Unavailable, match="cell is saving-data since it was opened; finish it with `em-assets get"):
            currency.require()
    folder.write_record(whole)
    currency.require()
    folder.write_record(whole.with_status("complete", sha256="b" * 64))
    with pytest.raises(Mismatch, match="cell has other voxels than when it was opened; open it again"):
        currency.require()
    folder.store.delete(folder.path("metadata.json"))
    with pytest.raises(Unavailable, match="cell is gone"):
        currency.require()


def test_on_s3_it_is_asked_for_every_ten_seconds(moto_s3):
    """However much is read between; then another record is noticed, and one that is gone."""
    folder = store_record(moto_s3)
    whole, watched = folder.read_record(), Watched(folder)
    for watched.now in (0.0, 0.1, 9.9):
        watched.currency.require()
    assert watched.looks == 1
    folder.write_record(whole.with_status("complete", sha256="b" * 64))
    watched.currency.require()
    watched.now = 10.0
    for _ in range(2):
        with pytest.raises(Mismatch, match="other voxels"):
            watched.currency.require()
    folder.write_record(whole.with_status("saving-data", run="test"))
    with pytest.raises(Unavailable, match="saving-data"):
        watched.currency.require()
    folder.store.delete(folder.path("metadata.json"))
    with pytest.raises(Unavailable, match="gone"):
        watched.currency.require()
    folder.write_record(whole)
    watched.currency.require()


def test_on_a_web_server_too(far):
    """By the record's bytes: not every server names versions."""
    watched, here = far
    whole = here.read_record()
    watched.currency.require()
    here.write_record(whole.with_status("error", "for a test"))
    watched.currency.require()
    watched.now = 10.0
    with pytest.raises(Unavailable, match="cell is error since it was opened"):
        watched.currency.require()


def test_a_shard_newer_than_the_record_is_a_reason_to_look(far):
    """A block of old and new shards is never given, however soon after the last look they are read."""
    watched, here = far
    watched.currency.require()
    for seconds in (-60, 0):  # as the record was written last, so are they whole
        watched.currency.saw(shard(seconds))
        watched.currency.require()
    assert watched.looks == 1
    here.write_record(here.read_record().with_status("complete", sha256="b" * 64))
    watched.currency.saw(shard(60))
    for _ in range(2):
        with pytest.raises(Mismatch, match="other voxels"):
            watched.currency.require()


def test_a_shard_that_comes_while_the_record_is_looked_at_is_doubtful(far):
    """The look was begun before it was seen, so it says nothing of it."""
    watched, _ = far
    watched.on_look = lambda: watched.currency.saw(shard(60))
    for looks in (1, 2, 2):
        watched.currency.require()
        assert watched.looks == looks


def test_a_copy_whose_shards_are_all_newer_costs_few_looks(far):
    """Three thousand shards at random: only one newer than all before is a look, so about ln(3,000) of them."""
    watched, _ = far
    order = list(range(1, 3_001))
    random.Random(7).shuffle(order)
    highs = 0
    for number, seconds in enumerate(order):
        highs += seconds > max(order[:number], default=0)
        watched.currency.saw(shard(seconds))
        watched.currency.require()
    assert watched.looks == highs < 20


@pytest.mark.parametrize(
    "last_modified",
    [
        pytest.param(None, id="none"),
        pytest.param("yesterday", id="no date"),
        pytest.param("", id="empty"),
        pytest.param("Wed, 99 May 2024 12:00:00 GMT", id="no such day"),
        pytest.param("Wed, 01 May 99999 12:00:00 GMT", id="no such year"),
    ],
)
def test_a_server_that_does_not_date_its_objects(far, last_modified):
    """There time alone is a reason to look."""
    watched, _ = far
    watched.currency.require()
    watched.currency.saw(Version("tag", last_modified, 100))
    watched.currency.require()
    assert watched.looks == 1
    watched.now = 10.0
    watched.currency.require()
    assert watched.looks == 2


def test_it_is_the_same_dataset_only_once_it_was_read(tmp_path):
    """A dataset that was replaced before the first look is another one, too."""
    folder = store_record(str(tmp_path))
    with pytest.raises(Mismatch, match="other voxels"):
        Currency(DatasetFolder(LocalStore(tmp_path), folder.name), "c" * 64).require()
