#!/usr/bin/env bash
# The main job, offline: a hemibrain-like volume served on 127.0.0.1, cropped, standardized, checked, catalogued.
# Called by `make quickstart`. Ends with exit code 0 only if every step did; what failed says so in the last line.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
# The shell may be set up for another store or project; this run is about the sample alone.
unset "${!EM_ASSETS_@}" "${!DAGSTER_@}"

step() { printf '\n$ %s\n' "$*"; "$@"; }

step em-assets sample up
exports=$(em-assets sample env) # on a line of its own: `eval "$(...)"` would hide a failure
eval "$exports"
step dagster asset materialize --select hemibrain_crop
step em-assets sql "from overview"

cat <<EOF

What there is now
  the volume      $EM_ASSETS_ROOT/hemibrain_crop/volume.ome.zarr
  the catalogue   $EM_ASSETS_ROOT/metadata.duckdb
  Dagster's log   $DAGSTER_HOME
  the sample      still served; stop it with: em-assets sample down

What to try next, after this line in your shell:
  source .venv/bin/activate && eval "\$(em-assets sample env)"

  em-assets view hemibrain_crop            look at it in Neuroglancer
  em-assets sql "from levels"              ask the catalogue
  make dev                                 the same in Dagster's UI
EOF
