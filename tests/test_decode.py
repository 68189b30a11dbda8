import numpy as np
import pytest
import torch
from decode_fakes import GOOD, PLAIN, SMALL_PNG, batches, encode, flip_bits, level, levels, needs_dali, picture
from PIL import Image

from fastmfr.decode import Preprocess, decode_reference, mirror_flags


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def with_alpha(mode):
    image = picture(60, 50).convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


GREY_16 = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 40), np.uint16))
KINDS = {
    "4:4:4": encode(picture(112, 112), quality=92, subsampling=0),
    "4:2:0": encode(picture(112, 112), quality=92, subsampling=2),
    "progressive": encode(picture(112, 112), progressive=True),
    "grey": encode(picture(112, 112).convert("L")),
    "CMYK": encode(picture(60, 60).convert("CMYK")),
    "PNG": encode(picture(112, 112), "PNG"),
    "grey PNG": encode(picture(60, 60).convert("L"), "PNG"),
    "black and white PNG": encode(picture(60, 60).convert("1"), "PNG"),
    "16-bit grey PNG": encode(GREY_16, "PNG"),
    "alpha": encode(with_alpha("RGB"), "PNG"),
    "grey with alpha": encode(with_alpha("L"), "PNG"),
    "palette": encode(picture(60, 60).convert("P"), "PNG"),
    "palette with a transparent colour": encode(picture(60, 60).convert("P"), "PNG", transparency=3),
    **{f"orientation {o}": encode(picture(70, 60), exif=oriented(o)) for o in range(1, 9)},
    # tall and wide, enlarged and reduced, odd and even rests to crop, noise, whose borders show how a filter ends
    **{
        f"{w} x {h}": encode(picture(w, h))
        for w, h in [(64, 64), (65, 64), (112, 150), (151, 113), (40, 33), (400, 30)]
    },
    "noise": encode(Image.fromarray(np.random.default_rng(1).integers(0, 256, (131, 90, 3), np.uint8)), "PNG"),
}


@pytest.mark.parametrize("size", [64, 112, 120])  # reduced and left alone; left alone and enlarged; enlarged
def test_dali_equals_pillow_within_two_grey_levels(size):
    preprocess = Preprocess(size=size)
    images, bad = batches(list(KINDS.values()), preprocess, batch_images=len(KINDS), seed=3)
    mirror_B = mirror_flags(3, 0, len(KINDS), 0.5)
    assert not bad
    assert images[0].shape == (len(KINDS), 3, size, size)
    assert 0 < mirror_B.sum() < len(KINDS)
    for (name, encoded), got, mirror in zip(KINDS.items(), images[0].numpy(), mirror_B, strict=True):
        miss = np.abs(got - decode_reference(encoded, preprocess, mirror)).max() * preprocess.std
        assert miss <= 2.01, f"{name}: {miss} grey levels off"  # measured: 0 without a resize, 1 with; .01 for rounding


def test_keeps_the_pixels_of_an_image_that_has_its_size():
    pixel_HW3 = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    encoded = encode(Image.fromarray(pixel_HW3), "PNG")
    images, _ = batches([encoded] * 4)
    assert np.array_equal(images[0][2].numpy(), pixel_HW3.transpose(2, 0, 1))
    assert np.array_equal(decode_reference(encoded, PLAIN, True), pixel_HW3[:, ::-1].transpose(2, 0, 1))


def test_crops_the_centre_normalises_and_mirrors():
    pixel_HW = np.tile(np.arange(12, dtype=np.uint8) * 10, (8, 1))
    encoded = encode(Image.fromarray(pixel_HW), "PNG")
    want = (pixel_HW[:, 2:10].astype(np.float32) - 100) / 50
    for flip, want_HW in ((0.0, want), (1.0, want[:, ::-1])):
        preprocess = Preprocess(size=8, mean=100, std=50, flip=flip)
        images, _ = batches([encoded] * 4, preprocess)
        assert np.allclose(images[0], want_HW, atol=1e-6)
        assert np.allclose(decode_reference(encoded, preprocess, flip == 1), want_HW, atol=1e-6)


def test_turns_an_image_as_its_exif_orientation_says():
    pixel_HW = np.arange(64, dtype=np.uint8).reshape(8, 8)
    images, _ = batches([encode(Image.fromarray(pixel_HW), "PNG", exif=oriented(6))] * 4)
    assert np.array_equal(images[0][0, 0], np.rot90(pixel_HW, -1))  # 6: the camera was held turned left


@needs_dali
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="decodes on a CUDA device")
def test_mixed_decoding_equals_pillow_within_four_grey_levels():
    preprocess = Preprocess(size=64, flip=1.0)  # nvJPEG's inverse transform and upsampling are its own: 4, not 2
    images, bad = batches(list(KINDS.values()), preprocess, batch_images=len(KINDS), device="cuda:0", decoder="mixed")
    assert not bad
    assert images[0].device == torch.device("cuda:0")
    for (name, encoded), got in zip(KINDS.items(), images[0].cpu().numpy(), strict=True):
        miss = np.abs(got - decode_reference(encoded, preprocess, True)).max() * preprocess.std
        assert miss <= 4.01, f"{name}: {miss} grey levels off"


