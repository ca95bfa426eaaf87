"""The sample's tree of the CryoET Data Portal, served to one test: its GraphQL, its bucket, its files.

with ServedPortal(write_once(tmp_path_factory.getbasetemp()), tmp_path) as portal:
    record, result = portal.materialize(portal.spec())
"""

import functools
import json
import os
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import yaml

from em_assets import pipeline
from em_assets.adding.cryoet import Choice, draft_cryoet, portal_client
from em_assets.adding.draft import write_draft
from em_assets.checks.volume import checks_of
from em_assets.datasets.loading import load_spec
from em_assets.datasets.spec import DatasetSpec
from em_assets.progress import open_reporter
from em_assets.records import DatasetFolder
from em_assets.sample import cryoet
from em_assets.sample.origin import Request
from em_assets.sample.publishing import Addresses
from em_assets.store import open_store
from faulty import Fault, FaultyServer
from small import quick_settings

NAME = cryoet.DATASET
RUN = "10000/TS_026"
SPACING = f"{RUN}/Reconstructions/VoxelSpacing13.480"
TOMOGRAM = f"{SPACING}/Tomograms/100"
GONE = Fault(status=404)


@functools.cache
def write_once(base: Path) -> tuple[Path, dict[str, Any]]:
    """(folder, facts), below the session's folder for temporary files."""
    folder = base / "portal"
    folder.mkdir()
    return folder, cryoet.write(folder, Request(seed=1, volume=None))


class ServedPortal:
    """One test's server, specs and store. A test that changes the tree has a copy of it from then on."""

    def __init__(self, written: tuple[Path, dict[str, Any]], folder: Path) -> None:
        origin, self.facts = written
        self.prefix = self.facts["prefix"]
        self.http = FaultyServer(origin)
        self._origin, self._copy = origin, folder / "origin"
        self.specs_folder = folder / "specs"
        self.specs_folder.mkdir()
        self.settings = quick_settings(
            folder / "store", datasets=str(self.specs_folder), unreachable_seconds=5.0, read_seconds=5.0
        )
        self.lines: list[str] = []
        """What the runs logged."""
        self._up = ExitStack()

    @property
    def tree(self) -> Path:
        """Where the portal's keys lie."""
        return self.http.folder / self.facts["bucket"] / self.prefix

    @property
    def api(self) -> str:
        return f"{self.http.url}/{self.facts['bucket']}/{self.prefix}/graphql"

    def document(self) -> dict[str, Any]:
        """The sample's spec of TS_026; the tomogram is found by what it is, not by its id."""
        document = cryoet.spec(self.facts, Addresses(self.http.url, "ftp://127.0.0.1:1"))
        del document["source"]["portal"]["tomogram"]
        return document

    def spec(self, document: dict[str, Any] | None = None) -> DatasetSpec:
        document = document or self.document()
        file = self.specs_folder / f"{document['name']}.yaml"
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        return load_spec(file)

    def added(self, form: str, annotations: str | None = None, run: str = "TS_026") -> DatasetSpec:
        """The spec that `em-assets add` writes."""
        choice = Choice(form, 2 if form == "zarr" else 0, annotations, endpoint=self.http.url)
        draft = draft_cryoet(10000, run, choice, portal_client(self.api, self.settings), self.settings)
        return load_spec(write_draft(draft, self.settings, name=f"added_{form}", output=None, force=True))

    def materialize(self, spec: DatasetSpec):
        """(record, result) of the whole job."""
        reporter = open_reporter(self.lines.append, label=spec.name)
        store = open_store(self.settings.root)
        return pipeline.materialize_dataset(spec, self.settings, store, reporter=reporter, log=self.lines.append)

    def red(self, spec: DatasetSpec) -> list[str]:
        """Every check, run again: the names of those that fail."""
        store = open_store(self.settings.root)
        outcomes, _ = pipeline.recheck_dataset(spec, store, checks_of(spec), self.lines.append)
        assert len(outcomes) == len(checks_of(spec))
        return [outcome.name for outcome in outcomes if not outcome.passed]

    def folder(self, spec: DatasetSpec) -> DatasetFolder:
        return DatasetFolder(open_store(self.settings.root), spec.name)

    def file(self, spec: DatasetSpec, relative: str) -> Path:
        """Something stored."""
        return Path(self.folder(spec).uri(relative))

    def own_tree(self) -> Path:
        """One that may be changed; what is not replaced in it are links."""
        if self.http.folder == self._origin:
            shutil.copytree(self._origin, self._copy, copy_function=os.link)
            self.http.folder = self._copy
        return self.tree

    def replace(self, key: str, data: bytes) -> None:
        """Another file in the tree, in place of the link."""
        file = self.own_tree() / key
        file.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def edit(self, key: str, **changes: Any) -> None:
        """Other values in a metadata file."""
        document = json.loads((self.tree / key).read_text())
        self.replace(key, json.dumps(document | changes).encode())

    def move(self, was: str, now: str) -> None:
        """Another key for a folder, in its metadata, too."""
        tree = self.own_tree()
        (tree / now).parent.mkdir(parents=True, exist_ok=True)
        (tree / was).rename(tree / now)
        for file in (self.tree / now).glob("*.json"):
            self.replace(str(file.relative_to(self.tree)), file.read_text().replace(was, now).encode())

    def fail(self, pattern: str, fault: Fault = GONE) -> None:
        """Every request whose path has the pattern goes wrong."""
        self.http.fail = lambda path, range_header, count: fault if re.search(pattern, path) else None

    def heal(self) -> None:
        self.http.fail = lambda path, range_header, count: None

    def __enter__(self) -> Self:
        self._up.enter_context(self.http)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._up.close()
