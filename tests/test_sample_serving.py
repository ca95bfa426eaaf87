"""What the sample serves beside plain files: pages of folders, S3 listings, FTP; asked by independent clients."""

import ftplib
import io
import json
import socket
import threading
import xml.etree.ElementTree as ET

import pytest
import urllib3

from em_assets.sample.ftp import FtpServer
from em_assets.sample.pages import BUCKET, write_autoindex, write_json_page, write_page
from em_assets.sample.server import OriginServer

DATA = bytes(range(256)) * 40
KEYS = ["a.txt", "a/1", "a/2", "a/b/3", "b c/4", "b/.zarray", "z&<.txt", "ä"]
"""Of the bucket, in S3's order."""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "a file.tif").write_bytes(DATA)
    (tmp_path / "data" / "left out.tif").write_bytes(b"x")
    write_autoindex(tmp_path / "data", omit="left out.tif")
    write_json_page(tmp_path / "api", {"all": True}, headers={"X-Version": "0"})
    write_json_page(tmp_path / "api", {"image": 7}, query="type=map&image=7")
    write_page(tmp_path / "client", "<html></html>", ".html", headers={"Set-Cookie": "sessionid=1"})
    for number, key in enumerate(KEYS):
        file = tmp_path / "bucket" / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(number))
    (tmp_path / "bucket" / BUCKET).touch()
    return tmp_path


@pytest.fixture
def server(folder):
    with OriginServer(folder) as running:
        yield running


@pytest.fixture
def get(server):
    with urllib3.PoolManager(retries=False, timeout=5) as pool:
        yield lambda path, method="GET": pool.request(method, server.url + path)


# Pages


def test_a_folder_with_a_page_answers_with_it(get):
    """Its own content type and headers; a page for one query, and for any other the folder's."""
    reply = get("/api/")
    assert (reply.json(), reply.headers["Content-Type"]) == ({"all": True}, "application/json")
    assert reply.headers["X-Version"] == "0"
    assert get("/api/?image=7&type=map").json() == get("/api/?type=map&image=7").json() == {"image": 7}
    assert get("/api/?image=8&type=map").json() == {"all": True}
    assert get("/client/?experimenter=-1").headers["Set-Cookie"] == "sessionid=1"
    assert get("/api/", "HEAD").headers["Content-Length"] == str(len(get("/api/").data))


HIDDEN = ["/api/.index.json", "/api/.headers.json", "/bucket/.bucket", "/api", "/data/sub/", "/api/?" + "x" * 9000]
HIDDEN += ["/api/.index%3Fimage=7&type=map.json", "/api//", "/nothing/"]


@pytest.mark.parametrize("path", HIDDEN[:5] + HIDDEN[6:])
def test_the_files_behind_a_page_are_not_served(get, path):
    """Nor is a folder without its slash, or one without a page."""
    assert get(path).status == 404


def test_a_query_of_any_length_is_overlooked(get):
    """A name on the disk cannot be that long."""
    assert get(HIDDEN[5]).json() == {"all": True}
    assert get("/api/?" + "%2F..%2F" * 9).json() == {"all": True}


def test_an_index_lists_what_it_does_not_omit(get):
    """Links are quoted, sub-folders end in a slash, links to sort by lead to the same page; a file is left out."""
    page = get("/data/").data.decode()
    assert 'href="a%20file.tif"' in page and 'href="sub/"' in page
    assert "left out" not in page and ".index" not in page
    assert get("/data/?C=S;O=A").data.decode() == page
    assert get("/data/left%20out.tif").data == b"x"


# S3


def listed(reply):
    """(keys, prefixes, next token)."""
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/xml")
    root = ET.fromstring(reply.data)
    space = "{http://s3.amazonaws.com/doc/2006-03-01/}"
    keys = [node.text for node in root.iterfind(f"{space}Contents/{space}Key")]
    prefixes = [node.text for node in root.iterfind(f"{space}CommonPrefixes/{space}Prefix")]
    assert int(root.findtext(f"{space}KeyCount")) == len(keys) + len(prefixes)
    token = root.findtext(f"{space}NextContinuationToken")
    assert (root.findtext(f"{space}IsTruncated") == "true") == (token is not None)
    return keys, prefixes, token


