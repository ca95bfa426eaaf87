"""Whole objects under one root, a folder or an S3 prefix; nothing is visible before it is whole.

What lies where in the store and what the records say is `records.py`. No Dagster here: `resources/storage.py`
wraps it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from em_assets.errors import Malformed, Unavailable, Unsupported
from em_assets.settings import S3Access

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Store

PARTIAL_SUFFIX = ".em-partial"
"""Ends the name of an object that is being written. Only a killed process leaves one behind."""
DOWNLOAD_SUFFIX = ".em-part"
"""Ends the name of a folder in which a file is arriving (`fetch/_partial.py`): a later run goes on with it."""

PARTIAL_ABANDONED_AFTER_SECONDS = 3600.0
"""A file nobody has added to for so long has no writer, even if the number of its process is taken again."""
RETRY_FOR = timedelta(seconds=20)
"""S3: how long a request is tried again. With the connection's time-out, an absent server is known within 30 s."""
CONNECT_WITHIN = timedelta(seconds=5)
SILENT_AT_MOST = timedelta(seconds=30)
REQUEST_AT_MOST = timedelta(minutes=30)
"""obstore's own 30 s would fail for ever where a large shard takes longer than that to move."""

MULTIPART_ABOVE_BYTES = 64 * 2**20
RETRIES = 20
NO_SUCH_VERSION = f'"{"0" * 32}"'
"""An ETag that no object has."""
Data = bytes | bytearray | memoryview


class Store(Protocol):
    """Whole objects under `/`-separated paths relative to one root. Safe to use from many threads.

    A path with empty, `.` or `..` parts or control characters is a ValueError. Whatever else prevents an answer is
    Unavailable.
    """

    root: str
    """As configured: a folder or `s3://bucket/prefix`."""

    def read(self, path: str) -> bytes:
        """The whole object. Raises FileNotFoundError if there is none."""

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer at the end. Raises FileNotFoundError."""

    def write(self, path: str, data: Data) -> None:
        """Puts the object in place: readers see the old one or the whole new one, also after a power cut."""

    def write_file(self, path: str, file: Path) -> None:
        """Puts a copy of a file of this machine in place, likewise; of any size."""

    def size_bytes(self, path: str) -> int | None:
        """The object's size, None if there is none."""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(path, size in bytes) of every object below the folder `prefix`, "" for all, in the order of their paths.

        What is unfinished is no object.
        """

    def delete(self, path: str) -> None:
        """Removes the object; nothing happens if there is none."""

    def delete_all(self, prefix: str) -> None:
        """Removes everything below the folder `prefix` (never "", the whole store), whatever is unfinished included."""

    def remove_partials(self, prefix: str) -> None:
        """Removes what killed writers left below `prefix`; living ones' files and unfinished downloads stay."""

    def uri(self, path: str) -> str:
        """For people and other programs: an absolute path or an `s3://` address; of the root for ""."""

    def local_path(self, path: str) -> Path | None:
        """The file on this machine, the root for "", None on S3."""

    def free_bytes(self) -> int | None:
        """Free space, None where the question has no answer."""


def open_store(root: str, s3: S3Access | None = None) -> Store:
    """The store at `root`. Nothing is created or contacted before it is used."""
    return ObjectStore(root, s3) if root.startswith("s3://") else LocalStore(root)


