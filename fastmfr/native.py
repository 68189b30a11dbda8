"""The compiled extension (csrc/) with its types, or one sentence that says how to build the extension."""

try:
    from fastmfr._native import (
        FileChanged,
        RecordFile,
        Sampler,
        batchnorm_backward,
        batchnorm_forward,
        batchnorm_second_backward,
        batchnorm_statistics,
        batchnorm_tangent,
        gather_images,
        warp_image,
    )
except ImportError as error:
    raise ImportError("the compiled extension is not built; run `pip install -e .` in the repository") from error

__all__ = [
    "FileChanged",
    "RecordFile",
    "Sampler",
    "batchnorm_backward",
    "batchnorm_forward",
    "batchnorm_second_backward",
    "batchnorm_statistics",
    "batchnorm_tangent",
    "gather_images",
    "warp_image",
]
