"""Publishers' replies and pages: what is believed, what is kept as received, and what becomes of it as claims."""

import json
import os
from pathlib import Path

import pytest
import yaml

from em_assets.datasets.source import Document
from em_assets.datasets.spec import DatasetSpec
from em_assets.errors import EmAssetsError, Malformed, Mismatch
from em_assets.fetch.http import HttpClient
from em_assets.formats._json import MAX_JSON_BYTES
from em_assets.settings import PACKAGED_DATASETS, Settings
from em_assets.sources import describe
from em_assets.sources.claims import (
    CUT,
    MAX_CLAIMS,
    MAX_VALUE_CHARACTERS,
    SPEC_DOCUMENT,
    claims_of,
    claims_of_tags,
)
from em_assets.sources.document_kinds import require_document
from em_assets.sources.documents import fetch_documents
from fault_server import RawServer, reply

QUICK = Settings(unreachable_seconds=1.0, retry_seconds=1.0, connect_seconds=1.0, read_seconds=1.0)
LOGIN = b"<!DOCTYPE html><html><head><title>Login</title></head><body>OMERO.web login</body></html>"
URLS = {
    "idr_image": "https://idr.openmicroscopy.org/webclient/imgData/9846137/",
    "omero_image": "https://idr.openmicroscopy.org/api/v0/m/images/9846137/",
    "idr_annotations": "https://idr.openmicroscopy.org/webclient/api/annotations/?type=map&image=9846137",
    "empiar_entry": "https://www.ebi.ac.uk/empiar/api/entry/EMPIAR-11759/",
    "empiar_xml": "https://ftp.ebi.ac.uk/empiar/world_availability/11759/11759.xml",
    "idr_study": "https://raw.githubusercontent.com/IDR/idr0086-miron-micrographs/HEAD/idr0086-study.txt",
    "table": "https://raw.githubusercontent.com/IDR/idr0086-miron-micrographs/HEAD/annotation.csv",
}


@pytest.fixture(scope="session")
def payloads():
    """The folder of publishers' real replies, beside the real files, or a skip."""
    folder = Path(os.environ.get("EM_ASSETS_REALDATA") or Path(__file__).parents[2] / "shared/realdata") / "../payloads"
    if not folder.is_dir():
        pytest.skip(f"no publishers' replies at {folder.resolve()}")
    return folder.resolve()


def document(kind, url=None, path="reply", **more):
    return Document(path=path, url=url or URLS.get(kind, "https://host/reply"), kind=kind, **more)


def spec_with(name="idr_9846137", **changes):
    values = yaml.safe_load((PACKAGED_DATASETS / f"{name}.yaml").read_text())
    return DatasetSpec.model_validate({**values, **changes})


def as_json(value):
    return json.dumps(value).encode()


def by_key(claims):
    return {claim.key: claim.value for claim in claims}


# -- what is believed


@pytest.mark.parametrize(
    ("file", "asked", "key", "value"),
    [
        ("idr/imgData_9846137_RECONSTRUCTED.json", document("idr_image"), "/pixel_size/x", 0.02),
        (
            "idr/imgData_9762957_REAL_EXAMPLE_other_image.json",
            document("idr_image", "https://idr.openmicroscopy.org/webclient/imgData/9762957/"),
            "/pixel_size/z",
            None,
        ),
        (
            "idr/api_annotations_type_map_REAL_EXAMPLE_other_server.json",
            document("idr_annotations"),
            "/annotations/0/values/0/1",
            "123123123",
        ),
        (
            "empiar/api_entry_EMPIAR-11759.json",
            document("empiar_entry"),
            "/EMPIAR-11759/imagesets/0/image_width",
            "5628",
        ),
        (
            "empiar/api_entry_EMPIAR-11759.json",
            document("empiar_entry", "https://www.ebi.ac.uk/empiar/api/entry/11759/"),
            "/EMPIAR-11759/imagesets/0/pixel_width",
            80.0,
        ),
        ("idr/idr0086-study.txt", document("idr_study"), "/Study DOI/0", "10.1126/sciadv.aba8811"),
        ("idr/idr0086-experimentD-annotation.csv", document("table"), "/rows/0/Characteristics [Cell Line]", "HeLa"),
    ],
    ids=["imgData", "imgData of another", "annotations", "entry, text", "entry by number", "study", "annotation table"],
)
def test_publishers_own_replies_are_believed_and_quoted_exactly(payloads, file, asked, key, value):
    """B30, B31: a width that is text stays text, a null is None, a float keeps all its digits."""
    raw = (payloads / file).read_bytes()
    require_document(asked, raw)
    found = by_key(claims_of("documents/reply", asked.kind, raw, asked.url))[key]
    assert found == value and type(found) is type(value)


