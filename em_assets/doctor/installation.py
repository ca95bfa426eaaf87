"""This machine: Python and packages, settings, folders, specs, Dagster's home. No network, unless the store is S3."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from em_assets.datasets.loading import load_spec, load_specs
from em_assets.datasets.spec import DatasetSpec
from em_assets.doctor.report import Section
from em_assets.errors import EmAssetsError
from em_assets.progress import human_bytes
from em_assets.settings import Settings
from em_assets.store import open_store

LEAST_PYTHON = (3, 11)
LEAST_FREE_BYTES = 2 * 10**9
LEAST_OPEN_FILES = 1024
CLOCK_SECONDS = 5.0
EARLIEST = 1_735_689_600.0
"""2025-01-01: a clock that shows an earlier time is wrong, and certificates will not be believed."""
PROXIES = ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy")
EXTRAS = {"view": "em-assets view", "ml": "blocks as a torch Dataset"}


def look_at_installation(settings: Settings) -> tuple[Section, dict[str, DatasetSpec]]:
    """Every line about this machine, and the specs that load."""
    section = Section("Installation")
    _look_at_python(section)
    _look_at_packages(section)
    _look_at_settings(section, settings)
    section.attempt("store", "", lambda: _look_at_store(section, settings))
    section.attempt("cache", "", lambda: _look_at_folder(section, "cache", settings.cache_folder()))
    _look_at_clock(section)
    _look_at_limits(section)
    _look_at_dagster(section)
    return section, section.attempt("specs", "", lambda: _look_at_specs(section, settings)) or {}


def _look_at_python(section: Section) -> None:
    wanted = ".".join(map(str, LEAST_PYTHON))
    section.compare("Python", f"at least {wanted}", platform.python_version(), agrees=sys.version_info >= LEAST_PYTHON)


# Packages


@dataclass(frozen=True)
class Requirement:
    """`zarr>=3.1.2,<4 ; extra == "view"`."""

    name: str
    bounds: tuple[tuple[str, tuple[int, ...]], ...]
    extra: str | None

    @classmethod
    def parse(cls, line: str) -> Requirement:
        wanted, _, marker = line.partition(";")
        name = re.match(r"[A-Za-z0-9._-]+", wanted.strip())
        bounds = re.findall(r"(>=|<|==)\s*([0-9][0-9A-Za-z.]*)", wanted)
        extra = re.search(r"""extra\s*==\s*["']([^"']+)""", marker)
        return cls(
            name[0] if name else wanted.strip(),
            tuple((mark, _numbers(version)) for mark, version in bounds),
            extra[1] if extra else None,
        )

    def allows(self, version: str) -> bool:
        found = _numbers(version)
        return all(
            {">=": found >= number, "<": found < number, "==": found == number}[mark] for mark, number in self.bounds
        )

    def __str__(self) -> str:
        shown = ",".join(f"{mark}{'.'.join(map(str, number)).removesuffix('.0.0')}" for mark, number in self.bounds)
        return shown or "any version"


def _numbers(version: str) -> tuple[int, ...]:
    """Of a release: 3.1.2rc1 -> (3, 1, 2); padded, so that 4 is 4.0.0."""
    release = re.match(r"\d+(\.\d+)*", version)
    numbers = tuple(int(part) for part in release[0].split(".")) if release else ()
    return numbers + (0,) * (4 - len(numbers))


def _look_at_packages(section: Section) -> None:
    try:
        own, lines = metadata.version("em_assets"), metadata.requires("em_assets") or []
    except metadata.PackageNotFoundError:
        section.add(
            "warn", "packages", "em_assets runs from its source and is not installed, so nothing says which it needs"
        )
        return
    requirements = [Requirement.parse(line) for line in lines]
    needed = [requirement for requirement in requirements if requirement.extra is None]
    bad = [problem for requirement in needed if (problem := _problem(requirement)) is not None]
    section.compare(
        "packages", f"em_assets {own} and all {len(needed)} it needs", "; ".join(bad) or "as needed", agrees=not bad
    )
    for extra, use in EXTRAS.items():
        missing = [r.name for r in requirements if r.extra == extra and _version(r.name) is None]
        found = (
            f"not installed: {use} will not work (pip install em_assets[{extra}])" if missing else f"installed: {use}"
        )
        section.add("ok", f"extra {extra}", found)


def _problem(requirement: Requirement) -> str | None:
    version = _version(requirement.name)
    if version is None:
        return f"{requirement.name} is not installed"
    return None if requirement.allows(version) else f"{requirement.name} is {version}, needed is {requirement}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# Settings and folders


def _look_at_settings(section: Section, settings: Settings) -> None:
    """What was set, without what could be secret: addresses may hold passwords, credentials are only counted."""
    given = settings.model_dump(exclude_unset=True)
    shown = ", ".join(f"EM_ASSETS_{name.upper()}={value}" for name, value in given.items())
    section.add("ok", "settings", re.sub(r"//[^/@\s]*@", "//...@", shown) or "none set, all as they come")
    proxies = [name for name in PROXIES if os.environ.get(name)]
    if proxies:
        section.add("ok", "proxy", f"{', '.join(proxies)} is set")
    keys = [name for name in os.environ if name.startswith("AWS_")]
    if keys:
        section.add("ok", "AWS", f"{', '.join(sorted(keys))} set (values not shown)")


def _look_at_store(section: Section, settings: Settings) -> None:
    if not settings.root.startswith("s3://"):
        _look_at_folder(section, "store", Path(settings.root))
        return
    next(iter(open_store(settings.root).list("")), None)
    section.add("ok", "store", f"{settings.root} answers")


def _look_at_folder(section: Section, what: str, folder: Path) -> None:
    """Of a folder that is not there yet: whether it can be made. Nothing is left behind."""
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        reason = error.strerror or str(error)
        section.add("FAIL", what, f"{folder} cannot be written ({reason})", "a folder that can be written")
        return
    later = "" if place == folder.absolute() else " (will be made)"
    enough = free >= LEAST_FREE_BYTES
    section.add("ok" if enough else "warn", what, f"{folder}{later}, {human_bytes(free)} free", "room")


def _look_at_clock(section: Section) -> None:
    """Against the file system, and against the past."""
    with tempfile.NamedTemporaryFile() as file:
        off = time.time() - Path(file.name).stat().st_mtime
    found = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    sound = abs(off) < CLOCK_SECONDS and time.time() > EARLIEST
    section.add(
        "ok" if sound else "warn", "clock", found if sound else f"{found}, {off:.0f} s beside the disk's", "the time"
    )


def _look_at_limits(section: Section) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    enough = unlimited or soft >= LEAST_OPEN_FILES
    section.add(
        "ok" if enough else "warn", "open files", "unlimited" if unlimited else soft, f"at least {LEAST_OPEN_FILES}"
    )


def _look_at_dagster(section: Section) -> None:
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        is_here = Path("dagster.yaml").is_file()
        found = (
            "not set; ./dagster.yaml applies" if is_here else "not set, and no dagster.yaml here: no history is kept"
        )
        section.add("ok" if is_here else "warn", "DAGSTER_HOME", found)
        return
    folder = Path(home)
    if not folder.is_absolute() or not folder.is_dir():
        section.add("FAIL", "DAGSTER_HOME", home, "an absolute path of a folder that is there")
        return
    has_file = (folder / "dagster.yaml").is_file()
    found = (
        "with a dagster.yaml" if has_file else "without a dagster.yaml: Dagster's defaults apply, telemetry included"
    )
    section.add("ok" if has_file else "warn", "DAGSTER_HOME", f"{folder}, {found}")


# Specs


def _look_at_specs(section: Section, settings: Settings) -> dict[str, DatasetSpec]:
    """Each bad one is a line; the others are what is asked about."""
    folders = settings.dataset_folders()
    specs: dict[str, DatasetSpec] = {}
    bad = 0
    for file in _spec_files(folders):
        try:
            spec = load_spec(file)
        except EmAssetsError as error:
            section.add("FAIL", f"spec {file.name}", error)
            bad += 1
        else:
            specs[spec.name] = spec
    if not bad:
        section.attempt("specs together", "each name once", lambda: load_specs(folders))
    section.add("ok" if specs else "warn", "specs", f"{len(specs)} load: {', '.join(sorted(specs)) or 'none'}")
    return specs


def _spec_files(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        files = (file for file in sorted(folder.glob("*.yaml")) if not file.name.startswith("."))
        yield from (file for file in files if not file.name.endswith(".ingest.yaml"))  # an ingestion, not a dataset
