"""Embeddings of whole collections of images, written to a folder: resumable, with the key of every row.

source.py    class folders, RecordIO files and lists of paths
rows.py      embeddings.npy while it is written: memory-mapped, saved by whole batches
keys.py      which image each row is of
write.py     all of it: a source into a folder
"""

from .source import Source, open_source
from .write import embed_into

__all__ = ["Source", "embed_into", "open_source"]
