"""Find out what domains hold: people, images, sizes, damage, duplicates, people under two labels, contact sheets.

survey.py   one domain, image by image
overlap.py  the same images and the same names within and across domains
sheet.py    thumbnails of a domain
text.py     surveys and overlaps as tables, sentences and lists
"""

from .overlap import Overlap, overlap
from .survey import Survey, survey

__all__ = ["Overlap", "Survey", "overlap", "survey"]
