"""The DALI pipeline: encoded bytes and resize flags in; uint8 images (B, H, W, 3) out. It holds no random state."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false
# DALI's type stubs know neither its enumerations nor an `if` over images.

import warnings

from nvidia.dali import fn, pipeline_def, types

_PADDING = 1 << 20  # bytes of each GPU decoding buffer; DALI's 16 MiB a thread are meant for large photographs


def build_pipeline(source, size, device, *, images, threads, prefetch):
    """A built pipeline that decodes, resizes where needed and crops `images` images a run to `size` pixels a side.

    `source(k)` gives run k: a list of `images` uint8 arrays, and bool resize flags (images,). The arrays are read in
    place, so they must outlive the run. A run whose images cannot all be decoded raises RuntimeError and names none of
    them; the runs after it come as if nothing had happened.
    """
    on_gpu = device.type == "cuda"

    # exec_dynamic: without it the first image that cannot be decoded ends the pipeline, and outputs are overwritten.
    @pipeline_def(batch_size=images, num_threads=threads, device_id=device.index, prefetch_queue_depth=prefetch,
                  exec_dynamic=True, enable_conditionals=True)
    def decode():
        encoded, resize = fn.external_source(
            source=source, num_outputs=2, batch=True, no_copy=True, dtype=[types.UINT8, types.BOOL], ndim=[1, 0])
        # Fancy upsampling is what the CPU decoder and Pillow always do; nvJPEG has to be asked.
        image = fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB,
                                  jpeg_fancy_upsampling=True, device_memory_padding=_PADDING,
                                  host_memory_padding=_PADDING)
        if resize:  # image by image: on the CPU a resize that changes nothing takes twice as long as decoding
            image = fn.resize(image, resize_shorter=size, interp_type=types.INTERP_LINEAR, antialias=True,
                              subpixel_scale=False)
        return fn.crop(image, crop=(size, size))

    with warnings.catch_warnings():
        # DALI reads the `if` through gast, which trips over Python 3.13's deprecations; where warnings are errors, as
        # in tests, the reading would fail and the pipeline with it.
        warnings.simplefilter("ignore", DeprecationWarning)
        pipeline = decode()
    pipeline.build()
    return pipeline
