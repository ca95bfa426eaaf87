"""`em.open`: from a name, a path or an address to a `Volume`.

A dataset's name means its standardized volume in the store (or a staged copy of it that is faster to read); if it is
not downloaded, its publisher, through the cache. A path or address of such a volume in any store means the same,
because only the record and the coverage beside it say which voxels are real. Everything else is a Zarr or N5 volume
where it lies.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError

from em_assets.blocks._backings import PlacedVolume, ServedVolume, StoredVolume
from em_assets.blocks._choice import Choice, part_of
from em_assets.blocks._describing import content_of, description
from em_assets.blocks._readers import (
    Refused,
    is_in_s3,
    is_refusal,
    open_reader,
    open_reader_in_s3,
    require_endpoint,
    s3_is_set,
)
from em_assets.blocks._web_store import WebStore
from em_assets.blocks.volume import Volume
from em_assets.datasets.fields import NAME_PATTERN
from em_assets.datasets.loading import load_sound_specs
from em_assets.errors import Malformed, Mismatch, Unavailable
from em_assets.records import VOLUME, DatasetFolder, DatasetRecord
from em_assets.settings import Settings, read_settings
from em_assets.store import open_store

if TYPE_CHECKING:
    from em_assets.formats._chunked import ChunkedReader

_ONE_NAME = NAME_PATTERN.strip("^$")
_NAME = re.compile(rf"({_ONE_NAME})(?:/({_ONE_NAME}))?")
_OURS = re.compile(
    rf"(?P<root>\w+://[^/?#]+(?:/[^?#]*?)??|(?!\w+://).*?)/(?P<name>{_ONE_NAME})"
    rf"(?:(?P<served>\.ome\.zarr)|(?:/staged)?/(?:{re.escape(VOLUME)}|volumes/(?P<sub>{_ONE_NAME})\.ome\.zarr))?/*"
)
"""A dataset's folder (`records.DatasetFolder`), a volume in it or its staged copy, or what `em-assets serve` makes of
it. The longest that fits: `a/volume.ome.zarr` is of the dataset `a`."""
RECORD_FIELDS = (b'"source_id"', b'"volume_shape"', b'"voxel_size_nm"')
"""Near its beginning: a record is known by them even if it was cut."""


def open(  # noqa: A001  # em.open
    location: str | os.PathLike[str],
    *,
    channel: int | str | None = None,
    time: int | None = None,
    settings: Settings | None = None,
) -> Volume:
    """The volume at `location`: `hemibrain_crop`, `jrc_mus_nacc_2/nuc`, a folder, `s3://...`, `https://...`.

    Of a dataset that is not downloaded its publisher's voxels. Voxels are of integers, float16, float32, float64 or
    bool, which counts as labels. Of several channels `channel` chooses one by its number or the name that `omero`
    states, of several points in time `time` one by its number: the volume's `location` then ends in
    `#channel=1&time=2`, which may be given instead. What lies in S3 is read with the S3 settings (`AWS_ENDPOINT_URL`,
    keys, ...), and without any, or where S3 refuses them or has no such bucket, at its public address. Raises
    Unavailable if nothing is there, Mismatch if a channel or time is to be chosen or there is no such, Unsupported for
    what cannot be read in blocks, Malformed for what is damaged.
    """
    settings = settings or read_settings()
    text, choice = Choice.of(os.fspath(location), channel, time)
    match = _NAME.fullmatch(text) if isinstance(location, str) else None
    if match is not None:
        found = _open_dataset(match[1], match[2], settings)
        if found is not None:
            choice.require_first(text)
            return found
    if "://" not in text and not os.path.exists(text):  # noqa: PTH110  # never raises
        raise Unavailable(f"there is neither a dataset nor a folder {text!r}; `em-assets list` shows the datasets.")
    if not is_in_s3(text) or not s3_is_set(settings):
        return _open_any(text, settings, choice)
    try:
        return _open_in_s3(text, settings, choice)
    except Refused as refusal:
        return _open_refused(text, settings, choice, refusal)


def _open_any(text: str, settings: Settings, choice: Choice) -> Volume:
    found = _open_ours(text, settings)
    if found is None:
        return _open_place(text, settings, choice)
    choice.require_first(text)
    return found


def _open_dataset(name: str, sub: str | None, settings: Settings) -> Volume | None:
    """None if nobody knows a dataset of this name."""
    folder = DatasetFolder(open_store(settings.root), name, sub)
    record = folder.read_record()
    if record is not None and record.visible_status == "complete" and "volume" in record.local_paths:
        _require_volume(record, name, sub)
        backing = StoredVolume(settings, name, sub, record.sha256)
        return Volume(backing.describe(record, folder.title), backing)
    specs, wrong = load_sound_specs(settings.dataset_folders())
    if name in wrong:
        raise wrong[name]
    if name not in specs:
        if record is None:
            return None
        raise Unavailable(f"{name} is {record.visible_status}; finish it with `em-assets get {name}`.")
    from em_assets.blocks._publisher import published_volume

    return published_volume(specs[name], sub, settings)


def _require_volume(record: DatasetRecord, name: str, sub: str | None) -> None:
    if sub is not None and sub not in record.volumes:
        volumes = ", ".join(f"{name}/{other}" for other in record.volumes) or "none"
        raise Mismatch(f"{name} has no volume {sub!r}; its further volumes: {volumes}.")


# A dataset of some store, by its path or address


@dataclass(frozen=True, slots=True)
class _Place:
    """A path or address that looks like one of a dataset's volume in a store."""

    address: str
    root: str
    """Of the store, and so of the documents beside the volume."""
    name: str
    sub: str | None
    is_served: bool
    """`NAME.ome.zarr` beside the documents, as `em-assets serve` has it."""

    @classmethod
    def of(cls, address: str) -> _Place | None:
        match = _OURS.fullmatch(address)
        if match is None:
            return None
        return cls(address, match["root"] or "/", match["name"], match["sub"], match["served"] is not None)

    @property
    def scheme(self) -> str:
        return self.root.partition("://")[0] if "://" in self.root else "file"

    @property
    def has_odd_parts(self) -> bool:
        """Which no store's root has, but other people's keys may."""
        return any(part in ("", ".", "..") for part in self.root.partition("://")[2].split("/")[1:])

    @property
    def folder(self) -> DatasetFolder:
        """In a folder or in S3."""
        return DatasetFolder(open_store(self.root), self.name, self.sub)


