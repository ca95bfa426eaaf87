"""The block service under load: concurrent clients for a minute, every answer checked, memory and latency reported.

    .venv/bin/python benchmarks/serve_soak.py [--clients 32] [--seconds 60] [--edge 512] [--work FOLDER]

The service runs in a process of its own on a drawn EM-like volume (zstd, 64^3 chunks in 256^3 shards), the clients in
another one. Each asks for random unaligned 128^3 blocks, now and then for another level, coding, part, tag, list, or
for nonsense; a block's header must carry the digest of its bytes, and every 50th is compared with what Python reads.
Exits with 1 if a single answer was wrong, or if memory grew. Latency is a client's: with more clients than cores most
of it is waiting for a turn, so p50 is about clients / throughput.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
NAME = "soak"
SHAPE = 128
SERVE = "from em_assets.serve import serve, Limits; serve(port=0, limits=Limits(requests={requests}))"
BAD = ("", "start=1", "start=-1,0,0", "start=0,0,0&pad=round", "start=0,0,0&start=0,0,0", "start=0,0,0&shape=9999")
COMPARED_EVERY = 50
GROWTH_ALLOWED = 1.10
"""Of the mean memory in the last quarter over that in the second: the first is still filling caches."""


@dataclass
class Seen:
    """What one client, or all of them, met with."""

    seconds: list[float] = field(default_factory=list)
    """Of each whole 128^3 block at level 0, as .npy without a coding: the same work each time."""
    kinds: Counter[str] = field(default_factory=Counter)
    received_bytes: int = 0
    errors: list[str] = field(default_factory=list)


def main() -> None:
    asked = parse_arguments()
    work = Path(asked.work).absolute()
    make_store(work, asked.edge)
    environment = {
        **os.environ,
        "EM_ASSETS_ROOT": str(work / "data"),
        "EM_ASSETS_DATASETS": str(work / "specs"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-u", "-c", SERVE.format(requests=2 * asked.clients)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r":(\d+)/", process.stdout.readline())[1])
        memory = Memory(process.pid)
        memory.start()
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            seen = pool.submit(clients, port, asked.clients, asked.seconds, asked.edge, str(work)).result()
        memory.stop()
        refused = metric(port, "em_assets_blocks_refused_total")
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    finally:
        process.kill()
    sys.exit(report(seen, memory, asked, refused, code))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--edge", type=int, default=512, help="voxels along each side of the volume")
    parser.add_argument("--work", default="build/serve_soak", help="where the volume is kept for the next time")
    return parser.parse_args()


def make_store(work: Path, edge: int) -> None:
    """A finished dataset of one drawn volume, if the folder has none of this size."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from em_assets.pipeline import listed_record
    from em_assets.records import DatasetFolder
    from em_assets.sample.texture import draw
    from em_assets.standardize.finish import write_coverage
    from em_assets.store import LocalStore
    from memory_reader import make_spec, standardize

    (work / "specs").mkdir(parents=True, exist_ok=True)
    store = LocalStore(work / "data")
    record = DatasetFolder(store, NAME).read_record()
    if record is not None and record.volume_shape == (edge,) * 3:
        return
    store.delete_all(NAME)
    shape = (edge,) * 3
    spec = make_spec(shape, shard=256, chunk=64).model_copy(update={"name": NAME})
    made = standardize(spec, draw(shape, seed=1), store)
    write_coverage(made.folder, spec, made.level0)
    update = {"local_paths": {"volume": str(made.path)}, "volume_shape": shape}
    made.folder.write_record(listed_record(spec).with_status("complete", **update))


