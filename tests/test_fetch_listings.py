"""Index pages, names that become paths, and listings that leave something out."""

import contextlib
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em_assets.errors import Malformed
from em_assets.fetch.listings import (
    MAX_PART_BYTES,
    MAX_PATH_BYTES,
    IndexEntry,
    PathClaims,
    compare_with_count,
    parse_index,
    safe_relative_path,
)
from em_assets.store import LocalStore

BASE = "https://ftp.example.org/empiar/world_availability/11759/data/"

APACHE_PRE = b"""<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN"><html><head><title>Index of /data</title></head>
<body><a href="https://www.example.org/help">Help</a><h1>Index of /empiar/world_availability/11759/data</h1>
<pre><img src="/icons/blank.gif" alt="Icon "> <a href="?C=N;O=D">Name</a> <a href="?C=M;O=A">Last modified</a>
<hr><img src="/icons/back.gif" alt="[DIR]"> <a href="/empiar/world_availability/11759/">Parent Directory</a>  -
<a href="A%20slice%20%2B%201.dm3"><img src="/icons/x.gif"></a> <a href="A%20slice%20%2B%201.dm3">A slice + ..&gt;</a>
<img src="/icons/folder.gif" alt="[DIR]"> <a href="raw/">raw/</a>   2018-06-11 22:26    -
<img src="/icons/unknown.gif" alt="[   ]"> <a href='b&amp;c.xml.gz'>b&amp;c.xml.gz</a>  1.1M
<hr></pre><address>Apache Server at <a href="mailto:x@example.org">x</a></address></body></html>"""

APACHE_TABLE = b"""<html><body><table id="indexlist">
<tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=S;O=A">Size</a></th></tr>
<tr><td><a href="/empiar/world_availability/11759/">Parent Directory</a></td></tr>
<tr><td><A HREF=A%20slice%20%2B%201.dm3>A slice</A></td></tr><tr><td><a href="raw/">raw/</a></td></tr>
<tr><td><a class="x" href="b&amp;c.xml.gz">b</a></td></tr></table></body></html>"""

NGINX = b"""<html>\r\n<head><title>Index of /data/</title></head>\r\n<body>\r\n<h1>Index of /data/</h1><hr><pre>
<a href="../">../</a>\r\n<a href="A%20slice%20%2B%201.dm3">A slice + 1.dm3</a>  11-Jun-2018 22:26  30396050\r
<a href="raw/">raw/</a>  11-Jun-2018 22:26   -\r\n<a href="b&amp;c.xml.gz">b&amp;c.xml.gz</a>  1\r\n</pre><hr></html>"""

ABSOLUTE = b"""<ul><li><a href="/empiar/world_availability/11759/data/A%20slice%20%2B%201.dm3">A</a>
<li><a href="https://ftp.example.org/empiar/world_availability/11759/data/raw/">raw</a>
<li><a href="./b%26c.xml.gz">b</a></ul>"""

ROWS = [IndexEntry("A slice + 1.dm3", False), IndexEntry("raw", True), IndexEntry("b&c.xml.gz", False)]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(APACHE_PRE, id="Apache pre with icons as links"),
        pytest.param(APACHE_TABLE, id="Apache table"),
        pytest.param(NGINX, id="nginx"),
        pytest.param(ABSOLUTE, id="whole paths and addresses"),
    ],
)
def test_rows_are_names_and_kinds(page):
    """Sort links, the parent and what stands beside the list are no rows; names are decoded."""
    assert parse_index(page, BASE) == ROWS
    assert parse_index(page, BASE.removesuffix("/")) == ROWS


def test_an_empty_folder_has_no_rows():
    assert parse_index(b'<pre><a href="../">../</a></pre>', BASE) == []


