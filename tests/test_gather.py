import itertools

import numpy as np
import pytest
import torch
import triton_interpreter
from fastmfr.kernels import gather_images
from fastmfr.kernels.gather import _launch_gather_images, gather_images_ref
from helpers import DEVICE

from fastmfr import _native

if DEVICE == "cpu":
    triton_interpreter.repair()
pytestmark = pytest.mark.kernel
CHANGES = ("mirror_B", "shift_B2", "block_B", "gain_B", "offset_B")


def images(N, H, W):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (N, H, W, 3), np.uint8)).to(DEVICE)


def changes(B, wanted=CHANGES):
    """Changes of every kind; shifts beyond the image, blocks beyond the usual, grey levels beyond 0..255."""
    draw = np.random.default_rng(1)
    everything = {
        "mirror_B": draw.random(B) < 0.5,
        "shift_B2": draw.integers(-9, 10, (B, 2), np.int32),
        "block_B": draw.integers(1, 6, B, np.int32),
        "gain_B": draw.uniform(0.5, 1.5, B).astype(np.float32),
        "offset_B": draw.uniform(-80, 80, B).astype(np.float32),
    }
    return {name: torch.from_numpy(everything[name]).to(DEVICE) for name in wanted}


def both(image_NHW3, index_B, *, mean=127.5, std=127.5, dtype=torch.float32, **changes):
    """What the kernel and the reference make of it, both written over NaN."""
    results = []
    for gather in (_launch_gather_images, gather_images_ref):
        B = len(image_NHW3) if index_B is None else len(index_B)
        out = torch.full((B, 3, *image_NHW3.shape[1:3]), torch.nan, dtype=dtype, device=DEVICE)
        assert gather(image_NHW3, index_B, **changes, mean=mean, std=std, dtype=dtype, out=out) is out
        results.append(out)
    return results


def by_hand(image_HW3, mirror, shift, block, gain, offset, mean, std):
    """One image, pixel by pixel, in float64."""
    H, W, _ = image_HW3.shape
    moved_HW3 = np.empty((H, W, 3))
    for y, x in itertools.product(range(H), range(W)):
        row, column = min(max(y - shift[0], 0), H - 1), min(max(x - shift[1], 0), W - 1)
        moved_HW3[y, x] = image_HW3[row, W - 1 - column if mirror else column]
    out_3HW = np.empty((3, H, W))
    for y, x in itertools.product(range(H), range(W)):
        top, left = y // block * block, x // block * block
        grey_3 = moved_HW3[top : top + block, left : left + block].mean((0, 1))
        out_3HW[:, y, x] = (np.clip(gain * grey_3 + offset, 0, 255) - mean) / std
    return out_3HW


@pytest.mark.parametrize("gather", [gather_images_ref, _launch_gather_images])
def test_equals_the_formula_pixel_by_pixel(gather):
    image_NHW3, index_B = images(4, 7, 9), torch.tensor([3, 0, 0, 2, 1, 3], device=DEVICE)
    change = changes(6)
    got_B3HW = gather(image_NHW3, index_B, **change, mean=100.0, std=50.0).cpu().numpy()
    for b, index in enumerate(index_B.tolist()):
        own = [change[name][b].cpu().numpy() for name in CHANGES]
        np.testing.assert_allclose(got_B3HW[b], by_hand(image_NHW3[index].cpu().numpy(), *own, 100.0, 50.0), atol=1e-5)


# H x W: less than a tile of 1024 pixels; exactly one; two, the second ragged. 9 images: two chunks on the CPU.
@pytest.mark.parametrize(("N", "H", "W"), [(1, 3, 5), (9, 5, 4), (2, 32, 32), (2, 33, 37)])
@pytest.mark.parametrize("wanted", [[], CHANGES[:3], CHANGES], ids="-".join)
def test_the_kernel_equals_the_reference(N, H, W, wanted):
    change = changes(N, wanted)
    got, want = both(images(N, H, W), torch.arange(N, device=DEVICE).flip(0), **change)
    assert got.isfinite().all()
    # a product and a sum may be rounded once on a GPU and twice elsewhere, by at most half of a 2**-16 grey level each
    assert (got - want).abs().max() <= (2**-15 / 127.5 if {"gain_B", "offset_B"} & set(wanted) else 0)