def omero(payloads, **changes):
    image = json.loads((payloads / "idr/api_v0_m_images_DOC_EXAMPLE.json").read_text())["data"][0]
    return {"data": {**image, **changes}}


def test_b31_an_omero_image_with_its_units(payloads):
    """B31: units are kept as stated, the micro sign decoded however it was written; absent keys are no error."""
    asked = document("omero_image", "https://idr.openmicroscopy.org/api/v0/m/images/16783/")
    raw = json.dumps(omero(payloads), ensure_ascii=True).encode()
    assert b"\\u00b5m" in raw
    require_document(asked, raw)
    found = by_key(claims_of("documents/reply", "omero_image", raw, asked.url))
    assert found["/data/Pixels/PhysicalSizeX/Symbol"] == "µm"
    assert found["/data/Pixels/PhysicalSizeX/Unit"] == "MICROMETER"
    assert found["/data/Pixels/PhysicalSizeX/Value"] == 0.12698
    without = omero(payloads)
    del without["data"]["Pixels"]
    require_document(asked, as_json(without))


ENTRY = {"imagesets": [{"name": "one"}]}
REFUSED = {
    "B30 another accession": ("empiar_entry", as_json({"EMPIAR-10392": ENTRY}), "'EMPIAR-10392'.*EMPIAR-11759 was"),
    "B30 imagesets null": ("empiar_entry", as_json({"EMPIAR-11759": {"imagesets": None}}), "imagesets is null"),
    "B30 imagesets empty": ("empiar_entry", as_json({"EMPIAR-11759": {"imagesets": []}}), "imagesets is empty"),
    "B30 imagesets absent": ("empiar_entry", as_json({"EMPIAR-11759": {}}), "imagesets is null or not there"),
    "B30 imagesets of text": ("empiar_entry", as_json({"EMPIAR-11759": {"imagesets": ["x"]}}), "imagesets/0 is 'x'"),
    "B30 entry null": ("empiar_entry", as_json({"EMPIAR-11759": None}), "/EMPIAR-11759 is null"),
    "B30 nothing": ("empiar_entry", b"{}", "about nothing"),
    "B30 an error with 200": ("empiar_entry", as_json({"error": "no such entry"}), "answered 'no such entry'"),
    "B31 message with 200": ("idr_image", as_json({"message": "Image not found"}), "answered 'Image not found'"),
    "B31 exception": ("idr_image", as_json({"id": 1, "Exception": "no pixels"}), "answered 'no pixels'"),
    "B31 another image": ("idr_image", as_json({"id": 5, "meta": {}}), "/id is 5, but 9846137 was asked for"),
    "B31 no meta": ("idr_image", as_json({"id": 9846137}), "/meta is null or not there"),
    "B31 a list": ("omero_image", as_json([]), "the document is \\[\\]"),
    "B31 data null": ("omero_image", as_json({"data": None}), "/data is null"),
    "B31 another id": ("omero_image", as_json({"data": {"@id": 7}}), "/data/@id is 7"),
    "B31 no annotations": ("idr_annotations", as_json({"experimenters": []}), "/annotations is null"),
    "B31 annotation of another": (
        "idr_annotations",
        as_json({"annotations": [{"link": {"parent": {"class": "ImageI", "id": 3}}}]}),
        "/annotations/0/link/parent/id is 3",
    ),
    "B31 a link of text": ("idr_annotations", as_json({"annotations": [{"link": "x"}]}), "/annotations/0/link is 'x'"),
    "B31 a parent that is a list": (
        "idr_annotations",
        as_json({"annotations": [{"link": {"parent": [1]}}]}),
        "/annotations/0/link/parent is \\[1\\]",
    ),
    "B33 50 MB": ("json", b'"' + b"x" * 50_000_000 + b'"', str(MAX_JSON_BYTES)),
    "B33 200,000 brackets": ("json", b"[" * 200_000, "line 1 column 65: nested more than 64"),
    "B33 5,000-digit number": ("json", b'{"a":\n ' + b"1" * 5000 + b"}", "line 2 column 2: a number of more than"),
    "B33 401-digit number": ("json", b"[" + b"1" * 400 + b", " + b"1" * 401 + b"]", "line 1 column 404: a number"),
    "B33 a huge key": ("json", b'{"' + b"k" * 1001 + b'": 1}', "a key of more than 1000 characters, 'kkk"),
    "B33 NaN": ("json", b'{"a": NaN}', "NaN"),
    "B33 duplicate keys": ("json", b'{"a": 1, "a": 2}', "'a' is given twice"),
    "B33 invalid UTF-8": ("json", b'{\n"a": "\xff"}', "line 2: not UTF-8"),
    "B33 not JSON": ("json", b"ERROR 12 No entries found", "line 1 column 1: not JSON.*ERROR 12"),
    "B30 XML of another accession": (
        "empiar_xml",
        b'<entry accessionCode="EMPIAR-10392"/>',
        "'EMPIAR-10392', but EMPIAR-11759 was asked for",
    ),
    "B30 XML without an accession": ("empiar_xml", b"<entry/>", "/entry/@accessionCode is not there"),
    "B30 XML that is no entry": ("empiar_xml", b"<html a='b'>Moved</html>", "expected an EMPIAR entry"),
    "another study": (
        "idr_study",
        b"Comment[IDR Study Accession]\tidr0001\nStudy Title\tx",
        "'idr0001', but idr0086 was asked for",
    ),
    "no study": ("idr_study", b"Name\tx", "no key that begins with Study"),
    "a study that is not UTF-8": ("idr_study", b"Study Title\ta\nb\t\xff", "line 2: not UTF-8"),
    "a table of a header only": ("table", b"a,b\n", "has no row"),
    "a table that is not UTF-8": ("table", b"a,b\n\xff,1", "line 2: not UTF-8"),
    "empty": ("json", b" \n", "answered with nothing"),
    "XML with a DTD": ("xml", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "document type"),
    "XML with an unknown entity": ("xml", b"<a>&b;</a>", "line 1 column 4: not XML"),
    "XML too deep": ("xml", b"<a>" * 65, "more than 64 deep"),
    "XML with too many elements": ("xml", b"<a>" + b"<b/>" * 100_000, "more than 100000 elements"),
    "XML with too many attributes": ("xml", b"<a>" + b"<b c='' d=''/>" * 40_000, "more than 100000 elements and"),
    "XML with a long path": ("xml", f"<{'a' * 180}>".encode() * 6, "a path of more than 1000 characters"),
    "XML with a long attribute path": (
        "xml",
        f"<{'a' * 180}>".encode() * 5 + f"<b {'c' * 100}=''/>".encode(),
        "a path of more than 1000 characters",
    ),
    "XML cut": ("xml", b"<a>\n<b></a>", "line 2 column 6: not XML"),
    "XML in an unknown encoding": ("xml", b"<?xml version='1.0' encoding='nonsense'?><a/>", "encoding"),
    "XML with a huge name": ("xml", b"<" + b"a" * 300 + b"/>", "more than 200 characters"),
    "text that is not UTF-8": ("text", b"a\nb\xff", "line 2: not UTF-8"),
    "a page that is none": ("html", b"Service unavailable", "not a web page.*Service unavailable"),
}


