"""Whatever images come as, packed into one InsightFace RecordIO folder: class folders, lists, tar, Parquet.

writer.py   train.rec, train.idx and property, image by image
sources.py  what can be packed: folders, lists, records; listed first, without image bytes, read later in any order
tar.py      WebDataset shards as a source
parquet.py  Parquet files as a source
images.py   one image: checked, shrunk if asked
build.py    list the sources, order them by person, write
command.py  python -m fastmfr pack; progress.py shows how far it is
"""

from .writer import MAGIC, RecordWriter

__all__ = ["MAGIC", "RecordWriter"]