@pytest.mark.parametrize("without", CHANGES)
def test_the_kernel_equals_the_reference_with_any_change_left_out(without):
    change = changes(3, [name for name in CHANGES if name != without])
    got, want = both(images(3, 6, 5), torch.tensor([2, 2, 0], device=DEVICE), **change)
    torch.testing.assert_close(got, want, rtol=0, atol=2**-15 / 127.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounds_to_the_type_asked_for_once(dtype):
    image_NHW3 = images(2, 5, 6)
    exact, _ = both(image_NHW3, None)
    kernel, ref = both(image_NHW3, None, dtype=dtype)
    assert kernel.dtype == ref.dtype == dtype
    assert torch.equal(ref, exact.to(dtype))
    assert torch.equal(kernel, ref)


def test_takes_whole_numbers_of_either_width():
    image_NHW3, change = images(3, 6, 5), changes(3, ["shift_B2", "block_B"])
    wide = {name: value.long() for name, value in change.items()}
    for narrow, other in zip(both(image_NHW3, None, **change), both(image_NHW3, None, **wide), strict=True):
        assert torch.equal(narrow, other)


def test_keeps_the_images_and_gives_contiguous_ones():
    image_NHW3 = images(4, 6, 7)
    before = image_NHW3.clone()
    out_B3HW = gather_images(image_NHW3, torch.tensor([1, 1], device=DEVICE), **changes(2), mean=0.0, std=1.0)
    assert out_B3HW.shape == (2, 3, 6, 7)
    assert out_B3HW.is_contiguous()
    assert torch.equal(image_NHW3, before)


def test_leaves_pixels_as_they_are_where_nothing_changes():
    image_NHW3, on = images(3, 6, 7), {"device": DEVICE}
    nothing = {
        "mirror_B": torch.zeros(3, dtype=torch.bool, **on),
        "shift_B2": torch.zeros(3, 2, dtype=torch.int, **on),
        "block_B": torch.ones(3, dtype=torch.int, **on),
        "gain_B": torch.ones(3, **on),
        "offset_B": torch.zeros(3, **on),
    }
    for got in both(image_NHW3, None, mean=0.0, std=1.0, **nothing):
        assert torch.equal(got, image_NHW3.permute(0, 3, 1, 2).float())


def test_an_empty_batch_is_empty():
    for got in both(images(2, 4, 4), torch.zeros(0, dtype=torch.int64, device=DEVICE), **changes(0)):
        assert got.shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_NHW3": torch.zeros(2, 4, 4, 3)}, r"want images uint8 \(N, H, W, 3\), got torch.float32"),
        ({"image_NHW3": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, r"got torch.uint8 \(2, 3, 4, 4\)"),
        (
            {"image_NHW3": torch.zeros(2, 4, 3, 3, dtype=torch.uint8).transpose(1, 2)},
            r"got strides .*use .contiguous\(\)",
        ),
        ({"std": 0.0}, "want std > 0, got 0.0"),
        ({"index_B": torch.zeros(2)}, r"want index_B int64 \(2,\), .* got torch.float32"),
        ({"index_B": torch.zeros(2, dtype=torch.int32)}, "want index_B int64"),
        ({"mirror_B": torch.zeros(3, dtype=torch.bool)}, r"want mirror_B bool \(2,\), .* got torch.bool \(3,\)"),
        ({"shift_B2": torch.zeros(2, dtype=torch.int32)}, r"want shift_B2 int32 or int64 \(2, 2\)"),
        ({"block_B": torch.ones(2)}, r"want block_B int32 or int64 \(2,\)"),
        ({"gain_B": torch.ones(2, dtype=torch.float64)}, r"want gain_B float32 \(2,\)"),
        ({"offset_B": torch.ones(4)[::2]}, r"want offset_B float32 \(2,\), contiguous"),
        ({"out": torch.zeros(2, 3, 4, 5)}, r"want out float32 \(2, 3, 4, 4\)"),
        ({"mirror_B": torch.zeros(2, dtype=torch.bool, device="meta")}, "on cpu; got torch.bool .* on meta"),
    ],
)
def test_refuses_what_does_not_fit(given, message):
    fitting = {"image_NHW3": torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "mean": 0.0, "std": 1.0}
    with pytest.raises(ValueError, match=message):
        gather_images(**{**fitting, **given})