@pytest.mark.parametrize(("kind", "raw", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_the_document_is_refused_in_one_sentence(kind, raw, words):
    """B30, B31, B33: the sentence names the address and the place; what was sent cannot make it long."""
    with pytest.raises((Malformed, Mismatch), match=words) as refusal:
        require_document(document(kind), raw)
    text = str(refusal.value)
    assert text.startswith("https://") and "\n" not in text and len(text) < 500


def test_b33_a_byte_order_mark_is_accepted():
    """B33: a BOM is not a reason."""
    require_document(document("json"), b"\xef\xbb\xbf{}")
    assert by_key(claims_of("d", "json", b'\xef\xbb\xbf{"a": 1}', "u")) == {"/a": 1}


# -- claims


def test_xml_becomes_claims_by_path_with_attributes():
    """Repeated elements are numbered from the second on; an empty one is None; text keeps its inner white space."""
    raw = b"""<?xml version="1.0"?>
    <entry xmlns="http://pdbe.org/empiar" accessionCode="EMPIAR-11759">
      <admin><author order="1">Wilsch-Br\xc3\xa4uninger M</author><author>Nobody</author><fax/></admin>
      <size units="GB">1.2</size><mail>someone [at] example.org</mail>
    </entry>"""
    assert by_key(claims_of("documents/entry.xml", "xml", raw, "u")) == {
        "/entry/@xmlns": "http://pdbe.org/empiar",
        "/entry/@accessionCode": "EMPIAR-11759",
        "/entry/admin/author/@order": "1",
        "/entry/admin/author": "Wilsch-Bräuninger M",
        "/entry/admin/author[2]": "Nobody",
        "/entry/admin/fax": None,
        "/entry/size/@units": "GB",
        "/entry/size": "1.2",
        "/entry/mail": "someone [at] example.org",
    }


@pytest.mark.parametrize("encoding", ["utf-8", "windows-1252"])
def test_a_page_becomes_its_title_and_paragraphs(encoding):
    """Scripts, styles and tags are left out; words across inline tags stay together; both usual encodings are read."""
    raw = """<!DOCTYPE html><html><head><title>Data &ndash; EM</title><meta name="description" content="5 µm section">
    <style>p {color: red}</style><script>var p = "<p>no</p>";</script></head><body><h1>Electron <b>Micro</b>scopy</h1>
    <p>a 5x5x5µm section,<br>corresponding to a 1065x2048x1536
    volume.<ul><li>training<li>testing</ul></body>""".replace("&ndash;", "&#8211;").encode(encoding)
    assert by_key(claims_of("documents/page.html", "html", raw, "u")) == {
        "/title": "Data \u2013 EM",
        "/meta/description": "5 µm section",
        "/text/0": "Electron Microscopy",
        "/text/1": "a 5x5x5µm section,",
        "/text/2": "corresponding to a 1065x2048x1536 volume.",
        "/text/3": "training",
        "/text/4": "testing",
    }


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"<script>var a = '<p>no</p>'", {}),
        (b"<p>a < b and c &lt; d<!-- <p>no</p> -->", {"/text/0": "a < b and c < d"}),
        (b"<TITLE>a</Title><P>b<Br/>c", {"/title": "a", "/text/0": "b", "/text/1": "c"}),
        (b"<p>a<!-- never closed", {"/text/0": "a"}),
        (b"<p " * 1_000_000, {}),
        (b"\xef\xbb\xbf<p>a", {"/text/0": "a"}),
        (b"<p>a&#" + b"1" * 5000 + b";b &#0065;", {"/text/0": "a\ufffdb A"}),
        (b"<meta name=a content='&#" + b"1" * 5000 + b"'>", {"/meta/a": "\ufffd"}),
        (b"<meta name=" + b"n" * 1001 + b" content=a><meta name=b content=c>", {"/meta/b": "c"}),
    ],
    ids=[
        *("script never closed", "less-than", "capitals", "comment never closed", "tags never closed", "BOM"),
        *("a huge reference", "a huge reference in a meta tag", "a meta tag with a huge name"),
    ],
)
def test_any_page_is_read_somehow(raw, found):
    """What a browser would show, or less; never longer than a moment."""
    assert by_key(claims_of("documents/page.html", "html", raw, "u")) == found


