"""One contract for folders and S3, and what only one of them can get wrong: disks, dead writers, dead servers."""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em_assets import store as store_module
from em_assets.errors import Malformed, Unavailable, Unsupported
from em_assets.store import PARTIAL_SUFFIX, LocalStore, ObjectStore, open_store, process_is_alive

ROOT = Path(__file__).parents[1]
BUCKET = "em-data"
ODD_NAMES = [
    "a b",
    "a+b",
    "a%20b",
    "a%2fb",
    "a%",
    "a=b&c",
    "a#b?c",
    "é",
    "a'b\"c",
    "a\\b",
    "a;b:c@d",
    "*",
    "~",
    ".hidden",
    "a..b",
]
BAD_PATHS = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../../x",
    "a/..",
    "a//b",
    "a/",
    "./a",
    "a/./b",
    "a\nb",
    "a\0b",
    "a\x7f",
]


@pytest.fixture(scope="session")
def s3_endpoint():
    """An S3 server of our own on loopback, with one bucket."""
    server_module = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket=BUCKET)
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(monkeypatch):
    """Credentials by the standard variables. Without them the client would ask the cloud's metadata service."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


@pytest.fixture
def s3_root(s3_endpoint, aws, monkeypatch, request):
    """A prefix of its own for each test."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    return f"s3://{BUCKET}/tests/{abs(hash(request.node.nodeid))}"


