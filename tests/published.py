"""The four publishers beside the hemibrain, written once: servers, specs and an empty store for each test.

with Publishers(write_once(tmp_path_factory.getbasetemp()), tmp_path) as publishers:
    record, result = publishers.materialize("idr_9846137")
"""

import functools
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml

from em_assets import pipeline
from em_assets.checks.volume import CheckOutcome, checks_of
from em_assets.datasets.loading import load_spec
from em_assets.datasets.spec import DatasetSpec
from em_assets.progress import open_reporter
from em_assets.records import DatasetFolder, DatasetRecord
from em_assets.sample import empiar, epfl, idr, openorganelle
from em_assets.sample.ftp import FtpServer
from em_assets.sample.origin import Request
from em_assets.sample.publishing import Addresses, file_facts
from em_assets.sample.tiff import write_itk
from em_assets.settings import Settings
from em_assets.store import open_store
from faulty import FaultyServer
from small import quick_settings

IDR, EMPIAR, EPFL, JRC = idr.DATASET, empiar.DATASET, epfl.DATASET, openorganelle.DATASET
MODULES = {IDR: idr, EMPIAR: empiar, EPFL: epfl, JRC: openorganelle}
ODD = "odd"
"""Not of a publisher: a constant volume and labels, both of odd sides and with more than one level."""
CONSTANT = np.full((37, 131, 259), 171, np.uint8)
LABELS = np.random.default_rng(4).integers(0, 255, (33, 141, 151)).astype(np.uint8)


class Written:
    """What is served, and what the specs are made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = {name: module.write(folder, Request(seed=1, volume=None)) for name, module in MODULES.items()}
        (folder / ODD).mkdir()
        for name, voxels in {"volumedata.tif": CONSTANT, "labels.tif": LABELS}.items():
            write_itk(folder / ODD / name, voxels.shape, dict(enumerate(voxels)).get)

    def documents(self, addresses: Addresses) -> dict[str, dict[str, Any]]:
        """The specs' YAML, by name."""
        made = {name: module.spec(self.facts[name], addresses) for name, module in MODULES.items()}
        return {**made, ODD: self._odd(made[EPFL], addresses)}

    def _odd(self, document: dict[str, Any], addresses: Addresses) -> dict[str, Any]:
        names = ("volumedata.tif", "labels.tif")
        labels = {"source": {"files": ["labels.tif"]}, "content": "labels", "shape": list(LABELS.shape)}
        return document | {
            "name": ODD,
            "source": {
                "kind": "files",
                "url": f"{addresses.http}/{ODD}",
                "files": [{"path": name, **file_facts(self.folder / ODD / name)} for name in names],
                "volume": {"files": ["volumedata.tif"]},
            },
            "documents": [],
            "expected": {"source_shape": list(CONSTANT.shape), "dtype": "uint8", "voxel_size_nm": [5.0] * 3},
            "volumes": {"labels": {**labels, "dtype": "uint8", "voxel_size_nm": [5.0] * 3}},
        }


