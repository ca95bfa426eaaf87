"""OpenOrganelle (Janelia COSEM): which containers and image groups a dataset's folder in the public bucket holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from em_assets.adding.chunked import chunked_source, know_chunked
from em_assets.adding.draft import Draft, slug
from em_assets.adding.volume import Wishes
from em_assets.errors import Mismatch, Unavailable
from em_assets.fetch.client import Client
from em_assets.fetch.http import HttpClient
from em_assets.fetch.s3 import CommonPrefix, list_objects
from em_assets.settings import Settings

BUCKET = "s3://janelia-cosem-datasets"
PAGE = "https://openorganelle.janelia.org/datasets"
CONTAINER = re.compile(r".+\.(zarr|n5)")
RECONSTRUCTION = re.compile(r"recon-\d+")


def draft_openorganelle(
    name: str,
    wishes: Wishes,
    settings: Settings,
    *,
    group: str | None = None,
    level: int | str = 0,
    bucket: str = BUCKET,
    endpoint: str | None = None,
) -> Draft:
    """Of one image group of the dataset. Raises Mismatch naming the choices where there are several."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise Mismatch(f"{name[:100]!r} is no name of an OpenOrganelle dataset; they look like jrc_hela-2.")
    groups = list(_image_groups(f"{bucket}/{name}/", HttpClient(settings), endpoint))
    container, path = _choose(name, groups, group)
    kind: Literal["zarr", "n5"] = "zarr" if container.endswith(".zarr") else "n5"
    source = chunked_source(kind, f"{bucket}/{name}/{container}", path, level, endpoint)
    draft = Draft(base_name=slug(name))
    draft.know("title", f"{name} ({path}), OpenOrganelle", "made from the dataset's name")
    draft.miss(
        "description",
        "what was imaged; the dataset's page says it",
        f"The image group {path} of the OpenOrganelle dataset {name}. What was imaged is not known yet.",
    )
    draft.know("publisher", "openorganelle")
    draft.know("source_id", name)
    draft.know("page_url", f"{PAGE}/{name}", "follows the site's pattern")
    draft.miss("license", "the bucket states no licence; the dataset's page does")
    draft.miss("citation", "who imaged it, and the papers; the dataset's page says it")
    draft.take_doi(None, "of the dataset; its page says it")
    know_chunked(draft, source, wishes, settings)
    if len(groups) > 1:
        draft.found.append(f"other image groups: {', '.join(g for g in groups if g != f'{container}/{path}')}")
    return draft


def _choose(name: str, groups: list[str], wanted: str | None) -> tuple[str, str]:
    """(container, group) of the only choice, or of the one that ends as asked for."""
    if not groups:
        raise Unavailable(
            f"the bucket lists no image group for {name} (recon-*/em/ or em/ in a .zarr or .n5); "
            f"check the name at {PAGE}."
        )
    asked = (wanted or "").strip("/")
    fitting = [g for g in groups if wanted is None or g == asked or g.endswith(f"/{asked}")]
    if len(fitting) != 1:
        what = f"{len(fitting)} image groups" if fitting else f"no image group {asked!r}"
        raise Mismatch(f"{name} has {what}; choose one with --group: {', '.join(fitting or groups)}.")
    container, _, path = fitting[0].partition("/")
    return container, path


def _image_groups(folder: str, client: Client, endpoint: str | None) -> Iterator[str]:
    """`name.zarr/recon-1/em/fibsem-uint8`: below the dataset's folder."""
    for container in _folders(folder, client, endpoint):
        if not CONTAINER.fullmatch(container):
            continue
        inside = _folders(f"{folder}{container}/", client, endpoint)
        parents = [f"{found}/em" for found in inside if RECONSTRUCTION.fullmatch(found)]
        parents += ["em"] if "em" in inside else []
        for parent in parents:
            for image in _folders(f"{folder}{container}/{parent}/", client, endpoint):
                yield f"{container}/{parent}/{image}"


def _folders(url: str, client: Client, endpoint: str | None) -> list[str]:
    """Names of what lies directly below."""
    prefix = url.split("/", 3)[3]
    entries = list_objects(url, client, endpoint=endpoint, delimiter="/")
    return [entry.prefix.removeprefix(prefix).strip("/") for entry in entries if isinstance(entry, CommonPrefix)]
