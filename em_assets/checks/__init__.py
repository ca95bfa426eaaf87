"""Facts that consumers rely on. `volume.py` states and tests them as plain functions; `asset_checks.py` shows
them to Dagster.
"""
