"""A pytest plugin: take fastmfr._native from the folder FASTMFR_NATIVE, not the one that is installed."""

import os

import fastmfr

fastmfr.__path__.insert(0, os.environ["FASTMFR_NATIVE"])
