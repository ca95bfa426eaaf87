"""Who may import whom (the layers), read from the source; and what loading the definitions does not load."""

import ast
import graphlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "em_assets"

LAYERS: list[set[str]] = [
    {"volume", "errors", "settings", "progress", "_default_target"},
    {"store", "records", "fetch", "blocks.geometry", "datasets", "originals"},
    {"formats", "sources"},
    {"standardize", "catalog", "neuroglancer"},
    {"blocks"},
    {"checks"},
    {"pipeline", "viewer", "export", "serve"},
    {"portal"},
    {"ingest"},
    {"resources", "partitions"},
    {"assets", "ingest_assets"},
    {"automation"},
    {"definitions"},
    {"cli", "cli_catalog", "cli_ingest", "cli_portal", "cli_shared", "cli_show", "dagster_child"}
    | {"cli_blocks", "cli_blocks_shared", "cli_read", "cli_block_index", "cli_geometry", "cli_stage", "cli_serve"}
    | {"sample", "adding", "doctor"},
]
"""Lowest first, as in the README. A module imports its own layer and those below; the longest name decides."""

DAGSTER_RIM = ("resources", "partitions", "checks", "assets", "ingest_assets", "automation", "definitions")

HEAVY = {"zarr", "tensorstore", "pandas", "duckdb", "boto3", "tifffile", "mrcfile", "obstore", "PIL", "scipy"}
HEAVY |= {"neuroglancer", "pyarrow", "s3fs", "fsspec", "dagster_aws", "torch", "imagecodecs"}

NOT_AFTER_LOADING = ["pandas", "zarr", "tensorstore", "boto3", "duckdb", "tifffile", "pyarrow"]

DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "google_crc32c": "google-crc32c", "graphql": "graphql-core"}
"""Where the import's name is not the distribution's."""


def module_name(file: Path) -> str:
    """`em_assets/blocks/geometry.py` -> `blocks.geometry`; a package's `__init__.py` is the package."""
    parts = list(file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imported_names(node: ast.AST, module: str) -> Iterator[str]:
    """Absolute dotted names an import statement asks for; `from a import b` gives both `a` and `a.b`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            here = ["em_assets", *module.split(".")] if module else ["em_assets"]
            above = node.level - (modules()[module].name == "__init__.py")
            base = ".".join([*here[: len(here) - above], *([base] if base else [])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def imports(module: str) -> list[tuple[str, int]]:
    """(dotted name, line) of every import anywhere in a module, also in functions and under TYPE_CHECKING."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    return [(name, node.lineno) for node in ast.walk(tree) for name in imported_names(node, module)]  # type: ignore[attr-defined]


def imports_on_loading(module: str) -> Iterator[tuple[str, int]]:
    """The imports that run when the module is loaded: not those in functions, not those for the type checker."""
    todo: list[ast.AST] = [ast.parse(modules()[module].read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        yield from ((name, getattr(node, "lineno", 0)) for name in imported_names(node, module))
        todo += ast.iter_child_nodes(node)


def own_module(name: str) -> str | None:
    """The module of ours that a dotted name means, None for other people's and for names inside a module."""
    own = name.removeprefix("em_assets.")
    return own if name.startswith("em_assets.") and own in modules() else None


def layer(module: str) -> int | None:
    """The layer of the longest prefix of the module's name that has one."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        for rank, names in enumerate(LAYERS):
            if ".".join(parts[:length]) in names:
                return rank
    return None


def place(module: str, line: int) -> str:
    return f"{modules()[module].relative_to(ROOT)}:{line}"


def test_every_module_has_a_layer():
    """No module stands outside the order: a new one is put into LAYERS with thought."""
    homeless = [str(modules()[name].relative_to(ROOT)) for name in modules() if name and layer(name) is None]
    assert not homeless, f"no layer for {homeless}: add them to LAYERS in {Path(__file__).name}"


def test_imports_point_down():
    """No module imports one of a higher layer, not even inside a function or for types."""
    upward = [
        f"{place(module, line)} imports {own}, which stands above {module}"
        for module in modules()
        if module
        for name, line in imports(module)
        if (own := own_module(name)) and (layer(own) or 0) > (layer(module) or 0)
    ]
    assert not upward, "\n".join(upward)


def test_imports_have_no_cycles():
    """Modules can be loaded in some order: within a layer too, imports run one way."""
    graph = {
        module: {own for name, _ in imports_on_loading(module) if (own := own_module(name)) and own != module}
        for module in modules()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("a cycle of imports: " + " <- ".join(error.args[1]))


def test_the_package_itself_imports_nothing():
    """`import em_assets` costs nothing: `_default_target` is imported through it when Python starts."""
    assert imports("") == []


def test_the_default_target_imports_only_what_is_loaded():
    """At the start of an interpreter only `os` and `sys` are there for free."""
    assert {name for name, _ in imports_on_loading("_default_target")} == {"os", "sys"}


def test_dagster_stays_at_the_rim():
    """Fetching, formats, sources, blocks and the catalogue run in a shell without Dagster."""
    inside = [
        f"{place(module, line)} imports {name}"
        for module in modules()
        if module.split(".")[0] not in DAGSTER_RIM
        for name, line in imports(module)
        if name.split(".")[0].split("_")[0] == "dagster"
    ]
    assert not inside, "Dagster is imported only by " + ", ".join(DAGSTER_RIM) + ":\n" + "\n".join(inside)


def test_the_sample_is_written_independently():
    """The sample's writers share no code with the readers they are to test."""
    shared = [
        f"{place(module, line)} imports {own}"
        for module in modules()
        if module.split(".")[0] == "sample"
        for name, line in imports(module)
        if (own := own_module(name)) and own.split(".")[0] in ("fetch", "formats", "sources", "standardize")
    ]
    assert not shared, "\n".join(shared)


def test_heavy_libraries_are_imported_where_they_are_used():
    """Starting a command must not cost seconds: heavy imports stand inside functions (the sample's writers apart)."""
    early = [
        f"{place(module, line)} imports {name}"
        for module in modules()
        if module.split(".")[0] != "sample"
        for name, line in imports_on_loading(module)
        if name.split(".")[0] in HEAVY
    ]
    assert not early, "move into the function that uses it:\n" + "\n".join(early)


def test_every_import_is_a_declared_dependency():
    """Whatever the package imports is the standard library's or stands in pyproject.toml, tests' tools excepted."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra, lines in project["optional-dependencies"].items() if extra != "dev" for line in lines]
    declared = {normal(line) for line in [*project["dependencies"], *extras]}
    undeclared = [
        f"{place(module, line)} imports {top}"
        for module in modules()
        for name, line in imports(module)
        if (top := name.split(".")[0]) not in sys.stdlib_module_names | {"em_assets"}
        and normal(DISTRIBUTIONS.get(top, top)) not in declared
    ]
    assert not undeclared, "\n".join(sorted(set(undeclared)))


def normal(requirement: str) -> str:
    """`Types_PyYAML>=6` -> `types-pyyaml`."""
    name = requirement
    for mark in "<>=!~[; ":
        name = name.split(mark)[0]
    return name.lower().replace("_", "-")


def test_loading_the_definitions_is_light(tmp_path: Path):
    """The code server and every Dagster command load the definitions: they bring in none of the heavy libraries."""
    code = "import json, sys, em_assets.definitions; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "em_assets.definitions" in loaded
    assert not loaded.intersection(NOT_AFTER_LOADING)
