"""Encoded bytes in, uint8 images (B, H, W, 3) of one size out: by DALI, or without DALI by torchvision or Pillow."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from .batches import Runs
from .dali_aligned import AligningPipeline
from .nvjpeg import NvjpegPipeline
from .pillow import PillowPipeline, Undecodable, decoded
from .preprocess import Frame

OURS = (PillowPipeline, AligningPipeline)  # pipelines whose run() returns a tensor
PILLOW, NVJPEG = "pillow", "nvjpeg"  # the decoders that need no DALI


def dali_installed() -> bool:
    """Tell whether DALI can be imported, without importing DALI."""
    try:
        found = find_spec("nvidia.dali")
    except ModuleNotFoundError:  # there is not even a package `nvidia`
        return False
    return found is not None and found.origin is not None  # a folder left by an uninstallation has no origin


def build_pipeline(
    source: Runs, frame: Frame, device: torch.device, decoder: str, *, images: int, threads: int, prefetch: int
) -> Any:
    """Build a pipeline that decodes images, and aligns, or resizes and crops, those that need it.

    A run with an image that cannot be decoded raises RuntimeError, which names no image; later runs are not affected.

    Args:
        source: source(k) returns run k, or raises StopIteration to end the runs: a list of B uint8 arrays, what each
            image needs (uint8, `needed` or ALIGN), and a float64 map (B, 2, 3) that counts for images that need ALIGN.
            The arrays are read in place, so they must outlive the run.
        frame: what the images are brought to; ALIGN needs one that is `aligned`.
        device: where the decoded images are put, whatever decodes them.
        decoder: "cpu"; "mixed" for DALI's nvJPEG, with the resize on a CUDA device; "nvjpeg" for torchvision's;
            or "pillow".
        images: the most images that a run has.
        threads: how many CPU threads decode.
        prefetch: how many runs ahead `source` is called.
    """
    if decoder == PILLOW:
        return PillowPipeline(source, frame, device, threads=threads, prefetch=prefetch)
    if decoder == NVJPEG:
        return NvjpegPipeline(source, frame, device, threads=threads, prefetch=prefetch)
    from . import dali

    return dali.build_pipeline(source, frame, device, decoder, images=images, threads=threads, prefetch=prefetch)


def close_pipeline(pipeline: Any) -> None:
    """Stop the threads of Pillow or of aligning; DALI's stop when the last reference to the pipeline is dropped."""
    if isinstance(pipeline, OURS):
        pipeline.close()


class Vetting:
    """Tells whether an image can be decoded. Alone in its batch, a bad image does no harm to DALI."""

    def __init__(self, device: torch.device, decoder: str):
        """Prepare to decode on `device` by "cpu", "mixed", "nvjpeg" or "pillow"; for "nvjpeg" Pillow does so."""
        self._device, self._decoder = device, decoder
        self._run: list[np.ndarray] = []  # both are DALI's
        self._pipeline: Any = None

    def __call__(self, encoded: np.ndarray) -> None:
        """Decode the bytes of one image, uint8; ValueError, with the decoder's reason, if they cannot be decoded."""
        try:
            self._decode(encoded)
        except RuntimeError as error:
            raise ValueError(decoding_failure(error)) from None

    def close(self) -> None:
        """Stop DALI's threads; a later call starts them again."""
        self._pipeline = None

    def _decode(self, encoded: np.ndarray) -> None:
        if self._decoder in (PILLOW, NVJPEG):
            decoded(encoded)
            return
        self._run[:] = [encoded]
        if self._pipeline is None:  # a stream that finds all verdicts made never needs it
            from . import dali

            self._pipeline = dali.build_vetting(self._run, self._device, self._decoder)
        self._pipeline.run()


def pixels(pipeline: Any) -> torch.Tensor:
    """Return the next run's images, uint8 (B, H, W, 3), in the pipeline's memory."""
    if isinstance(pipeline, OURS):
        return pipeline.run()
    return torch.from_dlpack(pipeline.run()[0].as_tensor())


def decoding_failure(error: RuntimeError) -> str:
    """Return the decoder's reason in one line if an image could not be decoded; raise any other error again."""
    if isinstance(error, Undecodable):
        return f"cannot be decoded ({error})"
    operator, _, reason = str(error).partition("encountered:")
    if "decoders.image" not in operator:
        raise error
    reason = " ".join(reason.partition("Current pipeline object")[0].split()).strip(" :")
    return f"cannot be decoded ({reason})"