@pytest.mark.parametrize(
    ("hrefs", "says"),
    [
        pytest.param(["../evil"], "outside the folder", id="B34 out by .."),
        pytest.param(["x/../../evil"], "outside the folder", id="B34 out by x/../.."),
        pytest.param(["%2e%2e/"], "outside the folder", id="B34 out by encoded .."),
        pytest.param(["/etc/passwd"], "outside the folder", id="B34 absolute"),
        pytest.param(["a/b"], "outside the folder", id="B34 not one name"),
        pytest.param(["a%2Fb"], "outside the folder", id="B34 encoded slash"),
        pytest.param(["..%2f..%2fetc%2fx"], "outside the folder", id="B34 encoded way out"),
        pytest.param(["a%0Ab"], "control characters", id="B34 newline"),
        pytest.param(["a&#10;b"], "control characters", id="B34 newline as an entity"),
        pytest.param(["a%00.tif"], "control characters", id="B34 NUL"),
        pytest.param(["a%FF.tif"], "not UTF-8", id="B34 not UTF-8"),
        pytest.param(["a.tif", "a.tif"], "twice", id="B34 twice"),
        pytest.param(["a.tif", "%61.tif"], "twice", id="B34 twice, encoded"),
        pytest.param(["a", "a/"], "twice", id="B34 a file and a folder"),
        pytest.param(["https://evil.example/x"], "another server", id="B35 other host"),
        pytest.param(["//evil.example/x"], "another server", id="B35 //evil"),
        pytest.param(["http://ftp.example.org/empiar/x"], "another server", id="B35 not encrypted"),
        pytest.param(["https://ftp.example.org:8443/x"], "another server", id="B35 other port"),
        pytest.param(["https://u:p@ftp.example.org/empiar/world_availability/11759/data/x"], "another", id="B35 login"),
        pytest.param(["file:///etc/passwd"], "another server", id="B35 file:"),
        pytest.param(["javascript:alert(1)"], "another server", id="B35 javascript:"),
        pytest.param(["http://169.254.169.254/x"], "another server", id="B35 private address"),
        pytest.param(["//[evil"], "not an address", id="B35 not an address"),
        pytest.param(["x?key=1"], "more than a name", id="B35 query"),
        pytest.param(["x#y"], "more than a name", id="B35 fragment"),
    ],
)
def test_a_row_that_leads_elsewhere_is_refused_by_name(hrefs, says):
    """The sentence names the row and the page."""
    rows = "".join(f'<a href="{href}">text</a>\n' for href in hrefs)
    with pytest.raises(Malformed, match=says) as caught:
        parse_index(f"<pre>{rows}</pre>".encode(), BASE)
    assert BASE in str(caught.value)


@pytest.mark.parametrize(
    ("page", "says"),
    [
        pytest.param(b"<html><body><h1>Login</h1></body></html>", "not a folder's index", id="a page of another kind"),
        pytest.param(b"", "not a folder's index", id="nothing"),
        pytest.param(b'<pre><a href="a>b">x</a></pre>', "cannot be read", id="a link cut by its own >"),
    ],
)
def test_a_page_that_is_no_index_is_refused(page, says):
    with pytest.raises(Malformed, match=says):
        parse_index(page, BASE)


