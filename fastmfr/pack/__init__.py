"""Pack class folders, lists, tar and Parquet files into one InsightFace RecordIO folder.

writer.py   train.rec, train.idx and property, image by image
source.py   what a source is: listed first, without image bytes, and read later in any order
names.py    names of people, one line each and read back as they were
sources.py  class folders, lists and RecordIO folders as sources; any source opened by its path
tar.py      WebDataset shards as a source
parquet.py  Parquet files as a source
images.py   one image: checked, resized or aligned if asked
aligner.py  landmarks of the images of all sources
build.py    list the sources, order the images by person, write
pairs.py    a list of pairs and its images as one InsightFace .bin
"""

from .writer import MAGIC, RecordWriter

__all__ = ["MAGIC", "RecordWriter"]