@pytest.mark.parametrize(
    ("query", "keys", "prefixes"),
    [
        pytest.param("", KEYS, [], id="all"),
        pytest.param("&prefix=a", ["a.txt", "a/1", "a/2", "a/b/3"], [], id="prefix"),
        pytest.param("&delimiter=/", ["a.txt", "z&<.txt", "ä"], ["a/", "b/", "b c/"], id="delimiter"),
        pytest.param("&prefix=a/&delimiter=/", ["a/1", "a/2"], ["a/b/"], id="prefix and delimiter"),
        pytest.param(
            "&delimiter=.", ["a/1", "a/2", "a/b/3", "b c/4", "ä"], ["a.", "b/.", "z&<."], id="other delimiter"
        ),
        pytest.param("&start-after=a/2", KEYS[3:], [], id="start after"),
        pytest.param(
            "&start-after=a/1&delimiter=/", ["z&<.txt", "ä"], ["a/", "b/", "b c/"], id="start inside a prefix"
        ),
        pytest.param("&prefix=none", [], [], id="nothing"),
        pytest.param("&max-keys=0", [], [], id="no keys"),
    ],
)
def test_s3_lists_a_bucket(get, query, keys, prefixes):
    """Keys in the order of their bytes, common prefixes once."""
    for path in ("/bucket", "/bucket/"):
        found = listed(get(f"{path}?list-type=2{query}"))
        assert found[0] == sorted(keys, key=str.encode)
        assert found[1] == sorted(prefixes, key=str.encode)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("delimiter", ["", "/"])
def test_s3_pages_give_each_entry_once(get, size, delimiter):
    """Following the tokens, whatever the page's size."""
    path = f"/bucket?list-type=2&delimiter={delimiter}"
    whole = listed(get(path))
    found, token = [], ""
    while token is not None:
        keys, prefixes, token = listed(get(f"{path}&max-keys={size}&continuation-token={token}"))
        assert len(keys) + len(prefixes) <= size
        found += keys + prefixes
    assert sorted(found) == sorted(whole[0] + whole[1])


def test_s3_never_sends_more_than_a_thousand_keys(get, folder):
    """Whatever is asked for."""
    (folder / "bucket" / "many").mkdir()
    for number in range(1001):
        (folder / "bucket" / "many" / str(number)).touch()
    keys, _, token = listed(get("/bucket?list-type=2&max-keys=5000&prefix=many/"))
    assert len(keys) == 1000
    assert len(listed(get(f"/bucket?list-type=2&prefix=many/&continuation-token={token}"))[0]) == 1


@pytest.mark.parametrize("query", ["max-keys=x", "max-keys=-1", "continuation-token=%21"])
def test_s3_refuses_what_is_no_number_or_token(get, query):
    """400 InvalidArgument."""
    reply = get(f"/bucket?list-type=2&{query}")
    assert (reply.status, ET.fromstring(reply.data).findtext("Code")) == (400, "InvalidArgument")


def test_only_a_bucket_is_listed_and_says_nosuchkey(get):
    """XML for a missing key; plain text elsewhere, and no listing."""
    reply = get("/bucket/none/<x>")
    assert reply.status == 404
    assert ET.fromstring(reply.data).findtext("Code") == "NoSuchKey"
    assert get("/data?list-type=2").status == 404
    assert get("/bucket/a?list-type=2").status == 404
    assert get("/bucket/").status == 404


def test_boto3_lists_and_reads_the_bucket(server):
    """Amazon's own client, unsigned, path style: pages, sizes, ETags, a range, a missing key."""
    boto3 = pytest.importorskip("boto3")
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(signature_version=UNSIGNED, s3={"addressing_style": "path"}, retries={"max_attempts": 0})
    client = boto3.client("s3", endpoint_url=server.url, region_name="us-east-1", config=config)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="bucket", PaginationConfig={"PageSize": 3})
    found = [entry for page in pages for entry in page["Contents"]]
    assert [entry["Key"] for entry in found] == KEYS
    assert [entry["Size"] for entry in found] == list(range(len(KEYS)))
    head = client.head_object(Bucket="bucket", Key="a/2")
    assert (head["ETag"], head["ContentLength"]) == (found[2]["ETag"], 2)
    assert head["LastModified"] == found[2]["LastModified"]
    assert client.get_object(Bucket="bucket", Key="b c/4", Range="bytes=1-2")["Body"].read() == bytes(2)
    with pytest.raises(client.exceptions.NoSuchKey):
        client.get_object(Bucket="bucket", Key="none")