class StoreContract:
    """What both kinds of store promise. A subclass gives the fixture `store`."""

    @pytest.fixture
    def store(self):
        raise NotImplementedError

    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 40_000], ids=["empty", "one byte", "10 MB"])
    def test_what_is_written_is_read(self, store, data):
        """The bytes come back as they were, with their size."""
        store.write("a/b/object.bin", data)
        assert store.read("a/b/object.bin") == data
        assert store.size_bytes("a/b/object.bin") == len(data)

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_any_bytes_are_written(self, store, kind):
        """A buffer need not be copied by the caller first."""
        store.write("a", kind(b"content"))
        assert store.read("a") == b"content"

    def test_a_second_write_replaces_the_first(self, store):
        """The object is the new one, whole, also where it is shorter."""
        store.write("a", b"long content")
        store.write("a", b"new")
        assert store.read("a") == b"new"

    @pytest.mark.parametrize(
        ("start", "length", "expected"),
        [(0, 4, b"0123"), (6, 4, b"6789"), (6, 100, b"6789"), (9, 1, b"9"), (10, 5, b""), (50, 5, b""), (3, 0, b"")],
    )
    def test_a_range_ends_where_the_object_does(self, store, start, length, expected):
        """`length` bytes from `start`, fewer at the end, none beyond it."""
        store.write("a", b"0123456789")
        assert store.read_range("a", start, length) == expected

    def test_a_range_of_an_empty_object_is_empty(self, store):
        """No bytes, no error."""
        store.write("a", b"")
        assert store.read_range("a", 0, 10) == b""

    @pytest.mark.parametrize(("start", "length"), [(-1, 4), (0, -1)])
    def test_a_negative_range_is_refused(self, store, start, length):
        """It would mean something else in each kind of store."""
        store.write("a", b"0123456789")
        with pytest.raises(ValueError, match="not a range"):
            store.read_range("a", start, length)

    def test_a_huge_length_costs_no_memory(self, store):
        """The rest of an object may be asked for with any length."""
        store.write("a", b"0123456789")
        assert store.read_range("a", 5, 2**40) == b"56789"

    @pytest.mark.parametrize("path", ["none", "folder/none", "folder", "folder/object/below"])
    def test_an_absent_object_is_absent(self, store, path):
        """Also where the name is a folder's, or lies below another object's."""
        store.write("folder/object", b"x")
        for length in (0, 4):
            with pytest.raises(FileNotFoundError) as caught:
                store.read_range(path, 0, length)
        with pytest.raises(FileNotFoundError) as caught:
            store.read(path)
        assert path in str(caught.value)
        assert "\n" not in str(caught.value)
        assert store.size_bytes(path) is None
        store.delete(path)
        assert store.read("folder/object") == b"x"

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_odd_names_stay_as_they_are(self, store, name):
        """A name is neither decoded nor encoded: what was written under it is read and listed under it."""
        path = f"folder {name}/{name}"
        store.write(path, name.encode())
        assert store.read(path) == name.encode()
        assert list(store.list(f"folder {name}")) == [(path, len(name.encode()))]
        assert store.uri(path) == f"{store.uri('')}/{path}"
        store.delete(path)
        assert store.size_bytes(path) is None

    def test_names_that_decode_to_each_other_are_two(self, store):
        """`a%20b`, `a b` and `a+b` are three objects."""
        for name in ("a b", "a%20b", "a+b"):
            store.write(name, name.encode())
        assert {path: store.read(path).decode() for path, _ in store.list("")} == {
            n: n for n in ("a b", "a%20b", "a+b")
        }

    @pytest.mark.parametrize("path", BAD_PATHS)
    def test_nothing_outside_the_store_is_touched(self, store, path):
        """A path that could lead out, or that has two spellings, is refused by every operation."""
        store.write("a", b"x")
        for operation in (store.read, store.delete, store.size_bytes, store.delete_all, lambda p: store.write(p, b"x")):
            with pytest.raises(ValueError, match="not a path inside the store"):
                operation(path)
        if path:
            with pytest.raises(ValueError, match="not a path inside the store"):
                list(store.list(path))
        assert list(store.list("")) == [("a", 1)]

    def test_a_listing_is_in_path_order(self, store):
        """One order for both kinds of store, in which a folder comes where its paths do."""
        paths = ["b", "a/z", "a/b/c", "a-b", "a.b", "a/b-c", "a0", "aa/x", "A", "é", "a/b.json", "z/0/1"]
        for path in paths:
            store.write(path, path.encode())
        assert list(store.list("")) == [(path, len(path.encode())) for path in sorted(paths)]

    def test_a_prefix_is_a_folder(self, store):
        """`a` lists what is below `a/`, not what begins with it, and not an object of that name."""
        for path in ("a/1", "a/b/2", "ab/3", "a-4", "c"):
            store.write(path, b"x")
        assert [path for path, _ in store.list("a")] == ["a/1", "a/b/2"]
        assert [path for path, _ in store.list("a/b")] == ["a/b/2"]
        assert list(store.list("c")) == []
        assert list(store.list("none")) == []

    def test_a_folder_is_deleted_whole(self, store):
        """Everything below goes, neighbours with similar names stay, and twice is as good as once."""
        for path in ("a/1", "a/b/2", "a/b/c/3", "ab/3", "a-4"):
            store.write(path, b"x")
        store.delete_all("a")
        store.delete_all("a")
        store.delete_all("none")
        assert [path for path, _ in store.list("")] == ["a-4", "ab/3"]

    def test_removing_partials_leaves_objects(self, store):
        """Tidying up after killed writers never takes a finished object."""
        store.write("a/1", b"x")
        store.remove_partials("a")
        store.remove_partials("none")
        store.remove_partials("")
        assert list(store.list("")) == [("a/1", 1)]

    def test_writers_and_readers_do_not_meet_halfway(self, store):
        """While two threads rewrite an object, every reader gets one version whole, and the size fits one."""
        versions = [bytes([n]) * (200_000 + n) for n in range(4)]
        store.write("a", versions[0])
        stop = time.monotonic() + 1.5

        def rewrite(first):
            n = first
            while time.monotonic() < stop:
                store.write("a", versions[n % 4])
                n += 1

        writers = [threading.Thread(target=rewrite, args=(n,)) for n in (1, 2)]
        for writer in writers:
            writer.start()
        reads = 0
        while time.monotonic() < stop:
            assert store.read("a") in versions
            assert [path for path, _ in store.list("")] == ["a"]
            reads += 1
        for writer in writers:
            writer.join()
        assert reads > 5

    def test_threads_share_a_store(self, store):
        """Many threads write and read their own objects through one store."""
        errors = []

        def work(n):
            try:
                for i in range(5):
                    store.write(f"t{n}/{i}", f"{n}-{i}".encode())
                    assert store.read(f"t{n}/{i}") == f"{n}-{i}".encode()
            except BaseException as error:  # noqa: BLE001 - shown below
                errors.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert len(list(store.list(""))) == 40


