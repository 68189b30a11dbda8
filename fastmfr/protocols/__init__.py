"""Who is trained on and who is scored: source and target domains, gallery and probe, pairs, templates.

source_target.py  source and target domains; people held out; every domain left out once
shared_images.py  whether targets hold images of sources, byte for byte
gallery.py    gallery and probe images drawn from a domain's people
drawing.py    the people of a folder divided into train, gallery and probe lists
paper.py      GFR-R I to IV and GFR-V: their domains, and how many people and images the paper has of each
class_folder.py  class folders: which files are images of whom, and what is passed over
files.py      files that a stranger named: regular files only, text of any Unicode encoding
images.py     the images that lists name: files, or the encoded images of a .bin
lists.py      gallery.txt and probe.txt, also in folds; pairs.txt, plain or as LFW and RFW write it
lfw_bin.py    LFW-type .bin: pairs of encoded images
unpickle.py   pickles from anyone, read without running anything
named.py      the calls that the picklers of Python and NumPy write, understood without calling anything
templates.py  IJB-style templates and the pairs of them
landmarks.py  files of five points an image, by which images are aligned
"""

from .gallery import GalleryProbe, gallery_probe
from .images import EncodedImages, ImageFiles
from .landmarks import Landmarks, attach, read_landmarks
from .lfw_bin import read_bin
from .lists import PairList, read_folds, read_pairs
from .paper import PaperProtocol, paper_protocol
from .shared_images import shared_images
from .source_target import Protocol, hold_out, leave_each_out, leave_one_out
from .templates import TemplateSet, read_templates

__all__ = [
    "EncodedImages",
    "GalleryProbe",
    "ImageFiles",
    "Landmarks",
    "PairList",
    "PaperProtocol",
    "Protocol",
    "TemplateSet",
    "attach",
    "gallery_probe",
    "hold_out",
    "leave_each_out",
    "leave_one_out",
    "paper_protocol",
    "read_bin",
    "read_folds",
    "read_landmarks",
    "read_pairs",
    "read_templates",
    "shared_images",
]
