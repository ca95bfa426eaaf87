"""`em-assets add`: asks a publisher what it serves of a dataset and writes the dataset's spec.

One module per publisher (`empiar.py`, `idr.py`, `openorganelle.py`, `cryoet.py`, and `chunked.py` for a plain address)
fills a `Draft`; `volume.py` decides which part is stored and how it is cut, `draft.py` writes the YAML and proves that
it loads, `commands.py` is the command line. Nothing is invented: what nobody states says so, under a TODO for a person.
"""
