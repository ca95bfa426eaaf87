"""The catalogue of an S3 store: built here, uploaded whole, downloaded by readers when it has changed."""

import threading
import uuid
from pathlib import Path

import obstore
import pytest

from em_assets.catalog.build import CATALOG, build_catalog
from em_assets.catalog.query import catalog_path, query
from em_assets.errors import Unavailable
from em_assets.settings import Settings
from em_assets.store import LocalStore, ObjectStore, open_store
from test_catalog_build import make_spec, store_dataset


def by_name(*specs):
    return {spec.name: spec for spec in specs}


@pytest.fixture
def settings(moto_s3, tmp_path: Path) -> Settings:
    """A prefix of this test's own: moto keeps what it holds for the life of the process."""
    return Settings(root=f"{moto_s3}/{uuid.uuid4().hex}", cache=tmp_path / "cache")


@pytest.fixture
def store(settings) -> ObjectStore:
    return open_store(settings.root)


def test_an_s3_store_has_the_same_catalogue(store, settings, tmp_path: Path):
    """A dataset on S3 gives the rows it gives in a folder; the file and the README lie in the bucket."""
    local = LocalStore(tmp_path / "store")
    store_dataset(tmp_path / "store", make_spec())
    for path, _ in list(local.list("")):
        store.write(path, local.read(path))
    specs = by_name(make_spec(), make_spec("later"))
    here, there = build_catalog(specs, local, settings), build_catalog(specs, store, settings)
    assert (there.uri, there.rows) == (f"{settings.root}/{CATALOG}", here.rows)
    for table in ("overview", "files", "chunks", "levels"):
        assert query(catalog_path(store, settings), f"from {table} order by all") == query(
            catalog_path(local, settings), f"from {table} order by all"
        )
    assert f'zarr.open_group("{settings.root}/crop/volume.ome.zarr"' in store.read("README.md").decode()
    assert not list((tmp_path / "cache/catalog").glob(f"{CATALOG}*"))


def test_it_is_downloaded_only_when_it_changed(store, settings, monkeypatch):
    """A second question downloads nothing; a rebuild that changes the catalogue is seen by the next one."""
    build_catalog(by_name(make_spec()), store, settings)
    first = catalog_path(store, settings)
    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "read", lambda *_: pytest.fail("downloaded again"))
        assert catalog_path(store, settings) == first
    build_catalog(by_name(make_spec(), make_spec("second")), store, settings)
    second = catalog_path(store, settings)
    assert len(query(second, "from overview").rows) == 2
    assert second != first
    assert not first.exists()


def test_no_catalogue_yet(store, settings):
    """An empty bucket is answered with how to build the catalogue."""
    with pytest.raises(Unavailable, match=rf"no catalogue at {settings.root}/{CATALOG} yet"):
        catalog_path(store, settings)


def test_a_lost_race_builds_again(store, settings, monkeypatch):
    """Who was overtaken while building reads the store again, so that the last catalogue knows both changes."""
    build_catalog({}, store, settings)
    put, overtaken = obstore.put, []

    def overtake(s3, path, *args, **kwargs):
        if path == CATALOG and not overtaken:
            overtaken.append(path)
            put(s3, path, b"somebody else's")
        return put(s3, path, *args, **kwargs)

    monkeypatch.setattr(obstore, "put", overtake)
    build_catalog(by_name(make_spec()), store, settings)
    assert overtaken
    assert len(query(catalog_path(store, settings), "from overview").rows) == 1


def test_the_first_two_builders_at_once(store, settings):
    """With no catalogue there yet, builders at the same time all succeed and leave a whole one."""
    specs = [by_name(make_spec(name)) for name in ("a", "b", "c")]
    threads = [threading.Thread(target=build_catalog, args=(each, store, settings)) for each in specs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(query(catalog_path(store, settings), "from overview").rows) == 1


def test_never_winning_ends(store, settings, monkeypatch):
    """When others replace the catalogue each time, it ends with a sentence instead of trying for ever."""
    monkeypatch.setattr(ObjectStore, "write_if_unchanged", lambda *_: False)
    with pytest.raises(Unavailable, match="was replaced by others during each of 10 rebuilds"):
        build_catalog({}, store, settings)


@pytest.mark.parametrize("ask", [build_catalog, lambda _, *rest: catalog_path(*rest)])
def test_no_such_bucket(moto_s3, settings, ask):
    """A bucket that is not there is one sentence with its name."""
    with pytest.raises(Unavailable, match="s3://no-such-bucket/x"):
        ask({}, open_store("s3://no-such-bucket/x"), settings)
