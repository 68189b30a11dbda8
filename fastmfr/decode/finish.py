"""The end of every image's way, decoded now or long ago: drawn changes, normalisation, layout, in one fused operation.

Shape suffixes: N = decoded images, B = images of a batch, 3 = RGB, H W = preprocess.size.
"""

import math
import weakref

import numpy as np
import torch

from fastmfr import _native
from fastmfr.kernels import gather_images  # pyright: ignore[reportMissingImports]  # the folder kernels/
from fastmfr.runtime import to_device

from .augment import changes

_LINE = 16  # floats of a cache line


class Finish:
    """Makes batches of float32 images on `device` of decoded ones there, changed as (seed, batch number) say."""

    def __init__(self, preprocess, seed, device):
        self._preprocess, self._seed, self._device = preprocess, seed, device
        self._memory = _Recycled()

    def __call__(self, number, pixel_NHW3, index_B=None):
        """Batch `number`, (B, 3, H, W), of the images that `index_B` (int64 array) names; None: of all, in turn."""
        images = len(pixel_NHW3) if index_B is None else len(index_B)
        drawn = changes(self._preprocess, self._seed, number, images)
        mean, std = self._preprocess.mean, self._preprocess.std
        if self._device.type == "cpu":  # the same to the bit, in one pass over memory
            _, height, width, _ = pixel_NHW3.shape
            out = self._memory.take((images, 3, height, width))
            _native.gather_images(pixel_NHW3.numpy(), index_B, *drawn, mean, 1 / std, out.numpy())
            return out
        on_device = {name: self._moved(value) for name, value in drawn._asdict().items()}
        return gather_images(pixel_NHW3, self._moved(index_B), **on_device, mean=mean, std=std)

    def _moved(self, array):
        """The array as a tensor on the device; the host does not wait until it is there."""
        return None if array is None else to_device(array, self._device)


class _Recycled:
    """CPU tensors of one shape, whose memory is taken again once nobody holds them.

    Large memory that is new costs page faults, several times what the images themselves cost. torch recycles GPU memory
    itself.
    """

    def __init__(self):
        self._free = []

    def take(self, shape):
        whole = self._free.pop() if self._free else _aligned(shape)
        view = whole[:]  # the tensor and all views of it keep this object, so it goes when the last of them does
        weakref.finalize(view, self._free.append, whole).atexit = False
        return torch.from_numpy(view)


def _aligned(shape):
    """New float32 memory that begins with a cache line, as the fast path of gathering wants.

    NumPy's and not torch's, for where it is large NumPy asks Linux for huge pages, which are faster to fill.
    """
    size = math.prod(shape)
    whole = np.empty(size + _LINE, np.float32)
    start = -whole.ctypes.data % (4 * _LINE) // 4
    return whole[start : start + size].reshape(shape)
