"""The DALI pipeline: encoded bytes in, uint8 images (B, H, W, 3) of one size out. It holds no random state."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false
# DALI's type stubs know neither its enumerations nor an `if` over images.

import warnings
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from .batches import Runs
from .preprocess import AS_IS, CROP

_PADDING = 1 << 20  # bytes of each GPU decoding buffer; DALI's 16 MiB a thread are meant for large photographs


def build_pipeline(
    source: Runs, size: int, device: torch.device, decoder: str, *, images: int, threads: int, prefetch: int
) -> Any:
    """Build DALI's pipeline; the arguments are those of `pipeline.build_pipeline`, `decoder` is "cpu" or "mixed"."""

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
        encoded, need = fn.external_source(
            source=source, num_outputs=2, batch=True, no_copy=True, dtype=[types.UINT8, types.UINT8], ndim=[1, 0]
        )
        image = _decoded(encoded, decoder)
        if need > AS_IS:  # image by image: a crop that changes nothing is a copy, a resize twice a decoding
            if need > CROP:
                image = fn.resize(
                    image, resize_shorter=size, interp_type=types.INTERP_LINEAR, antialias=True, subpixel_scale=False
                )
            image = fn.crop(image, crop=(size, size))
        return image.gpu() if device.type == "cuda" else image

    with warnings.catch_warnings():
        # DALI reads the `if` through gast, which warns of Python 3.13's deprecations; if warnings are errors, as in
        # tests, the pipeline would fail.
        warnings.simplefilter("ignore", DeprecationWarning)
        pipeline = decode()
    pipeline.build()
    return pipeline


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