class Publishers:
    """One test's servers of the written files, its specs and its store."""

    def __init__(self, written: Written, folder: Path, origin: Path | None = None) -> None:
        """`origin`: a copy of what is written, for a test that changes it."""
        origin = origin or written.folder
        self.written, self._up = written, ExitStack()
        self.http = FaultyServer(origin)
        self.ftp = FtpServer(origin, on_request=self._count, on_sent=self.http.count_sent)
        self.specs_folder = folder / "specs"
        self.specs_folder.mkdir(parents=True)
        self.settings = quick_settings(folder / "store", datasets=str(self.specs_folder))
        self.lines: list[str] = []
        """What the runs logged."""
        for name, document in written.documents(Addresses(self.http.url, self.ftp.url)).items():
            self._write(name, document)

    def spec(self, name: str, **changes: Any) -> DatasetSpec:
        """The spec of a dataset; with changes it is written anew, mappings merged."""
        if changes:
            document = yaml.safe_load((self.specs_folder / f"{name}.yaml").read_text())
            for key, value in changes.items():
                document[key] = {**document[key], **value} if isinstance(value, dict) else value
            self._write(name, document)
        return load_spec(self.specs_folder / f"{name}.yaml")

    def pin(self, name: str, path: str, **pins: str) -> DatasetSpec:
        """The spec with something pinned of one file."""
        source = yaml.safe_load((self.specs_folder / f"{name}.yaml").read_text())["source"]
        files = [entry | pins if entry["path"] == path else entry for entry in source["files"]]
        return self.spec(name, source={"files": files})

    def _count(self, path: str) -> None:
        self.http.count_request("RETR", path, None)

    def _write(self, name: str, document: dict[str, Any]) -> None:
        (self.specs_folder / f"{name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))

    def folder(self, name: str, settings: Settings | None = None) -> DatasetFolder:
        return DatasetFolder(open_store((settings or self.settings).root), name)

    def file(self, name: str, relative: str) -> Path:
        """Something stored, on the local disk."""
        return Path(self.folder(name).uri(relative))

    def served(self, name: str, path: str) -> Path:
        """A file of a `files` source, as it is served."""
        url = self.spec(name).source.file_url(path)
        found = self.http.find(url.removeprefix(self.http.url))
        assert found is not None
        return found

    def container(self) -> Path:
        """The Zarr container, as it is served."""
        facts = self.written.facts[JRC]
        return self.http.folder / facts["bucket"] / facts["key"]

    def materialize(self, name: str, settings: Settings | None = None, **options: Any):
        """(record, result) of the whole job."""
        settings = settings or self.settings
        reporter = open_reporter(self.lines.append, label=name)
        store = open_store(settings.root)
        return pipeline.materialize_dataset(
            self.spec(name), settings, store, reporter=reporter, log=self.lines.append, **options
        )

    def finished(self, name: str, keep: str | None = None) -> DatasetRecord:
        """The dataset is complete, by a run that another test looks at."""
        root = Path(self.settings.root)
        shutil.copytree(finished_once(self.written, name, keep) / name, root / name)
        self.spec(name, keep=keep)
        record = self.folder(name).read_record()
        assert record is not None and record.status == "complete"
        return record

    def plan(self, name: str) -> pipeline.DatasetPlan:
        return pipeline.plan_dataset(self.spec(name), self.settings, open_store(self.settings.root), ask_publisher=True)

    def red(self, name: str) -> dict[str, CheckOutcome]:
        """Every check, run again: those that fail, by name."""
        spec = self.spec(name)
        outcomes, _ = pipeline.recheck_dataset(spec, self.folder(name).store, checks_of(spec), self.lines.append)
        assert [outcome.name for outcome in outcomes] == list(checks_of(spec))
        return {outcome.name: outcome for outcome in outcomes if not outcome.passed}

    @property
    def requests(self) -> int:
        return self.http.requests

    def requested(self, since: int = 0) -> list[str]:
        """Last parts of the paths that were asked for."""
        return [path.rpartition("/")[2] for _, path, _ in list(self.http.log)[since:]]

    def fail(self, pattern: str, fault: Any) -> None:
        """Every request over HTTP whose path has the pattern goes wrong."""
        self.http.fail = lambda path, range_header, count: fault if re.search(pattern, path) else None

    def heal(self) -> None:
        self.http.fail = lambda path, range_header, count: None

    def down(self) -> None:
        """Nobody listens any more."""
        self._up.close()

    def __enter__(self) -> Self:
        self._up.enter_context(self.http)
        self._up.enter_context(self.ftp)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.down()


@functools.cache
def write_once(base: Path) -> Written:
    """Below the session's folder for temporary files: all tests are served the same."""
    return Written(base / "publishers")


@functools.cache
def finished_once(written: Written, name: str, keep: str | None) -> Path:
    """A store in which the dataset is complete."""
    with Publishers(written, written.folder.parent / f"finished_{name}_{keep}") as publishers:
        publishers.spec(name, keep=keep)
        publishers.materialize(name)
    return Path(publishers.settings.root)


def stored_level(folder: DatasetFolder, level: int = 0, sub: str | None = None) -> np.ndarray:
    """A level of a stored volume, read by tensorstore."""
    import tensorstore as ts

    where = folder.uri(f"{folder.further(sub).volume}/{level}")
    return np.asarray(ts.open({"driver": "zarr3", "kvstore": f"file://{where}/"}).result().read().result())
