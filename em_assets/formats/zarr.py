"""Zarr volumes of other people, versions 2 and 3, with or without OME-NGFF multiscales: from address to reader.

Here is decided which documents describe a volume. What they say of arrays is read by `_zarr_metadata.py`, of levels
and space by `_ome_multiscales.py`; chunks are read by `_chunked.py`. Specifications: zarr-specs.readthedocs.io,
ngff.openmicroscopy.org.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from em_assets.errors import EmAssetsError, Malformed, Unsupported
from em_assets.fetch.client import Client
from em_assets.fetch.hosts import Interrupt
from em_assets.fetch.parallel import fetch_all
from em_assets.fetch.replies import NotThere, safe_url
from em_assets.formats._chunked import ChunkedReader, ChunkedVolume, join
from em_assets.formats._cosem import cosem_transform
from em_assets.formats._json import MAX_JSON_BYTES, parse_json
from em_assets.formats._ome_multiscales import parse_multiscales, safe_path
from em_assets.formats._pyramid import (
    Pyramid,
    PyramidLevel,
    axis_letters,
    require_consistent,
    usual_axes,
)
from em_assets.formats._stored_array import StoredArray
from em_assets.formats._zarr_metadata import parse_v2, parse_v3
from em_assets.settings import Settings

__all__ = ["ZarrReader", "open_zarr"]

V2_DOCUMENTS = (".zarray", ".zgroup", ".zattrs")
V3_DOCUMENT = "zarr.json"
MOST_NAMED = 3
"""Images of a collection that an error names."""


class ZarrReader(ChunkedReader):
    """One level of a Zarr volume: a `VolumeReader`."""


def open_zarr(url: str, dataset: str | None, client: Client, settings: Settings) -> ZarrReader:
    """The volume at `url`, or the one at the path `dataset` below it.

    Of a group with multiscales `dataset` may also name the level, by its path or number; without it, it is the first.
    An array that its group's multiscales list has its size and place in space from there. Axes that nobody names are
    taken for t, c, z, y, x, counted from the last. Raises NotThere, Malformed and Unsupported naming document and
    JSON pointer, Mismatch if there is no such level, Unavailable.
    """
    tree = _Tree(url.rstrip("/"), client, settings)
    node = tree.node("", required=not dataset)
    pyramid = node.multiscales()
    if dataset and (pyramid is None or pyramid.number_of(dataset) is None):
        node = tree.node(safe_path(dataset.strip("/"), f"{safe_url(tree.url)}: the dataset asked for"))
        pyramid, dataset = node.multiscales(), None
    if pyramid is not None:
        volume = tree.pyramid_volume(node, pyramid)
        return ZarrReader(volume, volume.level_of(dataset) if dataset else 0)
    if not node.is_array:
        raise node.no_image()
    for group in tree.ancestors(node):
        within = node.path[len(group.path) :].lstrip("/")
        pyramid = group.multiscales()
        paths = [level.path for level in pyramid.levels] if pyramid is not None else []
        if pyramid is not None and within in paths:
            return ZarrReader(tree.pyramid_volume(group, pyramid), paths.index(within))
    return ZarrReader(tree.array_volume(node), 0)


@dataclass(frozen=True)
class _Node:
    """A group or an array: the documents found in its folder."""

    path: str
    url: str
    documents: dict[str, Any]
    """Parsed, by name."""

    @property
    def version(self) -> int:
        return 3 if V3_DOCUMENT in self.documents else 2

    @property
    def is_array(self) -> bool:
        if self.version == 3:
            document = self.documents[V3_DOCUMENT]
            return isinstance(document, dict) and document.get("node_type") == "array"
        return ".zarray" in self.documents

    @property
    def main_document(self) -> str:
        """The one that is there whenever the node is."""
        return V3_DOCUMENT if self.version == 3 else next(name for name in V2_DOCUMENTS if name in self.documents)

    def where(self, name: str) -> str:
        return f"{safe_url(self.url)}/{name}"

    def require_one_version(self) -> None:
        """Raises Malformed where two versions stand side by side: they need not describe the same bytes."""
        kinds = [name for name in (V3_DOCUMENT, ".zarray", ".zgroup") if name in self.documents]
        if len(kinds) > 1:
            raise Malformed(
                f"{safe_url(self.url)} has both {kinds[0]} and {kinds[1]}, so it is ambiguous how it is to be read; "
                "read a copy from which one of them was removed."
            )

    def multiscales(self) -> Pyramid | None:
        """What the attributes of a group say. Raises Malformed or Unsupported naming the JSON pointer."""
        if self.is_array:
            return None
        if self.version == 3:
            document = self.documents[V3_DOCUMENT]
            attributes = document.get("attributes") if isinstance(document, dict) else None
            return parse_multiscales(attributes, f"{self.where(V3_DOCUMENT)}: /attributes")
        return parse_multiscales(self.documents.get(".zattrs"), self.where(".zattrs"))

    def array(self) -> StoredArray:
        if self.version == 3:
            return parse_v3(self.documents[V3_DOCUMENT], self.where(V3_DOCUMENT))
        return parse_v2(self.documents[".zarray"], self.documents.get(".zattrs"), self.where(".zarray"))

    def no_image(self) -> EmAssetsError:
        """Why a group cannot be opened by itself, and what to open instead."""
        what, inside = self._collection()
        listed = ", ".join(map(safe_url, inside[:MOST_NAMED]))
        hint = "name an array or image within it (dataset), or open it by its address"
        if what:
            hint = f"it is {what}: name one of them (dataset), or open it by its address"
            hint += f", such as {listed}" if listed else ""
        return Unsupported(
            f"{safe_url(self.url)} is a Zarr group without /multiscales in its attributes (it has "
            f"{', '.join(self.documents)}); {hint}."
        )

    def _collection(self) -> tuple[str, list[str]]:
        """(what OME-NGFF says that a group without an image is, addresses of images); nothing if it says nothing."""
        document = self.documents.get(V3_DOCUMENT, self.documents.get(".zattrs"))
        attributes = document.get("attributes") if self.version == 3 and isinstance(document, dict) else document
        attributes = attributes if isinstance(attributes, dict) else {}
        ome = attributes.get("ome")
        fields = ome if isinstance(ome, dict) else attributes
        if isinstance(plate := fields.get("plate"), dict):
            return "a plate of wells with fields of view", [
                f"{self.url}/{path}/0" for path in _paths(plate.get("wells"))
            ]
        if isinstance(well := fields.get("well"), dict):
            return "a well of fields of view", [f"{self.url}/{path}" for path in _paths(well.get("images"))]
        if series := _paths(fields.get("series")):
            return "a list of the images beside it", [f"{self.url.rpartition('/')[0]}/{path}" for path in series]
        if "bioformats2raw.layout" in fields:
            return "a collection of images (series)", [f"{self.url}/0"]
        labels = _paths(fields.get("labels"))
        return ("a list of label images" if labels else "", [f"{self.url}/{path}" for path in labels])


class _Tree:
    """The documents below one address, each fetched once."""

    def __init__(self, url: str, client: Client, settings: Settings) -> None:
        self.url = url
        self._client = client
        self._settings = settings
        self._raw: dict[str, bytes | None] = {}

    def node(self, path: str, *, required: bool = True) -> _Node:
        """The group or array at a path. Raises NotThere if there is none; folders between need no documents."""
        node = self._node(path, (V3_DOCUMENT, *V2_DOCUMENTS))
        if required and not node.documents:
            raise NotThere(
                f"{safe_url(node.url)} is no Zarr array or group: it has none of {V3_DOCUMENT}, "
                f"{', '.join(V2_DOCUMENTS)}; correct the address or the dataset.",
                404,
            )
        return node

    def ancestors(self, node: _Node) -> Iterator[_Node]:
        """The groups an array lies in, nearest first, as far as the address that was opened."""
        path = node.path
        while path:
            path = path.rpartition("/")[0]
            group = self._node(path, (V3_DOCUMENT,) if node.version == 3 else (".zgroup", ".zattrs"))
            if group.documents:
                yield group

    def pyramid_volume(self, group: _Node, pyramid: Pyramid) -> ChunkedVolume:
        """All levels of a group's multiscales; those that are not there stay away."""
        paths = [f"{group.path}/{level.path}".lstrip("/") for level in pyramid.levels]
        names = (V3_DOCUMENT, ".zarray", *(() if group.version == 3 else (".zattrs",)))
        self._fetch([_under(path, name) for path in paths for name in names])
        nodes = [self._node(path, names) for path in paths]
        arrays = [node.array() if node.is_array else None for node in nodes]
        known = next((array for array in arrays if array is not None), None)
        if known is not None:
            pyramid = pyramid.with_axes(usual_axes(len(known.shape)))
        require_consistent(pyramid, [None if array is None else array.shape for array in arrays])
        proofs = [_under(node.path, node.main_document) if node.documents else "" for node in nodes]
        return self._volume(group.path, pyramid, arrays, proofs)

    def array_volume(self, node: _Node) -> ChunkedVolume:
        """An array that no multiscales list."""
        array = node.array()
        transform = array.attributes.get("transform")
        where = node.where(node.main_document)
        if transform is not None and not array.axes:
            pyramid = cosem_transform(transform, len(array.shape), where)
        else:
            axes = axis_letters(array.axes, where) if array.axes else usual_axes(len(array.shape))
            levels = (PyramidLevel("", None, None),)
            pyramid = Pyramid(axes, (None,) * len(axes), levels, "scale-only", where)
        require_consistent(pyramid, [array.shape])
        return self._volume(node.path, pyramid, [array], [_under(node.path, node.main_document)])

    def _volume(
        self, group: str, pyramid: Pyramid, arrays: Sequence[StoredArray | None], proofs: Sequence[str]
    ) -> ChunkedVolume:
        documents = {path: raw for path, raw in sorted(self._raw.items()) if raw is not None}
        return ChunkedVolume(
            self.url, self._client, self._settings, documents, group, pyramid, tuple(arrays), tuple(proofs)
        )

    def _node(self, path: str, names: Sequence[str]) -> _Node:
        self._fetch([_under(path, name) for name in names])
        url = join(self.url, path)
        documents = {}
        for name in names:
            raw = self._raw[_under(path, name)]
            if raw is not None:
                documents[name] = parse_json(raw, f"{safe_url(url)}/{name}")
        node = _Node(path, url, documents)
        node.require_one_version()
        return node

    def _fetch(self, paths: Sequence[str]) -> None:
        """Gets those documents that are not known yet; one that is absent is None."""
        wanted = [path for path in dict.fromkeys(paths) if path not in self._raw]
        answers = fetch_all([partial(self._get, path) for path in wanted], self._settings.connections_per_host)
        for path, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, EmAssetsError):
                raise answer
            self._raw[path] = answer

    def _get(self, path: str, interrupt: Interrupt) -> bytes | None:
        try:
            reply = self._client.get(
                join(self.url, path), max_bytes=MAX_JSON_BYTES, accept_gzip=True, interrupt=interrupt
            )
        except NotThere:
            return None
        return bytes(reply.body)


def _paths(items: Any) -> list[str]:
    """Those of a list of names, or of objects that have a path; what else may stand there is left out."""
    found = [
        item.get("path") if isinstance(item, dict) else item for item in (items if isinstance(items, list) else [])
    ]
    return [path for path in found if isinstance(path, str) and path.isprintable() and 0 < len(path) <= 100]


def _under(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