def test_a_text_becomes_its_lines(payloads):
    """IDR's study file: every line that says something, by its number."""
    raw = (payloads / "idr/idr0086-study.txt").read_bytes()
    found = by_key(claims_of("documents/study.txt", "text", raw, "u"))
    assert any("Study License" in value and "CC BY 4.0" in value for value in found.values())
    lines = raw.decode().split("\n")
    assert all(lines[int(key.removeprefix("/line/")) - 1].strip() == value for key, value in found.items())


def test_claims_are_bounded_and_say_so():
    """A file with a million tags gives 5,000 claims and one that says that there were more."""
    claims = list(claims_of_tags(((f"/{n}", n) for n in range(10**6)), "original/a.dm3", "u", "dm"))
    assert len(claims) == MAX_CLAIMS + 1
    assert claims[-1].key == CUT and "5000" in str(claims[-1].value)
    exactly = list(claims_of_tags(((f"/{n}", n) for n in range(MAX_CLAIMS)), "original/a.dm3", "u", "dm"))
    assert len(exactly) == MAX_CLAIMS and exactly[-1].key != CUT


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (10**30, "1" + "0" * 30),
        (-(2**63), str(-(2**63))),
        (2**63 - 1, 2**63 - 1),
        (True, True),
        ("\ud800", "\\ud800"),
        ("x" * 20_000, "x" * MAX_VALUE_CHARACTERS + "... (20000 characters)"),
        (7.998250424861908, 7.998250424861908),
        (None, None),
    ],
    ids=["large", "smallest", "largest", "true", "half a surrogate", "long", "float", "null"],
)
def test_every_value_can_be_stored(value, kept):
    """What no column or encoding can hold is kept as text that says so; all else is what it was."""
    (claim,) = claims_of("d", "json", as_json([value]), "u")
    assert claim.value == kept and type(claim.value) is type(kept)
    str(claim.value).encode()


