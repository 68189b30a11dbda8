"""A trained model handed on: as ONNX, safetensors or .pth, with what its images must be, and a model card.

classifier.py  the classifier of stage one, with the list of its people
graph.py       what the exported network computes, from images or pixels to embeddings
facts.py       what is known of a model, its run and its data; the metadata of files
onnx_file.py   ONNX, checked in onnxruntime
files.py       a file by its suffix
card.py        MODEL_CARD.md
"""

from .card import check_card, write_card
from .classifier import check_classifier, export_classifier
from .facts import Facts, facts_of
from .files import checked_path, export_model
from .graph import Graph

__all__ = [
    "Facts",
    "Graph",
    "check_card",
    "check_classifier",
    "checked_path",
    "export_classifier",
    "export_model",
    "facts_of",
    "write_card",
]
