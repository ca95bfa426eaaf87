"""A small published volume and a spec that asks for a crop of it: what most end-to-end tests start from."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from em_assets.datasets.loading import load_spec
from em_assets.datasets.spec import DatasetSpec
from em_assets.pipeline import materialize_dataset
from em_assets.progress import open_reporter
from em_assets.sample.precomputed import Sharding, write_precomputed
from em_assets.settings import PACKAGED_DATASETS, Settings
from em_assets.store import Store, open_store
from faulty import FaultyServer

SOURCE_SHAPE = (150, 170, 190)
CROP_SHAPE = (130, 140, 150)
PATH = "bucket/emdata/jpeg"


def voxels(shape: tuple[int, int, int] = SOURCE_SHAPE, seed: int = 5) -> np.ndarray:
    """Smooth enough to survive JPEG, different along each axis, and nowhere 0."""
    z, y, x = (np.arange(n, dtype=float) for n in shape)
    waves = (np.sin(z / 11 + seed)[:, None, None] + np.sin(y / 17)[None, :, None] + np.sin(x / 23)[None, None, :]) * 20
    noise = np.random.default_rng(seed).normal(0, 6, shape)
    return np.clip(125 + waves + noise, 1, 254).astype(np.uint8)


def publish(folder: Path, volume: np.ndarray | None = None, **options: Any) -> np.ndarray:
    """Writes the volume below a folder that a server serves; returns its voxels."""
    volume = voxels() if volume is None else volume
    options.setdefault("sharding", Sharding(preshift_bits=3, minishard_bits=1, shard_bits=3))
    options.setdefault("levels", 3)
    options.setdefault("chunk", 32)
    write_precomputed(folder / PATH, volume, **options)
    return volume


def write_spec(folder: Path, url: str, *, name: str = "small", **changes: Any) -> DatasetSpec:
    """A spec file for the published volume; `crop`, `expected`, `output`, `source` entries are merged into it."""
    spec = yaml.safe_load((PACKAGED_DATASETS / "hemibrain_crop.yaml").read_text())
    spec |= {"name": name, "title": "A small volume", "publisher": "test", "claims": []}
    spec["source"] = {"kind": "precomputed", "url": f"{url}/{PATH}", "level": 0}
    spec["crop"] = {"shape": list(CROP_SHAPE), "seed": 3}
    spec["expected"]["source_shape"] = list(SOURCE_SHAPE)
    spec["output"] = {"shard": [64, 64, 64], "chunk": [32, 32, 32]}
    for key, value in changes.items():
        spec[key] = {**spec.get(key, {}), **value} if isinstance(value, dict) else value
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(spec, sort_keys=False))
    return load_spec(file)


def quick_settings(root: Path | str, **changes: Any) -> Settings:
    """Time-outs a test can wait for."""
    values = {
        "unreachable_seconds": 1.0,
        "retry_seconds": 2.0,
        "connect_seconds": 1.0,
        "read_seconds": 2.0,
        "workers": 2,
    }
    return Settings(root=str(root), **{**values, **changes})


def materialize(spec: DatasetSpec, settings: Settings, store: Store | None = None):
    """The whole job in this process, without Dagster: (record, result)."""
    lines: list[str] = []
    reporter = open_reporter(lines.append, label=spec.name)
    return materialize_dataset(spec, settings, store or open_store(settings.root), reporter=reporter, log=lines.append)


def data_requests(server: FaultyServer) -> int:
    """Requests that were not for `info`."""
    return sum(not path.endswith("/info") for _, path, _ in server.log)
