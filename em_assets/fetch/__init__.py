"""Bytes from somewhere else: verified, tried again, polite to each host.

- ways to them: `http.py`, `ftp.py`, `s3.py` (listings), `s3_copy.py` (many small objects); `client.py`: for readers
- what every way shares: `hosts.py` (politeness), `attempts.py` (patience); for HTTP `replies.py` and `streams.py`
- whole files: `files.py`, made of `_transfer.py`, `_pieces.py`, `_hashing.py`, `_partial.py`; `receipts.py` afterwards
- what comes: `listings.py` (names), `archives.py` and `compression.py` (unpacking)
- for whoever asks: `ranges.py` (which bytes together), `parallel.py` (several requests at once)
"""
