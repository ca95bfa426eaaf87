"""`em-assets doctor`: whether this installation is sound, and publishers still serve what the specs expect.

`installation.py` looks at this machine; `live.py` asks the publishers (`chunks.py`, `files.py`, `stated.py`) through
`metered.py`, which counts every byte. Both write lines into a `report.py`, which is printed to be pasted elsewhere. A
question that fails is a line, never the end.
"""
