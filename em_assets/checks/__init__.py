"""Facts that consumers rely on. `volume.py` and `blocks.py` state and test them as plain functions;
`asset_checks.py` shows them to Dagster.
"""
