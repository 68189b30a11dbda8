"""Decode by torchvision's nvJPEG on a CUDA device if DALI is not installed; what nvJPEG leaves to do, Pillow does.

nvJPEG gets the plain JPEGs of a run that have the frame's size. All other images go to the threads of pillow.py: other
formats, sizes and colours, images that are turned or aligned, and every image of a run that nvJPEG refuses.
torchvision does not ask nvJPEG for fancy upsampling of chroma, which Pillow and DALI do, so the pixels of JPEGs with
chroma at half size differ from Pillow's.
Shape suffixes: B = images of a run, N = images that nvJPEG decodes, 3 = RGB, H W = frame.size.
"""

import functools
import io
import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastmfr.runtime import to_device

from .batches import checked_device
from .pillow import PillowPipeline
from .plain_jpeg import plain_size
from .preprocess import AS_IS

_TRIAL = 112  # pixels a side of the image that `obstacle` decodes


class NvjpegPipeline(PillowPipeline):
    """Runs of decoded images in order; what Pillow decodes of `prefetch` runs is begun ahead."""

    def _begin_run(self, encoded: list[np.ndarray], need_B: np.ndarray, map_B23: np.ndarray) -> tuple[Any, ...]:
        wanted = (self._frame.size,) * 2
        is_plain_B = np.array(
            [need == AS_IS and plain_size(one) == wanted for one, need in zip(encoded, need_B, strict=True)]
        )
        plain, others = (
            ([encoded[slot] for slot in np.flatnonzero(is_B)], need_B[is_B], map_B23[is_B])
            for is_B in (is_plain_B, ~is_plain_B)
        )
        return is_plain_B, plain, super()._begin_run(*others) if others[0] else None

    def _end_run(self, begun: tuple[Any, ...]) -> torch.Tensor:
        """The images of a run: the plain ones decoded here and now, the others as they were begun."""
        is_plain_B, plain, others = begun
        if not plain[0]:
            return super()._end_run(others)
        pixel_NHW3 = self._decoded(*plain)
        if not others:
            return pixel_NHW3
        pixel_BHW3 = pixel_NHW3.new_empty((len(is_plain_B), *pixel_NHW3.shape[1:]))
        pixel_BHW3[to_device(np.flatnonzero(is_plain_B), self._device)] = pixel_NHW3
        pixel_BHW3[to_device(np.flatnonzero(~is_plain_B), self._device)] = super()._end_run(others)
        return pixel_BHW3

    def _decoded(self, encoded: list[np.ndarray], need_N: np.ndarray, map_N23: np.ndarray) -> torch.Tensor:
        """Decode plain JPEGs by nvJPEG; by Pillow, all of them, if nvJPEG refuses one."""
        try:
            pixel_NHW3 = _decode(encoded, self._device)
            if pixel_NHW3.shape[1:] != (self._frame.size, self._frame.size, 3):
                raise RuntimeError(f"nvJPEG returned images of the shape {tuple(pixel_NHW3.shape[1:])}")
            return pixel_NHW3
        except RuntimeError as error:
            _say_once(" ".join(str(error).split())[:200])
        return super()._end_run(super()._begin_run(encoded, need_N, map_N23))


@functools.cache
def obstacle(device: torch.device) -> str:
    """Return why torchvision's nvJPEG cannot decode for a CUDA device, or "". Imports torchvision when first called."""
    buffer = io.BytesIO()
    Image.new("RGB", (_TRIAL, _TRIAL), "red").save(buffer, "JPEG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torchvision's parts that are not needed here
            pixel_NHW3 = _decode([np.frombuffer(buffer.getvalue(), np.uint8)], device)
        red, green, blue = pixel_NHW3.float().mean((0, 1, 2)).tolist()
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # a torchvision that is made for another torch may raise anything
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return "" if red > 250 > 5 > max(green, blue) else "nvJPEG decoded a red image to another colour"


def _decode(encoded: list[np.ndarray], device: torch.device) -> torch.Tensor:
    """Decode JPEGs of one size on a device, uint8 (N, H, W, 3)."""
    from torchvision.io import ImageReadMode, decode_jpeg  # pyright: ignore[reportMissingImports]

    device = checked_device(device)  # with its number: torchvision begins again for a device of another name
    # Copied end to end, since torch wants arrays that may be written.
    parts = torch.from_numpy(np.concatenate(encoded)).split([len(one) for one in encoded])
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if device.type == "cuda":
            # torchvision decodes on a CUDA stream of its own, at once, into memory of the current stream that earlier
            # work of the current stream may still read.
            torch.cuda.current_stream(device).synchronize()
        images = decode_jpeg(list(parts), mode=ImageReadMode.RGB, device=device)
        return torch.stack(images).permute(0, 2, 3, 1).contiguous()


@functools.cache
def _say_once(reason: str) -> None:
    warnings.warn(f"nvJPEG refused a batch ({reason}); Pillow decodes the batch", RuntimeWarning, stacklevel=4)
