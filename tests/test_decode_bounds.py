"""Memory is bounded by pixels, and images of any common format and depth are decoded, by every decoder alike."""

import io

import numpy as np
import pytest
import torch
from decode_fakes import EITHER, PLAIN, FakeDomain, batches, encode, flip_bits, level, levels, picture
from PIL import Image

from fastmfr.decode import Preprocess, decode_reference, stream
from fastmfr.decode.backend import measure_decoders
from fastmfr.decode.encoded import checked_size
from fastmfr.decode.preprocess import upright_rgb
from fastmfr.pack import images
from fastmfr.pack.images import prepare

MIXED = [encode(picture(30 + 9 * k, 70 - 7 * k, k), "JPEG" if k % 2 else "PNG") for k in range(7)]


@pytest.fixture
def sizes_of_runs(monkeypatch):
    """How many images each run of a pipeline has, but for runs of the images of one pixel."""
    sizes, build = [], stream.build_pipeline

    def watched(source, **options):
        def noted(call):
            encoded, *rest = source(call)
            sizes.append(0 if checked_size(encoded[0]) == (1, 1) else len(encoded))
            return encoded, *rest

        return build(noted, **options)

    monkeypatch.setattr(stream, "build_pipeline", watched)
    return sizes


@pytest.mark.parametrize("decoder", EITHER)
def test_a_batch_of_too_many_pixels_is_decoded_part_by_part_to_the_same_bits(decoder, monkeypatch, sizes_of_runs):
    look = Preprocess(size=24)
    options = {"decoder": decoder, "batch_images": 7, "last": 2, "threads": 2}
    whole, _ = batches(MIXED, look, **options)
    assert sizes_of_runs == [7, 7]
    sizes_of_runs.clear()
    monkeypatch.setattr("fastmfr.decode.source.MOST_PIXELS", 3 * 4096)
    parts, bad = batches(MIXED, look, **options)
    assert not bad
    assert all(torch.equal(whole[k], parts[k]) for k in range(2))
    assert sorted(sizes_of_runs) == [0, 0, 1, 1, 3, 3, 3, 3]


@pytest.mark.parametrize("decoder", EITHER)
@pytest.mark.parametrize("vet", [False, True])
def test_a_bad_image_in_a_part_is_replaced_and_named(decoder, vet, monkeypatch):
    monkeypatch.setattr("fastmfr.decode.source.MOST_PIXELS", 100)  # two images of 64
    encoded = [level(number) for number in range(8)]
    encoded[5] = flip_bits(encoded[5])
    got, bad = levels(encoded, decoder=decoder, vet=vet)
    assert got == [0, 1, 2, 3, 4, 6, 6, 7]
    assert list(bad) == ["studio/5.jpg"]


def test_measuring_decoders_keeps_to_the_bound(monkeypatch):
    monkeypatch.setattr("fastmfr.decode.backend.MOST_PIXELS", 100)
    monkeypatch.setattr("fastmfr.decode.backend._TIMING", 0)
    sizes, build = [], stream.build_pipeline

    def watched(source, *arguments, images, **options):
        sizes.append(images)
        return build(source, *arguments, images=images, **options)

    monkeypatch.setattr("fastmfr.decode.backend.build_pipeline", watched)
    measure_decoders([FakeDomain([level(k) for k in range(6)])], PLAIN, "cpu", 1, decoders=("pillow",))
    assert sizes == [1]


def test_no_decoder_begins_an_image_of_absurd_size():
    huge = encode(Image.new("1", (9000, 9000)), "PNG")
    for refused in (upright_rgb, lambda encoded: prepare(encoded, short=8)):
        with pytest.raises(ValueError, match="9000 x 9000 pixels; want sides of 1 to 8192"):
            refused(huge)


def test_packing_decodes_one_large_image_at_a_time(monkeypatch):
    monkeypatch.setattr(images, "LARGE", 100)
    decoding, most, decode = [], [], images.upright_rgb

    def watched(encoded):
        decoding.append(1)
        most.append(len(decoding))
        decoded = decode(encoded)
        decoding.pop()
        return decoded

    monkeypatch.setattr(images, "upright_rgb", watched)
    large = [encode(picture(300, 300, k)) for k in range(12)]
    assert len(list(images.ordered_map(lambda one: prepare(one, short=8), large, 4))) == 12
    assert most == [1] * 12


TURNED = Image.Exif()
TURNED[0x0112] = 6
FOREIGN = {
    "BMP": encode(picture(40, 30), "BMP"),
    "BMP of a palette": encode(picture(40, 30).convert("P"), "BMP"),
    "lossless WebP": encode(picture(40, 30), "WEBP", lossless=True),
    "lossy WebP": encode(picture(40, 30), "WEBP"),
    "turned WebP": encode(picture(40, 30), "WEBP", exif=TURNED),
    "TIFF": encode(picture(40, 30), "TIFF"),
    "packed TIFF": encode(picture(40, 30), "TIFF", compression="tiff_lzw"),
    "16-bit TIFF": encode(Image.fromarray(np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)), "TIFF"),
    "TIFF of a Mac": b"MM\0*\0\0\0\x08\0\x09"
    + b"".join(
        bytes.fromhex(entry)
        for entry in (
            "01000004 00000001 00000028",  # width 40, in 4 bytes
            "01010003 00000001 001e0000",  # height 30, in 2 bytes
            "01020003 00000001 00080000",
            "01030003 00000001 00010000",
            "01060003 00000001 00010000",
            "01110004 00000001 0000007a",
            "01150003 00000001 00010000",
            "01160004 00000001 0000001e",
            "01170004 00000001 000004b0",
        )
    )
    + bytes(4)
    + bytes(range(240)) * 5,
}


@pytest.mark.parametrize("decoder", EITHER)
def test_bmp_webp_and_tiff_are_decoded_like_a_png_of_the_same_pixels(decoder):
    encoded = list(FOREIGN.values())
    assert [checked_size(one) for one in encoded] == [(40, 30)] * len(encoded)
    options = {"decoder": decoder, "batch_images": len(encoded), "last": 2, "vet": True}
    got, bad = batches(encoded, PLAIN, **options)
    want, _ = batches([encode(upright_rgb(one), "PNG") for one in encoded], PLAIN, **options)
    assert not bad
    assert all(torch.equal(got[k], want[k]) for k in range(2))  # the second batch knows the images
    for one, image_3HW in zip(encoded, want[0], strict=True):
        np.testing.assert_allclose(decode_reference(one, PLAIN, False), image_3HW.numpy(), atol=1.01)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_cut_one_is_replaced_and_named(name):
    for cut in (20, 30, len(FOREIGN[name]) // 2):
        got, bad = levels([level(0), FOREIGN[name][:cut], level(2), level(3)])
        assert got == [0, 2, 2, 3]
        assert list(bad) == ["studio/1.jpg"]


def test_floating_point_pixels_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="32-bit numbers of an unknown range; save it with 8 or 16 bits"):
        upright_rgb(encode(Image.new("F", (9, 9)), "TIFF"))


def test_16_bit_grey_is_scaled_wherever_an_image_is_turned_into_rgb():
    grey_16 = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    encoded, _ = prepare(encode(Image.fromarray(grey_16), "PNG"), short=15)
    packed = np.asarray(Image.open(io.BytesIO(encoded)).convert("L"), float)
    assert abs(packed.mean() - 127.5) < 2
    assert packed[0].mean() < 10
    assert packed[-1].mean() > 245
