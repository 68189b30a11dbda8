"""Encoded bytes in, uint8 images (B, H, W, 3) of one size out: by DALI, or by Pillow where it is not installed."""

from importlib.util import find_spec

import torch

from .pillow import PillowPipeline, Undecodable
from .preprocess import upright_rgb

PILLOW = "pillow"  # the decoder that needs no DALI


def dali_installed():
    """Whether DALI can be imported; it is looked for and not imported."""
    try:
        found = find_spec("nvidia.dali")
    except ModuleNotFoundError:  # there is not even a package `nvidia`
        return False
    return found is not None and found.origin is not None  # a folder that an uninstallation left has no origin


def build_pipeline(source, size, device, decoder, *, images, threads, prefetch):
    """A built pipeline that decodes, resizes and crops where needed, `images` images a run to `size` pixels a side.

    `source(k)` gives run k: a list of `images` uint8 arrays, and what `needed` says of them. It is called up to
    `prefetch` runs ahead; a StopIteration ends the runs. The arrays are read in place, so they must outlive the run. A
    run whose images cannot all be decoded raises RuntimeError and names none of them; the runs after it come as if
    nothing had happened. `decoder`: "cpu", or "mixed" for nvJPEG and the resize on a CUDA device, or "pillow"; the
    images come out on `device` with each.
    """
    if decoder == PILLOW:
        return PillowPipeline(source, size, device, images=images, threads=threads, prefetch=prefetch)
    from . import dali

    return dali.build_pipeline(source, size, device, decoder, images=images, threads=threads, prefetch=prefetch)


def close_pipeline(pipeline):
    """Stops Pillow's threads; DALI's are stopped by dropping the last reference to the pipeline."""
    if isinstance(pipeline, PillowPipeline):
        pipeline.close()


class Vetting:
    """Tells whether an image can be decoded; alone in its batch, one that cannot be does no harm to DALI.

    Call with encoded bytes (uint8 array); raises ValueError with the reason where they cannot be decoded.
    """

    def __init__(self, device, decoder):
        self._device, self._decoder = device, decoder
        self._run, self._pipeline = [], None  # DALI's

    def __call__(self, encoded):
        try:
            self._decode(encoded)
        except RuntimeError as error:
            raise ValueError(decoding_failure(error)) from None

    def close(self):
        """Stop DALI's threads; a later call starts them again."""
        self._pipeline = None

    def _decode(self, encoded):
        if self._decoder == PILLOW:
            try:
                upright_rgb(encoded)
            except ValueError as error:
                raise Undecodable(str(error)) from None
            return
        self._run[:] = [encoded]
        if self._pipeline is None:  # a stream that is told all verdicts never needs it
            from . import dali

            self._pipeline = dali.build_vetting(self._run, self._device, self._decoder)
        self._pipeline.run()  # pyright: ignore[reportAttributeAccessIssue]  # the stubs take it for a DataNode


def pixels(pipeline):
    """The next run's images, uint8 (B, H, W, 3), in the pipeline's memory."""
    if isinstance(pipeline, PillowPipeline):
        return pipeline.run()
    return torch.from_dlpack(pipeline.run()[0].as_tensor())


def decoding_failure(error):
    """The decoder's reason in one line, if an image could not be decoded; any other error is raised again."""
    if isinstance(error, Undecodable):
        return f"cannot be decoded ({error})"
    operator, _, reason = str(error).partition("encountered:")
    if "decoders.image" not in operator:
        raise error
    reason = " ".join(reason.partition("Current pipeline object")[0].split()).strip(" :")
    return f"cannot be decoded ({reason})"