def test_refuses_an_image_that_is_not_there():
    with pytest.raises(IndexError):
        gather_images(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.tensor([0, 2]), mean=0.0, std=1.0)


# Rows of whole eights are streamed to memory that begins with a cache line (skip 0); all others are looked up. Of 23
# images some are shifted by more than 8 pixels, to either side, mirrored and not.
@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize(("N", "H", "W"), [(1, 3, 5), (23, 5, 8), (3, 33, 40)])
@pytest.mark.parametrize("wanted", [[], CHANGES, *([name] for name in CHANGES), CHANGES[:2], CHANGES[2:]], ids="-".join)
@pytest.mark.parametrize("mean_std", [(127.5, 128.0), (123.7, 58.3)])
def test_the_c_plus_plus_path_equals_the_reference_to_the_bit(N, H, W, skip, wanted, mean_std):
    image_NHW3, index_B = images(N, H, W).cpu(), torch.arange(N).flip(0)
    change = {name: value.cpu() for name, value in changes(N, wanted).items()}
    mean, std = mean_std
    for index in (index_B, None):
        around = torch.full((skip + N * 3 * H * W + 1,), torch.nan)  # torch begins with a cache line
        out = around[skip:-1].view(N, 3, H, W)
        given = [None if value is None else value.numpy() for value in (index, *map(change.get, CHANGES))]
        _native.gather_images(image_NHW3.numpy(), *given, mean, 1 / std, out.numpy())
        assert torch.equal(out, gather_images_ref(image_NHW3, index, **change, mean=mean, std=std))
        assert torch.cat([around[:skip], around[-1:]]).isnan().all()  # nothing beside it was written


def test_the_c_plus_plus_path_takes_any_byte_but_zero_for_true():
    image_NHW3, out = images(2, 4, 8).cpu().numpy(), np.empty((2, 2, 3, 4, 8), np.float32)
    for result, mirror in zip(out, ([0, 2], [0, 1]), strict=True):
        _native.gather_images(image_NHW3, None, np.array(mirror, np.uint8).view(bool), *[None] * 4, 0.0, 1.0, result)
    np.testing.assert_array_equal(*out)


def test_the_c_plus_plus_path_averages_cells_beyond_31_bits():
    W = 2**31 // 255 + 1  # their grey levels sum to more than a 32-bit integer holds
    white_NHW3, out = np.full((1, 1, W, 3), 255, np.uint8), np.empty((1, 3, 1, W), np.float32)
    _native.gather_images(white_NHW3, None, None, None, np.array([W], np.int32), None, None, 0.0, 1.0, out)
    assert abs(out[0, :, 0, 0] - 255).max() < 1e-3


def test_the_c_plus_plus_path_refuses_what_does_not_fit():
    image_NHW3, out = images(2, 4, 4).cpu().numpy(), np.empty((2, 3, 4, 4), np.float32)
    none = [None] * 5
    with pytest.raises(IndexError, match="image 2 was asked for; there are 2"):
        _native.gather_images(image_NHW3, np.array([0, 2]), *none, 0.0, 1.0, out)
    with pytest.raises(ValueError, match="want out"):
        _native.gather_images(image_NHW3, np.array([0]), *none, 0.0, 1.0, out)
    with pytest.raises(ValueError, match="want 2 values in mirror, got 3"):
        _native.gather_images(image_NHW3, None, np.zeros(3, bool), *none[1:], 0.0, 1.0, out)
