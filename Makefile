# Every target sets up .venv first if it is not there. Once it is complete, nothing is installed or looked up again
# (so everything works offline) until pyproject.toml or constraints.txt changes or the folder is moved.

PYTHON ?= python3
RUN := .venv/bin/python -m
STAMP := .venv/.complete
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help quickstart quickstart-all test test-slow dev dev-live check clean

help: ## This list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

quickstart: $(STAMP) ## The main job, offline, on the sample origin; prints what it made
	@scripts/quickstart.sh

quickstart-all: $(STAMP) ## The same for all publishers, with their metadata
	@scripts/quickstart.sh all

test: $(STAMP) ## The tests (not those marked slow or network); three at once, because many wait
	@$(RUN) pytest -n 3 --dist worksteal

test-slow: $(STAMP) ## The tests marked slow: kills, races, memory, whole commands (half an hour)
	@$(RUN) pytest -n 3 --dist worksteal -m slow

dev: $(STAMP) ## Dagster's UI on the sample origin
	@export PATH="$$PWD/.venv/bin:$$PATH"; em-assets sample up; exports=$$(em-assets sample env); eval "$$exports"; \
	exec dagster dev -h 127.0.0.1

dev-live: $(STAMP) ## Dagster's UI on the real publishers (needs internet)
	@case "$${EM_ASSETS_DATASETS:-}" in */.sample/*) \
	  echo "This shell is switched to the sample by EM_ASSETS_DATASETS; open another one for the real publishers." >&2; exit 1;; \
	esac; export PATH="$$PWD/.venv/bin:$$PATH"; exec dagster dev -h 127.0.0.1

check: $(STAMP) ## Lint, format and types
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(RUN) mypy

clean: ## Removes the environment, caches, the sample and Dagster's memory; never the store (data/)
	@if [ -x .venv/bin/em-assets ] && [ -d .sample ]; then .venv/bin/em-assets sample down; fi
	@rm -rf .venv .sample .dagster .tmp_dagster_home_* .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Scripts in .venv hold its absolute path, so a moved or copied checkout sets up again.
ifneq ($(shell cat .venv/.path 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml constraints.txt em_assets_default_target.pth
	@scripts/setup.sh "$(PYTHON)"
