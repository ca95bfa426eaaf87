"""Public buckets: addresses, listings that end, and many small objects whole or not at all."""

import contextlib
import hashlib
import itertools
import os
import threading
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch import attempts, s3, s3_copy
from em_assets.fetch.hosts import HostUnreachable, Interrupt, Interrupted
from em_assets.fetch.http import HttpClient
from em_assets.fetch.replies import NotThere
from em_assets.fetch.s3 import CommonPrefix, ListedObject, https_url, list_objects
from em_assets.fetch.s3_copy import CopiedObject, FailedObject, copy_objects
from em_assets.settings import Settings
from em_assets.store import LocalStore, open_store
from fault_server import RawServer, reply

KEYS = {
    "a b+c/é%20?#&<>.tif": b"odd",
    "0/0/0": b"x" * 70_000,
    "0/0/1": b"y",
    ".zattrs": b"{}",
    "empty": b"",
    "\U0001f52c.tif": b"beyond the basic plane",
    "\uffee.tif": b"before it in UTF-8, behind it in UTF-16",
}


def settings(**changes) -> Settings:
    values = {"unreachable_seconds": 1.0, "retry_seconds": 3.0, "connect_seconds": 1.0, "read_seconds": 1.0}
    return Settings(**{**values, **changes})


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch):
    monkeypatch.setattr(attempts, "BACKOFF_SECONDS", 0.02)


@pytest.fixture
def bucket(moto_s3, monkeypatch):
    """(source, endpoint) of a public bucket with `KEYS`; the environment has wrong credentials and another endpoint."""
    import boto3

    name, prefix = moto_s3.removeprefix("s3://").split("/")
    client = boto3.client("s3")
    for key, data in KEYS.items():
        client.put_object(Bucket=name, Key=f"{prefix}/{key}", Body=data, ACL="public-read")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    wrong = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "AKIAWRONG",
        "AWS_SECRET_ACCESS_KEY": "wrong",
        "AWS_SESSION_TOKEN": "wrong",
        "AWS_REGION": "eu-nowhere-1",
        "AWS_S3_EXPRESS": "true",
        "AWS_REQUEST_PAYER": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
    }
    for variable, value in wrong.items():
        monkeypatch.setenv(variable, value)
    return f"{moto_s3}/", endpoint


class TestAddresses:
    @pytest.mark.parametrize(
        ("url", "options", "expected"),
        [
            ("s3://bucket/a/b.tif", {}, "https://bucket.s3.amazonaws.com/a/b.tif"),
            ("s3://with.dot/a", {}, "https://s3.amazonaws.com/with.dot/a"),
            ("s3://Old_Bucket/a", {}, "https://s3.amazonaws.com/Old_Bucket/a"),
            ("gs://bucket/a", {}, "https://storage.googleapis.com/bucket/a"),
            ("gs://with.dot/a", {}, "https://storage.googleapis.com/with.dot/a"),
            ("s3://bucket/a", {"endpoint": "http://127.0.0.1:9000"}, "http://127.0.0.1:9000/bucket/a"),
            ("gs://bucket/a", {"endpoint": "https://x.example/"}, "https://x.example/bucket/a"),
            ("s3://bucket/", {}, "https://bucket.s3.amazonaws.com/"),
            ("s3://bucket", {}, "https://bucket.s3.amazonaws.com/"),
            ("s3://bucket/a b+c", {}, "https://bucket.s3.amazonaws.com/a%20b%2Bc"),
            ("s3://bucket/é", {}, "https://bucket.s3.amazonaws.com/%C3%A9"),
            ("s3://bucket/a?b#c&d=e", {}, "https://bucket.s3.amazonaws.com/a%3Fb%23c%26d%3De"),
            ("s3://bucket/a%20b", {}, "https://bucket.s3.amazonaws.com/a%2520b"),
            ("s3://bucket/a//b", {}, "https://bucket.s3.amazonaws.com/a//b"),
            ("s3://bucket/.zattrs", {}, "https://bucket.s3.amazonaws.com/.zattrs"),
        ],
    )
    def test_where_a_plain_get_finds_it(self, url, options, expected):
        assert https_url(url, **options) == expected

    @pytest.mark.parametrize(
        ("url", "endpoint"),
        [
            ("s3://", None),
            ("s3:///a", None),
            ("https://bucket/a", None),
            ("bucket/a", None),
            ("s3://evil.example@x/a", None),
            ("s3://x:80/a", None),
            ("s3://../a", None),
            ("s3://bucket/../other/a", None),
            ("s3://bucket/a/./b", None),
            ("s3://bucket/a", "ftp://x"),
            ("s3://bucket/a", "http://user@x"),
            ("s3://bucket/a", "http://x/path"),
        ],
    )
    def test_what_names_no_object_is_refused(self, url, endpoint):
        with pytest.raises(Malformed):
            https_url(url, endpoint=endpoint)


