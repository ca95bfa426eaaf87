"""The catalogue: one DuckDB file with everything the store knows, rebuilt from it at any time.

`schema.py` says which tables there are and what their columns mean, `rows.py` reads specs and store into rows,
`build.py` writes the file and puts it in place, `query.py` asks it, `render.py` prints answers, and `readme.py`
writes the store's README.md. Nothing here is the truth about a dataset: that is the store's records.
"""
