#!/usr/bin/env bash
# What a container of docker-compose.yml does:
#   ui          Dagster's web server and daemon on port 3000
#   get NAME    downloads a dataset and makes it whole
# With EM_ASSETS_SAMPLE=1 from a sample origin inside the container, into a store of its own.
set -euo pipefail
cd /app
mkdir -p "$DAGSTER_HOME"
cp deploy/dagster.container.yaml "$DAGSTER_HOME/dagster.yaml"

if [ -n "${EM_ASSETS_SAMPLE:-}" ]; then
  folder=/data/sample-$HOSTNAME
  em-assets sample up --folder "$folder"
  exports=$(em-assets sample env --folder "$folder")
  eval "$exports"
fi

case ${1:-ui} in
  ui) exec dagster dev -h 0.0.0.0 -p 3000 -m em_assets.definitions ;;
  get) shift && exec em-assets get "$@" --yes ;;
  *) exec "$@" ;;
esac
