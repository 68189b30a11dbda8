"""LFW-type .bin files (LFW, CFP-FP, AgeDB-30, CALFW, CPLFW): a pickle of (2 N encoded images, N flags same or not).

Unpickling a stranger's file runs what it says. Here it may build lists, bytes, numbers, and NumPy arrays of them, and
nothing else. The images stay encoded, some 60 MB for 12,000.
Shape suffix: N pairs.
"""

import pickle
from pathlib import Path

import numpy as np

from .images import EncodedImages
from .lists import PairList

_NUMPY = {"_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer"}
_NUMPY_MODULES = {"numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric",
                  "numpy._core.numeric"}  # fmt: skip


class _Plain(pickle.Unpickler):
    """Unpickles plain data; whatever else the file names is refused before it is imported."""

    def find_class(self, module, name):
        if module in _NUMPY_MODULES and name in _NUMPY:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, _: text.encode("latin1")
        if module in ("builtins", "__builtin__") and name in ("bytes", "bytearray"):
            return bytearray if name == "bytearray" else bytes
        raise pickle.UnpicklingError(f"it would run {module}.{name}, which no list of images needs")


def read_bin(path, name: str | None = None) -> tuple[EncodedImages, PairList]:
    """(images, pairs) of the .bin file at `path`; images 2 k and 2 k + 1 are pair k, and there are ten folds in order.

    Raises FileNotFoundError where there is no file, and ValueError where it is damaged, holds something else, or names
    anything that would have to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; a .bin is what InsightFace's tools make of LFW and its like")
    try:
        with path.open("rb") as file:
            content = _Plain(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle fails in more ways than pickle documents
        raise ValueError(f"{path} cannot be read as a .bin of image pairs: {error}") from error
    if not (isinstance(content, tuple | list) and len(content) == 2):
        raise ValueError(f"{path} should hold (images, flags), but it holds {type(content).__name__}")
    encoded = [_encoded(path, image) for image in content[0]]
    is_mate_N = np.array([bool(flag) for flag in content[1]])
    if not encoded or len(encoded) != 2 * len(is_mate_N):
        raise ValueError(f"{path} holds {len(encoded):,} images and {len(is_mate_N):,} flags; want two images a flag")
    first_N = np.arange(0, len(encoded), 2)
    return EncodedImages(name or path.stem, encoded), PairList(first_N, first_N + 1, is_mate_N)


def _encoded(path, image):
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        return image.tobytes()
    if isinstance(image, bytes | bytearray):
        return image
    raise ValueError(f"{path} should hold encoded images, but it holds {type(image).__name__}")
