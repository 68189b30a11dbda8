"""Decode by Pillow if DALI is not installed, on a pool of threads, which release the GIL while they decode.

The pixels equal the reference of preprocess.py bit for bit. Shape suffixes: B = images of a batch, 3 = RGB,
H W = frame.size.
"""

import threading
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image

from .align import aligned
from .batches import Runs
from .plain_jpeg import plain_size
from .preprocess import ALIGN, Frame, fitted, upright_rgb

_NAME = "fastmfr-decode"  # of the threads
_TASK = 8  # images decoded by one task: handing over a task of one image would cost a tenth of its time


class Undecodable(RuntimeError):
    """An image of a run cannot be decoded; the text is the reason."""


class PillowPipeline:
    """Runs of decoded images in order, `prefetch` of them begun ahead."""

    def __init__(
        self,
        source: Runs,
        frame: Frame,
        device: torch.device,
        *,
        threads: int,
        prefetch: int,
    ):
        """Start the threads; the arguments are those of `pipeline.build_pipeline`."""
        self._source, self._frame, self._device = source, frame, device
        self._prefetch = prefetch
        self._calls, self._ended = 0, False
        self._begun = deque()  # what `_begin_run` returned; nothing in there may hold the pipeline, which is dropped
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=_NAME)
        self._stop = weakref.finalize(self, _join, self._pool)  # a pipeline may also be dropped without being closed
        self._stop.atexit = False

    def run(self) -> torch.Tensor:
        """Return the next run's images, uint8 (B, H, W, 3), on the device.

        Raises:
            StopIteration: there is no further run.
            Undecodable: an image of the run cannot be decoded; the next call returns the next run.
        """
        while not self._ended and len(self._begun) < self._prefetch:
            self._begin()
        if not self._begun:
            raise StopIteration
        return self._end_run(self._begun.popleft())

    def close(self) -> None:
        """Stop the threads and wait for them; runs begun are dropped."""
        self._ended = True
        self._begun.clear()
        self._stop()

    def _begin(self):
        try:
            run = self._source(self._calls)
        except StopIteration:
            self._ended = True
            return
        self._calls += 1
        self._begun.append(self._begin_run(*run))

    def _begin_run(self, encoded: list[np.ndarray], need_B: np.ndarray, map_B23: np.ndarray) -> tuple[Any, ...]:
        """Begin to decode a run; returns what `_end_run` takes, which returns or raises what `run` does."""
        size = self._frame.size
        pixel_BHW3 = torch.empty(
            (len(encoded), size, size, 3), dtype=torch.uint8, pin_memory=self._device.type == "cuda"
        )
        slots = [slice(start, start + _TASK) for start in range(0, len(encoded), _TASK)]
        array_BHW3 = pixel_BHW3.numpy()
        tasks = [
            self._pool.submit(_decode, encoded[some], need_B[some], map_B23[some], self._frame, array_BHW3[some])
            for some in slots
        ]
        return pixel_BHW3, tasks

    def _end_run(self, begun: tuple[Any, ...]) -> torch.Tensor:
        pixel_BHW3, tasks = begun
        for task in tasks:
            task.result()
        # torch does not reuse pinned memory until the copies queued from it are done, so it may be dropped here.
        return pixel_BHW3.to(self._device, non_blocking=True)


def decoded(encoded: np.ndarray) -> Image.Image:
    """Decode an image to the pixels of `upright_rgb`, a plain JPEG with less work in Python.

    That work holds the GIL. Pillow's decoder alone is called for a plain JPEG, instead of opening the JPEG as a file.

    Args:
        encoded: the bytes of the image, uint8.

    Raises:
        Undecodable: Pillow cannot decode the image.
    """
    if size := plain_size(encoded):
        try:
            return Image.frombytes("RGB", size, encoded, "jpeg", "RGB", "")
        except (ValueError, OSError):  # as a file the JPEG may still be decoded, or the reason is found
            pass
    try:
        return upright_rgb(encoded)
    except ValueError as error:
        raise Undecodable(str(error)) from None


def _decode(
    encoded: list[np.ndarray], need_B: np.ndarray, map_B23: np.ndarray, frame: Frame, pixel_BHW3: np.ndarray
) -> None:
    """Decodes images into `pixel_BHW3`; of what they need, Pillow sees all but ALIGN itself."""
    for one, need, map_23, pixel_HW3 in zip(encoded, need_B, map_B23, pixel_BHW3, strict=True):
        image = decoded(one)
        if need == ALIGN:
            pixel_HW3[:] = aligned(np.asarray(image), map_23, frame.size)
        else:
            pixel_HW3[:] = fitted(image, frame.size, frame.fit)


def _join(pool: ThreadPoolExecutor) -> None:
    # The garbage collector may drop a pipeline in any thread, and a thread cannot wait for itself.
    pool.shutdown(wait=not threading.current_thread().name.startswith(_NAME), cancel_futures=True)
