"""LFW-type .bin files (LFW, CFP-FP, AgeDB-30, CALFW, CPLFW): a pickle of (2 N encoded images, N flags same or not).

Python's unpickler runs what a stranger's file names, so `unpickle.py` reads the file and runs nothing. The images stay
encoded, some 60 MB for 12,000.
Shape suffix: N pairs.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from .images import EncodedImages
from .lists import PairList
from .named import Array
from .unpickle import read_plain

_ADVICE = "a .bin is a pickle of (encoded images, flags), as InsightFace's tools write it: fetch or make it anew"


def read_bin(path: str | os.PathLike, name: str | None = None) -> tuple[EncodedImages, PairList]:
    """Read the images and pairs of a .bin file; images 2 k and 2 k + 1 are pair k, and there are ten folds in order.

    Args:
        path: the file.
        name: what reports call the set; by default the name of the file without .bin.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: the file is damaged, holds something else, or names anything that would have to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; a .bin is what InsightFace's tools make of LFW and its like")
    try:
        with path.open("rb", buffering=2**18) as file:
            content = read_plain(file)
    except (ValueError, OSError, MemoryError) as error:
        problem = str(error) or "there is not enough memory for it"
        raise ValueError(f"{path} cannot be read as a .bin of image pairs: {problem}; {_ADVICE}") from error
    try:
        encoded, is_mate_N = _images_and_flags(content)
    except ValueError as error:
        raise ValueError(f"{path} {error}; {_ADVICE}") from error
    first_N = np.arange(0, len(encoded), 2)
    return EncodedImages(name or path.stem, encoded), PairList(first_N, first_N + 1, is_mate_N)


def _images_and_flags(content: Any) -> tuple[list[bytes], np.ndarray]:
    """The two lists in a .bin; ValueError if `content` is anything else."""
    if not (isinstance(content, tuple | list) and len(content) == 2):
        raise ValueError(f"should hold (images, flags), but it holds {_kind(content)}")
    images, flags = content
    if not isinstance(images, tuple | list):
        raise ValueError(f"should hold a list of encoded images, but in its place it holds {_kind(images)}")
    if not isinstance(flags, tuple | list | Array):
        raise ValueError(f"should hold a list of flags, but in its place it holds {_kind(flags)}")
    flags = flags.numpy().tolist() if isinstance(flags, Array) else flags
    if not images or len(images) != 2 * len(flags):
        raise ValueError(f"holds {len(images):,} images and {len(flags):,} flags; want two images a flag")
    return [_encoded(image) for image in images], np.array([_flag(flag) for flag in flags], bool)


def _encoded(image: Any) -> bytes:
    if isinstance(image, Array) and image.dtype == "|u1" and image.raw is not None:
        return image.raw
    if isinstance(image, bytes):
        return image
    raise ValueError(f"should hold encoded images, but it holds {_kind(image)}")


def _flag(flag: Any) -> bool:
    one = flag.numpy() if isinstance(flag, Array) else [flag]
    if len(one) != 1 or not isinstance(one[0], bool | int | float | np.generic) or one[0] not in (0, 1):
        raise ValueError(f"should hold flags that are True or False, 1 or 0, but it holds {_kind(flag)}")
    return bool(one[0])


def _kind(value: Any) -> str:
    """The kind of a value, for a message, which shows no stranger's value but numbers."""
    if isinstance(value, Array):
        return f"an array of {value.dtype or 'nothing'}"
    if isinstance(value, int | float):
        return f"{type(value).__name__} {value}"
    return type(value).__name__
