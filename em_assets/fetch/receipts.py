"""What is known of a downloaded file: where it came from, what it is, and whether it still is that.

`files.Downloader` writes one beside each file; whoever relies on the file asks `verify`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from em_assets.errors import Unavailable

RECEIPT_SUFFIX = ".receipt.json"
MAX_RECEIPT_BYTES = 2**20


class Receipt(BaseModel):
    """One file, as it was received and put in place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Relative to the dataset, `/` between parts."""
    url: str
    """The address that delivered it, without user, password and query."""
    size_bytes: int = Field(ge=0)
    sha256: str
    etag: str | None = None
    last_modified: str | None = None
    pixels_sha256: str | None = None
    """Of the decoded voxels, where somebody published that: the file agrees with it."""
    checksum: str | None = None
    """The publisher's, as `algorithm:hex`, if there is one: the file agrees with it."""
    modified_ns: int
    """The file's modification time when it was put in place: as long as it has that, nobody has written to it."""
    downloaded_at: AwareDatetime
    seconds: float
    """Of the run that finished it; likewise `received_bytes`, which are fewer than the file's after an interruption."""
    received_bytes: int = Field(ge=0)
    notes: tuple[str, ...] = ()
    """What went otherwise than planned: addresses that did not deliver, fresh starts."""


def receipt_path(target: Path) -> Path:
    return target.with_name(target.name + RECEIPT_SUFFIX)


def read_receipt(target: Path) -> Receipt | None:
    """The receipt beside a file; None if there is none that can be read: then nothing is known of the file."""
    try:
        with receipt_path(target).open("rb") as file:
            return Receipt.model_validate_json(file.read(MAX_RECEIPT_BYTES))
    except (OSError, ValidationError):
        return None


def verify(path: Path, receipt: Receipt, *, full: bool) -> str | None:
    """What differs between the file and its receipt, as a sentence; None if nothing does.

    A file of the right size that nobody has written to since is believed without reading it, unless `full`; one with
    another modification time (also from the future, or 1970) is judged by its sha256. Raises Unavailable if the file
    cannot be read.
    """
    try:
        status = path.stat()
        if status.st_size != receipt.size_bytes:
            return (
                f"{path} has {status.st_size} bytes, but {receipt.size_bytes} were downloaded; delete it and run again."
            )
        if status.st_mtime_ns == receipt.modified_ns and not full:
            return None
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} is not there any more; run again to download it."
    except OSError as error:
        raise Unavailable(f"{path} could not be read ({error.strerror or error}); correct its permissions.") from error
    if sha256 != receipt.sha256:
        return (
            f"{path} was altered after the download: its sha256 is {sha256}, it was {receipt.sha256}; delete it and "
            "run again."
        )
    return None


def write_receipt(folder: Path, target: Path, receipt: Receipt) -> None:
    """Puts it beside `target`, whole or not at all; it is prepared in `folder`, on the same file system."""
    prepared = folder / "receipt.json"
    with prepared.open("wb") as file:
        file.write(receipt.model_dump_json(indent=1).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(prepared, receipt_path(target))


def forget(target: Path) -> None:
    """Removes a file that was moved elsewhere, and its receipt."""
    target.unlink(missing_ok=True)
    receipt_path(target).unlink(missing_ok=True)
