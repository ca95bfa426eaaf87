"""em_assets: public 3D electron-microscopy volumes, exact and ready for machine learning.

This module stays empty of imports: the `.pth` that makes the plain `dagster` command find this
project (see `_default_target.py`) imports the package at every interpreter start.
"""
