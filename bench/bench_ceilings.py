"""What this machine can do at most: copy bytes and multiply matrices. Other figures are read as shares of these."""

import torch

GPU = torch.cuda.is_available()
DEVICE, BYTES, SIDE = ("cuda", 4 << 30, 8192) if GPU else ("cpu", 256 << 20, 1024)


def test_copy(compare):
    """Within one device, far beyond its caches; bytes read plus bytes written."""
    source = torch.empty(BYTES // 4, device=DEVICE).normal_()
    target = torch.empty_like(source)
    compare(lambda: target.copy_(source), {}, rounds=20, device=DEVICE, bytes=2 * BYTES)


def test_product(compare):
    """Of square matrices of random numbers, bfloat16 on a GPU and float32 on the CPU."""
    dtype = torch.bfloat16 if GPU else torch.float32
    left, right = torch.randn(2, SIDE, SIDE, device=DEVICE, dtype=dtype).unbind()
    compare(lambda: left @ right, {}, rounds=20, device=DEVICE, dtype=str(dtype), flops=2 * SIDE**3)
