"""The environment, read in one place. Everything else takes a `Settings` or a value from it.

Each variable is described where it is defined; `EM_ASSETS_` is the prefix of all of them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from em_assets.errors import Malformed

PACKAGED_DATASETS = Path(__file__).parent / "datasets"
MAX_SECONDS = 24 * 3600.0
"""Also keeps infinity out, which sockets do not take."""


class Settings(BaseSettings):
    """One reading of the environment; frozen, so that a run sees one configuration."""

    model_config = SettingsConfigDict(env_prefix="EM_ASSETS_", frozen=True, env_ignore_empty=True)

    root: str = "data"
    """The store: a folder, or `s3://bucket/prefix`."""
    datasets: str | None = None
    """Folders of dataset specs, separated by os.pathsep; replaces the package's own and `./datasets`."""
    cache: Path | None = None
    """Where derived files are built before they are uploaded, and what was read of publishers' volumes that are not
    downloaded is kept (default: the XDG cache)."""
    cache_bytes: int = Field(default=20_000_000_000, ge=0)
    """How much of publishers' volumes is kept in the cache; what was used longest ago goes first. 0: nothing."""
    max_bytes: int = Field(default=20_000_000_000, ge=0)
    """A dataset that stores more than this is refused with its plan."""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=256)
    """Threads that decode and encode."""
    connections_per_host: int = Field(default=8, ge=1, le=64)
    """Requests under way at once to one host."""
    connect_seconds: float = Field(default=10.0, gt=0, le=MAX_SECONDS)
    """Longest wait for a connection."""
    read_seconds: float = Field(default=30.0, gt=0, le=MAX_SECONDS)
    """Longest silence within a reply."""
    min_bytes_per_second: int = Field(default=1000, ge=1)
    """A reply slower than this over `read_seconds` is stuck: it is given up and asked for again."""
    unreachable_seconds: float = Field(default=20.0, gt=0, le=MAX_SECONDS)
    """How long a host is tried that has not sent a single byte yet (a run then ends within 30 s)."""
    retry_seconds: float = Field(default=600.0, gt=0, le=MAX_SECONDS)
    """How long a request is tried to a host that has answered before, counted from when bytes last came."""
    progress: Literal["tty", "bar", "log", "off"] = "tty"
    """`tty`: plan, bar and summary on the terminal if there is one, else log lines; `bar`: the bar alone."""
    memory_bytes: int = Field(default=256 * 2**20, ge=2**20)
    """Bound on source bytes held while they wait to be used; more are fetched again instead."""
    kept_chunk_bytes: int = Field(default=256 * 2**20, ge=0)
    """Of decoded chunks of remote volumes that each process which reads blocks keeps, those used last. 0: none."""

    @field_validator("root")
    @classmethod
    def _root_is_a_place(cls, value: str) -> str:
        if "://" in value and not value.startswith("s3://"):
            raise ValueError("is neither a folder nor s3://bucket/prefix")
        return value

    def dataset_folders(self) -> list[Path]:
        """The folders of specs, in order. A configured folder that is absent is an error."""
        if self.datasets is None:
            own = Path("datasets")
            return [PACKAGED_DATASETS, *([own] if own.is_dir() else [])]
        folders = [Path(part) for part in self.datasets.split(os.pathsep) if part]
        if not folders:
            raise Malformed(f"EM_ASSETS_DATASETS is {self.datasets!r}, which names no folder; correct or unset it.")
        for folder in folders:
            if not folder.is_dir():
                raise Malformed(f"EM_ASSETS_DATASETS names {folder}, which is not a folder; correct or unset it.")
        return folders

    def cache_folder(self) -> Path:
        if self.cache is not None:
            return self.cache
        from platformdirs import user_cache_path

        try:
            folder = user_cache_path("em_assets").expanduser()
        except RuntimeError:  # in older versions `~` stays as it is, which expanduser refuses
            raise Malformed(
                "EM_ASSETS_CACHE is not set and this user has no home folder to keep a cache in; set it to a folder."
            ) from None
        return folder


@dataclass(frozen=True)
class S3Access:
    """How to reach S3. What is None is found by the client library: credentials in the standard variables or files."""

    endpoint_url: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    anonymous: bool = False

    @classmethod
    def from_environment(cls) -> S3Access:
        """From `AWS_ENDPOINT_URL(_S3)`, `AWS_REGION`, `AWS_DEFAULT_REGION` and `AWS_SKIP_SIGNATURE`.

        Raises Malformed if the endpoint is not an address (obstore crashes on one).
        """
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            value = os.environ.get(name)
            if value and not re.fullmatch(r"https?://[^\s/?#@]+/?", value):
                raise Malformed(f"{name} is {value!r}: expected http(s)://host or http(s)://host:port; correct it.")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return cls(
            endpoint_url=endpoint.rstrip("/") if endpoint else None,
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
            anonymous=os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"),
        )


def read_settings() -> Settings:
    """The settings in force. Raises Malformed naming the variable, what it holds and what it accepts."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "EM_ASSETS_" + str(first["loc"][0]).upper()
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise Malformed(f"{name} is {first['input']!r}: it {message}; correct or unset it.") from None
