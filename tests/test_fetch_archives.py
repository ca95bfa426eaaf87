"""Archives from outside: everything below one folder, or nothing and a sentence that names the member."""

import gzip
import io
import os
import stat
import struct
import tarfile
import warnings
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from em_assets.errors import Malformed, Mismatch, Unavailable, Unsupported
from em_assets.fetch.archives import unpack_tar, unpack_zip

FILES = {"a/1.tif": b"1" * 300_000, "a/b/é #+.tif": b"2", "empty": b"", "3": os.urandom(3_000_000)}


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return packed.getvalue()


def tarred(*members: tuple[str | tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if not info.issym() and not info.islnk():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def member(name: str, kind: bytes, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.fixture
def unpack(tmp_path):
    """unpack(bytes) -> {path: content} of the folder; whatever fails must leave nothing behind."""
    target = tmp_path / "out" / "unpacked"

    def run(packed: bytes, **limits) -> dict[str, bytes]:
        path = tmp_path / "archive"
        path.write_bytes(packed)
        function = unpack_zip if limits.pop("as_zip", packed[:2] == b"PK") else unpack_tar
        try:
            names = function(path, target, **{"max_bytes": 10**8, **limits})
        except Exception:
            assert not [found for found in tmp_path.rglob("*") if found not in (path, target.parent)]
            raise
        found = {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()}
        assert sorted(names) == sorted(found)
        assert [p.name for p in target.parent.iterdir()] == [target.name]
        return found

    return run


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(zipped(FILES), id="zip deflated"),
        pytest.param(zipped(FILES, zipfile.ZIP_STORED), id="zip stored"),
        pytest.param(zipped({"a/": b"", "empty folder/": b"", **FILES}), id="zip with folders"),
        pytest.param(tarred(*FILES.items()), id="tar pax"),
        pytest.param(tarred(*FILES.items(), form=tarfile.GNU_FORMAT), id="tar gnu"),
        pytest.param(gzip.compress(tarred(*FILES.items())), id="tar.gz"),
        pytest.param(
            tarred((member(".", tarfile.DIRTYPE), b""), *((f"./{name}", data) for name, data in FILES.items())),
            id="tar of ./",
        ),
    ],
)
def test_everything_is_unpacked(unpack, packed):
    """Byte for byte."""
    assert unpack(packed) == FILES


def test_a_long_name_is_read(unpack):
    """The tar format keeps it in a header of its own."""
    name = "/".join(["d" * 90] * 3)
    assert unpack(tarred((name, b"x"))) == {name: b"x"}


def test_a_zip_with_a_comment_is_read(unpack):
    """Its end record is not at the end."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.comment = b"of the publisher" * 1000
        archive.writestr("x", b"x")
    assert unpack(packed.getvalue()) == {"x": b"x"}


def test_a_folder_that_exists_is_not_touched(unpack, tmp_path):
    """Nothing is mixed, nothing replaced."""
    kept = tmp_path / "folder" / "kept"
    kept.parent.mkdir()
    kept.write_bytes(b"x")
    (tmp_path / "archive").write_bytes(zipped(FILES))
    with pytest.raises(Mismatch, match="exists already"):
        unpack_zip(tmp_path / "archive", kept.parent, max_bytes=10**8)
    assert list(kept.parent.iterdir()) == [kept]


def test_a_zip64_is_read(unpack, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    packed = zipped({str(number): b"x" for number in range(10)})
    assert b"PK\x06\x06" in packed
    assert len(unpack(packed)) == 10


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99, 0.9999])
def test_a_zip_that_was_cut_is_incomplete(unpack, keep):
    """F2: a server that packs as it sends gives no length; only the end record tells."""
    packed = zipped(FILES)
    with pytest.raises(Malformed, match=r"archive is incomplete \(no end record"):
        unpack(packed[: int(len(packed) * keep)])


@pytest.mark.parametrize("packer", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_a_tar_that_was_cut_is_refused(unpack, packer):
    """F2: at any place, also between two members, where tarfile itself sees nothing."""
    plain = tarred(("a", b"x" * 1000), ("b", b"y" * 1000), form=tarfile.USTAR_FORMAT)
    whole = packer(plain)
    cuts = range(1, 2 * 1536 + 1, 256) if packer is bytes else range(10, len(whole))
    for cut in cuts:
        with pytest.raises(Malformed, match=r"cut|incomplete"):
            unpack(whole[:cut])
    for cut in (1536, 3072):
        with pytest.raises(Malformed, match="no end record"):
            unpack(packer(plain[:cut]))


def test_a_tar_with_a_damaged_header_is_refused(unpack):
    """Where tarfile would end in silence, as if nothing followed."""
    plain = bytearray(tarred(("a", b"x" * 1000), ("b", b"y" * 1000), form=tarfile.USTAR_FORMAT))
    plain[1536 + 5] ^= 1
    with pytest.raises(Malformed, match="no end record"):
        unpack(bytes(plain))


@pytest.mark.parametrize(
    ("packed", "says"),
    [
        pytest.param(b"", "not a zip", id="nothing"),
        pytest.param(b"<html>ERROR 12 No entries found</html>", "not a zip", id="F18 a page"),
        pytest.param(zipped(FILES)[:-1], "no end record", id="F2 one byte short"),
    ],
)
def test_what_is_no_zip_is_refused(unpack, packed, says):
    with pytest.raises(Malformed, match=says):
        unpack(packed, as_zip=True)


@pytest.mark.parametrize(
    "packed",
    [b"", b"<html>ERROR 12 No entries found</html>", b"\x1f\x8bxx", b"x" * 2000, gzip.compress(b"x" * 600, mtime=0)],
)
def test_what_is_no_tar_is_refused(unpack, packed):
    with pytest.raises(Malformed):
        unpack(packed)


def with_mode(mode: int) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        info = zipfile.ZipInfo("evil")
        info.create_system = 3
        info.external_attr = mode << 16
        archive.writestr(info, "/etc/passwd")
    return packed.getvalue()


def twice(*names: str) -> bytes:
    packed = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "w") as archive:
        warnings.simplefilter("ignore")
        for name in names:
            archive.writestr(name, "x")
    return packed.getvalue()


def patched(offset_in_entry: int, form: str, value: int, name: bytes = b"evil") -> bytes:
    """A zip of one member whose entry in the directory has another value."""
    packed = bytearray(zipped({name.decode(): b"x" * 1000}))
    entry = packed.rindex(b"PK\x01\x02")
    struct.pack_into(form, packed, entry + offset_in_entry, value)
    return bytes(packed)


def overlapping() -> bytes:
    """Two entries of the directory that lead to one body."""
    packed = bytearray(zipped({"evil": b"x" * 1000, "twin": b"x" * 1000}))
    second = packed.rindex(b"PK\x01\x02")
    struct.pack_into("<L", packed, second + 42, 0)
    return bytes(packed)


@pytest.mark.parametrize(
    ("packed", "kind", "says"),
    [
        pytest.param(zipped({"../evil": b"x"}), Malformed, r"'\.\./evil'", id="B36 ../"),
        pytest.param(zipped({"a/../../evil": b"x"}), Malformed, "evil", id="B36 a/../../"),
        pytest.param(zipped({"../evil/": b""}), Malformed, "evil", id="B36 ../ folder"),
        pytest.param(zipped({"/etc/evil": b"x"}), Malformed, "'/etc/evil'", id="B36 absolute"),
        pytest.param(zipped({"a\\evil": b"x"}), Malformed, "backslash", id="B36 backslash"),
        pytest.param(
            zipped({"evilX.tif": b"x"}).replace(b"evilX.tif", b"evil\0.tif"), Malformed, "cannot be shown", id="B36 NUL"
        ),
        pytest.param(with_mode(stat.S_IFLNK | 0o777), Malformed, "'evil' is a link", id="B36 symlink"),
        pytest.param(with_mode(stat.S_IFCHR | 0o666), Malformed, "'evil' is a link, a device", id="B36 device"),
        pytest.param(with_mode(stat.S_IFIFO | 0o666), Malformed, "'evil' is a link, a device", id="B36 fifo"),
        pytest.param(twice("evil", "evil"), Malformed, "'evil' and 'evil'", id="B36 duplicate"),
        pytest.param(twice("evil", "EVIL"), Malformed, "'evil' and 'EVIL'", id="B36 case twins"),
        pytest.param(twice("evil", "evil/x"), Malformed, "'evil/x'", id="B36 a file and a folder"),
        pytest.param(overlapping(), Malformed, "'evil' and 'twin' overlap", id="B36 overlapping"),
        pytest.param(patched(8, "<H", 1), Unsupported, "'evil' is encrypted", id="B36 encrypted"),
        pytest.param(patched(10, "<H", 12), Unsupported, "method 12", id="B36 bzip2"),
        pytest.param(patched(10, "<H", 99), Unsupported, "method 99", id="B36 unknown method"),
        pytest.param(patched(16, "<L", 1), Malformed, "member 'evil' .*CRC", id="B36 wrong CRC"),
        pytest.param(patched(24, "<L", 999), Malformed, "member 'evil'", id="B36 longer than said"),
        pytest.param(patched(24, "<L", 1001), Malformed, "member 'evil'", id="B36 shorter than said"),
        pytest.param(patched(42, "<L", 7), Malformed, "evil|damaged", id="B36 no local header"),
    ],
)
def test_a_zip_member_that_must_not_be_is_refused_by_name(unpack, packed, kind, says):
    """Nothing of the archive appears, inside the folder or outside."""
    with pytest.raises(kind, match=says):
        unpack(packed)


@pytest.mark.parametrize(
    ("info", "kind"),
    [
        pytest.param(tarfile.TarInfo("../evil"), Malformed, id="B37 ../"),
        pytest.param(tarfile.TarInfo("/etc/evil"), Malformed, id="B37 absolute"),
        pytest.param(tarfile.TarInfo("././../evil"), Malformed, id="B37 ./ and ../"),
        pytest.param(tarfile.TarInfo("evil\\x"), Malformed, id="B37 backslash"),
        pytest.param(member("../evil", tarfile.DIRTYPE), Malformed, id="B37 ../ folder"),
        pytest.param(member("evil", tarfile.SYMTYPE, linkname="/etc/passwd"), Malformed, id="B37 symlink"),
        pytest.param(member("evil", tarfile.LNKTYPE, linkname="good"), Malformed, id="B37 hard link"),
        pytest.param(member("evil", tarfile.CHRTYPE), Malformed, id="B37 device"),
        pytest.param(member("evil", tarfile.FIFOTYPE), Malformed, id="B37 fifo"),
        pytest.param(member("evil", b"Q"), Malformed, id="B37 unknown kind"),
        pytest.param(tarfile.TarInfo("GOOD"), Malformed, id="B37 case twins"),
        pytest.param(tarfile.TarInfo("good"), Malformed, id="B37 duplicate"),
        pytest.param(tarfile.TarInfo("good/evil"), Malformed, id="B37 a file and a folder"),
    ],
)
def test_a_tar_member_that_must_not_be_is_refused_by_name(unpack, info, kind):
    with pytest.raises(kind, match=r"evil|GOOD|'good' and 'good'"):
        unpack(tarred(("good", b"x"), (info, b"")))


def test_a_set_uid_bit_is_not_kept(unpack, tmp_path):
    """B37: nothing of a mode is."""
    unpack(tarred((member("tool", tarfile.REGTYPE, mode=0o6777), b"x")))
    mode = (tmp_path / "out/unpacked/tool").stat().st_mode
    assert not mode & (stat.S_ISUID | stat.S_ISGID | 0o111)


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
def test_bombs_are_not_unpacked(unpack, form):
    """B36, B37: by bytes and by members."""
    members = {str(number): bytes(10_000) for number in range(101)}
    packed = zipped(members) if form == "zip" else tarred(*members.items())
    packed = gzip.compress(packed) if form == "tar.gz" else packed
    with pytest.raises(Malformed, match="more than 1000000 bytes"):
        unpack(packed, max_bytes=1_000_000)
    with pytest.raises(Malformed, match="more than 100 members"):
        unpack(packed, max_members=100)
    assert len(unpack(packed, max_bytes=1_010_000, max_members=101)) == 101


def test_a_million_members_are_refused_before_they_are_read(unpack, monkeypatch):
    """B36: zipfile would make an object of each."""
    monkeypatch.setattr(zipfile, "ZipFile", None)
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *[0] * 9, 0, 0, 0, 0, 0, 0, 0)
    assert len(entry) == 46
    directory = entry * 10**6
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 7, 7, len(directory), 0, 0)
    with pytest.raises(Malformed, match="more than 100000 members"):
        unpack(directory + end)
    with pytest.raises(Malformed, match="46000000 bytes, which cannot be"):
        unpack(directory + end, max_members=1000)


def test_a_tar_header_of_a_gigabyte_is_not_read(unpack):
    """B37: tarfile reads long names at once; a gzip file of a megabyte may claim any size."""
    info = member("x", tarfile.XHDTYPE, size=2**30)
    packed = gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + bytes(2**22), 1)
    with pytest.raises(Malformed, match="1073741824 bytes"):
        unpack(packed)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    """F28."""
    (tmp_path / "archive").write_bytes(zipped(FILES))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match="could not be written"):
        unpack_zip(tmp_path / "archive", tmp_path / "file" / "out", max_bytes=10**8)


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_an_error_or_changes_nothing_outside(unpack, tmp_path_factory, form, data):
    """Bytes flipped anywhere: no stack trace of a library, no half of a folder."""
    members = {"a/1": b"1" * 500, "b": b"2" * 100}
    packed = zipped(members) if form == "zip" else tarred(*members.items(), form=tarfile.USTAR_FORMAT)
    packed = bytearray(gzip.compress(packed, mtime=0) if form == "tar.gz" else packed)
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "archive").write_bytes(packed)
    function = unpack_zip if form == "zip" else unpack_tar
    try:
        function(folder / "archive", folder / "out", max_bytes=10**6)
    except (Malformed, Unsupported):
        assert [found.name for found in folder.iterdir()] == ["archive"]
