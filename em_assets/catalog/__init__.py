"""The catalogue: one DuckDB file with everything the store knows, rebuilt from it at any time.

`schema.py` says which tables there are and what their columns mean, `found.py` reads what the store has of a dataset,
`rows.py` makes rows of that and of the specs, `build.py` writes the file and puts it in place, `query.py` asks it,
`render.py` prints answers, and `readme.py` writes the store's README.md. Nothing here is the truth about a dataset:
that is the store's records.
"""
