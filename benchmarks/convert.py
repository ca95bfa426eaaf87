"""The product against tensorstore, dask, ome-zarr-py and ngff-zarr: a TIFF stack to an OME-Zarr with its pyramid.

    python benchmarks/convert.py --quick
    python benchmarks/convert.py --work ../benchmark --peers ../peers/bin/python --out convert.md

Every client runs as a whole command in a fresh process (`convert_clients.py`), in interleaved rounds; each result is
read back (`convert_judge.py`). `--peers` is the Python of an environment that has those which the product does not
need. What is not installed is reported as absent. README.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile
from contest import PRODUCT, Contest, Row, against, machine, say, table, targets
from convert_clients import CLIENTS, NEEDS
from measure import Usage
from volume import LARGEST_DRAWN_EDGE

from em_assets.sample.texture import draw

HERE = Path(__file__).parent
SHAPE = (512, 2048, 2048)
QUICK = {"shape": (128, 1024, 1024), "rounds": 1}
MOST_BYTES = 500_000_000
"""Of memory, beside a slab of planes."""
SLAB_PLANES = 64
PACKAGES = ("em_assets", "numpy", "zstandard", "tifffile", "tensorstore", "zarr")
TENSORSTORES = ("tensorstore", "tensorstore, sharded")


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the client ends too
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="em_assets_benchmark_", dir=arguments.work) as scratch:
        report, all_right = _measure(arguments, Path(scratch))
    print(report)
    if arguments.out is not None:
        arguments.out.write_text(report + "\n")
    return 0 if all_right else 1


def _measure(arguments: argparse.Namespace, scratch: Path) -> tuple[str, bool]:
    pythons, absent = _pythons(arguments)
    root, shape = arguments.work or scratch, tuple(arguments.shape)
    say("drawing the stack")
    small, stack = _stack(root, (64, 128, 128)), _stack(root, shape)
    out = scratch / "result"
    _contest("warm-up", pythons, small, out).warm_up()
    title = f"{' x '.join(map(str, shape))} uint8"
    rows = _contest(title, pythons, stack, out).run(arguments.rounds, arguments.repeats)
    moved_bytes = int(np.prod(shape))
    reached = [
        against(rows, TENSORSTORES, 1.2, "tensorstore"),
        against(rows, ["dask"], 6.0, "dask"),
        _memory(rows, shape),
    ]
    lines = [machine(PACKAGES, arguments.rounds), "", f"### {title}", "", *table(rows, moved_bytes, absent), ""]
    return "\n".join([*lines, *targets(reached)]), all(row.is_right for row in rows)


def _memory(rows: list[Row], shape: tuple[int, ...]) -> str:
    allowed = MOST_BYTES + SLAB_PLANES * shape[1] * shape[2]
    own = next((row for row in rows if row.client == PRODUCT and row.runs), None)
    found = "not measured"
    if own is not None:
        reached = "yes" if own.peak_anonymous_bytes <= allowed else "no"
        found = f"{reached}: {own.peak_anonymous_bytes / 1e6:.0f} MB of {allowed / 1e6:.0f} MB"
    return f"| peak memory: 500 MB and a slab of {SLAB_PLANES} planes | - | {found} |"


def _contest(title: str, pythons: dict[str, str], stack: Path, out: Path) -> Contest:
    script = str(HERE / "convert_clients.py")
    # below `out`, because most want to make the folder themselves
    commands = {client: [python, script, client, str(stack), str(out / "volume")] for client, python in pythons.items()}

    def judge(client: str, usage: Usage) -> str:
        written = json.loads(usage.output.splitlines()[-1])
        command = [sys.executable, str(HERE / "convert_judge.py"), str(stack), written["driver"], *written["levels"]]
        reply = subprocess.run(command, capture_output=True, text=True, check=False)
        return reply.stdout.strip() if reply.returncode == 0 else f"WRONG: {reply.stderr.strip().splitlines()[-1]}"

    return Contest(title, commands, out, judge)


def _pythons(arguments: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """(the Python of each client: this one if it has what the client needs; why the others are not there)."""
    pythons, absent = {}, {}
    for client in arguments.clients:
        found = [python for python in (sys.executable, arguments.peers) if python and _has(python, NEEDS[client])]
        if found:
            pythons[client] = found[0]
        else:
            absent[client] = f"{NEEDS[client][0]} is not installed; --peers names a Python that has it"
    return pythons, absent


def _has(python: str, modules: tuple[str, ...]) -> bool:
    code = f"import importlib.util as u; raise SystemExit(not all(u.find_spec(name) for name in {modules!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def _stack(root: Path, shape: tuple[int, ...]) -> Path:
    """One uncompressed TIFF of many pages, drawn and mirrored to size; made if this work folder has none."""
    stack = root / f"stack_{'_'.join(map(str, shape))}.tif"
    if stack.is_file():
        return stack
    drawn = draw(tuple(min(n, LARGEST_DRAWN_EDGE) for n in shape), seed=1)
    partial = stack.with_name(f"partial_{stack.name}")
    target = tifffile.memmap(partial, shape=shape, dtype="uint8", photometric="minisblack", metadata=None)
    rows, columns = (_mirror(n, m) for n, m in zip(shape[1:], drawn.shape[1:], strict=True))
    for z, source in enumerate(_mirror(shape[0], drawn.shape[0])):
        target[z] = drawn[source][np.ix_(rows, columns)]
    target.flush()
    partial.rename(stack)
    return stack


def _mirror(size: int, drawn: int) -> np.ndarray:
    """0, 1, ... drawn - 1, drawn - 1, ... 1, 0, 0, 1, ... of this size."""
    index = np.arange(size) % (2 * drawn)
    return np.where(index < drawn, index, 2 * drawn - 1 - index)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=3, type=int, default=SHAPE, metavar=("Z", "Y", "X"), help="even, Z >= 64")
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--peers", help="the Python of an environment with dask, ome-zarr and ngff-zarr")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=0, help="of a run that other processes disturbed (%(default)s)")
    parser.add_argument("--work", type=Path, help="keeps the stack for the next run (default: a temp folder)")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    parser.add_argument("--quick", action="store_true", help="128 x 1024 x 1024, one round, unless given")
    arguments = parser.parse_args()
    if arguments.quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