def listing(*entries: str, token: str | None = None, more: bool | None = None, extra: str = "") -> bytes:
    """A page; an entry with `/` at its end is a common prefix."""
    rows = "".join(
        f"<CommonPrefixes><Prefix>{entry}</Prefix></CommonPrefixes>"
        if entry.endswith("/")
        else f'<Contents><Key>{entry}</Key><Size>{len(entry)}</Size><ETag>"e"</ETag></Contents>'
        for entry in entries
    )
    more = token is not None if more is None else more
    next_token = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{next_token}{extra}{rows}</ListBucketResult>"
    ).encode()


def page(body: bytes) -> bytes:
    return reply("200 OK", body, Content_Length=str(len(body)), Content_Type="application/xml")


def listed(script, url: str = "s3://em-data/p/", **options) -> list:
    """What a scripted server's listing gives."""
    with RawServer(script) as server:
        return list(list_objects(url, HttpClient(settings()), endpoint=server.url, **options))


class TestListing:
    def test_every_object_in_order_over_all_pages(self, bucket, monkeypatch):
        """Keys, sizes and md5s as they are; in the order of UTF-8."""
        source, endpoint = bucket
        prefix = source.removeprefix("s3://em-data/")
        real = s3.urlencode
        monkeypatch.setattr(s3, "urlencode", lambda query, **how: real({**query, "max-keys": "2"}, **how))
        found = list(list_objects(source, HttpClient(settings()), endpoint=endpoint))
        assert [entry.key for entry in found] == sorted(prefix + key for key in KEYS)
        assert {entry.key.removeprefix(prefix): entry.size_bytes for entry in found} == {
            key: len(data) for key, data in KEYS.items()
        }
        assert {entry.etag for entry in found} == {hashlib.md5(data).hexdigest() for data in KEYS.values()}

    def test_a_delimiter_gives_folders(self, bucket):
        source, endpoint = bucket
        prefix = source.removeprefix("s3://em-data/")
        found = list(list_objects(source, HttpClient(settings()), endpoint=endpoint, delimiter="/"))
        folders = [entry.prefix.removeprefix(prefix) for entry in found if isinstance(entry, CommonPrefix)]
        assert folders == ["0/", "a b+c/"]
        assert len(found) == 6

    def test_a_bucket_that_is_not_there_is_named(self, bucket):
        _, endpoint = bucket
        with pytest.raises(NotThere, match="no-such-bucket"):
            list(list_objects("s3://no-such-bucket/", HttpClient(settings()), endpoint=endpoint))

    def test_a_listing_is_not_signed(self, bucket):
        """Credentials in the environment, right or wrong, stay there."""
        with RawServer(lambda number, path, headers: page(listing("p/a"))) as server:
            list(list_objects("s3://em-data/p/", HttpClient(settings()), endpoint=server.url))
        [(path, headers)] = server.requests
        assert parse_qs(urlsplit(path).query)["prefix"] == ["p/"]
        assert not any("auth" in name or name.startswith("x-amz") for name in headers)
        assert "Signature" not in path and "AKIA" not in path

    def test_a_token_is_given_back_as_it_came(self):
        """Whatever it holds."""
        token = "1/a+b=&c d\u00e9%"
        seen = []

        def script(number, path, headers):
            seen.append(parse_qs(urlsplit(path).query).get("continuation-token"))
            return page(listing("p/a", token=token.replace("&", "&amp;")) if number == 1 else listing("p/b"))

        assert [entry.key for entry in listed(script)] == ["p/a", "p/b"]
        assert seen == [None, [token]]

    @pytest.mark.parametrize(
        ("encoded", "key"),
        [("p/a+b", "p/a b"), ("p/a%2Bb", "p/a+b"), ("p/a%20b", "p/a b"), ("p/%C3%A9", "p/é"), ("p/%01", "p/\x01")],
    )
    def test_encoded_keys_are_decoded(self, encoded, key):
        """As Amazon encodes them: a space is a plus."""
        body = listing(encoded, extra="<EncodingType>url</EncodingType>")
        assert [entry.key for entry in listed(lambda number, path, headers: page(body))] == [key]

    def test_keys_that_are_not_encoded_stay(self):
        """Servers that do not know the wish."""
        assert [entry.key for entry in listed(lambda *_: page(listing("p/a+b%20")))] == ["p/a+b%20"]

    @pytest.mark.parametrize(
        ("pages", "says"),
        [
            pytest.param([listing("p/a", token="t"), listing("p/b", token="t")], "token twice", id="F23 token repeats"),
            pytest.param([listing("p/a", token="t")] * 9, "ascend", id="F23 page repeats"),
            pytest.param(
                [listing("p/a", token="t"), listing("p/b", token="u"), listing("p/b", token="t")],
                "ascend",
                id="F23 tokens in a circle",
            ),
            pytest.param([listing("p/a", token="t"), listing(token="u")], "an empty page", id="F23 empty page"),
            pytest.param([listing("p/b", "p/a")], "ascend", id="F23 out of order"),
            pytest.param([listing("p/a", "p/a")], "ascend", id="F23 twice"),
            pytest.param([listing("p/b/", "p/a/")], "ascend", id="F23 folders out of order"),
            pytest.param([listing("p/b", token="t"), listing("p/a")], "ascend", id="F23 pages out of order"),
            pytest.param([listing("q/a")], "does not begin as asked", id="F23 out of the prefix"),
            pytest.param([listing("p/a", more=True)], "lacks <NextContinuationToken>", id="F23 more, but no token"),
            pytest.param([listing("p/a").replace(b"false", b"maybe")], "IsTruncated", id="maybe more"),
            pytest.param([listing("p/a").replace(b"IsTruncated", b"Is")], "lacks <IsTruncated>", id="no word of more"),
            pytest.param([listing("p/a").replace(b"Size", b"Sighs")], "lacks <Size>", id="no size"),
            pytest.param([listing("p/a").replace(b">3<", b">-3<")], "size '-3'", id="negative size"),
            pytest.param([listing("p/a").replace(b">3<", b">%s<" % (b"9" * 99))], "size '9999", id="absurd size"),
            pytest.param([listing("p/%FF", extra="<EncodingType>url</EncodingType>")], "not UTF-8", id="key not UTF-8"),
            pytest.param([listing("p/a", extra="<EncodingType>rot13</EncodingType>")], "rot13", id="other encoding"),
            pytest.param([b"<Error><Code>Slow</Code><Message>x</Message></Error>"], "<Error> Slow x", id="an error"),
            pytest.param([b"{}"], "not XML", id="JSON"),
            pytest.param([b""], "not XML", id="nothing"),
            pytest.param([listing("p/a")[:-5]], "not XML", id="cut"),
            pytest.param([listing("p/a").replace(b"p/a", b"\xff")], "not UTF-8", id="not UTF-8"),
            pytest.param(
                [b'<!DOCTYPE x [<!ENTITY a "aaaa">]><ListBucketResult>&a;</ListBucketResult>'],
                "document type",
                id="entities",
            ),
            pytest.param(
                ['<!DOCTYPE x [<!ENTITY a "a">]><ListBucketResult>&a;</ListBucketResult>'.encode("utf-16")],
                "not UTF-8",
                id="entities in UTF-16",
            ),
            pytest.param([b"<a>" * 100_000], "60000 tags", id="nested"),
            pytest.param([listing("p/" + "x" * 9_000_000)], "expected at most", id="9 MB"),
        ],
    )
    def test_a_listing_that_cannot_be_right_is_refused(self, pages, says):
        """And always ends."""
        with pytest.raises(Malformed, match=says) as caught:
            listed(lambda number, path, headers: page(pages[min(number, len(pages)) - 1]))
        assert len(str(caught.value)) < 1000


