"""The structure of an HDF5 file that is not on this machine: the program that reads it asks here for its bytes.

The HDF5 library stays in a process of its own (`_hdf5_structure.py`), which has no network: it says by its standard
output which bytes it wants, and gets them by its standard input. So whatever goes wrong with them is raised here, as
what it is, and not as what the library makes of a file object that fails.
"""

from __future__ import annotations

import os
import selectors
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from em_assets.errors import Malformed
from em_assets.formats._bytes import ByteSource, read_pieces

MESSAGE = struct.Struct("<cQQ")
"""Of the program, as there: what it is, and two numbers."""
WANTED, ANSWER = b"W", b"A"
"""Bytes (from, how many); or the answer (how many, 0), whose bytes follow."""
MOST_BYTES = 64 * 2**20
"""That a sound file's structure is read by at once: much less."""
MOST_ANSWER_BYTES = 256 * 2**20
"""The table of as many chunks as may be has 64 MB; the rest are attributes."""
GAP_BYTES = 64 * 2**10
"""Between two nodes of a tree that are asked for together: most lie megabytes apart, among the chunks."""
AHEAD = 1024
"""So many nodes are kept that were not wanted yet."""
NODE_HEAD = struct.Struct("<4sBBHQQ")
NODE_BYTES = 64 * 2**10
MOST_AXES = 8


class StructureBytes:
    """Reads a file's structure; of the tree that lists chunks, all nodes below one by few requests at a time.

    The library wants one after the other, and each would wait for its own request. What is guessed of the tree decides
    only what is fetched early, never what is read.
    """

    def __init__(self, source: ByteSource, connections: int) -> None:
        self._source = source
        self._connections = connections
        self._ahead: dict[int, bytes | memoryview] = {}

    def read(self, start: int, length: int) -> bytes | memoryview:
        """Exactly these bytes. Raises Malformed where no sound file asks for them, and what the source raises."""
        if length > MOST_BYTES:
            raise Malformed(
                f"{self._source.name}: its structure places {length} bytes at {start}, expected at most {MOST_BYTES}; "
                "it is damaged: get it again."
            )
        body = self._ahead.pop(start, b"")
        if len(body) != length:
            body = self._source.read(start, length)
        places = children(body, self._source.size_bytes)
        if places and len(self._ahead) + len(places) <= AHEAD:
            nodes = [(at, at + length) for at in places]
            self._ahead.update(zip(places, read_pieces(self._source, nodes, self._connections, GAP_BYTES), strict=True))
        return body


def children(node: bytes | memoryview, size_bytes: int) -> list[int]:
    """Where the nodes below one of a tree of chunks lie (version 1 B-tree, type 1); empty for anything else.

    HDF5 File Format Specification III.A.1. A node does not say how many axes its keys have: its length does.
    """
    if not NODE_HEAD.size < len(node) <= NODE_BYTES:
        return []
    signature, kind, level, used, _, _ = NODE_HEAD.unpack_from(node)
    if (signature, kind) != (b"TREE", 1) or not level:
        return []
    for axes in range(1, MOST_AXES + 1):
        key_bytes = 8 + 8 * (axes + 1)
        room, rest = divmod(len(node) - NODE_HEAD.size - key_bytes, key_bytes + 8)
        if rest == 0 and room % 2 == 0 and used <= room:
            firsts = range(NODE_HEAD.size + key_bytes, len(node), key_bytes + 8)[:used]
            places = [int.from_bytes(node[at : at + 8], "little") for at in firsts]
            if all(0 < place <= size_bytes - len(node) for place in places):
                return places
    return []


def run_reading(
    arguments: Sequence[str], source: ByteSource, connections: int, seconds: float, env: Mapping[str, str]
) -> subprocess.CompletedProcess[bytes]:
    """As `subprocess.run`, but the program is given what it asks for of `source`; its time does not run meanwhile.

    Raises subprocess.TimeoutExpired, and what reading the source raises; the program is ended then.
    """
    asked = StructureBytes(source, connections)
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            arguments, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=env
        ) as program,
    ):
        try:
            running = _Program(program, seconds)
            answer = _serve(running, asked)
            code = 0 if answer is not None else running.code()
        finally:
            program.kill()
        said.seek(0)
        return subprocess.CompletedProcess(arguments, code, answer or b"", said.read())


class _Program:
    """What runs, and how long it may still take for itself: each method raises subprocess.TimeoutExpired after that."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._left_seconds = self._seconds = seconds
        self._stdin, self._stdout = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self._stdin, False)  # it may never take what it asked for

    def message(self) -> tuple[bytes, int, int] | None:
        """None when it has ended without an answer."""
        head = self.received(MESSAGE.size)
        return None if head is None else MESSAGE.unpack(head)

    def received(self, count: int) -> bytes | None:
        """Exactly so many bytes; None if it ends before."""
        body = bytearray()
        with self._timed(self._stdout, selectors.EVENT_READ) as wait:
            while len(body) < count:
                wait()
                block = os.read(self._stdout, min(count - len(body), 2**20))
                if not block:
                    return None
                body += block
        return bytes(body)

    def give(self, body: bytes | memoryview) -> bool:
        """False if it has ended."""
        left = memoryview(body)
        with self._timed(self._stdin, selectors.EVENT_WRITE) as wait:
            try:
                while left:
                    wait()
                    left = left[os.write(self._stdin, left) :]
            except BrokenPipeError:
                return False
        return True

    def code(self) -> int:
        """With which it ended: it may go on after it has said its last."""
        return self._process.wait(max(0.0, self._left_seconds))

    @contextmanager
    def _timed(self, pipe: int, event: int) -> Iterator[Callable[[], None]]:
        """Time runs within; what is given waits until the pipe is ready."""
        began = time.monotonic()

        def wait() -> None:
            left_seconds = self._left_seconds - (time.monotonic() - began)
            if left_seconds <= 0 or not ready.select(left_seconds):
                raise subprocess.TimeoutExpired(self._process.args, self._seconds)

        with selectors.DefaultSelector() as ready:
            ready.register(pipe, event)
            yield wait
        self._left_seconds -= time.monotonic() - began


def _serve(program: _Program, asked: StructureBytes) -> bytes | None:
    """The program's answer; None if it ended without, or said what it never should."""
    while (message := program.message()) is not None:
        kind, first, second = message
        if kind == ANSWER and first <= MOST_ANSWER_BYTES:
            return program.received(first)
        if kind != WANTED or not program.give(asked.read(first, second)):
            return None
    return None
