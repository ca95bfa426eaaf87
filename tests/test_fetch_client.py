"""Bytes from a folder, as readers ask for them."""

import gzip

import pytest

from em_assets.errors import Malformed
from em_assets.fetch.client import FolderClient, folder_url
from em_assets.fetch.replies import NotThere

DATA = bytes(range(256)) * 40
PACKED = gzip.compress(DATA)


def test_a_packed_file_is_unpacked_where_the_plain_one_lacks(tmp_path):
    """Some tools keep `name.gz` and mean `name`; the plain file wins."""
    (tmp_path / "info.gz").write_bytes(PACKED)
    reply = FolderClient().get(f"{folder_url(tmp_path)}/info", max_bytes=len(DATA))
    assert (reply.body, reply.content_encoding) == (DATA, "gzip")
    (tmp_path / "info").write_bytes(b"plain")
    reply = FolderClient().get(f"{folder_url(tmp_path)}/info", max_bytes=len(DATA))
    assert (reply.body, reply.content_encoding) == (b"plain", None)


@pytest.mark.parametrize(
    ("packed", "says"),
    [
        pytest.param(PACKED[:-9], "in the middle of its gzip stream", id="cut"),
        pytest.param(b"not gzip at all", "is not gzip", id="another kind"),
        pytest.param(PACKED + b"x", "1 bytes follow", id="more behind it"),
        pytest.param(gzip.compress(bytes(50_000_000)), "unpacks to more than 100000 bytes", id="a bomb"),
    ],
)
def test_a_packed_file_that_is_none_is_refused(tmp_path, packed, says):
    """One sentence with the file's name; never more memory than was allowed."""
    (tmp_path / "info.gz").write_bytes(packed)
    with pytest.raises(Malformed, match=says) as caught:
        FolderClient().get(f"{folder_url(tmp_path)}/info", max_bytes=100_000)
    assert str(tmp_path / "info.gz") in str(caught.value)


@pytest.mark.parametrize("name", ["absent", "folder", "absent/below"])
def test_what_is_not_a_file_is_not_there(tmp_path, name):
    """A folder is none either."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotThere, match="is not there"):
        FolderClient().get(f"{folder_url(tmp_path)}/{name}", max_bytes=10)


def test_a_range_is_exactly_the_bytes_asked_for(tmp_path):
    """Beyond the end is an error, not fewer bytes."""
    (tmp_path / "data").write_bytes(DATA)
    url = f"{folder_url(tmp_path)}/data"
    assert FolderClient().get_range(url, 10, 20).body == DATA[10:20]
    with pytest.raises(Malformed, match=f"has {len(DATA)} bytes, expected at least {len(DATA) + 1}"):
        FolderClient().get_range(url, 10, len(DATA) + 1)
