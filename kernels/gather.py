"""Gather images out of decoded ones: changed, normalised and laid out for a network in one pass over memory.

    out[b, c, y, x] = (clamp(gain[b] * g + offset[b], 0, 255) - mean) * (1 / std)
    g     = mean of m over the block[b] x block[b] cell around (y, x); cells at the right and bottom edge are smaller
    m(y, x) = s(y - dy, x - dx), with s mirrored left to right if mirror[b], and its border repeated outwards
    s     = image[index[b], :, :, c]        (dy, dx) = shift[b]

Without changes, 3 bytes a pixel are read once and the result is written once. The operation is not differentiable:
images are bytes.
Shape suffixes: N = decoded images, B = batch, H W = image, 3 = RGB, 2 = (down, right).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from .launching import ceil_div, dispatch, launch

__all__ = ["gather_images", "gather_images_ref"]

_CHUNK = 4  # images the CPU takes at a time: they stay in its cache from one operation to the next
_TILE = 1024  # pixels of one program


def gather_images_ref(
    image_NHW3: Tensor,
    index_B: Tensor | None = None,
    *,
    mirror_B: Tensor | None = None,
    shift_B2: Tensor | None = None,
    block_B: Tensor | None = None,
    gain_B: Tensor | None = None,
    offset_B: Tensor | None = None,
    mean: float,
    std: float,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Compute `gather_images` in plain PyTorch: what the kernel must equal, and the path on the CPU.

    The host reads some of the changes.
    """
    out_B3HW = _output(image_NHW3, index_B, dtype, out)
    for start in range(0, len(out_B3HW), _CHUNK):
        index, mirror, shift, block, gain, offset = (
            None if value_B is None else value_B[start : start + _CHUNK]
            for value_B in (index_B, mirror_B, shift_B2, block_B, gain_B, offset_B)
        )
        pixel_BHW3 = image_NHW3[start : start + _CHUNK] if index is None else image_NHW3.index_select(0, index)
        pixel_B3HW = pixel_BHW3.permute(0, 3, 1, 2).contiguous()
        for b in [] if mirror is None else mirror.nonzero().squeeze(1).tolist():  # a masked copy takes longer
            pixel_B3HW[b] = pixel_B3HW[b].flip(2)
        grey_B3HW = out_B3HW[start : start + _CHUNK]
        if dtype != torch.float32:
            grey_B3HW = torch.empty_like(grey_B3HW, dtype=torch.float32)
        grey_B3HW.copy_(pixel_B3HW)
        if shift is not None:
            _shift(grey_B3HW, shift)
        if block is not None:
            _average_cells(grey_B3HW, block)
        if gain is not None:
            grey_B3HW *= gain[:, None, None, None]
        if offset is not None:
            grey_B3HW += offset[:, None, None, None]
        if gain is not None or offset is not None:
            grey_B3HW.clamp_(0, 255)
        grey_B3HW.sub_(mean).mul_(1 / std)
        if dtype != torch.float32:
            out_B3HW[start : start + _CHUNK] = grey_B3HW
    return out_B3HW


def _shift(grey_B3HW, shift_B2):
    for image_13HW, (down, right) in zip(grey_B3HW.split(1), shift_B2.tolist(), strict=True):
        image_13HW.copy_(F.pad(image_13HW, (right, -right, down, -down), mode="replicate"))


def _average_cells(grey_B3HW, block_B):
    H, W = grey_B3HW.shape[2:]
    for block in block_B.unique().tolist():
        if block > 1:
            chosen = block_B == block
            mean = F.avg_pool2d(grey_B3HW[chosen], block, ceil_mode=True)
            whole = mean.repeat_interleave(block, 2).repeat_interleave(block, 3)
            grey_B3HW[chosen] = whole[:, :, :H, :W]


