"""Bytes from somewhere else: HTTP here, other protocols beside it; verified, retried, polite to each host."""