def test_describe_joins_the_spec_and_its_documents():
    """What a page was read for has its address, and so has a document; one that the spec does not name is silent."""
    spec = spec_with("epfl_hippocampus")
    page = b"<html><title>Data</title></html>"
    claims = describe(spec, {"documents/page.html": page, "documents/other.html": page, "documents/info.json": b"{"})
    address = "https://www.epfl.ch/labs/cvlab/data/data-em/"
    assert [(c.key, c.value, c.document, c.url, c.extractor) for c in claims if c.extractor != "spec"] == [
        ("/title", "Data", "documents/page.html", address, "html")
    ]
    of_spec = {claim.key: claim for claim in claims if claim.extractor == "spec"}
    assert {claim.document for claim in of_spec.values()} == {SPEC_DOCUMENT}
    assert (of_spec["/title"].value, of_spec["/title"].url) == (spec.title, "")
    keys = [claim.key for claim in spec.claims]
    assert [of_spec[f"/claims/{n}/key"].value for n in range(len(keys))] == keys
    for number, stated in enumerate(spec.claims):
        assert of_spec[f"/claims/{number}/by"].value == stated.by
        assert of_spec[f"/claims/{number}/by"].url == (stated.url or "")


def test_several_numbers_are_several_claims():
    spec = spec_with(claims=[{"key": "voxel_size_nm", "value": [20.0, 20.0, 22.0]}])
    assert [(c.key, c.value, c.unit) for c in describe(spec, {}) if "/value" in c.key] == [
        ("/claims/0/value/0", 20.0, "nm"),
        ("/claims/0/value/1", 20.0, "nm"),
        ("/claims/0/value/2", 22.0, "nm"),
    ]


