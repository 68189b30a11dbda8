"""What the device can do at most: copy bytes and multiply matrices. Other figures are read as shares of these."""

from functools import partial

import torch

from . import lines
from .timing import DEVICE, GPU, arguments, compare


def main():
    small = (options := arguments(__doc__)).small
    from fastmfr.runtime import environment

    where = environment()
    if GPU:
        found = torch.cuda.get_device_properties(0)
        where |= {
            "multiprocessors": found.multi_processor_count,
            "l2_bytes": found.L2_cache_size,
            "capability": f"{found.major}.{found.minor}",
        }
    lines.write("environment", **where)
    size, side = (1 << 20, 256) if small else (4 << 30, 8192)
    copy(size, options.seconds)
    for name, dtype, how in (
        ("bf16", torch.bfloat16, "ieee"),
        ("fp32", torch.float32, "ieee"),
        ("tf32", torch.float32, "tf32"),
    ):
        torch.backends.cuda.matmul.fp32_precision = how
        product(name, dtype, side, options.seconds / 2)


def copy(size, seconds):
    source = torch.empty(size // 4, device=DEVICE).normal_()
    target = torch.empty_like(source)
    compare("ceilings", "copy", {"torch": partial(target.copy_, source)}, bytes=2 * size, seconds=seconds)


def product(name, dtype, side, seconds):
    factors = torch.randn(2, side, side, device=DEVICE, dtype=dtype).unbind()
    call = {"torch": partial(torch.matmul, *factors)}
    compare("ceilings", f"product {name}", call, flops=2 * side**3, seconds=seconds)


if __name__ == "__main__":
    main()
