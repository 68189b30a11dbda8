"""The last step of every stream: drawn changes, normalisation and layout of decoded images, in one fused operation.

Shape suffixes: N = decoded images, B = images of a batch, 3 = RGB, H W = preprocess.size.
"""

import math
import weakref

import numpy as np
import torch

from fastmfr import native
from fastmfr.config import Preprocess
from fastmfr.kernels import gather_images  # pyright: ignore[reportMissingImports]  # the folder kernels/
from fastmfr.runtime import to_device

from .augment import Changes, changes

_LINE = 16  # floats of a cache line


class Finish:
    """Turns decoded images into batches of float32 images on the same device; (seed, batch number) fix the changes."""

    def __init__(self, preprocess: Preprocess, seed: int, device: torch.device, slot_B: np.ndarray | None = None):
        """Prepare to make batches on `device`.

        Args:
            preprocess: which images are changed, and how.
            seed: of the changes.
            device: where the batches are.
            slot_B: int64 (B,), the slots that the images of a batch have in the batch of all ranks, by which their
                changes are drawn; None numbers them from 0.
        """
        self._preprocess, self._seed, self._device, self._slot_B = preprocess, seed, device, slot_B
        self._memory = _Recycled()

    def __call__(self, number: int, pixel_NHW3: torch.Tensor, index_B: np.ndarray | None = None) -> torch.Tensor:
        """Make batch `number`.

        Args:
            number: the number of the batch.
            pixel_NHW3: decoded images, uint8, on the device.
            index_B: int64, which images; None takes all in order.

        Returns:
            float32 (B, 3, H, W), contiguous, on the device.
        """
        images = len(pixel_NHW3) if index_B is None else len(index_B)
        drawn = self._changes(number, images)
        mean, std = self._preprocess.mean, self._preprocess.std
        if self._device.type == "cpu":  # the same to the bit, in one pass over memory
            _, height, width, _ = pixel_NHW3.shape
            out = self._memory.take((images, 3, height, width))
            native.gather_images(pixel_NHW3.numpy(), index_B, *drawn, mean, 1 / std, out.numpy())
            return out
        on_device = {name: self._moved(value) for name, value in drawn._asdict().items()}
        return gather_images(pixel_NHW3, self._moved(index_B), **on_device, mean=mean, std=std)

    def _changes(self, number, images):
        if self._slot_B is None:
            return changes(self._preprocess, self._seed, number, images)
        drawn = changes(self._preprocess, self._seed, number, int(self._slot_B.max()) + 1)
        return Changes(*(None if kind is None else kind[self._slot_B] for kind in drawn))

    def _moved(self, array: np.ndarray | None) -> torch.Tensor | None:
        """The array as a tensor on the device; the host does not wait for the copy."""
        return None if array is None else to_device(array, self._device)


class _Recycled:
    """CPU tensors of one shape, whose memory is used again once nobody holds them.

    The page faults of new memory cost several times as much as the images themselves. torch recycles GPU memory itself.
    """

    def __init__(self):
        self._free = []

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        whole = self._free.pop() if self._free else _aligned(shape)
        view = whole[:]  # the tensor and all views of it keep this object, so it goes when the last of them does
        weakref.finalize(view, self._free.append, whole).atexit = False
        return torch.from_numpy(view)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """New float32 memory that begins with a cache line, as the fast path of gathering needs.

    The memory is NumPy's, not torch's: NumPy asks Linux for huge pages if the memory is large, which fill faster.
    """
    size = math.prod(shape)
    whole = np.empty(size + _LINE, np.float32)
    start = -whole.ctypes.data % (4 * _LINE) // 4
    return whole[start : start + size].reshape(shape)
