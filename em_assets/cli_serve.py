"""`em-assets serve`: blocks, volumes and the viewer over HTTP (`serve/`). `cli_blocks.py` takes it in."""

from __future__ import annotations

from typing import Annotated

import typer

from em_assets.cli_shared import say

serve_commands = typer.Typer()


@serve_commands.command(epilog="Example: em-assets serve --port 8080")
def serve(
    host: Annotated[str, typer.Option(help="0.0.0.0 lets the whole network read")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")] = 8080,
    origin: Annotated[
        list[str] | None, typer.Option("--cors-origin", help="of pages elsewhere that may read answers; * is any")
    ] = None,
    max_voxels: Annotated[int | None, typer.Option(min=1, max=2**33, help="of one block [256^3]")] = None,
    max_requests: Annotated[int | None, typer.Option(min=1, max=10_000, help="under way at once [64]")] = None,
) -> None:
    """Serves blocks, volumes and the viewer over HTTP, read-only.

    GET /v1/datasets lists them, /v1/datasets/NAME/block?start=z,y,x&shape=128 gives a block as .npy, /openapi.json says
    all. Only this machine may ask unless --host says otherwise: there is no password. Ctrl-C ends it.
    """
    import dataclasses

    from em_assets.serve import Limits
    from em_assets.serve import serve as serve_blocks

    wanted = {"voxels": max_voxels, "requests": max_requests}
    limits = dataclasses.replace(Limits(), **{name: value for name, value in wanted.items() if value is not None})
    serve_blocks(
        host=host, port=port, limits=limits, cors_origins=origin or (), say=lambda line: say(line, at_once=True)
    )
