"""The DALI pipeline: encoded bytes in, uint8 images (B, H, W, 3) of one size out. It holds no random state."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false
# DALI's type stubs know neither its enumerations nor an `if` over images.

import warnings

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

_PADDING = 1 << 20  # bytes of each GPU decoding buffer; DALI's 16 MiB a thread are meant for large photographs

AS_IS, CROP, RESIZE = range(3)  # what an image needs to have the wanted size; RESIZE is followed by a crop


def needed(sizes, size):
    """What images of these (width, height) need to become `size` pixels a side: uint8 (B,), as build_pipeline's."""
    return np.array([AS_IS if pair == (size, size) else CROP if min(pair) == size else RESIZE for pair in sizes],
                    np.uint8)  # fmt: skip


def build_pipeline(source, size, device, decoder, *, images, threads, prefetch):
    """A built pipeline that decodes, resizes and crops where needed, `images` images a run to `size` pixels a side.

    `source(k)` gives run k: a list of `images` uint8 arrays, and what `needed` says of them. The arrays are read in
    place, so they must outlive the run. A run whose images cannot all be decoded raises RuntimeError and names none of
    them; the runs after it come as if nothing had happened. `decoder`: "cpu", or "mixed" for nvJPEG and the resize on a
    CUDA device; the images come out on `device` with either.
    """

    # exec_dynamic: without it the first image that cannot be decoded ends the pipeline, and outputs are overwritten.
    @pipeline_def(batch_size=images, num_threads=threads, device_id=device.index, prefetch_queue_depth=prefetch,
                  exec_dynamic=True, enable_conditionals=True)
    def decode():
        encoded, need = fn.external_source(
            source=source, num_outputs=2, batch=True, no_copy=True, dtype=[types.UINT8, types.UINT8], ndim=[1, 0])
        image = _decoded(encoded, decoder)
        if need > AS_IS:  # image by image: a crop that changes nothing is a copy, a resize twice a decoding
            if need > CROP:
                image = fn.resize(image, resize_shorter=size, interp_type=types.INTERP_LINEAR, antialias=True,
                                  subpixel_scale=False)
            image = fn.crop(image, crop=(size, size))
        return image.gpu() if device.type == "cuda" else image

    with warnings.catch_warnings():
        # DALI reads the `if` through gast, which trips over Python 3.13's deprecations; where warnings are errors, as
        # in tests, the reading would fail and the pipeline with it.
        warnings.simplefilter("ignore", DeprecationWarning)
        pipeline = decode()
    pipeline.build()
    return pipeline


class Vetting:
    """Tells whether an image can be decoded; alone in its batch, one that cannot be does no harm to DALI.

    Call with encoded bytes (uint8 array); raises ValueError with the reason where they cannot be decoded.
    """

    def __init__(self, device, decoder):
        self._device, self._decoder = device, decoder
        self._run, self._pipeline = [], None

    def __call__(self, encoded):
        self._run[:] = [encoded]
        if self._pipeline is None:  # a stream that is told all verdicts never needs it
            self._pipeline = _build_vetting(self._run, self._device, self._decoder)
        try:
            self._pipeline.run()
        except RuntimeError as error:
            raise ValueError(decoding_failure(error)) from None

    def close(self):
        """Stop DALI's threads; a later call starts them again."""
        self._pipeline = None


def pixels(pipeline):
    """The next run's images, uint8 (B, H, W, 3), in DALI's memory."""
    return torch.from_dlpack(pipeline.run()[0].as_tensor())


def decoding_failure(error):
    """DALI's reason in one line, if an image could not be decoded; any other error is raised again."""
    operator, _, reason = str(error).partition("encountered:")
    if "decoders.image" not in operator:
        raise error
    reason = " ".join(reason.partition("Current pipeline object")[0].split()).strip(" :")
    return f"cannot be decoded ({reason})"


def _build_vetting(run, device, decoder):
    """A pipeline that decodes what the list `run` holds. Were that a Vetting, DALI's graph would keep it for ever."""

    @pipeline_def(batch_size=1, num_threads=1, device_id=device.index, prefetch_queue_depth=1, exec_dynamic=True)
    def decode():  # and no more: a resize and a crop that do nothing take as long as half a decode
        encoded = fn.external_source(source=lambda _: run, batch=True, no_copy=True, dtype=types.UINT8, ndim=1)
        return _decoded(encoded, decoder)

    pipeline = decode()
    pipeline.build()
    return pipeline


def _decoded(encoded, decoder):
    # Fancy upsampling is what the CPU decoder and Pillow always do; nvJPEG has to be asked.
    return fn.decoders.image(encoded, device=decoder, output_type=types.RGB, jpeg_fancy_upsampling=True,
                             device_memory_padding=_PADDING, host_memory_padding=_PADDING)
