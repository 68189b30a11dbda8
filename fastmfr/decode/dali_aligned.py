"""DALI decodes on the CPU, and the extension's warp aligns, on threads: DALI's own warp takes several times as long.

Shape suffixes: B = images of a run, 3 = RGB, H W = frame.size.
"""

import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from .align import aligned
from .preprocess import ALIGN, Frame

_NAME = "fastmfr-align"  # of the threads
_TASK = 8  # images aligned by one task


class AligningPipeline:
    """Runs of images in order, out of a DALI pipeline with the outputs image, need and map."""

    def __init__(self, pipeline: Any, frame: Frame, device: torch.device, threads: int):
        """Start the threads; images that need ALIGN come as they were decoded, the others brought to the frame."""
        self._pipeline: Any = pipeline
        self._frame, self._device = frame, device
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=_NAME)
        self._stop = weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        self._stop.atexit = False

    def run(self) -> torch.Tensor:
        """Return the next run's images, uint8 (B, H, W, 3), on the device.

        Raises:
            StopIteration: there is no further run.
            RuntimeError: an image of the run cannot be decoded.
        """
        images, need_B, map_B23 = self._pipeline.run()
        need_B, map_B23 = need_B.as_array(), map_B23.as_array()
        size = self._frame.size
        pixel_BHW3 = torch.empty(
            (len(need_B), size, size, 3), dtype=torch.uint8, pin_memory=self._device.type == "cuda"
        )
        array_BHW3 = pixel_BHW3.numpy()

        def bring(start: int) -> None:
            for slot in range(start, min(start + _TASK, len(need_B))):
                pixel_HW3 = np.asarray(images[slot])
                if need_B[slot] == ALIGN:
                    pixel_HW3 = aligned(pixel_HW3, map_B23[slot], size)
                array_BHW3[slot] = pixel_HW3

        for _ in self._pool.map(bring, range(0, len(need_B), _TASK)):
            pass
        return pixel_BHW3.to(self._device, non_blocking=True)

    def close(self) -> None:
        """Stop the threads, and drop DALI's pipeline."""
        self._stop()
        self._pipeline = None