def clients(port: int, count: int, seconds: float, edge: int, work: str) -> Seen:
    """All of them, in threads of this process."""
    sys.path.insert(0, str(ROOT))
    import em_assets.blocks as em
    from em_assets.settings import Settings

    volume = em.open(NAME, settings=Settings(root=f"{work}/data", datasets=f"{work}/specs"))
    until = time.monotonic() + seconds
    each = [Seen() for _ in range(count)]
    threads = [
        threading.Thread(
            target=client,
            args=(number,),
            kwargs={"port": port, "until": until, "edge": edge, "volume": volume, "seen": one},
        )
        for number, one in enumerate(each)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = Seen()
    for one in each:
        whole.seconds += one.seconds
        whole.kinds += one.kinds
        whole.received_bytes += one.received_bytes
        whole.errors += one.errors
    return whole


def client(number: int, *, port: int, until: float, edge: int, volume: object, seen: Seen) -> None:
    generator = np.random.default_rng(number)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while time.monotonic() < until:
        try:
            one_request(connection, generator, edge, volume, seen)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what the soak looks for
            seen.errors.append(f"{type(error).__name__}: {error}")
            connection.close()


def one_request(connection, generator: np.random.Generator, edge: int, volume, seen: Seen) -> None:
    start = tuple(int(n) for n in generator.integers(0, edge - SHAPE + 1, 3))
    path = f"/v1/datasets/{NAME}/block?start={start[0]},{start[1]},{start[2]}&shape={SHAPE}"
    kind = generator.choice(
        ["npy", "raw", "gzip", "zstd", "level", "part", "tag", "head", "list", "bad"],
        p=[0.6, 0.06, 0.06, 0.06, 0.06, 0.04, 0.03, 0.03, 0.03, 0.03],
    )
    seen.kinds[str(kind)] += 1
    if kind == "npy":
        body, headers = whole_block(connection, path, seen)
        require(headers["x-em-digest"] == digest_of_npy(body), f"{path}: the digest is not that of the bytes")
        if seen.kinds["npy"] % COMPARED_EVERY == 1:
            require(body == volume.read(start, shape=SHAPE).npy(), f"{path}: not what Python reads")
    elif kind == "raw":
        require(len(ask(connection, f"{path}&format=raw", 200, seen)[0]) == SHAPE**3, "raw: wrong length")
    elif kind in ("gzip", "zstd"):
        body, headers = ask(connection, path, 200, seen, headers={"Accept-Encoding": str(kind)})
        require(headers["content-encoding"] == kind, f"sent {headers['content-encoding']} for {kind}")
        require(headers["x-em-digest"] == digest_of_npy(unpacked(body, str(kind))), f"{path}: {kind} is damaged")
    elif kind == "level":
        half = edge // 2 - 64
        at = ",".join(str(int(n)) for n in generator.integers(0, half + 1, 3))
        ask(connection, f"/v1/datasets/{NAME}/block?start={at}&shape=64&level=1", 200, seen)
    elif kind == "part":
        body, headers = ask(connection, path, 206, seen, headers={"Range": "bytes=1000-1999"})
        require(len(body) == 1000 and headers["content-range"].startswith("bytes 1000-1999/"), "wrong part")
    elif kind == "tag":
        _, headers = ask(connection, path, 200, seen, method="HEAD")
        ask(connection, path, 304, seen, headers={"If-None-Match": headers["etag"]})
    elif kind == "head":
        body, headers = ask(connection, path, 200, seen, method="HEAD")
        require(int(headers["content-length"]) == SHAPE**3 + 128, "HEAD: wrong length")
    elif kind == "list":
        body, _ = ask(connection, "/v1/datasets", 200, seen)
        require([one["id"] for one in json.loads(body)["datasets"]] == [NAME], "wrong list")
    else:
        body, _ = ask(connection, f"/v1/datasets/{NAME}/block?{generator.choice(BAD)}", None, seen)
        require(json.loads(body)["error"].endswith("."), "no sentence")


def whole_block(connection, path: str, seen: Seen):
    started = time.monotonic()
    answer = ask(connection, path, 200, seen)
    seen.seconds.append(time.monotonic() - started)
    return answer


def ask(connection, path: str, expected: int | None, seen: Seen, *, headers=None, method: str = "GET"):
    """`expected` None: any 4xx."""
    connection.request(method, path, headers={"Accept-Encoding": "identity"} | (headers or {}))
    response = connection.getresponse()
    body = response.read()
    seen.received_bytes += len(body)
    good = 400 <= response.status < 500 if expected is None else response.status == expected
    require(good, f"{method} {path}: {response.status} {body[:200]!r}")
    return body, response.headers


def digest_of_npy(body: bytes) -> str:
    """Of a .npy file without missing voxels, as `Block.digest` describes it."""
    import io

    voxels = np.load(io.BytesIO(body))
    head = json.dumps({"dtype": voxels.dtype.name, "shape": list(voxels.shape), "valid": False}).encode() + b"\n"
    return f"sha256:{hashlib.sha256(head + voxels.tobytes()).hexdigest()}"


def unpacked(body: bytes, coding: str) -> bytes:
    import zstandard

    return gzip.decompress(body) if coding == "gzip" else zstandard.decompress(body)


def require(fact: bool, sentence: str) -> None:
    if not fact:
        raise AssertionError(sentence)


class Memory(threading.Thread):
    """Anonymous resident memory of a process, twice a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self._stopped = threading.Event()
        self.samples: list[int] = []

    def run(self) -> None:
        while not self._stopped.wait(0.5):
            self.samples.append(int(re.search(r"RssAnon:\s+(\d+)", self._status.read_text())[1]) * 1024)

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def quarters(self) -> list[float]:
        """The mean of each quarter of the time."""
        return [float(part.mean()) for part in np.array_split(np.array(self.samples), 4)]


def metric(port: int, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])


def report(seen: Seen, memory: Memory, asked: argparse.Namespace, refused: float, code: int) -> int:
    seconds = np.array(seen.seconds)
    p50, p99 = np.percentile(seconds, [50, 99])
    quarters = memory.quarters()
    growth = quarters[3] / quarters[1]
    requests = seen.kinds.total()
    print(f"{asked.clients} clients, {asked.seconds:g} s, {SHAPE}^3 blocks of uint8 out of {asked.edge}^3, zstd")
    print(
        f"requests  {requests} ({requests / asked.seconds:.0f}/s), {seen.received_bytes / asked.seconds / 1e6:.0f} MB/s"
    )
    print(f"kinds     {', '.join(f'{kind} {count}' for kind, count in seen.kinds.most_common())}")
    print(
        f"latency   p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms, longest {seconds.max() * 1e3:.0f} ms, "
        f"mean {statistics.fmean(seconds) * 1e3:.0f} ms ({len(seconds)} whole blocks)"
    )
    print(
        f"memory    {', '.join(f'{n / 2**20:.0f}' for n in quarters)} MiB by quarter, "
        f"peak {max(memory.samples) / 2**20:.0f} MiB anonymous"
    )
    print(f"errors    {len(seen.errors)}; refused as busy {refused:.0f}; exit code of the service {code}")
    for error in sorted(set(seen.errors))[:10]:
        print(f"  {error}")
    is_flat = growth <= GROWTH_ALLOWED
    if not is_flat:
        print(f"memory grew by {growth - 1:.0%} from the second quarter to the last")
    return 0 if is_flat and not seen.errors and not refused and code == 0 else 1


if __name__ == "__main__":
    main()