class TestLocalStore(StoreContract):
    """A folder."""

    @pytest.fixture
    def store(self, tmp_path):
        return open_store(str(tmp_path / "root"))

    def test_nothing_is_made_by_opening(self, tmp_path):
        """A store that is only looked at leaves no folder behind, and knows the space there is."""
        store = LocalStore(tmp_path / "a" / "b")
        assert list(store.list("")) == []
        assert store.free_bytes() > 0
        assert list(tmp_path.iterdir()) == []

    def test_a_relative_root_is_where_it_was_opened(self, tmp_path, monkeypatch):
        """Changing the working directory later does not move the store."""
        monkeypatch.chdir(tmp_path)
        store = open_store("data")
        monkeypatch.chdir("/")
        store.write("a", b"x")
        assert (tmp_path / "data" / "a").read_bytes() == b"x"
        assert store.uri("a") == str(tmp_path / "data" / "a") == str(store.local_path("a"))

    def test_a_folder_elsewhere_may_be_linked_in(self, tmp_path):
        """A dataset on another disk, linked into the store, is listed like one of its own."""
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "1").write_bytes(b"x")
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "a").symlink_to(tmp_path / "elsewhere")
        assert list(LocalStore(tmp_path / "root").list("")) == [("a/1", 1)]

    def test_a_link_in_a_circle_ends(self, tmp_path):
        """The listing of a folder that holds itself is an error, not endless."""
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
        with pytest.raises(Unavailable, match="could not be listed"):
            list(LocalStore(tmp_path).list(""))

    def test_a_file_in_the_way_is_named(self, tmp_path):
        """Where a folder should be and a file is, the write fails in a sentence and leaves nothing."""
        (tmp_path / "a").write_bytes(b"x")
        with pytest.raises(Unavailable, match="could not be written") as caught:
            LocalStore(tmp_path).write("a/b", b"x")
        assert str(tmp_path / "a" / "b") in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_a_folder_in_the_way_is_named(self, tmp_path):
        """Where an object should be and a folder is, nothing of the try is left behind."""
        (tmp_path / "a" / "b").mkdir(parents=True)
        with pytest.raises(Unavailable, match="could not be written"):
            LocalStore(tmp_path).write("a", b"x")
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_a_name_too_long_for_the_disk_is_named(self, tmp_path):
        """What the file system does not take is an error of ours, on reading and on writing."""
        store = LocalStore(tmp_path)
        with pytest.raises(Unavailable, match="File name too long"):
            store.write("x" * 300, b"x")
        with pytest.raises(Unavailable, match="File name too long"):
            store.read("x" * 300)

    def test_a_disk_that_cannot_be_read_is_named(self, tmp_path, monkeypatch):
        """An input/output error is Unavailable with the file's name, not an absent object."""
        store = LocalStore(tmp_path)
        store.write("a", b"x")

        def broken(*_args, **_kwargs):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(Path, "read_bytes", broken)
        with pytest.raises(Unavailable, match=r"/a could not be read \(Input/output error\)"):
            store.read("a")

    def test_a_failing_sync_leaves_the_old_object(self, tmp_path, monkeypatch):
        """What the disk did not confirm is not put in place (F28)."""
        store = LocalStore(tmp_path)
        store.write("a", b"old")

        def broken(_descriptor):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(Unavailable, match=r"/a could not be written \(Input/output error\)"):
            store.write("a", b"new")
        assert store.read("a") == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_a_file_size_limit_leaves_the_old_object(self, tmp_path):
        """A write that the system stops in the middle: one sentence, no partial, the old version intact (F27)."""
        done = run_child(
            f"""
            import resource, signal
            from em_assets.store import LocalStore
            from em_assets.errors import Unavailable
            store = LocalStore({str(tmp_path)!r})
            store.write("a", b"old")
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
            try:
                store.write("a", bytes(5_000_000))
            except Unavailable as error:
                print(error)
            """
        )
        assert f"{tmp_path}/a could not be written (File too large): free space" in done
        assert (tmp_path / "a").read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    @pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="only root may mount a small disk")
    def test_a_full_disk_leaves_the_old_object(self, tmp_path):
        """At no space left: one sentence, no partial, the old version intact, and room again afterwards (F27)."""
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
        try:
            store = LocalStore(tmp_path)
            store.write("d/a", b"old" * 1000)
            with pytest.raises(Unavailable, match=r"could not be written \(No space left on device\): free space"):
                store.write("d/a", bytes(8_000_000))
            assert store.read("d/a") == b"old" * 1000
            assert [path.name for path in (tmp_path / "d").iterdir()] == ["a"]
            assert store.free_bytes() > 3_000_000
            store.write("d/b", bytes(2_000_000))
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)

    @pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="only root may mount a disk")
    def test_a_read_only_disk_is_named(self, tmp_path):
        """A disk that takes no writes still reads, and says in a sentence that it does not write (F28)."""
        LocalStore(tmp_path).write("d/a", b"old")
        for command in (["mount", "--bind"], ["mount", "-o", "remount,ro,bind"]):
            mounted = subprocess.run([*command, str(tmp_path), str(tmp_path)], capture_output=True, check=False)
            if mounted.returncode:
                pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode().strip()}")
        try:
            store = LocalStore(tmp_path)
            with pytest.raises(Unavailable, match=r"could not be written \(Read-only file system\)"):
                store.write("d/a", b"new")
            with pytest.raises(Unavailable, match=r"could not be deleted \(Read-only file system\)"):
                store.delete("d/a")
            with pytest.raises(Unavailable, match=r"could not be deleted \(Read-only file system\)"):
                store.delete_all("d")
            assert store.read("d/a") == b"old"
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)

    @pytest.mark.slow
    def test_a_killed_writer_leaves_old_or_new(self, tmp_path):
        """Killed at 20 random moments, a writer leaves one version whole; what else it leaves, tidying removes."""
        store = LocalStore(tmp_path)
        versions = [bytes([n]) * 3_000_000 for n in range(5)]
        store.write("d/a", versions[0])
        partials = 0
        for delay in range(20):
            child = start_child(
                f"""
                from em_assets.store import LocalStore
                store = LocalStore({str(tmp_path)!r})
                versions = [bytes([n]) * 3_000_000 for n in range(5)]
                print("ready", flush=True)
                while True:
                    for data in versions:
                        store.write("d/a", data)
                """
            )
            assert child.stdout.readline() == "ready\n"
            time.sleep(0.003 * delay + 0.001 * (delay % 7))
            store.remove_partials("")  # the writer lives: nothing of it may go
            assert child.poll() is None, child.communicate()
            child.send_signal(signal.SIGKILL)
            # not yet waited for, so to the system it is still there, as a zombie
            deadline = time.monotonic() + 5
            while process_is_alive(child.pid) and time.monotonic() < deadline:
                time.sleep(0.001)
            assert store.read("d/a") in versions
            assert [path for path, _ in store.list("")] == ["d/a"]
            partials += len(list(tmp_path.rglob(f"*{PARTIAL_SUFFIX}")))
            store.remove_partials("d")
            assert [path.name for path in (tmp_path / "d").iterdir()] == ["a"]
            with contextlib.suppress(BrokenPipeError):
                child.communicate()
        assert partials > 0, "no writer was caught in the middle: the test shows nothing"

    def test_partials_of_the_living_stay(self, tmp_path):
        """A dead process's partials go; a living one's stay, unless it has not touched them for an hour."""
        dead = start_child("")
        dead.communicate()
        names = {
            "living": f"a.{os.getpid()}.0f0f{PARTIAL_SUFFIX}",
            "another's": f"a.1.0f0f{PARTIAL_SUFFIX}",
            "dead": f"a.{dead.pid}.0f0f{PARTIAL_SUFFIX}",
            "old": f"b.{os.getpid()}.0f0f{PARTIAL_SUFFIX}",
            "odd": f"odd{PARTIAL_SUFFIX}",
            "huge": f"a.{'9' * 60}.0f0f{PARTIAL_SUFFIX}",
        }
        for name in names.values():
            (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / names["old"], (time.time() - 4000, time.time() - 4000))
        store = LocalStore(tmp_path)
        assert list(store.list("")) == []
        store.remove_partials("")
        assert {path.name for path in tmp_path.iterdir()} == {names["living"], names["another's"]}

    def test_deleting_a_folder_takes_partials_with_it(self, tmp_path):
        """`delete_all` leaves no folder, whoever's files are in it."""
        store = LocalStore(tmp_path)
        store.write("a/b/1", b"x")
        (tmp_path / "a" / f"x.{os.getpid()}.00{PARTIAL_SUFFIX}").touch()
        store.delete_all("a")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "folder",
        [
            pytest.param("a.tif.em-part", id="a download that was left"),
            pytest.param(f"a.tif.0f0f0f0f-{os.getpid()}-1-0f0f0f0f.em-part", id="one that goes on"),
            pytest.param("a.tif.0f0f0f0f-1-1-0f0f0f0f.em-part", id="one of another machine"),
            pytest.param(f"a.{os.getpid()}.0f0f{PARTIAL_SUFFIX}", id="an archive that is being unpacked"),
        ],
    )
    def test_what_lies_in_an_unfinished_folder_is_no_object(self, tmp_path, folder):
        """It is not listed and tidying leaves it, so that it can be gone on with; `delete_all` takes it."""
        store = LocalStore(tmp_path)
        store.write("cell/original/a.tif", b"whole")
        unfinished = tmp_path / "cell" / "original" / folder
        (unfinished / "deep").mkdir(parents=True)
        names = ["data", "journal.json", "deep/x", f"x.1.0f0f{PARTIAL_SUFFIX}"]
        for name in names:
            (unfinished / name).write_bytes(b"x")
        assert list(store.list("")) == list(store.list("cell/original")) == [("cell/original/a.tif", 5)]
        store.remove_partials("cell")
        assert all((unfinished / name).is_file() for name in names)
        store.delete_all("cell")
        assert list(tmp_path.iterdir()) == []

    def test_a_name_that_only_resembles_an_unfinished_folder_is_listed(self, tmp_path):
        """The suffix ends the name, and a file of that name is an object."""
        store = LocalStore(tmp_path)
        paths = ["a.em-part.d/x", "em-part/x", "x.em-part"]
        for path in paths:
            store.write(path, b"x")
        assert [path for path, _ in store.list("")] == paths

    def test_two_may_delete_the_same_folder(self, tmp_path):
        """Whoever comes second finds less to do, not an error."""
        store = LocalStore(tmp_path)
        for n in range(300):
            (tmp_path / "a" / str(n % 20)).mkdir(parents=True, exist_ok=True)
            (tmp_path / "a" / str(n % 20) / str(n)).touch()
        errors = []

        def delete():
            try:
                store.delete_all("a")
            except BaseException as error:  # noqa: BLE001 - shown below
                errors.append(error)

        threads = [threading.Thread(target=delete) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("stamp", [0, time.time() + 10 * 365 * 86400], ids=["1970", "in ten years"])
    def test_odd_clocks_do_no_harm(self, tmp_path, stamp):
        """Files from 1970 or from the future are read, listed and replaced like others (F36)."""
        store = LocalStore(tmp_path)
        store.write("a", b"old")
        os.utime(tmp_path / "a", (stamp, stamp))
        assert list(store.list("")) == [("a", 3)]
        store.remove_partials("")
        store.write("a", b"new")
        assert store.read("a") == b"new"

    @settings(max_examples=40, deadline=None)
    @given(tree=st.lists(st.lists(st.text("ab-.0/é", min_size=1, max_size=3), min_size=1, max_size=3), max_size=8))
    def test_whatever_is_written_is_listed(self, tmp_path_factory, tree):
        """For any set of paths, the listing is the sorted set of those that could be written."""
        store = LocalStore(tmp_path_factory.mktemp("tree"))
        written = set()
        for parts in tree:
            path = "/".join(parts)
            try:
                store.write(path, path.encode())
            except (ValueError, Unavailable):  # not a path; or a file where a folder is needed, or the other way
                continue
            written.add(path)
        assert list(store.list("")) == [(path, len(path.encode())) for path in sorted(written)]


class TestObjectStore(StoreContract):
    """S3, on a server of our own."""

    @pytest.fixture
    def store(self, s3_root):
        return open_store(s3_root)

    def test_it_has_no_place_on_this_machine(self, store, s3_root):
        """No local file, no free space to ask for; addresses are `s3://`."""
        assert store.local_path("a") is None
        assert store.free_bytes() is None
        assert store.uri("a/b c") == f"{s3_root}/a/b c"

    def test_a_prefix_is_optional(self, s3_root):
        """The whole bucket may be a store, however its address is written."""
        for root in (f"s3://{BUCKET}", f"s3://{BUCKET}/"):
            store = ObjectStore(root)
            store.write("whole", b"x")
            assert store.uri("whole") == f"s3://{BUCKET}/whole"
            assert store.read("whole") == b"x"
            store.delete("whole")

    @pytest.mark.parametrize("root", ["s3://", "s3:///prefix", "s3://bucket/../x", "s3://bucket/a//b"])
    def test_an_address_without_a_place_is_refused(self, root):
        """No bucket, or a prefix with two spellings: refused before anything is contacted."""
        with pytest.raises(Malformed, match=r"use s3://bucket/prefix\."):
            ObjectStore(root)

    @pytest.mark.slow
    def test_thousands_of_objects_are_listed_and_deleted(self, store):
        """More objects than a page and a bulk delete hold: all are listed, all go."""
        import obstore

        for n in range(1050):
            obstore.put(store._s3, f"many/{n:04d}", b"x")
        assert len(list(store.list("many"))) == 1050
        store.delete_all("many")
        assert list(store.list("many")) == []

    def test_a_conditional_write_needs_the_version_it_replaces(self, store):
        """Of two writers that saw the same version, the second is told; also for objects sent in parts."""
        for size in (10, 12_000_000):
            path = f"a{size}"
            assert store.version(path) is None
            assert store.write_if_unchanged(path, bytes(size), None)
            assert not store.write_if_unchanged(path, b"late", None)
            seen = store.version(path)
            assert store.write_if_unchanged(path, b"second", seen)
            assert not store.write_if_unchanged(path, b"late", seen)
            assert store.read(path) == b"second"

    def test_a_wrong_bucket_is_named(self, s3_root):
        """A bucket that is not there is Unavailable in a sentence, never an absent object."""
        store = ObjectStore("s3://no-such-bucket/x")
        for operation in (lambda: store.write("a", b"x"), lambda: store.read("a"), lambda: list(store.list(""))):
            with pytest.raises(Unavailable) as caught:
                operation()
            assert_one_sentence(caught.value, "s3://no-such-bucket/x", "NoSuchBucket", "check the bucket's name")

    @pytest.mark.parametrize("kind", ["nobody listens", "nobody answers"])
    def test_a_dead_server_is_known_in_bounded_time(self, aws, monkeypatch, kind):
        """Every operation on a server that is not there ends, with its address in the sentence."""
        monkeypatch.setattr(store_module, "RETRY_FOR", timedelta(seconds=0.5))
        monkeypatch.setattr(store_module, "SILENT_AT_MOST", timedelta(seconds=0.5))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            if kind == "nobody answers":
                listener.listen()
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            monkeypatch.setenv("AWS_ENDPOINT_URL", address)
            store = ObjectStore(f"s3://{BUCKET}/x")
            for operation in (
                lambda: store.write("a", b"x"),
                lambda: store.read("a"),
                lambda: store.read_range("a", 0, 1),
                lambda: store.size_bytes("a"),
                lambda: list(store.list("")),
                lambda: store.delete("a"),
            ):
                started = time.monotonic()
                with pytest.raises(Unavailable) as caught:
                    operation()
                assert time.monotonic() - started < 6
                assert_one_sentence(caught.value, f"s3://{BUCKET}/x", f"no answer from {address}")

    def test_the_default_bounds_end_within_half_a_minute(self):
        """Trying again and one more connection fit into the 30 s in which an absent server is to be known."""
        assert (store_module.RETRY_FOR + store_module.CONNECT_WITHIN).total_seconds() < 30

    def test_a_server_that_comes_back_is_used(self, s3_endpoint, aws, monkeypatch):
        """A server that is down for a moment costs a moment, not the run."""
        target = s3_endpoint.removeprefix("http://").split(":")
        with FlakyProxy((target[0], int(target[1])), refuse_first=3) as address:
            monkeypatch.setenv("AWS_ENDPOINT_URL", address)
            store = ObjectStore(f"s3://{BUCKET}/flaky")
            store.write("a", b"x")
            assert store.read("a") == b"x"

    @pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
    @pytest.mark.parametrize(
        "value", ["not an address", "127.0.0.1:9000", "ftp://x", "http://", "http://u:p@h", "http://a b"]
    )
    def test_an_endpoint_that_is_no_address_is_named(self, aws, monkeypatch, name, value):
        """A mistyped endpoint is a sentence that says which variable to correct."""
        monkeypatch.setenv(name, value)
        with pytest.raises(Malformed) as caught:
            ObjectStore(f"s3://{BUCKET}/x").write("a", b"x")
        assert_one_sentence(caught.value, f"{name} is {value!r}", "http(s)://host:port")

    def test_the_special_endpoint_wins(self, s3_endpoint, aws, monkeypatch):
        """AWS_ENDPOINT_URL_S3 is for S3, AWS_ENDPOINT_URL for everything."""
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_endpoint)
        store = ObjectStore(f"s3://{BUCKET}/special")
        store.write("a", b"x")
        assert store.read("a") == b"x"

    def test_a_public_bucket_is_read_without_credentials(self, s3_root, s3_endpoint, monkeypatch):
        """AWS_SKIP_SIGNATURE=true reads what is public, with wrong credentials set or none (F24)."""
        import boto3

        client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
        client.create_bucket(Bucket="public-data", ACL="public-read")
        client.put_object(Bucket="public-data", Key="a", Body=b"x", ACL="public-read")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        assert ObjectStore("s3://public-data").read("a") == b"x"


