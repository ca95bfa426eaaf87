"""Thin Dagster shells around plain code: the store, and the I/O manager that writes and reads regions."""