BAD = {
    "empty": b"",
    "neither JPEG nor PNG": encode(picture(40, 40), "GIF"),
    "cut short: no end marker": GOOD[: len(GOOD) // 2],
    "no end marker": GOOD[:-2],
    "without a frame header": GOOD[:4] + b"\0" * 40 + GOOD[-2:],
    "0 x 40 pixels": GOOD.replace(b"\x08\x00\x28\x00\x28", b"\x08\x00\x28\x00\x00"),
    "8192 x 500 pixels": encode(Image.new("L", (8192, 500))),
    "9000 x 9000 pixels": encode(Image.new("1", (9000, 9000)), "PNG"),
    "no end chunk": SMALL_PNG[:-12],
    "PNG without a header": SMALL_PNG[:8] + SMALL_PNG[-12:],
    "cannot be decoded": flip_bits(SMALL_PNG),
    "record 7 is damaged": ValueError("record 7 is damaged"),
}


@pytest.mark.parametrize("reason", BAD)
def test_replaces_a_bad_image_and_says_why(reason):
    encoded = [level(number) for number in range(12)]
    encoded[5] = BAD[reason]
    got, bad = levels(encoded)
    assert got == [0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 11]
    assert list(bad) == ["studio/5.jpg"]
    assert reason in bad["studio/5.jpg"]


@pytest.mark.parametrize("reason", [reason for reason, encoded in BAD.items() if isinstance(encoded, bytes)])
def test_the_reference_refuses_what_the_stream_replaces(reason):
    with pytest.raises(ValueError, match="Pillow cannot decode" if reason == "cannot be decoded" else reason):
        decode_reference(BAD[reason], PLAIN, False)


@pytest.mark.parametrize("padding", [b"\0" * 500, b"trailing bytes", GOOD], ids=["zeros", "text", "a second JPEG"])
@pytest.mark.parametrize("encoded", [GOOD, SMALL_PNG], ids=["JPEG", "PNG"])
def test_accepts_bytes_after_the_end(encoded, padding):
    images, bad = batches([encoded + padding, encoded])
    assert not bad
    assert torch.equal(images[0][0], images[0][1])


def test_reads_past_fill_bytes_and_a_thumbnail():
    thumbnail = b"\xff\xe1" + (2 + len(GOOD)).to_bytes(2) + GOOD  # an application segment with a whole JPEG within
    large = encode(picture(80, 80))
    images, bad = batches([large[:2] + thumbnail + b"\xff\xff" + large[2:], large])
    assert not bad
    assert torch.equal(images[0][0], images[0][1])
    with pytest.raises(ValueError, match="no end marker"):  # the thumbnail's own end marker does not count
        decode_reference(large[:2] + thumbnail + large[2:-2], PLAIN, False)


# 0-3, 4-7 and 8-11 are one identity each. The header shows a cut file; only decoding shows flipped bits.
@pytest.mark.parametrize("damage", [lambda encoded: encoded[:20], flip_bits], ids=["cut short", "flipped"])
@pytest.mark.parametrize(
    ("broken", "want"),
    [
        ([1], {1: 2}),  # the next of the identity
        ([6, 7], {6: 4, 7: 4}),  # the identity's first, when its last is bad
        ([4, 5, 6, 7], {4: 8, 5: 8, 6: 8, 7: 8}),  # another identity, when it has no good one
        ([8, 9, 10, 11], {8: 0, 9: 0, 10: 0, 11: 0}),  # likewise, from the start of the domain
    ],
)
def test_the_substitute_is_the_next_good_image_of_the_identity_else_of_the_domain(broken, want, damage):
    encoded = [damage(level(number)) if number in broken else level(number) for number in range(12)]
    got, bad = levels(encoded)
    assert got == [want.get(number, number) for number in range(12)]
    assert set(bad) == {f"studio/{number}.jpg" for number in broken}


def test_ends_with_a_sentence_when_a_domain_has_no_good_image():
    with pytest.raises(ValueError, match=r"studio/0.jpg is bad \(empty\), and so are all images tried in its place"):
        batches([b""] * 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "want size as a whole number of pixels 1..4096, got 0"),
        ({"size": 112.0}, "whole number of pixels 1..4096, got 112.0"),
        ({"mean": float("nan")}, "want mean as a finite number of grey levels, got nan"),
        ({"std": 0.0}, "want std > 0 and finite, for it divides, got 0.0"),
        ({"flip": 1.5}, r"want the probability flip in \[0, 1\], got 1.5"),
    ],
)
def test_preprocess_refuses_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**options)