def objects_of(source: str, endpoint: str) -> list[ListedObject]:
    return list(list_objects(source, HttpClient(settings()), endpoint=endpoint))


def copied(source: str, objects, store, endpoint: str, folder: str = "nacc/original", **options) -> list:
    return list(copy_objects(source, objects, store, folder, settings=settings(), endpoint=endpoint, **options))


def data_reply(data: bytes, **headers: str) -> bytes:
    etag = hashlib.md5(data).hexdigest()
    known = {"Content_Length": str(len(data)), "ETag": f'"{etag}"', "Last_Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
    return reply("200 OK", data, **{**known, **headers})


def one(data: bytes, key: str = "p/a") -> ListedObject:
    return ListedObject(key, len(data), hashlib.md5(data).hexdigest())


CUT = data_reply(b"abc")[:-1]
NO_LENGTH = data_reply(b"abc").replace(b"Content-Length: 3\r\n", b"")


class TestCopying:
    def test_objects_are_copied_byte_for_byte(self, bucket, tmp_path):
        """Wrong credentials, another endpoint and region in the environment change nothing."""
        source, endpoint = bucket
        store, heard = LocalStore(tmp_path), []
        results = copied(source, objects_of(source, endpoint), store, endpoint, on_bytes=heard.append)
        for result in results:
            data = KEYS[result.key.removeprefix(source.removeprefix("s3://em-data/"))]
            assert isinstance(result, CopiedObject)
            assert store.read(result.path) == data
            assert (result.size_bytes, result.sha256) == (len(data), hashlib.sha256(data).hexdigest())
            assert result.etag == hashlib.md5(data).hexdigest()
        assert len(results) == len(KEYS)
        assert sum(heard) == sum(map(len, KEYS.values()))
        assert (tmp_path / "nacc/original/0/0/0").read_bytes() == KEYS["0/0/0"]
        assert (tmp_path / "nacc/original/a b+c/é%2520?#&<>.tif").is_file()
        assert not list(tmp_path.rglob("*.em-partial"))

    def test_no_request_is_signed(self, bucket, tmp_path, monkeypatch):
        """Nothing of the environment is sent."""
        monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "sse-c")
        monkeypatch.setenv("AWS_SSE_CUSTOMER_KEY_BASE64", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")
        with RawServer(lambda *_: data_reply(b"abc")) as server:
            [result] = copied("s3://em-data/p/", [one(b"abc", "p/a b+c")], LocalStore(tmp_path), server.url)
        assert isinstance(result, CopiedObject)
        [(path, headers)] = server.requests
        assert path == "/em-data/p/a%20b%2Bc"
        assert set(headers) - {""} == {"accept", "user-agent", "host"}

    def test_a_listing_is_copied_as_it_comes(self, bucket, tmp_path):
        """A generator, read by many threads."""
        source, endpoint = bucket
        found = list_objects(source, HttpClient(settings()), endpoint=endpoint)
        assert len(copied(source, found, LocalStore(tmp_path), endpoint)) == len(KEYS)

    def test_a_listing_that_fails_ends_the_copy(self, tmp_path):
        """With its own error, and what was copied stays."""

        def objects():
            yield one(b"abc")
            raise Malformed("the listing is broken")

        with RawServer(lambda *_: data_reply(b"abc")) as server, pytest.raises(Malformed, match="listing is broken"):
            copied("s3://em-data/p/", objects(), LocalStore(tmp_path), server.url)

    def test_copies_into_a_bucket(self, bucket, moto_s3, tmp_path, monkeypatch):
        """The store may be S3, which needs its own credentials."""
        source, endpoint = bucket
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        for name in ("AWS_S3_EXPRESS", "AWS_REQUEST_PAYER", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"):
            monkeypatch.delenv(name)
        store = open_store(f"{moto_s3}-copy")
        results = copied(source, objects_of(source, endpoint)[:3], store, endpoint)
        assert {store.size_bytes(result.path) for result in results} == {result.size_bytes for result in results}

    def test_a_key_that_vanished_is_the_error_of_that_key(self, bucket, tmp_path):
        """The others arrive."""
        source, endpoint = bucket
        objects = objects_of(source, endpoint)
        gone = ListedObject(objects[0].key + ".gone", 5, None)
        results = copied(source, [*objects, gone], LocalStore(tmp_path), endpoint)
        [failed] = [result for result in results if isinstance(result, FailedObject)]
        assert failed.key == gone.key
        assert isinstance(failed.error, NotThere)
        assert str(failed.error).startswith(f"s3://em-data/{gone.key} was listed but is not there (404)")
        assert len(results) == len(objects) + 1

    @pytest.mark.parametrize(
        ("answer", "kind", "says"),
        [
            pytest.param(reply("403 Forbidden", Content_Length="0"), NotThere, "not public", id="403"),
            pytest.param(reply("301 Moved", Content_Length="0"), Mismatch, "another region", id="other region"),
            pytest.param(reply("400 Bad Request", Content_Length="0"), Mismatch, "answered 400", id="400"),
            pytest.param(reply("503 Slow Down", Content_Length="0"), Unavailable, "503", id="F9 503 for ever"),
            pytest.param(data_reply(b"abcd"), Mismatch, "had 3 bytes.*now 4", id="F6 other size"),
            pytest.param(data_reply(b"abd"), Mismatch, "changed since it was listed", id="F6 other ETag"),
            pytest.param(data_reply(b"abd", ETag=f'"{one(b"abc").etag}"'), Malformed, "md5", id="F21 flipped bit"),
            pytest.param(NO_LENGTH, Mismatch, "without a length", id="F2 no length"),
            pytest.param(CUT, Unavailable, "broke off", id="F1 cut"),
        ],
    )
    def test_a_reply_that_is_not_what_was_listed_is_refused(self, tmp_path, answer, kind, says):
        """Nothing appears in the store."""
        with RawServer(lambda *_: answer) as server:
            [result] = copy_objects(
                "s3://em-data/p/",
                [one(b"abc")],
                LocalStore(tmp_path),
                "",
                settings=settings(retry_seconds=0.3),
                endpoint=server.url,
            )
        assert isinstance(result, FailedObject)
        assert type(result.error) is kind
        assert s3.re.search(says, str(result.error))
        assert not list(tmp_path.rglob("*"))

    @pytest.mark.parametrize(
        "first",
        [
            pytest.param(b"", id="closed before the reply"),
            pytest.param(CUT, id="F1 cut"),
            pytest.param(reply("503 Slow Down", Content_Length="0"), id="F9 503"),
            pytest.param(reply("500 Internal", Content_Length="0"), id="F9 500"),
            pytest.param(reply("429 Too Many", Content_Length="0"), id="F8 429"),
            pytest.param(data_reply(b"abd", ETag=f'"{one(b"abc").etag}"'), id="F21 flipped bit"),
            pytest.param(NO_LENGTH, id="F2 no length"),
        ],
    )
    def test_what_passes_is_tried_again(self, tmp_path, first):
        with RawServer(lambda number, *_: first if number <= 2 else data_reply(b"abc")) as server:
            [result] = copied("s3://em-data/p/", [one(b"abc")], LocalStore(tmp_path), server.url)
        assert isinstance(result, CopiedObject)
        assert len(server.requests) == 3

    def test_an_etag_with_a_hyphen_is_no_md5(self, tmp_path):
        """Of an object that was uploaded in parts."""
        etag = "0" * 32 + "-2"
        with RawServer(lambda *_: data_reply(b"abc", ETag=f'"{etag}"')) as server:
            [result] = copied("s3://em-data/p/", [ListedObject("p/a", 3, etag)], LocalStore(tmp_path), server.url)
        assert isinstance(result, CopiedObject)

    @pytest.mark.parametrize(
        ("key", "kind"),
        [
            pytest.param("p/../../etc/x", Malformed, id="B34 out"),
            pytest.param("p//etc/x", Malformed, id="B34 absolute"),
            pytest.param("p/a\nb", Malformed, id="B34 newline"),
            pytest.param("p/folder/", Malformed, id="B34 folder marker"),
            pytest.param("p/" + "x" * 300, Malformed, id="B34 300 bytes"),
            pytest.param("p/A", Malformed, id="B34 case twin"),
            pytest.param("q/a", Malformed, id="not below the prefix"),
        ],
    )
    def test_a_key_that_must_not_be_a_path_is_refused_by_name(self, tmp_path, key, kind):
        """Nothing is asked for; the others go on."""
        objects = [one(b"abc", "p/a"), one(b"abc", key)]
        with RawServer(lambda *_: data_reply(b"abc")) as server:
            results = copied("s3://em-data/p/", objects, LocalStore(tmp_path), server.url, connections=1)
        assert [type(result) for result in results] == [CopiedObject, FailedObject]
        assert type(results[1].error) is kind
        assert [path for path, _ in server.requests] == ["/em-data/p/a"]
        assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["a"]

    def test_a_listed_size_beyond_memory_is_refused(self, tmp_path):
        """Before anything is asked for."""
        huge = ListedObject("p/a", 5 * 10**12, None)
        [result] = copied("s3://em-data/p/", [huge], LocalStore(tmp_path), "http://127.0.0.1:9")
        assert isinstance(result.error, Unsupported)
        assert "5000000000000 bytes" in str(result.error)

    def test_memory_bounds_what_is_held(self, tmp_path):
        """Three of four megabytes fit into twelve; never a fourth, and all arrive."""
        data = bytes(4 * 2**20)
        lock, now, most = threading.Lock(), 0, 0

        def script(number, path, headers):
            nonlocal now, most
            with lock:
                now, most = now + 1, max(most, now + 1)
            yield data_reply(data)[:-1]
            threading.Event().wait(0.05)
            with lock:
                now -= 1
            yield data[-1:]

        objects = [ListedObject(f"p/{number}", len(data), None) for number in range(12)]
        with RawServer(script) as server:
            results = list(
                copy_objects(
                    "s3://em-data/p/",
                    objects,
                    LocalStore(tmp_path),
                    "",
                    settings=settings(memory_bytes=12 * 2**20, read_seconds=10),
                    endpoint=server.url,
                )
            )
        assert [type(result) for result in results] == [CopiedObject] * 12
        assert most <= 3

    def test_a_source_that_never_answers_ends_it_all(self, tmp_path):
        """One verdict, not one for each object."""
        objects = [one(b"abc", f"p/{number}") for number in range(1000)]
        with pytest.raises(HostUnreachable, match=r"http://127.0.0.1:9 cannot be reached"):
            list(
                copy_objects(
                    "s3://em-data/p/",
                    objects,
                    LocalStore(tmp_path),
                    "",
                    settings=settings(unreachable_seconds=0.3),
                    endpoint="http://127.0.0.1:9",
                )
            )

    def test_a_store_that_cannot_be_written_ends_it_all(self, tmp_path):
        """The path is named, and no temporary file stays."""
        (tmp_path / "nacc").write_bytes(b"a file where a folder is needed")
        with (
            RawServer(lambda *_: data_reply(b"abc")) as server,
            pytest.raises(Unavailable, match="could not be written"),
        ):
            copied("s3://em-data/p/", [one(b"abc")], LocalStore(tmp_path), server.url)
        assert [file.name for file in tmp_path.rglob("*")] == ["nacc"]

    def test_an_interrupt_ends_it(self, tmp_path):
        """What is in place stays."""
        interrupt = Interrupt()
        objects = (one(b"abc", f"p/{number}") for number in itertools.count())
        with RawServer(lambda *_: data_reply(b"abc")) as server:
            copying = copy_objects(
                "s3://em-data/p/",
                objects,
                LocalStore(tmp_path),
                "",
                settings=settings(),
                endpoint=server.url,
                interrupt=interrupt,
            )
            assert isinstance(next(copying), CopiedObject)
            interrupt.set()
            with pytest.raises(Interrupted):
                list(copying)
        store = LocalStore(tmp_path)  # in which the last ones may still appear
        assert all(store.read(path) == b"abc" for path, _ in store.list(""))

    def test_an_endpoint_without_a_possible_port_is_refused(self, tmp_path):
        """In a sentence, before anything is asked."""
        with pytest.raises(Mismatch, match=r"^http://127.0.0.1:99999/em-data is not an address"):
            copied("s3://em-data/p/", [one(b"abc")], LocalStore(tmp_path), "http://127.0.0.1:99999")

    def test_a_caller_who_stops_listening_stops_the_copy(self, tmp_path):
        """No thread goes on for ever."""
        objects = (one(b"abc", f"p/{number}") for number in itertools.count())
        with RawServer(lambda *_: data_reply(b"abc")) as server:
            copying = copy_objects(
                "s3://em-data/p/",
                objects,
                LocalStore(tmp_path),
                "",
                settings=settings(),
                endpoint=server.url,
                connections=4,
            )
            next(copying)
            copying.close()
            for thread in threading.enumerate():
                if thread.name == "em_assets-copy":
                    thread.join(10)
                    assert not thread.is_alive()

    def test_a_bucket_whose_name_is_a_host_is_asked_by_it(self, tmp_path, monkeypatch):
        """As in `https://bucket.s3.amazonaws.com/key`."""
        with RawServer(lambda *_: data_reply(b"abc")) as server:
            virtual = s3.Bucket("s3", "em-data", "p/", server.url)
            monkeypatch.setattr(s3_copy, "parse_bucket", lambda *_, **__: virtual)
            [result] = copied("s3://em-data/p/", [one(b"abc")], LocalStore(tmp_path), server.url)
        assert isinstance(result, CopiedObject)
        assert [path for path, _ in server.requests] == ["/p/a"]


def test_quoting_is_what_https_url_says():
    """The client for many objects and plain HTTPS name an object alike."""
    key = "".join(chr(code) for code in range(33, 127) if chr(code) not in "/.") + "é \U0001f52c"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(RawServer(lambda *_: data_reply(b"abc")))
        remote = s3_copy._anonymous(s3.parse_bucket("s3://em-data/", endpoint=server.url), settings())
        import obstore

        obstore.get(remote, key)
    assert server.requests[0][0] == urlsplit(https_url(f"s3://em-data/{key}", endpoint=server.url)).path
    assert server.requests[0][0] == f"/em-data/{quote(key, safe='')}"
