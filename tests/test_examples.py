"""The examples, as somebody runs them after the quickstart."""

import ast
import importlib.util
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import em_assets.blocks as em
from em_assets.blocks.index import write_index
from em_assets.catalog.build import build_catalog
from em_assets.records import DatasetFolder
from em_assets.sample.texture import draw
from em_assets.store import open_store
from ome_volumes import halved, write_ome_zarr
from small import SOURCE_SHAPE, FaultyServer, materialize, publish, quick_settings, write_spec

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def example():
    """`train_unet.py`, loaded as a module."""
    pytest.importorskip("torch", reason="torch is not installed (the extra `ml`)")
    spec = importlib.util.spec_from_file_location("train_unet", EXAMPLES / "train_unet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> list[str]:
    """Two of different voxel size and type; at 16 nm, one has a level, the other is resampled."""
    base = tmp_path_factory.mktemp("volumes")
    found = []
    for number, (size, dtype) in enumerate([(8.0, "uint8"), (10.0, "int16")]):
        fine = draw((64, 80, 80), seed=number).astype(dtype)
        levels = [fine, np.rint(halved(fine)).astype(dtype)]
        found.append(str(write_ome_zarr(base / f"v{number}", levels, chunk=(32, 32, 32), voxel_size_nm=(size,) * 3)))
    return found


def run(example, volumes, **options) -> list[float]:
    given = {"shape": 16, "batch-size": 4, "workers": 1} | options
    return example.main([*volumes, *(f"--{key}={value}" for key, value in given.items())])


def test_the_loss_goes_down(example, volumes):
    """From that of the noise to well below: the net does something, on two datasets at one voxel size."""
    losses = run(example, volumes, steps=150)
    assert len(losses) == 150
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])
    assert np.mean(losses[-10:]) < 0.75 * example.NOISE**2


def test_a_stopped_run_goes_on(example, volumes, tmp_path):
    """Stopped in the middle of an epoch and started again, it has the losses of a run that was not stopped."""
    whole = run(example, volumes, steps=50)
    run(example, volumes, steps=25, checkpoint=tmp_path / "run.pt")
    assert run(example, volumes, steps=50, checkpoint=tmp_path / "run.pt") == whole


@pytest.fixture(scope="module")
def quickstarted(tmp_path_factory) -> Path:
    """A store with `hemibrain_crop`, smaller."""
    base = tmp_path_factory.mktemp("quickstart")
    with FaultyServer(base / "site") as server:
        publish(server.folder)
        spec = write_spec(base / "specs", server.url, name="hemibrain_crop", crop={"shape": list(SOURCE_SHAPE)})
        record, _ = materialize(spec, quick_settings(base / "data"))
    assert record.status == "complete"
    return base / "data"


def test_the_notebook_runs(quickstarted, monkeypatch):
    """Its ten lines, cell by cell, in its own folder: the block by voxels and by nanometres is the same."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setenv("EM_ASSETS_ROOT", str(quickstarted))
    cells = code_cells(EXAMPLES / "blocks.ipynb")
    assert sum(1 for cell in cells for line in cell.splitlines() if line.strip()) == 10
    names: dict = {}
    shown = [execute(cell, names) for cell in cells]
    box_nm, valid_fraction, digest, by_nanometres = shown[1]
    assert box_nm == names["volume"].levels[0].grid.box_nm(names["block"].box)
    assert (valid_fraction, digest) == (1.0, by_nanometres)
    assert (np.asarray(shown[2]) == names["block"].data[64]).all()
    assert [tuple(shape) for shape, _, _ in shown[3]] == [(4, 64, 64, 64)] * 2


def test_the_readme_trains(quickstarted, monkeypatch):
    """Its block "For training", as it stands there, over the catalogue's index of what was downloaded."""
    torch_data = pytest.importorskip("torch.utils.data", reason="torch is not installed (the extra `ml`)")
    code = readme_code("## Blocks for machine learning", containing="DataLoader(")
    small = quick_settings(quickstarted)
    folder = DatasetFolder(open_store(small.root), "hemibrain_crop")
    write_index(folder, em.open("hemibrain_crop", settings=small), block=32, margin=0)
    build_catalog({}, folder.store, small)
    monkeypatch.setenv("EM_ASSETS_ROOT", str(quickstarted))
    names: dict = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="blocks are larger than the boxes|blocks that are never drawn")
        exec(compile(code, "README.md", "exec"), names)
    assert isinstance(names["dataset"], em.BlockDataset) and len(names["dataset"]) >= 8
    shapes = [tuple(batch["data"].shape) for batch in torch_data.DataLoader(names["dataset"], batch_size=8)]
    assert shapes[0] == (8, 64, 64, 64)
    assert tuple(names["batch"]["data"].shape) == shapes[-1]


def readme_code(title: str, *, containing: str) -> str:
    """The Python block under a heading that has these words."""
    text = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8").partition(f"\n{title}\n")[2]
    section = text.partition("\n## ")[0]
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL) if containing in code]
    return found


def code_cells(notebook: Path) -> list[str]:
    document = json.loads(notebook.read_text(encoding="utf-8"))
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    assert not any(cell.get("outputs") for cell in document["cells"])
    return ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "code"]


def execute(cell: str, names: dict) -> object:
    """What a notebook would show: the value of the last line, if it has one."""
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None
