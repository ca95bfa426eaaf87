#!/usr/bin/env bash
# The main job, offline, on the publishers in small that `em-assets sample` serves on 127.0.0.1.
#   quickstart.sh        the hemibrain: cropped, standardized, checked, catalogued
#   quickstart.sh all    all six publishers, with their metadata, in one run
# Called by `make quickstart` and `make quickstart-all`. Ends with exit code 0 only if every step did; what failed says
# so in the last line.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
# The shell may be set up for another store or project; this run is about the sample alone.
unset "${!EM_ASSETS_@}" "${!DAGSTER_@}"

# Shows a command as it can be typed, and runs it.
step() {
  local word shown=
  for word in "$@"; do
    case $word in *' '*) word="\"$word\"" ;; esac
    shown+=" $word"
  done
  printf '\n$%s\n' "$shown"
  "$@"
}

step em-assets sample up
exports=$(em-assets sample env) # on a line of its own: `eval "$(...)"` would hide a failure
eval "$exports"
if [ "${1:-}" = all ]; then
  names=$(basename -s .yaml "$EM_ASSETS_DATASETS"/*.yaml)
  assets=metadata_catalog,metadata_exports,metadata_summary,ro_crates,croissants
  for name in $names; do assets="$name,${name}_metadata,${name}_blocks,$assets"; done
  shown=jrc_mus_nacc_2
else
  names=hemibrain_crop assets=hemibrain_crop shown=hemibrain_crop
fi
step dagster asset materialize --select "$assets"
step em-assets sql "from overview"
if [ "${1:-}" = all ]; then
  step em-assets sql "select name, field, value_a, authority_a, value_b, authority_b, chosen from conflicts"
fi

printf '\nWhat there is now\n'
for name in $names; do printf '  %-19s %s\n' "$name" "$EM_ASSETS_ROOT/$name/volume.ome.zarr"; done
cat <<EOF
  the catalogue       $EM_ASSETS_ROOT/metadata.duckdb
  Dagster's log       $DAGSTER_HOME
  the sample          still served; stop it with: em-assets sample down

What to try next, after this line in your shell:
  source .venv/bin/activate && eval "\$(em-assets sample env)"

  em-assets view $shown            look at it in Neuroglancer
  em-assets show $shown            what is known about it, and who says so
  make dev                                 the same in Dagster's UI
EOF
