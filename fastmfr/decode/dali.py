"""The DALI pipeline: encoded bytes in, uint8 images (B, H, W, 3) of one size out. It holds no random state."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# DALI's type stubs know neither its enumerations nor an `if` over images.

import warnings
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import do_not_convert

from .batches import Runs
from .dali_aligned import AligningPipeline
from .preprocess import ALIGN, AS_IS, CROP, Frame

_PADDING = 1 << 20  # bytes of each GPU decoding buffer; DALI's 16 MiB a thread are meant for large photographs


def build_pipeline(
    source: Runs, frame: Frame, device: torch.device, decoder: str, *, images: int, threads: int, prefetch: int
) -> Any:
    """Build DALI's pipeline; the arguments are those of `pipeline.build_pipeline`, `decoder` is "cpu" or "mixed"."""

    on_host = frame.aligned and decoder == "cpu"
    taken = _taken(source, frame, on_host)

    # exec_dynamic: without it the first image that cannot be decoded ends the pipeline, and outputs are overwritten.
    @pipeline_def(
        batch_size=images,
        num_threads=threads,
        device_id=device.index,
        prefetch_queue_depth=prefetch,
        exec_dynamic=True,
        enable_conditionals=True,
    )
    def decode():
        given = fn.external_source(**taken)
        need, image = given[1], _decoded(given[0], decoder)
        image = _brought(image, need, given[2], frame, on_host) if frame.aligned else _fitted(image, need, frame)
        if on_host:
            return image, need, given[2]
        return image.gpu() if device.type == "cuda" else image

    with warnings.catch_warnings():
        # DALI reads the `if` through gast, which warns of Python 3.13's deprecations; if warnings are errors, as in
        # tests, the pipeline would fail.
        warnings.simplefilter("ignore", DeprecationWarning)
        pipeline = decode()
    pipeline.build()
    return AligningPipeline(pipeline, frame, device, threads) if on_host else pipeline


def build_vetting(run: list[np.ndarray], device: torch.device, decoder: str) -> Any:
    """Build a pipeline that decodes the one image in the list `run`, which the caller replaces before each run.

    `run` is a plain list, since DALI's graph keeps whatever it reads from.
    """

    @pipeline_def(batch_size=1, num_threads=1, device_id=device.index, prefetch_queue_depth=1, exec_dynamic=True)
    def decode():  # decoding only: a resize and a crop that do nothing take half as long as a decode
        encoded = fn.external_source(source=lambda _: run, batch=True, no_copy=True, dtype=types.UINT8, ndim=1)
        return _decoded(encoded, decoder)

    pipeline = decode()
    pipeline.build()
    return pipeline


def _taken(source, frame, on_host):
    """What the pipeline takes, as external_source wants it: encoded bytes, needs, and maps if images are aligned."""

    def run(k):
        encoded, need_B, map_B23 = source(k)
        if not frame.aligned:
            return encoded, need_B
        if on_host:
            return encoded, need_B, map_B23
        corner_B23 = map_B23.copy()  # whole numbers are corners of pixels for DALI, not their middles
        corner_B23[:, :, 2] += 0.5 - 0.5 * map_B23[:, :, :2].sum(2)
        return encoded, need_B, corner_B23.astype(np.float32)

    outputs = 3 if frame.aligned else 2
    kinds = [types.UINT8, types.UINT8, types.FLOAT64 if on_host else types.FLOAT]
    several = {"num_outputs": outputs, "dtype": kinds[:outputs], "ndim": [1, 0, 2][:outputs]}
    return {"source": run, "batch": True, "no_copy": True, **several}


def _brought(image, need, map_23, frame, on_host):
    """The image aligned or fitted; one to be aligned on the host stays as it is."""
    if need < ALIGN:
        image = _fitted(image, need, frame)
    elif not on_host:
        image = _aligned(image, map_23, frame)
    return image


def _aligned(image, map_23, frame):
    """Align as align.py does: maps lead from the crop to the image, and outside of the image is black."""
    size = (frame.size, frame.size)
    return fn.warp_affine(image, matrix=map_23, size=size, fill_value=0, interp_type=types.INTERP_LINEAR)


@do_not_convert
def _resized(image, frame):
    side = {"crop": "resize_shorter", "pad": "resize_longer"}.get(frame.fit)
    sides = {side: frame.size} if side else {"resize_x": frame.size, "resize_y": frame.size}
    return fn.resize(image, interp_type=types.INTERP_LINEAR, antialias=True, subpixel_scale=False, **sides)


def _fitted(image, need, frame):
    if need > AS_IS:  # image by image: a crop that changes nothing is a copy, a resize twice a decoding
        if need > CROP:
            image = _resized(image, frame)
        if frame.fit == "crop":
            image = fn.crop(image, crop=(frame.size, frame.size))
        elif frame.fit == "pad":
            image = fn.crop(image, crop=(frame.size, frame.size), out_of_bounds_policy="pad", fill_values=0)
    return image


def _decoded(encoded, decoder):
    # Fancy upsampling is what the CPU decoder and Pillow always do; nvJPEG has to be asked.
    return fn.decoders.image(
        encoded,
        device=decoder,
        output_type=types.RGB,
        jpeg_fancy_upsampling=True,
        device_memory_padding=_PADDING,
        host_memory_padding=_PADDING,
    )