def _open_ours(text: str, settings: Settings) -> Volume | None:
    """A dataset's volume in some store: only with its record and coverage is it known what is real.

    None for any other. Raises Unavailable if the dataset is not complete, Malformed if its record cannot be read.
    """
    place = _Place.of(_address(text))
    if place is None:
        return None
    if place.scheme in ("http", "https"):
        return _open_served(place, settings)
    if place.is_served or place.has_odd_parts:
        return None
    if place.scheme in ("s3", "gs"):
        return _open_published(place, settings)
    return _open_stored(place, settings, _readable_record(place.folder)) if place.scheme == "file" else None


def _address(text: str) -> str:
    """Without what Neuroglancer writes before the address of a Zarr; of a folder its whole path."""
    from em_assets.formats.opening import split_kind

    stated, address = split_kind(text)
    text = address if stated == "zarr" else text
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    return text if "://" in text else str(Path(text).resolve())


def _open_in_s3(text: str, settings: Settings, choice: Choice) -> Volume:
    """With the S3 settings: a dataset's volume, or any other. Raises Refused where it may be public all the same."""
    require_endpoint()
    place = _Place.of(_address(text))
    if place is not None and place.scheme == "s3" and not place.is_served and not place.has_odd_parts:
        try:
            record = _readable_record(place.folder)
        except Unavailable as error:
            if not is_refusal(error):
                raise
            record = None  # which buckets that nobody may list say of absent documents; the volume's own tell
        stored = _open_stored(place, settings, record)
        if stored is not None:
            choice.require_first(text)
            return stored
    reader = open_reader_in_s3(text, settings, choice)
    return _placed(reader, PlacedVolume(text, settings, is_public=False))


