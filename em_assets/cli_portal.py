"""`em-assets export NAME... --format cryoet-portal`: stored datasets as the CryoET Data Portal's tree of files.

What is written is `portal/tree.py`; here is what a person is told of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from em_assets.cli_shared import Platform, say
from em_assets.progress import human_bytes, open_reporter

ToOption = Annotated[
    str | None, typer.Option("--to", metavar="PATH|s3://...", help="cryoet-portal: the root of the tree")
]
DatasetIdOption = Annotated[
    int | None, typer.Option("--dataset-id", metavar="N", help="cryoet-portal: by default a number from the name")
]
DepositionIdOption = Annotated[
    int | None, typer.Option("--deposition-id", metavar="N", help="cryoet-portal: by default the same number")
]
BaseUrlOption = Annotated[
    str | None, typer.Option("--base-url", metavar="URL", help="cryoet-portal: where the tree will be served")
]
VerifyOption = Annotated[
    bool, typer.Option("--verify", help="cryoet-portal: read what is there, and write anew what is damaged")
]
NgffOption = Annotated[Literal["0.4", "0.5"] | None, typer.Option(help="cryoet-portal: version of OME-Zarr [0.4]")]


def export_trees(
    names: Sequence[str],
    to: str | None,
    *,
    dataset_id: int | None,
    deposition_id: int | None,
    base_url: str | None,
    ngff: Literal["0.4", "0.5"] | None,
    verify: bool = False,
) -> None:
    """One dataset of the tree after another, whole datasets; the first that cannot be written ends it."""
    from em_assets.portal.tree import export_tree
    from em_assets.store import open_store

    if to is None:
        raise typer.BadParameter("the format cryoet-portal needs --to: a folder, or s3://bucket/prefix.")
    for name in names:
        if "/" in name:
            raise typer.BadParameter(f"the portal's tree has whole datasets; give {name.partition('/')[0]}.")
    if len(names) > 1 and (dataset_id is not None or deposition_id is not None):
        raise typer.BadParameter("a number is one dataset's: give --dataset-id and --deposition-id with one NAME only.")
    platform = Platform.read(*names)
    for name in names:
        platform.require(name)
    is_watched = sys.stderr is not None and sys.stderr.isatty() and platform.settings.progress != "off"
    target = open_store(to if to.startswith("s3://") else str(Path(to).expanduser()))
    for name in dict.fromkeys(names):
        with open_reporter(say, label=name, show="bar" if is_watched else "off") as reporter:
            done = export_tree(
                platform.folder(name),
                target,
                spec=platform.specs.get(name),
                dataset_id=dataset_id,
                deposition_id=deposition_id,
                base_url=base_url or "",
                ngff=ngff or "0.4",
                workers=platform.settings.workers,
                progress=reporter,
                verify=verify,
            )
        was = "already" if not done.new else "written" if done.new == len(done.keys) else f"written, {done.new} anew"
        runs = f"run {done.runs[0]}" if len(done.runs) == 1 else f"runs {', '.join(done.runs)}"
        say(f"{target.uri(str(done.dataset_id))} is {was}: {len(done.keys)} files and groups, ", end="")
        say(f"{human_bytes(done.size_bytes)}, dataset {done.dataset_id}, deposition {done.deposition_id}, {runs}")
        if done.missing_voxels:
            say(f"  missing  {done.missing_voxels} voxels that the publisher does not have are 0")
        for key, instead in done.unknown.items():
            say(f"  unknown  {key} is {instead}")
        for note in done.notes:
            say(f"  careful  {note}")
