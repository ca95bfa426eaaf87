"""Who writes a dataset on S3: of any number of runs at one moment exactly one, and it knows when it no longer does."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from datetime import timedelta

import pytest

from em_assets import pipeline
from em_assets.pipeline import job as job_module
from em_assets.pipeline import locking
from em_assets.pipeline.job import Job, writing
from em_assets.pipeline.locking import ClaimLost
from em_assets.progress import open_reporter
from em_assets.records import DatasetFolder, DatasetRecord, Heartbeat, now
from em_assets.store import LocalStore, ObjectStore, open_store
from fault_server import RawServer, reply
from faulty import Fault, FaultyServer
from small import materialize, publish, quick_settings, write_spec

AT_ONCE = 8
ROUNDS = 6


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    publish(folder)
    return folder


@pytest.fixture
def origin(published):
    with FaultyServer(published) as server:
        yield server


@pytest.fixture
def spec(tmp_path):
    """Nobody is asked for its voxels in most of these tests."""
    return write_spec(tmp_path / "specs", "http://127.0.0.1:9")


@pytest.fixture
def s3_root(moto_s3, monkeypatch):
    """On a server that, as S3 does, judges a condition and writes in one step; moto does so in two."""
    from moto.s3.responses import S3Response

    put, one_step = S3Response.put_object, threading.Lock()

    def put_in_one_step(self):
        with one_step:
            return put(self)

    monkeypatch.setattr(S3Response, "put_object", put_in_one_step)
    return moto_s3


@pytest.fixture
def unheeding_root(moto_s3, monkeypatch):
    """On a server that ignores conditions."""
    from moto.s3.responses import S3Response

    put = S3Response.put_object

    def put_anyway(self):
        self.headers = {
            name: value for name, value in self.headers.items() if name not in ("If-Match", "If-None-Match")
        }
        return put(self)

    monkeypatch.setattr(S3Response, "put_object", put_anyway)
    return moto_s3


@pytest.fixture
def refusing_root(moto_s3, monkeypatch):
    """On a server without conditional writes, which says so."""
    from moto.s3.responses import S3Response

    put = S3Response.put_object
    said = "<Error><Code>NotImplemented</Code><Message>A header is not implemented.</Message></Error>"

    def put_unconditionally(self):
        if self.headers.get("If-Match") or self.headers.get("If-None-Match"):
            return 501, {}, said
        return put(self)

    monkeypatch.setattr(S3Response, "put_object", put_unconditionally)
    return moto_s3


def silent(line: str) -> None:
    """Nobody listens."""


def new_job(spec, root, log=silent) -> Job:
    return Job(spec, quick_settings(root), open_store(root), log)


def fresh(root: str) -> str:
    return f"{root}/{uuid.uuid4().hex}"


def folder_of(spec, root) -> DatasetFolder:
    return DatasetFolder(open_store(root), spec.name)


def dead_record(job: Job) -> DatasetRecord:
    """What a writer left that died on another machine ten minutes ago."""
    heartbeat = Heartbeat(host="elsewhere", pid=7, run="dead", at=now() - timedelta(minutes=10))
    return job.record.with_status("saving-data").model_copy(update={"heartbeat": heartbeat})


def taken_over(record: DatasetRecord) -> DatasetRecord:
    """The same, by a living writer on another machine."""
    heartbeat = Heartbeat(host="elsewhere", pid=7, run="successor", at=now())
    return record.model_copy(update={"heartbeat": heartbeat})


def at_once(count: int, work) -> list:
    """What each of so many threads returned or raised, having begun at one moment."""
    barrier, results = threading.Barrier(count), [None] * count

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = work(number)
        except ClaimLost as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


class TestClaiming:
    @pytest.mark.slow
    @pytest.mark.parametrize("left", ["nothing", "interrupted", "dead writer"])
    def test_one_of_eight_gets_it(self, s3_root, spec, left):
        """All have seen the same: an empty place, a record, a dead writer's. One goes on, its name is on the record."""
        for _ in range(ROUNDS):
            root = fresh(s3_root)
            if left != "nothing":
                found = dead_record(new_job(spec, root))
                found = found.with_status("interrupted", "stopped") if left == "interrupted" else found
                folder_of(spec, root).write_record(found)
            jobs = [new_job(spec, root) for _ in range(AT_ONCE)]
            results = at_once(AT_ONCE, lambda number, jobs=jobs: jobs[number].set_status("saving-data"))
            winners = [job for job, result in zip(jobs, results, strict=True) if result is None]
            assert len(winners) == 1
            assert sum(isinstance(result, ClaimLost) for result in results) == AT_ONCE - 1
            assert folder_of(spec, root).read_record().heartbeat.run == winners[0].run

    def test_one_of_eight_that_also_look_gets_it(self, s3_root, spec):
        """Some find the winner's record already: they are refused as well."""
        for _ in range(ROUNDS):
            root = fresh(s3_root)
            results = at_once(AT_ONCE, lambda _, root=root: new_job(spec, root).set_status("saving-data"))
            assert results.count(None) == 1

    @pytest.mark.slow
    def test_one_of_eight_processes_gets_it(self, s3_root, spec, tmp_path):
        """For each of several datasets at once, whoever is first."""
        code = textwrap.dedent("""
            import sys
            from pathlib import Path
            from em_assets.datasets.loading import load_spec
            from em_assets.pipeline.job import Job
            from em_assets.pipeline.locking import ClaimLost
            from em_assets.settings import Settings
            from em_assets.store import open_store
            spec, roots = load_spec(Path(sys.argv[1])), sys.argv[2:]
            jobs = [Job(spec, Settings(root=root), open_store(root), print) for root in roots]
            print("ready", flush=True)
            sys.stdin.readline()
            for job in jobs:
                try:
                    job.set_status("saving-data")
                except ClaimLost:
                    print("lost", flush=True)
                else:
                    print(job.run, flush=True)
            sys.stdin.readline()
        """)
        roots = [fresh(s3_root) for _ in range(4)]
        command = [sys.executable, "-c", code, str(tmp_path / "specs/small.yaml"), *roots]
        children = [
            subprocess.Popen(command, env=os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(AT_ONCE)
        ]
        try:
            assert [child.stdout.readline() for child in children] == ["ready\n"] * AT_ONCE
            for child in children:
                child.stdin.write("\n")
                child.stdin.flush()
            said = [[child.stdout.readline().strip() for _ in roots] for child in children]
        finally:
            for child in children:
                child.kill()
                child.communicate()
        for root, answers in zip(roots, zip(*said, strict=True), strict=True):
            winners = [answer for answer in answers if answer != "lost"]
            assert winners == [folder_of(spec, root).read_record().heartbeat.run]

    def test_nothing_is_waited_for(self, s3_root, spec, monkeypatch):
        """The server's answer decides."""
        monkeypatch.setattr(locking, "sleep", lambda seconds: pytest.fail("slept"))
        new_job(spec, s3_root).set_status("saving-data")

    def test_who_was_too_late_changes_nothing(self, s3_root, spec):
        """Not even by the reason why it failed."""
        late = new_job(spec, s3_root)
        winner = new_job(spec, s3_root)
        winner.set_status("saving-data")
        for status in ("saving-data", "error", "complete"):
            with pytest.raises(ClaimLost, match=r"small: another run .* took it over"):
                late.set_status(status, "what this run thinks")
        assert folder_of(spec, s3_root).read_record() == winner.record

    def test_a_job_begun_while_another_lives_writes_nothing(self, s3_root, spec):
        """Also if it saw the very version that is there now."""
        winner = new_job(spec, s3_root)
        winner.set_status("saving-data")
        job = new_job(spec, s3_root)
        with pytest.raises(ClaimLost, match="took hold of it just before"):
            job.set_status("saving-data")
        assert folder_of(spec, s3_root).read_record() == winner.record


class TestHolding:
    def test_the_holder_goes_on_writing(self, s3_root, spec):
        """Beats, notes and the end each replace what it wrote before."""
        job = new_job(spec, s3_root)
        job.set_status("saving-data")
        job.beat()
        job.note(crop="middle")
        job.beat()
        job.set_status("interrupted", "enough")
        stored = folder_of(spec, s3_root).read_record()
        assert (stored.status, stored.status_reason) == ("interrupted", "enough")
        assert stored.additional_metadata["crop"] == "middle"

    @pytest.mark.parametrize("how", ["taken over", "removed", "unreadable"])
    def test_the_next_beat_notices(self, s3_root, spec, how):
        """What is there by then is left alone, whatever else this run still tries."""
        folder, job = folder_of(spec, s3_root), new_job(spec, s3_root)
        job.set_status("saving-data")
        path = folder.path("metadata.json")
        if how == "taken over":
            folder.write_record(taken_over(job.record))
        elif how == "removed":
            folder.store.delete(path)
        else:
            folder.store.write(path, b"{")
        before = dict(folder.store.list(""))
        with pytest.raises(ClaimLost):
            job.beat()
        for act in (
            job.beat,
            lambda: job.set_status("complete"),
            lambda: job.folder.write("coverage.parquet", b"x"),
            lambda: job.store.delete_all(spec.name),
            lambda: job.state.folder.store.delete(path),
            lambda: job.count_bytes(1),
        ):
            with pytest.raises((ClaimLost, locking.Overtaken)):
                act()
        assert dict(folder.store.list("")) == before

    def test_a_lost_reply_is_not_a_lost_claim(self, s3_root, spec, monkeypatch):
        """The write went through, its reply did not, and the repetition is refused: the record is ours all the same."""
        real, lost = ObjectStore.write_if_unchanged, []

        def lose_reply(store, path, data, version):
            written = real(store, path, data, version)
            if len(lost) < 3 and written is not None:
                lost.append(written)
                return None
            return written

        monkeypatch.setattr(ObjectStore, "write_if_unchanged", lose_reply)
        job = new_job(spec, s3_root)
        job.set_status("saving-data")
        job.set_status("interrupted", "enough")
        assert len(lost) == 3
        assert folder_of(spec, s3_root).read_record() == job.record

    def test_a_server_that_always_refuses_is_not_asked_for_ever(self, s3_root, spec, monkeypatch):
        """One sentence after some attempts."""
        asked = []
        monkeypatch.setattr(ObjectStore, "write_if_unchanged", lambda *given: asked.append(given))
        with pytest.raises(pipeline.job.Unavailable, match="5 times its server said that it had changed"):
            new_job(spec, s3_root).set_status("saving-data")
        assert len(asked) == locking.CONDITIONAL_WRITES


class TestRuns:
    @pytest.mark.slow
    def test_two_runs_at_once_make_one_result(self, s3_root, tmp_path, origin):
        """The one that comes too late waits for the other, and finds nothing left to do."""
        spec = write_spec(tmp_path / "specs", origin.url)
        alone, _ = materialize(spec, quick_settings(tmp_path / "store"))
        ends = at_once(2, lambda _: materialize(spec, quick_settings(s3_root)))
        assert [record.sha256 for record, _ in ends] == [alone.sha256] * 2
        assert sorted(len(result.fetched) for _, result in ends) == [0, 27]

    def test_a_run_that_is_overtaken_ends_while_it_downloads(self, s3_root, tmp_path, origin, monkeypatch):
        """Within a beat it asks for nothing more, writes nothing more, and says who has the dataset now."""
        monkeypatch.setattr(job_module, "HEARTBEAT_SECONDS", 0.2)
        origin.fail = lambda *_: Fault(bytes_per_second=20_000)
        spec = write_spec(tmp_path / "specs", origin.url)
        folder, ended = folder_of(spec, s3_root), []

        def run() -> None:
            reporter = open_reporter(silent, label="small")
            with pytest.raises(ClaimLost) as lost, writing(spec, quick_settings(s3_root), folder.store, silent) as job:
                job.fetch(job.state.keys, reporter)
            ended.append(str(lost.value))

        running = threading.Thread(target=run)
        running.start()
        end = time.monotonic() + 30
        while (record := folder.read_record()) is None or record.source_box is None or not origin.bytes_sent:
            assert time.monotonic() < end
            time.sleep(0.05)
        successor = taken_over(record)
        folder.write_record(successor)
        running.join(10)
        assert not running.is_alive()
        assert ended == ["small: another run (elsewhere, process 7) took it over from this run; run again."]
        requests = len(origin.log)
        time.sleep(0.5)
        assert len(origin.log) == requests
        assert folder.read_record() == successor
        assert not list(folder.store.list(folder.path("runs")))


class TestServersWithout:
    @pytest.mark.parametrize("server", ["refusing_root", "unheeding_root"])
    def test_the_last_to_claim_goes_on(self, request, server, spec, monkeypatch):
        """As before there were conditions: all write, wait and look; one sentence says so; nothing is left behind."""
        root = request.getfixturevalue(server)
        monkeypatch.setattr(locking, "REMOTE_CLAIM_SETTLES_SECONDS", 2.0)
        said: list[str] = []
        jobs = [new_job(spec, root, said.append) for _ in range(4)]
        begun = time.monotonic()
        results = at_once(4, lambda number: jobs[number].set_status("saving-data"))
        assert time.monotonic() - begun < 10  # a 501 is not tried again for 20 s
        assert results.count(None) == 1
        assert folder_of(spec, root).read_record().heartbeat.run == jobs[results.index(None)].run
        assert said == [f"small: {root} has no conditional writes; the run that claims it last goes on"] * 4
        assert [path for path, _ in open_store(root).list("")] == ["small/metadata.json"]

    def test_the_server_is_asked_once(self, s3_root):
        """By one write that it must refuse, which leaves nothing."""
        store = open_store(s3_root)
        assert store.heeds_conditions("small/.condition")
        store._is_refused = lambda *_: pytest.fail("asked again")
        assert store.heeds_conditions("small/.condition")
        assert list(store.list("")) == []

    def test_a_busy_server_is_asked_again(self, monkeypatch):
        """A 503 is no answer to the question."""
        slow_down = reply("503 Slow Down", b"", Content_Length="0")
        refused = reply("412 Precondition Failed", b"", Content_Length="0")
        with RawServer(lambda number, *_: slow_down if number < 3 else refused) as server:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
            assert open_store("s3://bucket/prefix").heeds_conditions("small/.condition")
            assert len(server.requests) == 3


def test_a_folder_knows_no_conditions(tmp_path, spec):
    """There the claim is written, and after a moment looked at, as ever; the store is the one that was given."""
    store = LocalStore(tmp_path / "store")
    job = Job(spec, quick_settings(store.root), store, silent)
    assert job.store is store
    job.set_status("saving-data")
    other = taken_over(job.record)
    DatasetFolder(store, spec.name).write_record(other)
    job.beat()
    assert json.loads(store.read("small/metadata.json"))["heartbeat"]["run"] == job.run