def test_describe_reads_the_metadata_of_chunked_sources():
    """The address of a stored document is where it came from."""
    spec = spec_with("jrc_mus_nacc_2")
    stored = "documents/recon-2__em__fibsem-int16__s0__.zarray"
    claims = describe(spec, {stored: b'{"zarr_format": 2}'})
    found = [claim for claim in claims if claim.document == stored]
    url = "s3://janelia-cosem-datasets/jrc_mus-nacc-2/jrc_mus-nacc-2.zarr/recon-2/em/fibsem-int16/s0/.zarray"
    assert [(claim.key, claim.value, claim.url) for claim in found] == [("/zarr_format", 2, url)]
    assert found[0].extractor == "zarr"


def test_a_damaged_stored_document_is_named():
    with pytest.raises(Malformed, match=r"^empiar_11759/documents/entry.json, line 1 .*materialize again"):
        describe(spec_with("empiar_11759"), {"documents/entry.json": b"{"})


# -- asking for them


def served(script):
    return RawServer(lambda number, path, headers: script(path, headers))


def json_reply(value, status="200 OK", **headers):
    body = value if isinstance(value, bytes) else as_json(value)
    return reply(status, body, Content_Type="application/json", Content_Length=str(len(body)), **headers)


def page_reply(body=LOGIN, status="200 OK", **headers):
    return reply(status, body, Content_Type="text/html", Content_Length=str(len(body)), **headers)


def ask(url, *documents):
    spec = spec_with(documents=[{"path": "reply.json", "kind": "json", **d, "url": url + d["url"]} for d in documents])
    return fetch_documents(spec, HttpClient(QUICK))


GOOD = {"id": 9846137, "meta": {"imageName": "../../etc/x"}}


@pytest.mark.parametrize(
    "refusal",
    [
        page_reply(),
        page_reply(status="403 Forbidden"),
        json_reply({"message": "login"}, status="401 Unauthorized"),
        json_reply({"message": "Not logged in"}),
    ],
    ids=["B31 login page", "403", "401", "message with 200"],
)
def test_b31_a_session_is_begun_where_it_is_asked_for(refusal):
    """Only after a refusal; the cookie goes back to the server that gave it, once for several documents."""

    def script(path, headers):
        if path.startswith("/webclient/?"):
            both = page_reply(Set_Cookie="csrftoken=a-b; Path=/; Secure")
            return both.replace(b"Set-Cookie", b"Set-Cookie: sessionid=s1; HttpOnly\r\nSet-Cookie", 1)
        return json_reply(GOOD) if headers.get("cookie") == "sessionid=s1; csrftoken=a-b" else refusal

    with served(script) as server:
        first = [f"{server.url}/webclient/?experimenter=-1"]
        found, missing = ask(
            server.url,
            {"url": "/imgData/9846137/", "kind": "idr_image", "first": first},
            {"url": "/imgData/9846137/", "kind": "idr_image", "path": "again.json", "first": first},
        )
    assert (found, missing) == ({f"documents/{n}": as_json(GOOD) for n in ("reply.json", "again.json")}, {})
    assert [path for path, _ in server.requests] == [
        "/imgData/9846137/",
        "/webclient/?experimenter=-1",
        "/imgData/9846137/",
        "/imgData/9846137/",
    ]


def test_a_document_that_is_given_freely_needs_no_session():
    """`first` is not asked if it is not needed; what a reply names is never fetched (B34, B35)."""
    with served(lambda path, headers: json_reply(GOOD)) as server:
        found, _ = ask(server.url, {"url": "/imgData/9846137/", "kind": "idr_image", "first": [f"{server.url}/login"]})
    assert list(found) == ["documents/reply.json"]
    assert [path for path, _ in server.requests] == ["/imgData/9846137/"]
    assert "cookie" not in server.requests[0][1]


