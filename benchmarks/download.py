"""The product against curl, aria2c, s5cmd, `aws s3 cp` and s3fs: one large file, and many small objects of a bucket.

    python benchmarks/download.py --quick
    python benchmarks/download.py --work ../benchmark --out download.md

nginx on loopback serves both, unlimited, at 20 MB/s per connection, and with 20 ms before each answer. Every client
runs as a whole command in a fresh process, in interleaved rounds; each result is compared by sha256. What is not
installed is reported as absent. README.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bucket import Bucket
from contest import PRODUCT, Contest, Row, against, machine, program, say, table, targets
from measure import Usage
from server import CannotServe, Nginx

Aim = tuple[str, Sequence[str], float]
"""(the peers in words, their names, the speed that is aimed at in multiples of the best of them)."""
HERE = Path(__file__).parent
BUCKET, FILE, OBJECTS, FEW = "bench", "large.bin", "objects/", "few/"
FILE_BYTES, COUNT, OBJECT_BYTES = 2_000_000_000, 5_000, 184_000
QUICK = {"file_bytes": 200_000_000, "count": 300, "rounds": 1}
LIMIT_BYTES_PER_SECOND = 20_000_000
LATENCIES_MS = [0.0, 20.0]
PACKAGES = ("em_assets", "urllib3", "obstore", "s3fs", "awscli", "s5cmd")
PEERS = ("curl", "aria2c -x16", "aria2c -x16, no preallocation", "s5cmd", "aws s3 cp", "s3fs")
ARIA2C = ("--no-conf", "--quiet", "--allow-overwrite=true", "--auto-file-renaming=false", "-x16", "-s16", "-k1M")


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that client and server end too
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="em_assets_benchmark_", dir=arguments.work) as scratch:
        try:
            report, all_right = _measure(arguments, Path(scratch))
        except CannotServe as error:
            print(error, file=sys.stderr)
            return 1
    print(report)
    if arguments.out is not None:
        arguments.out.write_text(report + "\n")
    return 0 if all_right else 1


def _measure(arguments: argparse.Namespace, scratch: Path) -> tuple[str, bool]:
    say("writing what is served")
    published = (arguments.work or scratch) / f"published_{arguments.file_bytes}_{arguments.count}"
    digests = _publish(published, arguments)
    report, reached, all_right = [machine(PACKAGES, arguments.rounds), ""], list[str](), True
    with Bucket(published, BUCKET) as bucket:
        for case in _cases(arguments, published, bucket, scratch, digests):
            rows = case.contest.run(arguments.rounds, arguments.repeats)
            report += [f"### {case.contest.title}", "", *table(rows, case.moved_bytes, case.absent), ""]
            reached += case.reached(rows)
            all_right &= all(row.is_right for row in rows)
    return "\n".join([*report, *targets(reached), SYNCS]), all_right


SYNCS = (
    "em_assets hashes (sha256) what it receives and syncs it; of the others only `curl + sha256sum` hashes, and none "
    "syncs. `cp` reads the published file from the page cache: what the disk's side alone takes."
)


@dataclass(frozen=True)
class Case:
    """A contest, and what of it is aimed at."""

    contest: Contest
    moved_bytes: int
    absent: dict[str, str]
    aims: list[Aim]

    def reached(self, rows: list[Row]) -> list[str]:
        return [against(rows, peers, target, f"{self.contest.title}: {what}") for what, peers, target in self.aims]


def _cases(
    arguments: argparse.Namespace, published: Path, bucket: Bucket, scratch: Path, digests: dict[str, str]
) -> Iterator[Case]:
    """Each with its server running while it is looked at."""
    for limit, name in ((0, "nothing limits"), (LIMIT_BYTES_PER_SECOND, "20 MB/s per connection")):
        with Nginx(
            published,
            scratch / f"nginx_{limit}",
            arguments.latency,
            bytes_per_second=limit,
            locations=bucket.locations,
            probe=f"{BUCKET}/{FEW}0",
        ) as server:
            for latency_ms in arguments.latency:
                line = f"{name}{f', +{latency_ms:g} ms' if latency_ms else ''}"
                stage = _Stage(arguments, published, server, server.url(latency_ms), scratch / "result", digests)
                if "file" in arguments.jobs:
                    yield stage.file(line, is_limited=bool(limit))
                if "objects" in arguments.jobs and not limit:
                    yield stage.objects(line)


@dataclass(frozen=True)
class _Stage:
    """Where contests are held: one server, one latency."""

    arguments: argparse.Namespace
    published: Path
    server: Nginx
    endpoint: str
    out: Path
    digests: dict[str, str]
    """sha256 of what is published, by key."""

    def file(self, line: str, *, is_limited: bool) -> Case:
        title = f"one file of {self.arguments.file_bytes / 1e9:g} GB, {line}"
        aims: list[Aim] = [("best peer", PEERS, 0.9), ("curl", ["curl"], 1.2)]
        if is_limited:
            aims = [("aria2c -x16", [name for name in PEERS if name.startswith("aria2c")], 1.0)]
        return self._case(title, FILE, self.arguments.file_bytes, aims, self._judge_file)

    def objects(self, line: str) -> Case:
        title = f"{self.arguments.count} objects of {OBJECT_BYTES / 1e3:g} kB, {line}"
        aims: list[Aim] = [("s5cmd", ["s5cmd"], 1.0), ("aws s3 cp", ["aws s3 cp"], 6.0), ("s3fs", ["s3fs"], 6.0)]
        return self._case(title, OBJECTS, self.arguments.count * OBJECT_BYTES, aims, self._judge_objects)

    def _case(
        self, title: str, key: str, moved_bytes: int, aims: list[Aim], judge: Callable[[str, Usage], str]
    ) -> Case:
        commands, absent = self._commands(key)
        few, _ = self._commands(FEW if key.endswith("/") else f"{FEW}0")
        Contest("warm-up", few, self.out, lambda *_: "right", self.server).warm_up()
        return Case(Contest(title, commands, self.out, judge, self.server), moved_bytes, absent, aims)

    def _commands(self, key: str) -> tuple[dict[str, list[str]], dict[str, str]]:
        """(commands, why the others are not there) for one object, or for all below a key that ends in `/`."""
        every = _folder_commands if key.endswith("/") else _file_commands
        commands, absent = {}, {}
        for client, words in every(self.endpoint, key, self.out, self.published).items():
            if client not in self.arguments.clients:
                continue
            found = program(words[0])
            if found is None:
                absent[client] = f"{words[0]} is not installed"
            elif client == "s3fs" and importlib.util.find_spec("s3fs") is None:
                absent[client] = "s3fs is not installed"
            else:
                commands[client] = [found, *words[1:]]
        return commands, absent

    def _judge_file(self, client: str, usage: Usage) -> str:
        file = self.out / FILE
        return "right" if file.is_file() and _sha256(file) == self.digests[FILE] else "WRONG"

    def _judge_objects(self, client: str, usage: Usage) -> str:
        found = {_sha256(file) for file in self.out.rglob("*") if file.is_file()}
        # by content: tools differ in where below the target they put what follows the prefix
        return "right" if found == {self.digests[key] for key in self.digests if key.startswith(OBJECTS)} else "WRONG"


def _file_commands(endpoint: str, key: str, out: Path, published: Path) -> dict[str, list[str]]:
    url, target = f"{endpoint}/{BUCKET}/{key}", out / Path(key).name
    curl = ["curl", "-sS", "--fail", "-o", str(target), url]
    return {
        PRODUCT: _python(PRODUCT, endpoint, key, out),
        "curl": curl,
        "curl + sha256sum": ["sh", "-c", f"{shlex.join(curl)} && sha256sum {shlex.quote(str(target))}"],
        "aria2c -x16": ["aria2c", *ARIA2C, "--file-allocation=falloc", "-d", str(out), "-o", target.name, url],
        "aria2c -x16, no preallocation": [
            *("aria2c", *ARIA2C, "--file-allocation=none", "-d", str(out), "-o", target.name, url)
        ],
        "s5cmd": [*_s5cmd(endpoint), f"s3://{BUCKET}/{key}", str(target)],
        "aws s3 cp": [*_aws(endpoint), f"s3://{BUCKET}/{key}", str(target)],
        "s3fs": _python("s3fs", endpoint, key, out),
        "cp": ["cp", str(published / BUCKET / key), str(target)],
    }


def _folder_commands(endpoint: str, key: str, out: Path, published: Path) -> dict[str, list[str]]:
    return {
        PRODUCT: _python(PRODUCT, endpoint, key, out),
        "s5cmd": [*_s5cmd(endpoint), f"s3://{BUCKET}/{key}*", f"{out}/"],
        "aws s3 cp": [*_aws(endpoint), f"s3://{BUCKET}/{key}", f"{out}/", "--recursive"],
        "s3fs": _python("s3fs", endpoint, key, out),
        "cp": ["cp", "-r", str(published / BUCKET / key), str(out)],
    }


def _s5cmd(endpoint: str) -> list[str]:
    return ["s5cmd", "--no-sign-request", "--endpoint-url", endpoint, "--log", "error", "cp"]


def _aws(endpoint: str) -> list[str]:
    return ["aws", "--no-sign-request", "--endpoint-url", endpoint, "--region", "us-east-1", "s3", "cp", "--quiet"]


def _python(client: str, endpoint: str, key: str, out: Path) -> list[str]:
    return [sys.executable, str(HERE / "download_clients.py"), client, endpoint, BUCKET, key, str(out)]


CLIENTS = tuple(dict.fromkeys([*_file_commands("", "", Path(), Path()), *_folder_commands("", "", Path(), Path())]))


# What is served


def _publish(folder: Path, arguments: argparse.Namespace) -> dict[str, str]:
    """sha256 of every object by key; written if this work folder does not have it yet."""
    marker = folder / "digests.json"
    if marker.is_file():
        return json.loads(marker.read_text())
    bucket, digests = folder / BUCKET, {}
    wanted = {f"{OBJECTS}{n // 100}/{n // 10 % 10}/{n % 10}": OBJECT_BYTES for n in range(arguments.count)}
    wanted |= {f"{FEW}{n}": OBJECT_BYTES for n in range(5)} | {FILE: arguments.file_bytes}
    for key, size_bytes in wanted.items():
        file = bucket / key
        file.parent.mkdir(parents=True, exist_ok=True)
        digests[key] = _write_random(file, size_bytes)
    marker.write_text(json.dumps(digests))
    return digests


def _write_random(file: Path, size_bytes: int) -> str:
    """Every megabyte differs from the others, so that no part can stand in for another one."""
    digest = hashlib.sha256()
    with file.open("wb") as opened:
        for start in range(0, size_bytes, 2**20):
            data = os.urandom(min(2**20, size_bytes - start))
            digest.update(data)
            opened.write(data)
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file-bytes", type=int, default=FILE_BYTES, help="of the one file (%(default)s)")
    parser.add_argument("--count", type=int, default=COUNT, help=f"objects of {OBJECT_BYTES} bytes (%(default)s)")
    parser.add_argument("--jobs", nargs="+", choices=("file", "objects"), default=["file", "objects"])
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument(
        "--latency", nargs="+", type=float, default=LATENCIES_MS, metavar="MS", help="before each answer"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=0, help="of a run that other processes disturbed (%(default)s)")
    parser.add_argument("--work", type=Path, help="keeps what is served for the next run (default: a temp folder)")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    parser.add_argument("--quick", action="store_true", help="200 MB, 300 objects, one round, unless given")
    arguments = parser.parse_args()
    if arguments.quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