class LocalStore:
    """A folder. Objects are written to a temporary sibling, synced and renamed."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self._base = Path(root).absolute()

    def _file(self, path: str) -> Path:
        return self._base.joinpath(*_parts(path))

    def _folder(self, prefix: str) -> Path:
        return self._file(prefix) if prefix else self._base

    def read(self, path: str) -> bytes:
        with _local_errors(self._file(path), "read"):
            return self._file(path).read_bytes()

    def read_range(self, path: str, start: int, length: int) -> bytes:
        _check_range(start, length)
        with _local_errors(self._file(path), "read"), self._file(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(start)
            return file.read(max(0, min(length, size - start)))

    def write(self, path: str, data: Data) -> None:
        with replacing(self._file(path)) as partial, partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def write_file(self, path: str, file: Path) -> None:
        with replacing(self._file(path)) as partial:
            shutil.copyfile(file, partial)
            with partial.open("rb") as copied:
                os.fsync(copied.fileno())

    def size_bytes(self, path: str) -> int | None:
        try:
            with _local_errors(self._file(path), "looked up"):
                status = self._file(path).stat()
        except FileNotFoundError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        with _local_errors(self._folder(prefix), "listed"):
            for file, size in _walk(self._folder(prefix)):
                if not file.endswith(PARTIAL_SUFFIX):
                    yield Path(file).relative_to(self._base).as_posix(), size

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError), _local_errors(self._file(path), "deleted"):
            self._file(path).unlink()

    def delete_all(self, prefix: str) -> None:
        folder = self._file(prefix)
        with _local_errors(folder, "deleted"):
            while folder.is_dir():
                # somebody else may remove a file first, at which rmtree stops
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(folder)

    def remove_partials(self, prefix: str) -> None:
        with _local_errors(self._folder(prefix), "cleared of unfinished files"):
            for file, _ in _walk(self._folder(prefix)):
                if file.endswith(PARTIAL_SUFFIX) and _is_abandoned(Path(file)):
                    Path(file).unlink(missing_ok=True)

    def uri(self, path: str) -> str:
        return str(self._folder(path))

    def local_path(self, path: str) -> Path | None:
        return self._folder(path)

    def free_bytes(self) -> int | None:
        folder = self._base
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free


_first_user: int | None = None
"""The process in which obstore was first used: its threads do not survive a fork, and a child would wait for them."""


class ObjectStore:
    """A prefix of an S3 bucket. Endpoint, region, credentials and anonymity come from the standard AWS variables.

    `AWS_ENDPOINT_URL`, `AWS_REGION` or `AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    `AWS_SESSION_TOKEN`, `AWS_SKIP_SIGNATURE=true` for anonymous reading. An S3 object appears whole or not at
    all, so a plain put is the atomic write.
    """

    def __init__(self, root: str, access: S3Access | None = None) -> None:
        bucket, _, prefix = root.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        if not bucket:
            raise Malformed(f"{root} names no bucket; use s3://bucket/prefix.")
        try:
            _parts(prefix or bucket)
        except ValueError:
            raise Malformed(f"{root} has a prefix with empty, `.` or `..` parts; use s3://bucket/prefix.") from None
        self.root = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket, self._prefix = bucket, prefix
        self.access = access or S3Access.from_environment()
        self._client: S3Store | None = None
        self._heeds_conditions: bool | None = None

    @property
    def _s3(self) -> S3Store:
        global _first_user  # noqa: PLW0603  # obstore's threads are the process's, too
        _first_user = _first_user or os.getpid()
        if _first_user != os.getpid():
            raise Unsupported(
                f"{self.root} cannot be used in a process that was forked from one that used S3, as it would hang; "
                "start workers by spawn or forkserver (DataLoader: multiprocessing_context='spawn')."
            )
        if self._client is None:
            self._client = self._connect(RETRIES)
        return self._client

    def _connect(self, retries: int) -> S3Store:
        from obstore.store import S3Store

        given = {
            "endpoint": self.access.endpoint_url,
            "access_key_id": self.access.access_key_id,
            "secret_access_key": self.access.secret_access_key,
            "session_token": self.access.session_token,
            "skip_signature": self.access.anonymous or None,
        }
        config: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        config["region"] = self.access.region
        with self._explained("", "used"):
            return S3Store(
                self._bucket,
                prefix=self._prefix or None,
                config=cast("S3Config", config),
                client_options={
                    "allow_http": True,
                    "connect_timeout": CONNECT_WITHIN,
                    "read_timeout": SILENT_AT_MOST,
                    "timeout": REQUEST_AT_MOST,
                },
                retry_config={
                    "max_retries": retries,
                    "retry_timeout": RETRY_FOR,
                    "backoff": {
                        "init_backoff": timedelta(seconds=0.2),
                        "max_backoff": timedelta(seconds=5),
                        "base": 2,
                    },
                },
            )

    @contextlib.contextmanager
    def _explained(self, path: str, what: str) -> Iterator[None]:
        """Turns obstore's errors into Unavailable. FileNotFoundError means an absent object, never an absent bucket."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
                raise FileNotFoundError(errno.ENOENT, "No such object", self.uri(path)) from None
            raise Unavailable(
                f"{self.uri(path)} could not be {what} ({_s3_reason(str(error))}): check the bucket's name, the "
                "endpoint and the credentials in the AWS variables, then run again; what was finished is kept."
            ) from error

    def read(self, path: str) -> bytes:
        import obstore

        with self._explained(path, "read"):
            return bytes(obstore.get(self._s3, _checked(path)).bytes())

    def read_range(self, path: str, start: int, length: int) -> bytes:
        import obstore

        _check_range(start, length)
        try:
            with self._explained(path, "read"):
                return bytes(obstore.get_range(self._s3, _checked(path), start=start, length=max(length, 1)))[:length]
        except Unavailable as error:
            # S3's answer to a range that begins at or after the end, where a file just has no bytes
            if "416 Range Not Satisfiable" in str(error.__cause__):
                return b""
            raise

    def write(self, path: str, data: Data) -> None:
        import obstore

        with self._explained(path, "written"):
            obstore.put(self._s3, _checked(path), bytes(data))

    def write_file(self, path: str, file: Path) -> None:
        import obstore

        with self._explained(path, "written"):
            obstore.put(self._s3, _checked(path), file, use_multipart=file.stat().st_size > MULTIPART_ABOVE_BYTES)

    def version(self, path: str) -> str | None:
        """Names the object's present content (its ETag), None if there is none."""
        import obstore

        try:
            with self._explained(path, "looked up"):
                return obstore.head(self._s3, _checked(path))["e_tag"]
        except FileNotFoundError:
            return None

    def read_version(self, path: str) -> tuple[bytes, str | None]:
        """The whole object and the `version` it is of. Raises FileNotFoundError if there is none."""
        import obstore

        with self._explained(path, "read"):
            reply = obstore.get(self._s3, _checked(path))
            return bytes(reply.bytes()), reply.meta["e_tag"]

    def write_if_unchanged(self, path: str, data: Data, version: str | None) -> str | None:
        """Puts the object in place if it still is of this `version` (None: still absent).

        Returns the new version; None if it is another's by now, or was this very write, repeated when its reply was
        lost: `read_version` tells. Only of worth where `heeds_conditions`.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._explained(path, "written"):
            try:
                written = obstore.put(
                    self._s3, _checked(path), bytes(data), mode="create" if version is None else {"e_tag": version}
                )
            except (AlreadyExistsError, PreconditionError):
                return None
        if written["e_tag"] is None:
            raise Unavailable(
                f"{self.uri(path)} was written, but its server does not name the version (no ETag): it cannot be known "
                "who replaces it; use a server that does."
            )
        return written["e_tag"]

    def heeds_conditions(self, path: str) -> bool:
        """Whether the server takes a condition on a write for what it is; some refuse it, some write all the same.

        Asked once, by a write to `path` that must not succeed: nothing may ever lie there.
        """
        from obstore.exceptions import GenericError

        if self._heeds_conditions is None:
            with self._explained(path, "written"):
                try:
                    # "not implemented" is a 5xx, which the usual client would try again for RETRY_FOR
                    self._heeds_conditions = self._is_refused(self._connect(0), _checked(path))
                except GenericError:
                    self._heeds_conditions = self._is_refused(self._s3, path)
        return self._heeds_conditions

    def _is_refused(self, client: S3Store, path: str) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError

        try:
            obstore.put(client, path, b"", mode={"e_tag": NO_SUCH_VERSION})
        except (AlreadyExistsError, PreconditionError):
            return True
        except GenericError as error:
            if "501 Not Implemented" in str(error) or "<Code>NotImplemented</Code>" in str(error):
                return False
            raise
        obstore.delete(self._s3, path)
        return False

    def size_bytes(self, path: str) -> int | None:
        import obstore

        try:
            with self._explained(path, "looked up"):
                return obstore.head(self._s3, _checked(path))["size"]
        except FileNotFoundError:
            return None

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        import obstore

        with self._explained(prefix, "listed"):
            for batch in obstore.list(self._s3, _checked(prefix) if prefix else None):
                for entry in batch:
                    yield entry["path"], entry["size"]

    def delete(self, path: str) -> None:
        import obstore

        with self._explained(path, "deleted"), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._s3, _checked(path))

    def delete_all(self, prefix: str) -> None:
        import obstore

        paths = [path for path, _ in self.list(_checked(prefix))]
        with self._explained(prefix, "deleted"):
            if paths:
                obstore.delete(self._s3, paths)

    def remove_partials(self, prefix: str) -> None:
        """Nothing to do: S3 never shows a part of an object."""

    def uri(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")

    def local_path(self, path: str) -> Path | None:
        return None

    def free_bytes(self) -> int | None:
        return None


def process_is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine. One that ended and was not yet waited for does not."""
    if pid <= 0:  # to kill() these are groups of processes
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:
        # Linux only; the state follows the name, which is in parentheses and may hold any character
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return True


def process_start(pid: int) -> int | None:
    """When a process of this machine began, in the kernel's ticks; None where that cannot be known (not Linux).

    Tells a process from a later one of the same number: in a container every run may have the same.
    """
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def partial_path(target: Path) -> Path:
    """Where this process writes what becomes `target`: beside it, so that a rename puts it in place."""
    return target.with_name(f"{target.name}.{os.getpid()}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A file to write: it becomes `target` if the block ends well. Raises Unavailable where the disk does not let it.

    It outlives a power cut if the block has synced it.
    """
    partial = partial_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, target)
    except OSError as error:
        raise Unavailable(
            f"{target} could not be written ({error.strerror or error}): free space or correct the folder's "
            "permissions and run again; what was finished is kept."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _parts(path: str) -> list[str]:
    """The path's parts. Raises ValueError where it does not name a place inside the store."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise ValueError(f"not a path inside the store: {path!r}")
    return parts


def _checked(path: str) -> str:
    _parts(path)
    return path


def _check_range(start: int, length: int) -> None:
    if start < 0 or length < 0:
        raise ValueError(f"not a range of bytes: {length} from {start}")


@contextlib.contextmanager
def _local_errors(file: Path, what: str) -> Iterator[None]:
    """A folder, or a file among the path's parents, is an absent object, as on S3; the rest is Unavailable."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, "No such object", str(file)) from None
    except OSError as error:
        raise Unavailable(
            f"{file} could not be {what} ({error.strerror or error}): "
            "check the disk and the permissions, then run again."
        ) from error


def _walk(folder: str | Path) -> Iterator[tuple[str, int]]:
    """(file, size) of every file below, in the order of their paths, which is not that of their folders' names.

    What lies in an unfinished folder is left out.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name + "/" * entry.is_dir(), entry) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return
    for _, entry in found:
        if entry.is_dir():
            if not entry.name.endswith((PARTIAL_SUFFIX, DOWNLOAD_SUFFIX)):
                yield from _walk(entry.path)
        else:
            # another process may remove a file between the listing and the look at it
            with contextlib.suppress(FileNotFoundError):
                yield entry.path, entry.stat().st_size


def _is_abandoned(partial: Path) -> bool:
    """Whether nobody writes it any more."""
    pid = partial.name.removesuffix(PARTIAL_SUFFIX).split(".")[-2:][0]
    if not (pid.isdecimal() and process_is_alive(int(pid))):
        return True
    with contextlib.suppress(FileNotFoundError):
        return time.time() - partial.stat().st_mtime > PARTIAL_ABANDONED_AFTER_SECONDS
    return False


def _s3_reason(message: str) -> str:
    """The telling part of obstore's message, which quotes the whole reply and its own settings."""
    if "169.254." in message.splitlines()[0]:  # where a machine in the cloud asks for its own credentials
        return "no credentials are set: neither AWS_ACCESS_KEY_ID nor AWS_SKIP_SIGNATURE"
    code = re.search(r"<Code>([^<]+)</Code>(?:\s*<Message>([^<]+)</Message>)?", message)
    if code:
        return f"{code[1]}: {code[2]}" if code[2] else code[1]
    first = message.splitlines()[0]
    status = re.search(r"status code: ([^:]+)", first)
    if status:
        return f"the server answered {status[1]}"
    if "error sending request" in first:
        address = re.search(r"https?://[^/\s]+", first)
        return f"no answer from {address[0] if address else 'the server'}"
    return first
