"""The sample origin: small volumes in each publisher's own byte format, served on loopback.

Independent of `formats/` on purpose: the product reads back what this writes, and neither can hide the other's
mistake.
"""