def test_a_cookie_goes_to_no_other_server():
    """A session at one server says nothing to another, and a redirect to another host does not carry it along."""
    with served(lambda path, headers: json_reply({}) if "cookie" in headers else page_reply()) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")

        def script(path, headers):
            if path == "/first":
                return page_reply(Set_Cookie="sessionid=secret")
            return reply("302 Found", Location=f"{elsewhere}/there", Content_Length="0") if path == "/moved" else LOGIN

        with served(script) as server:
            first = [f"{server.url}/first"]
            spec = spec_with(
                documents=[
                    {"path": "a.json", "kind": "json", "url": f"{other.url}/a", "first": first},
                    {"path": "b.json", "kind": "json", "url": f"{server.url}/moved", "first": first},
                ]
            )
            found, missing = fetch_documents(spec, HttpClient(QUICK))
    assert not found and set(missing) == {"documents/a.json", "documents/b.json"}
    assert len(other.requests) >= 3 and not any("cookie" in headers for _, headers in other.requests)


UNHAD = {
    "B31 message with 404": (json_reply({"message": "Image 1 not found"}, status="404 Not Found"), "Image 1 not found"),
    "B31 login page": (page_reply(), "web page where data was expected"),
    "B33 too large": (json_reply(b" " * (MAX_JSON_BYTES + 1)), "expected at most"),
    "cut": (reply("200 OK", b"{}", Content_Length="10"), "broke off"),
    "server error": (json_reply({}, status="500 Internal Server Error"), "500"),
    "B30 another entry": (json_reply({"EMPIAR-1": ENTRY}), "EMPIAR-11759 was asked for"),
}


@pytest.mark.parametrize(("answer", "words"), UNHAD.values(), ids=UNHAD)
def test_a_document_that_cannot_be_had_is_a_sentence_and_stops_nothing(answer, words):
    """The other documents are received all the same."""

    def script(path, headers):
        return json_reply({"EMPIAR-11759": ENTRY}) if path == "/good/EMPIAR-11759/" else answer

    with served(script) as server:
        found, missing = ask(
            server.url,
            {"url": "/bad/EMPIAR-11759/", "kind": "empiar_entry"},
            {"url": "/good/EMPIAR-11759/", "kind": "empiar_entry", "path": "good.json"},
        )
    assert list(found) == ["documents/good.json"]
    assert list(missing) == ["documents/reply.json"]
    assert words in missing["documents/reply.json"] and "\n" not in missing["documents/reply.json"]


def test_a_server_that_is_gone_is_a_sentence_for_each_document():
    with RawServer(lambda number, path, headers: b"") as server:
        url = server.url
    found, missing = ask(url, {"url": "/a"}, {"url": "/b", "path": "b.json"})
    assert not found and set(missing) == {"documents/reply.json", "documents/b.json"}


def test_pages_are_received_where_pages_are_asked_for():
    """As they came, byte for byte; only those that are wanted are asked for."""
    with served(lambda path, headers: page_reply()) as server:
        spec = spec_with(
            documents=[{"path": n, "kind": "html", "url": f"{server.url}/{n}"} for n in ("page.html", "other.html")]
        )
        assert fetch_documents(spec, HttpClient(QUICK), spec.documents[:1]) == ({"documents/page.html": LOGIN}, {})


@pytest.mark.parametrize("cookie", ["a", "=x", "a b=c", "", "\x01=2"], ids=repr)
def test_a_cookie_of_no_known_form_is_left_out(cookie):
    """A server's header can neither break the next request nor add to it."""

    def script(path, headers):
        return page_reply(Set_Cookie=cookie)

    with served(script) as server:
        _, missing = ask(server.url, {"url": "/a", "first": [f"{server.url}/first"]})
    assert "web page" in missing["documents/reply.json"]
    assert not any("cookie" in headers for _, headers in server.requests)


@pytest.mark.parametrize("kind", [*URLS, "json", "xml", "text", "html"])
@pytest.mark.parametrize(
    "raw",
    [b"\0", b"<a>", b"1", b'"x"', b"null", b"[[]]", b"\xff\xfe<\0a\0", b"<?xml version='1.0' encoding='utf-16'?><a/>"],
    ids=repr,
)
def test_nothing_of_a_library_leaks(kind, raw):
    """Whatever the bytes: believed, or refused with an error of ours in one line."""
    refusal = None
    try:
        require_document(document(kind), raw)
    except EmAssetsError as error:
        refusal = str(error)
    assert refusal is None or "\n" not in refusal