def _open_refused(text: str, settings: Settings, choice: Choice, refusal: Refused) -> Volume:
    """At the public address what S3 refused. Raises Unavailable naming both answers if it is not public either."""
    from em_assets.fetch.replies import NotThere

    try:
        return _open_any(text, settings, choice)
    except (NotThere, Unavailable) as error:
        raise Unavailable(f"{refusal} It is not public either: {error}") from error


def _open_stored(place: _Place, settings: Settings, record: DatasetRecord | None) -> Volume | None:
    """In a folder or in S3, as if the store were the configured one. None without a record."""
    if record is None:
        return None
    there = settings.model_copy(update={"root": place.root})
    backing = StoredVolume(there, place.name, place.sub, record.sha256)
    return Volume(backing.describe(record, place.address), backing)


def _open_published(place: _Place, settings: Settings) -> Volume | None:
    """In a bucket that everybody may read, at the address where `formats.open_volume` reads it, too."""
    from em_assets.fetch.s3 import https_url

    public = _Place.of(https_url(place.address.rstrip("/")))
    return None if public is None else _open_served(public, settings)


def _open_served(place: _Place, settings: Settings) -> Volume | None:
    """On a web server."""
    from em_assets.fetch.http import HttpClient

    folder = DatasetFolder(WebStore(place.root, HttpClient(settings)), place.name, place.sub)
    record = _readable_record(folder)
    if record is None:
        return None
    url = folder.uri(folder.volume)
    if place.is_served:
        url = place.address.rstrip("/")
        if not urlsplit(url).path.endswith(record.local_paths["volume"].rstrip("/")):
            return None  # something else that lies beside a dataset of this name, such as an export
    backing = ServedVolume(settings, place.name, place.sub, record.sha256, place.root, url)
    return Volume(backing.describe(record, place.address), backing)


def _readable_record(folder: DatasetFolder) -> DatasetRecord | None:
    """The record of a dataset whose volume can be read; None if none is there: then it is no dataset of ours.

    A web page, or another document of this name, is none. One that was damaged is an error, not absence.
    """
    try:
        raw = folder.read("metadata.json")
    except FileNotFoundError:
        return None
    if not all(field in raw for field in RECORD_FIELDS):
        return None
    where, name = folder.uri("metadata.json"), folder.name
    try:
        record = DatasetRecord.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise Malformed(
            f"{where} is no record that can be read ({'.'.join(map(str, first['loc']))}: {first['msg']}), so nobody "
            "knows which voxels are real; it was damaged or written by another version: have it written again."
        ) from None
    if record.visible_status != "complete":
        raise Unavailable(f"{folder.uri(folder.volume)}: {name} is {record.visible_status}; finish it, then read it.")
    if "volume" not in record.local_paths:
        raise Unavailable(
            f"{folder.uri(folder.volume)}: only the publisher's files of {name} are kept; set `keep: both` in its spec "
            f"and run `em-assets get {name}`."
        )
    _require_volume(record, name, folder.sub)
    return record


# Any other Zarr or N5


def _open_place(text: str, settings: Settings, choice: Choice) -> Volume:
    address = text if "://" in text else str(Path(text).absolute())
    return _placed(open_reader(address, settings, choice), PlacedVolume(address, settings))


def _placed(reader: ChunkedReader, backing: PlacedVolume) -> Volume:
    part = part_of(reader)
    address, chosen = backing.location, part.suffix
    name = unquote(urlsplit(address).path if "://" in address else address).rstrip("/").rpartition("/")[2]
    described = description(f"{name}{chosen}", f"{address}{chosen}", reader, content_of(reader), is_ours=False)
    return Volume(described, replace(backing, choice=Choice(part.channel, part.time)))