@triton.jit
def _pixel_offset(y, x, dy, dx, mirrored, H: tl.constexpr, W: tl.constexpr):
    """Offset in its image of the pixel that mirroring and shifting bring to (y, x)."""
    y = tl.minimum(tl.maximum(y - dy, 0), H - 1)
    x = tl.minimum(tl.maximum(x - dx, 0), W - 1)
    return (y * W + tl.where(mirrored, W - 1 - x, x)) * 3


@triton.jit
def gather_images_kernel(
    out_ptr,  # (B, 3, H, W)
    image_ptr,  # (N, H, W, 3), uint8
    index_ptr,  # (B,), or None for all images in order
    mirror_ptr,  # (B,) or None
    shift_ptr,  # (B, 2) or None
    block_ptr,  # (B,) or None
    gain_ptr,  # (B,) or None
    offset_ptr,  # (B,) or None
    mean,
    inverse_std,
    H: tl.constexpr,
    W: tl.constexpr,
    TILE: tl.constexpr,
):
    TILES: tl.constexpr = (H * W + TILE - 1) // TILE  # neighbouring programs share an image, and so its cache lines
    b = (tl.program_id(0) // TILES).to(tl.int64)  # 64 bits: a million images of 120 x 120 x 3 bytes pass 2**31
    p = tl.program_id(0) % TILES * TILE + tl.arange(0, TILE)
    inside = p < H * W
    y, x = p // W, p % W
    number = tl.load(index_ptr + b).to(tl.int64) if index_ptr is not None else b
    mirrored = tl.load(mirror_ptr + b) != 0 if mirror_ptr is not None else p < 0
    dy = tl.load(shift_ptr + 2 * b).to(tl.int32) if shift_ptr is not None else 0
    dx = tl.load(shift_ptr + 2 * b + 1).to(tl.int32) if shift_ptr is not None else 0
    pixel_ptr = image_ptr + number * (3 * H * W)
    for c in tl.static_range(3):  # pyright: ignore[reportGeneralTypeIssues]  # triton types its loops as not iterable
        if block_ptr is None:
            at = _pixel_offset(y, x, dy, dx, mirrored, H, W)
            grey = tl.load(pixel_ptr + at + c, mask=inside, other=0).to(tl.float32)
        else:
            block = tl.load(block_ptr + b).to(tl.int32)
            top, left = y - y % block, x - x % block
            total = tl.zeros([TILE], tl.int32)
            for k in range(block * block):
                row, column = top + k // block, left + k % block
                at = _pixel_offset(row, column, dy, dx, mirrored, H, W)
                total += tl.load(pixel_ptr + at + c, mask=inside & (row < H) & (column < W), other=0).to(tl.int32)
            cell = tl.maximum(tl.minimum(block, H - top), 1) * tl.minimum(block, W - left)  # 1: past the last pixel
            grey = tl.math.div_rn(total.to(tl.float32), cell.to(tl.float32))
        if gain_ptr is not None:
            grey *= tl.load(gain_ptr + b)
        if offset_ptr is not None:
            grey += tl.load(offset_ptr + b)
        if gain_ptr is not None or offset_ptr is not None:
            grey = tl.minimum(tl.maximum(grey, 0.0), 255.0)
        tl.store(out_ptr + (3 * b + c) * (H * W) + p, (grey - mean) * inverse_std, mask=inside)


def _launch_gather_images(
    image_NHW3,
    index_B=None,
    *,
    mirror_B=None,
    shift_B2=None,
    block_B=None,
    gain_B=None,
    offset_B=None,
    mean,
    std,
    dtype=torch.float32,
    out=None,
):
    out_B3HW = _output(image_NHW3, index_B, dtype, out)
    B, _, H, W = out_B3HW.shape
    mirror_B = None if mirror_B is None else mirror_B.view(torch.uint8)
    if out_B3HW.numel():
        launch(
            gather_images_kernel,
            (B * ceil_div(H * W, _TILE),),
            out_B3HW,
            image_NHW3,
            index_B,
            mirror_B,
            shift_B2,
            block_B,
            gain_B,
            offset_B,
            float(mean),
            1 / std,
            H,
            W,
            _TILE,
            enable_fp_fusion=False,  # to round as the reference does
        )
    return out_B3HW


def _output(image_NHW3, index_B, dtype, out):
    N, H, W, _ = image_NHW3.shape
    shape = (N if index_B is None else len(index_B), 3, H, W)
    return torch.empty(shape, dtype=dtype, device=image_NHW3.device) if out is None else out


def gather_images(
    image_NHW3: Tensor,
    index_B: Tensor | None = None,
    *,
    mirror_B: Tensor | None = None,
    shift_B2: Tensor | None = None,
    block_B: Tensor | None = None,
    gain_B: Tensor | None = None,
    offset_B: Tensor | None = None,
    mean: float,
    std: float,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Gather images out of decoded ones, change and normalise them, channels first.

    Every change may be left out as None. All tensors are contiguous and on one device; the host never waits for it.

    Args:
        image_NHW3: Decoded images, uint8.
        index_B: Images to take, int64 in [0, N), in this order; None takes all. An index outside of [0, N) is an
            IndexError on the CPU and undefined on a GPU.
        mirror_B: Images to mirror left to right, bool.
        shift_B2: Whole pixels to shift by (down, right), int32 or int64 of any size. The border is repeated.
        block_B: Side of the square cells that are averaged, int32 or int64, at least 1.
        gain_B: Factor of the grey levels, float32.
        offset_B: Added to the grey levels after the gain, float32; both together are clamped to [0, 255].
        mean: Grey level that becomes 0.
        std: Grey levels that become 1, above 0.
        dtype: Dtype of the result.
        out: Memory (B, 3, H, W) to write the result to; None allocates it.

    Returns:
        The images (B, 3, H, W), contiguous.

    Raises:
        ValueError: If a dtype, a shape, a device or a memory layout does not fit.
    """
    if image_NHW3.dtype != torch.uint8 or image_NHW3.ndim != 4 or image_NHW3.shape[3] != 3:
        raise ValueError(f"want images uint8 (N, H, W, 3), got {image_NHW3.dtype} {tuple(image_NHW3.shape)}")
    if not image_NHW3.is_contiguous():
        raise ValueError(f"want contiguous images, got strides {image_NHW3.stride()}; use .contiguous()")
    if not std > 0:
        raise ValueError(f"want std > 0, got {std}")
    B = len(image_NHW3) if index_B is None else len(index_B)
    integers, floats = (torch.int32, torch.int64), (torch.float32,)
    for name, value, shape, dtypes in (
        ("index_B", index_B, (B,), (torch.int64,)),
        ("mirror_B", mirror_B, (B,), (torch.bool,)),
        ("shift_B2", shift_B2, (B, 2), integers),
        ("block_B", block_B, (B,), integers),
        ("gain_B", gain_B, (B,), floats),
        ("offset_B", offset_B, (B,), floats),
        ("out", out, (B, 3, *image_NHW3.shape[1:3]), (dtype,)),
    ):
        _check(name, value, shape, dtypes, image_NHW3.device)
    changes = {"mirror_B": mirror_B, "shift_B2": shift_B2, "block_B": block_B, "gain_B": gain_B, "offset_B": offset_B}
    gather = dispatch(image_NHW3, kernels=_launch_gather_images, reference=gather_images_ref, dtypes=(torch.uint8,))
    return gather(image_NHW3, index_B, **changes, mean=mean, std=std, dtype=dtype, out=out)


def _check(name, value, shape, dtypes, device):
    if value is None:
        return
    if tuple(value.shape) != shape or value.dtype not in dtypes or value.device != device or not value.is_contiguous():
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(
            f"want {name} {wanted} {shape}, contiguous, on {device}; got {value.dtype} {tuple(value.shape)} on "
            f"{value.device}"
        )
