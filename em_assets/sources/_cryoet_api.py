"""The CryoET Data Portal's interface: `PortalClient` finds datasets, runs, tomograms, annotations by id or condition.

What they are is `_cryoet_entities.py`, how lists are asked for whole `_graphql.py`; which tomogram a spec means and
where its bytes lie is for `cryoet.py` to say. Keys come from here or from a listing, never from a voxel spacing.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import replace

from em_assets.errors import Malformed, Mismatch
from em_assets.fetch.http import HttpClient, host_address, safe_url
from em_assets.fetch.s3 import Bucket, parse_bucket
from em_assets.settings import Settings
from em_assets.sources._cryoet_entities import (
    Addresses,
    E,
    PortalAcquisitionFile,
    PortalAlignment,
    PortalAnnotation,
    PortalAnnotationFile,
    PortalAnnotationShape,
    PortalAuthor,
    PortalDataset,
    PortalDeposition,
    PortalEntity,
    PortalIdentifiedObject,
    PortalRun,
    PortalTiltSeries,
    PortalTomogram,
    Reading,
    kind_of,
    read,
    read_or_refuse,
)
from em_assets.sources._graphql import PAGE_ENTITIES, Condition, GraphQlClient, Keep, Refused

__all__ = [
    "PORTAL_URL",
    "Condition",
    "NotInPortal",
    "PortalAcquisitionFile",
    "PortalAlignment",
    "PortalAnnotation",
    "PortalAnnotationFile",
    "PortalAnnotationShape",
    "PortalAuthor",
    "PortalClient",
    "PortalDataset",
    "PortalDeposition",
    "PortalEntity",
    "PortalIdentifiedObject",
    "PortalRun",
    "PortalTiltSeries",
    "PortalTomogram",
    "bucket_of",
    "files_for",
]

PORTAL_URL = "https://graphql.cryoetdataportal.czscience.com/graphql"
VOXEL_SPACING_TOLERANCE_ANGSTROM = 0.0005
"""The portal's folders have three decimals: VoxelSpacing13.480."""
SHELL_CLASS = r"\[!?\]?[^\[\]]*\]"
"""`[abc]`, `[!a-c]` of a shell's pattern."""


class NotInPortal(Mismatch):
    """The interface answered, and has nothing of this id."""


