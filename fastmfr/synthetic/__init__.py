"""Procedural faces in several domains: data that anyone can make, to try, test and measure with."""

from .domains import DOMAINS
from .render import render
from .write import images_of, make, write_folders, write_records

__all__ = ["DOMAINS", "images_of", "make", "render", "write_folders", "write_records"]