@pytest.mark.parametrize("piece", [b"<a ", b"<!--", b'<a href="', b"<pre>", b"&#", b"<a href=x>", b"<", b"</a>"])
def test_hostile_pages_are_read_in_time(piece):
    """A megabyte of what makes other parsers slow: an answer or a refusal, both at once."""
    page = b"<pre>" + piece * (2**20 // len(piece))
    with contextlib.suppress(Malformed):
        assert parse_index(page, BASE) == []


@given(st.lists(st.tuples(st.text(min_size=1, max_size=20), st.booleans()), max_size=8, unique_by=lambda row: row[0]))
def test_what_a_server_encodes_is_read_back(rows):
    """Any name without slash and control characters comes back, or is refused; none changes."""
    links = "".join(
        f'<a href="{quote(name, safe="", errors="surrogatepass")}{"/" * folder}">x</a>' for name, folder in rows
    )
    try:
        found = parse_index(f"<pre>{links}</pre>".encode(), BASE)
    except Malformed:
        assert any(
            name in (".", "..") or any(not c.isprintable() or c in "/\N{REPLACEMENT CHARACTER}" for c in name)
            for name, _ in rows
        )
    else:
        assert [(entry.name, entry.is_folder) for entry in found] == rows


class TestPaths:
    @pytest.mark.parametrize(
        "name",
        [
            pytest.param("../../etc/x", id="B34 ../../etc/x"),
            pytest.param("/etc/x", id="B34 /etc/x"),
            pytest.param("//evil/x", id="B34 //evil/x"),
            pytest.param("a\\b", id="B34 backslash"),
            pytest.param("..\\..\\x", id="B34 backslashes out"),
            pytest.param("C:x", id="B34 drive"),
            pytest.param("a\nb", id="B34 newline"),
            pytest.param("a\x00b", id="B34 NUL"),
            pytest.param("a\x1b[2Jb", id="B34 escape"),
            pytest.param("a\u202egnp.tif", id="B34 turned around"),
            pytest.param("a\u2028b", id="B34 line separator"),
            pytest.param("a\udcff", id="B34 lone surrogate"),
            pytest.param("", id="B34 empty"),
            pytest.param("a/", id="B34 folder marker"),
            pytest.param("a//b", id="B34 empty part"),
            pytest.param("a/./b", id="B34 ."),
            pytest.param("a/..", id="B34 .."),
            pytest.param("x" * 300, id="B34 300 bytes"),
            pytest.param("é" * 150, id="B34 300 bytes in 150 letters"),
            pytest.param("/".join(["abcdefgh"] * 100), id="B34 deep"),
            pytest.param("x.tif.receipt.json", id="an own suffix"),
            pytest.param("x.tif.EM-PARTIAL", id="an own suffix, by case"),
            pytest.param("x.em-part/data", id="an own suffix of a folder"),
        ],
    )
    def test_a_name_that_must_not_be_a_path_is_refused(self, name):
        with pytest.raises(Malformed, match="such a file is not stored") as caught:
            safe_relative_path(name)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "path"),
        [
            ("a b/c+d,é#?*.tif", "a b/c+d,é#?*.tif"),
            pytest.param("-rf", "%2Drf", id="B34 -rf"),
            pytest.param("a/-rf", "a/%2Drf", id="B34 a/-rf"),
            pytest.param("CON", "%43ON", id="B34 CON"),
            pytest.param("aux.tif", "%61ux.tif", id="B34 aux.tif"),
            ("console", "console"),
            ("a.", "a%2E"),
            ("a ", "a%20"),
            ("100%.tif", "100%25.tif"),
            ("%2Drf", "%252Drf"),
            (".zattrs", ".zattrs"),
        ],
    )
    def test_only_what_is_dangerous_is_encoded(self, name, path):
        assert safe_relative_path(name) == path
        assert unquote(path) == name

    @given(st.text(alphabet=st.sampled_from("aA.-%/ \\25DcCoOnN\u0301é\n"), max_size=12))
    def test_every_accepted_name_is_a_path_inside_and_comes_back(self, name):
        """So no two names share a path, and the store takes it as it is."""
        try:
            path = safe_relative_path(name)
        except Malformed:
            return
        assert unquote(path) == name
        assert max(len(part.encode()) for part in path.split("/")) <= MAX_PART_BYTES
        assert len(path.encode()) <= MAX_PATH_BYTES
        inside = Path(LocalStore("/data").uri(path))
        assert inside.is_relative_to("/data") and ".." not in inside.parts

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            pytest.param("a.tif", "a.tif", id="B34 twice"),
            pytest.param("a.tif", "A.TIF", id="B34 case twins"),
            pytest.param("caf\u00e9.tif", "cafe\u0301.tif", id="B34 NFC and NFD"),
            pytest.param("CAF\u00c9", "cafe\u0301", id="B34 case and accents"),
            pytest.param("stra\u00dfe", "STRASSE", id="B34 sharp s"),
            pytest.param("a", "a/b", id="a file, then a folder"),
            pytest.param("a/b/c", "A", id="a folder, then a file"),
        ],
    )
    def test_twins_are_refused_by_name(self, first, second):
        """One would overwrite the other on some systems."""
        claims = PathClaims()
        claims.claim(first)
        with pytest.raises(Malformed, match="overwrite") as caught:
            claims.claim(second)
        assert repr(first) in str(caught.value) and repr(second) in str(caught.value)

    def test_neighbours_are_no_twins(self):
        claims = PathClaims()
        assert [claims.claim(name) for name in ["a/b", "a/c", "ab", "0/0/0", "0/0/1"]] == [
            "a/b",
            "a/c",
            "ab",
            "0/0/0",
            "0/0/1",
        ]


class TestCounts:
    def test_a_listing_that_lacks_a_pinned_file_says_which(self):
        """It is asked for all the same: servers were seen to leave out a file they still sent."""
        check = compare_with_count(["a", "c"], 3, ["a", "b", "c"])
        assert not check.agrees
        assert check.lacking == ("b",)
        assert str(check) == "the listing shows 2 files of the 3 its publisher counts, lacks 'b'"

    def test_a_listing_with_more_than_is_pinned_says_what(self):
        check = compare_with_count(["a", "b", "c", "d", "e"], None, ["a"])
        assert check.unpinned == ("b", "c", "d", "e")
        assert str(check) == "the listing shows 5 files, has 'b', 'c', 'd' and 1 more that nobody expected"

    @pytest.mark.parametrize(
        ("found", "count", "pinned", "agrees"),
        [
            (["a", "b"], 2, ["b", "a"], True),
            (["a", "b"], None, [], True),
            (["a", "b"], 2, [], True),
            (["a", "b"], 3, [], False),
            (["a", "b"], 3, ["a", "b"], False),
            ([], None, [], True),
        ],
    )
    def test_agreement(self, found, count, pinned, agrees):
        assert compare_with_count(found, count, pinned).agrees is agrees