def test_obstore_lists_and_reads_the_bucket(server):
    """A third client agrees."""
    obstore = pytest.importorskip("obstore")
    from obstore.store import S3Store

    store = S3Store(
        "bucket", endpoint=server.url, region="us-east-1", skip_signature=True, client_options={"allow_http": True}
    )
    assert [entry["path"] for batch in store.list() for entry in batch] == KEYS
    assert sorted(store.list_with_delimiter("a/")["common_prefixes"]) == ["a/b"]
    assert bytes(obstore.get(store, "b/.zarray").bytes()) == bytes(5)


# FTP


@pytest.fixture
def ftp_server(folder):
    with FtpServer(folder) as running:
        yield running


@pytest.fixture
def ftp(ftp_server):
    with ftplib.FTP(timeout=5) as client:
        client.connect(ftp_server.host, ftp_server.port)
        client.login()
        yield client


def fetch(ftp, path, rest=None):
    parts = []
    ftp.retrbinary(f"RETR {path}", parts.append, rest=rest)
    return b"".join(parts)


def test_ftp_gives_files_their_sizes_and_the_rest_of_them(ftp):
    """SIZE, RETR, REST, anonymous, in passive mode; a folder has no size."""
    ftp.voidcmd("TYPE I")
    assert ftp.size("data/a file.tif") == len(DATA)
    assert fetch(ftp, "data/a file.tif") == DATA
    assert fetch(ftp, "data/a file.tif", rest=10_000) == DATA[10_000:]
    with pytest.raises(ftplib.error_perm, match="550"):
        ftp.size("data")
    with pytest.raises(ftplib.error_perm, match="550"):
        fetch(ftp, "data/none")


def test_ftp_lists_what_is_published(ftp):
    """Every file and folder, also the one that the index omits; not the files behind pages."""
    ftp.cwd("data")
    assert sorted(ftp.nlst()) == ["a file.tif", "left out.tif", "sub"]
    assert len(list(ftp.mlsd())) == 3


@pytest.mark.parametrize("command", ["STOR data/new", "DELE data/a file.tif", "MKD new", "RNFR data/a file.tif"])
def test_ftp_is_read_only(ftp, folder, command):
    with pytest.raises(ftplib.error_perm):
        ftp.storbinary(command, io.BytesIO(b"x")) if command.startswith("STOR") else ftp.sendcmd(command)
    assert not (folder / "new").exists() and not (folder / "data" / "new").exists()


def test_ftp_does_not_lead_out_of_the_folder(ftp, folder):
    """Neither by .. nor by a link."""
    secret = folder.parent / "secret"
    secret.write_text("not served")
    (folder / "link").symlink_to(secret)
    for path in ("../secret", "/../secret", "link"):
        with pytest.raises(ftplib.error_perm):
            fetch(ftp, path)


def test_ftp_counts_and_serves_side_by_side(folder):
    """Each file asked for and each byte sent, from several clients at once."""
    asked, sent = [], []
    with FtpServer(folder, on_request=asked.append, on_sent=sent.append) as server:

        def ask():
            with ftplib.FTP(timeout=5) as client:
                client.connect(server.host, server.port)
                client.login()
                assert fetch(client, "data/a file.tif") == DATA

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert asked == ["/data/a file.tif"] * 4
    assert sent == [len(DATA)] * 4


def test_ftp_listens_on_loopback_and_lets_its_port_go(folder):
    """Control and data; a stopped server cuts its clients."""
    with FtpServer(folder) as server:
        assert (server.host, server.url) == ("127.0.0.1", f"ftp://127.0.0.1:{server.port}")
        client = ftplib.FTP(timeout=5)
        client.connect(server.host, server.port)
        client.login()
        assert client.makepasv()[0] == "127.0.0.1"
        with pytest.raises(OSError, match="in use"):
            FtpServer(folder, port=server.port)
    with pytest.raises((EOFError, OSError)):
        client.voidcmd("NOOP")
    client.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((server.host, server.port), timeout=5)


def test_json_pages_keep_their_letters(folder, get):
    """UTF-8, not escapes: as the publishers send names."""
    write_json_page(folder / "name", {"name": "Bräuninger"})
    reply = get("/name/")
    assert "ä".encode() in reply.data
    assert json.loads(reply.data) == {"name": "Bräuninger"}