class PortalClient:
    """What the portal has, asked for in whole lists, by any number of threads.

    Every method raises HostUnreachable or Unavailable if the interface does not answer, Unsupported if its schema
    changed, Malformed if what it says cannot be believed.
    """

    def __init__(
        self,
        url: str,
        client: HttpClient | Settings,
        *,
        keep: Keep | None = None,
        refused: Refused | None = None,
        page_entities: int = PAGE_ENTITIES,
    ) -> None:
        """`keep(name, body)` is called with each reply, as received, for the records. With `refused`, one entity of a
        list that cannot be believed (a field absent, an address that leads elsewhere) is told there and left out;
        without, it is the list's error.
        """
        host_address(url)
        self.url = url
        http = client if isinstance(client, HttpClient) else HttpClient(client)
        self._graphql = GraphQlClient(url, http, keep=keep, page_entities=page_entities)
        self._reading = Reading(url, Addresses(url), refused)

    def deposition(self, deposition_id: int | str) -> PortalDeposition:
        """Raises NotInPortal."""
        return self._by_id(PortalDeposition, deposition_id)

    def dataset(self, dataset_id: int | str) -> PortalDataset:
        """Raises NotInPortal."""
        return self._by_id(PortalDataset, dataset_id)

    def run(self, run_id: int | str) -> PortalRun:
        """By the portal's id, not by name. Raises NotInPortal."""
        return self._by_id(PortalRun, run_id)

    def tomogram(self, tomogram_id: int | str) -> PortalTomogram:
        """Raises NotInPortal."""
        return self._by_id(PortalTomogram, tomogram_id)

    def annotation(self, annotation_id: int | str) -> PortalAnnotation:
        """Raises NotInPortal."""
        return self._by_id(PortalAnnotation, annotation_id)

    def datasets(self, where: Sequence[Condition] = ()) -> list[PortalDataset]:
        return self.find(PortalDataset, where)

    def runs(
        self, dataset: int | str | None = None, name_like: str | None = None, where: Sequence[Condition] = ()
    ) -> list[PortalRun]:
        """Of a dataset; `name_like` is a pattern as the shell has them: `TS_*`, `TS_0[1-3]?`. Case matters."""
        conditions = list(where)
        if dataset is not None:
            conditions.append(Condition("datasetId", "_eq", whole_id(dataset, "dataset")))
        if name_like is not None and (like := like_of(name_like)) is not None:
            conditions.append(Condition("name", "_like", like))
        found = self.find(PortalRun, conditions)
        return found if name_like is None else [run for run in found if fnmatch.fnmatchcase(run.name, name_like)]

    def tomograms(
        self,
        dataset: int | str | None = None,
        run: str | None = None,
        *,
        run_id: int | str | None = None,
        ids: Sequence[int | str] | None = None,
        voxel_spacing: float | None = None,
        processing: str | None = None,
        where: Sequence[Condition] = (),
    ) -> list[PortalTomogram]:
        """With their runs, datasets and alignments. All that is given must hold; `run` is a name.

        `voxel_spacing` is in angstrom, compared to three decimals. With `ids`, they come in that order; raises
        NotInPortal if one of them is not there.
        """
        conditions = list(where)
        if dataset is not None:
            conditions.append(Condition("run.datasetId", "_eq", whole_id(dataset, "dataset")))
        if run is not None:
            conditions.append(Condition("run.name", "_eq", run))
        if run_id is not None:
            conditions.append(_of_run(run_id))
        if voxel_spacing is not None:
            conditions += _near("voxelSpacing", voxel_spacing)
        if processing is not None:
            conditions.append(Condition("processing", "_eq", processing))
        return self.find(PortalTomogram, conditions) if ids is None else self._of_ids(PortalTomogram, ids, conditions)

    def tilt_series(self, run_id: int | str, where: Sequence[Condition] = ()) -> list[PortalTiltSeries]:
        return self.find(PortalTiltSeries, [_of_run(run_id), *where])

    def acquisition_files(self, run_id: int | str, where: Sequence[Condition] = ()) -> list[PortalAcquisitionFile]:
        return self.find(PortalAcquisitionFile, [_of_run(run_id), *where])

    def alignments(self, run_id: int | str, where: Sequence[Condition] = ()) -> list[PortalAlignment]:
        """With what each section was moved by."""
        return self.find(PortalAlignment, [_of_run(run_id), *where])

    def annotations(
        self,
        run_id: int | str | None = None,
        *,
        tomogram: PortalTomogram | None = None,
        ids: Sequence[int | str] | None = None,
        where: Sequence[Condition] = (),
    ) -> list[PortalAnnotation]:
        """With shapes and files; those of a tomogram have a file for it (`files_for`). `ids` as in `tomograms`."""
        conditions = list(where)
        if run_id is not None:
            conditions.append(_of_run(run_id))
        if tomogram is not None:
            if tomogram.run_id is None:
                raise Malformed(f"{safe_url(self.url)}: tomogram {tomogram.id} has no run, and so no annotations.")
            conditions.append(_of_run(tomogram.run_id))
        if ids is None:
            found = self.find(PortalAnnotation, conditions)
        else:
            found = self._of_ids(PortalAnnotation, ids, conditions)
        return found if tomogram is None else [one for one in found if files_for(one, tomogram)]

    def identified_objects(self, run_id: int | str, where: Sequence[Condition] = ()) -> list[PortalIdentifiedObject]:
        return self.find(PortalIdentifiedObject, [_of_run(run_id), *where])

    def find(self, entity: type[E], where: Sequence[Condition] = ()) -> list[E]:
        """Every entity of a class that fulfils all conditions, by id."""
        raws = self._graphql.find(kind_of(entity), where, refused=self._reading.refused)
        found = (read_or_refuse(entity, raw, self._reading) for raw in raws)
        return [one for one in found if one is not None]

    def _by_id(self, entity: type[E], key: int | str) -> E:
        return self._of_ids(entity, [key], ())[0]

    def _of_ids(self, entity: type[E], ids: Sequence[int | str], conditions: Sequence[Condition]) -> list[E]:
        """In that order. What was asked for by id is not left out: where it cannot be believed, that is raised."""
        name = entity.KIND[0]
        wanted = tuple(dict.fromkeys(whole_id(one, name) for one in ids))
        if not wanted:
            return []
        raws = self._graphql.find(kind_of(entity), [*conditions, Condition("id", "_in", wanted)])
        found = {raw["id"]: raw for raw in raws}
        if lacking := [str(one) for one in wanted if one not in found]:
            besides = " that fulfils the other conditions" if conditions else ""
            raise NotInPortal(
                f"{safe_url(self.url)} has no {name} with the id {', '.join(lacking)}{besides}; correct the id."
            )
        strictly = replace(self._reading, refused=None)
        return [read(entity, found[one], strictly) for one in wanted]


def whole_id(value: int | str, what: str) -> int:
    """An id from a person, also as text. Raises Malformed for what is none, such as `10000/TS_026`."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,10}", value, re.ASCII):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise Malformed(f"{value!r} is no id of a {what}: expected a whole number, such as 10000; correct it.")
    return value


def like_of(pattern: str) -> str | None:
    """A LIKE pattern that fits every name that the shell's pattern fits, and maybe more; None if there is none.

    `_` and `%` stay as they are: they fit themselves, among others, and nothing depends on how a server escapes them.
    """
    without = re.sub(SHELL_CLASS, "?", pattern)
    return None if "[" in without or "\\" in without else without.replace("?", "_").replace("*", "%")


def files_for(annotation: PortalAnnotation, tomogram: PortalTomogram) -> list[PortalAnnotationFile]:
    """An annotation's files whose coordinates are the tomogram's: of its voxel spacing and alignment, as far as both
    are said.
    """
    return [
        file
        for file in annotation.files
        if _agree(file.voxel_spacing_id, tomogram.voxel_spacing_id) and _agree(file.alignment_id, tomogram.alignment_id)
    ]


def bucket_of(address: str) -> Bucket:
    """An `s3://` address of an entity, taken apart; its key without a slash at the end."""
    return parse_bucket(address.rstrip("/"))


def _agree(one: int | None, other: int | None) -> bool:
    return one is None or other is None or one == other


def _of_run(run_id: int | str) -> Condition:
    return Condition("runId", "_eq", whole_id(run_id, "run"))


def _near(field: str, angstrom: float) -> list[Condition]:
    if not 0 < angstrom < math.inf:
        raise Malformed(f"a voxel spacing of {angstrom!r} was asked for, expected angstrom above 0; correct it.")
    return [
        Condition(field, "_gte", angstrom - VOXEL_SPACING_TOLERANCE_ANGSTROM),
        Condition(field, "_lte", angstrom + VOXEL_SPACING_TOLERANCE_ANGSTROM),
    ]
