"""The commands about blocks in the order of the help: read, blocks, geometry, stage, serve. `cli.py` takes them in."""

from __future__ import annotations

import typer

from em_assets.cli_block_index import index_commands
from em_assets.cli_geometry import geometry_commands
from em_assets.cli_read import read_commands
from em_assets.cli_serve import serve_commands
from em_assets.cli_stage import stage_commands

block_commands = typer.Typer()
for commands in (read_commands, index_commands, geometry_commands, stage_commands, serve_commands):
    block_commands.registered_commands += commands.registered_commands