@pytest.mark.parametrize("pid", [0, -1, 10**30])
def test_no_process_has_an_impossible_number(pid):
    """What a damaged record holds is nobody, not a group of processes and not a crash."""
    assert not process_is_alive(pid)


def test_processes_live_until_they_end():
    """Running is alive; ended is not, waited for or not; another user's is."""
    child = start_child("input()", stdin=subprocess.PIPE)
    assert process_is_alive(child.pid)
    assert process_is_alive(os.getpid())
    assert process_is_alive(1)
    child.stdin.close()
    deadline = time.monotonic() + 10
    while process_is_alive(child.pid):  # a zombie until wait()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.wait()
    child.stdout.close()
    assert not process_is_alive(child.pid)


def assert_one_sentence(error, *parts):
    message = str(error)
    assert "\n" not in message
    assert len(message) < 500
    for part in parts:
        assert part in message


def start_child(code, stdin=None):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=stdin, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def run_child(code):
    child = start_child(code)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    return output


class FlakyProxy:
    """Forwards TCP connections to `target`, after having reset the first few."""

    def __init__(self, target, refuse_first):
        self._target, self._refuse = target, refuse_first
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open = []

    def __enter__(self):
        threading.Thread(target=self._serve, daemon=True).start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_):
        self._listener.close()
        for connection in self._open:
            connection.close()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._refuse > 0:
                    self._refuse -= 1
                    client.close()
                    continue
                server = socket.create_connection(self._target)
                self._open += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def test_a_forked_child_is_told_instead_of_waiting(moto_s3):
    """obstore's threads do not survive a fork: a child that inherits them gets a sentence, not a hang."""
    open_store(moto_s3).write("a", b"1")
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as child:
        forked = child.submit(store_reads_in_a_child, moto_s3)
        with pytest.raises(Unsupported, match="spawn or forkserver"):
            forked.result(timeout=30)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        assert child.submit(store_reads_in_a_child, moto_s3).result(timeout=60) == b"1"


def store_reads_in_a_child(root: str) -> bytes:
    return open_store(root).read("a")
