"""Aligning in the data path: streams, caches, substitutes, and batches that are decoded in another way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from decode_fakes import EITHER, PLAIN, FakeDomain, encode, in_turn, needs_dali, picture
from PIL import Image
from test_warp import by_opencv, somewhere

from fastmfr.decode import DecodedCache, ImageStream, decode_reference
from fastmfr.decode.cache import CachedStream

PICTURES = [picture(*size, seed) for seed, size in enumerate([(90, 70), (64, 64), (16, 24), (200, 180)])]
ENCODED = [encode(image, "PNG") for image in PICTURES]
LOOK = replace(PLAIN, size=64)


def a_domain():
    """Four images; the third has no landmarks."""
    domain = FakeDomain(ENCODED)
    domain.landmark_N52 = somewhere(4, 70, seed=9).astype(np.float32)
    domain.landmark_N52[2] = np.nan
    return domain


@pytest.mark.parametrize("decoder", EITHER)
def test_a_stream_aligns_images_with_landmarks_and_fits_the_others(decoder):
    domain, plain = a_domain(), FakeDomain(ENCODED, name="plain")
    requests = lambda i: (np.array([0, 0, 0, 0, 1]), np.array([0, 1, 2, 3, 0]))  # noqa: E731
    with ImageStream([domain, plain], requests, LOOK, batch_images=5, last=1, decoder=decoder) as stream:
        ((_, image_B3HW),) = stream
    for image in (0, 1, 3):
        want_HW3 = by_opencv(np.asarray(PICTURES[image]), domain.landmark_N52[image].astype(float), 64)
        reference_3HW = decode_reference(ENCODED[image], LOOK, False, domain.landmark_N52[image])
        for got_3HW in (image_B3HW[image].numpy(), reference_3HW):
            assert np.abs(got_3HW.transpose(1, 2, 0) - want_HW3).max() <= 1, image
    for slot, image in ((2, 2), (4, 0)):
        assert np.abs(image_B3HW[slot].numpy() - decode_reference(ENCODED[image], LOOK, mirror=False)).max() <= 2


def test_the_place_of_a_bad_image_is_taken_by_an_aligned_one():
    domain = a_domain()
    domain.encoded = [b"no picture", *ENCODED[1:]]
    with ImageStream([domain], in_turn(2, 4), LOOK, batch_images=2, last=1, decoder="pillow") as stream:
        ((_, image_B3HW),) = stream
    assert torch.equal(image_B3HW[0], image_B3HW[1])


def test_a_cache_holds_aligned_images():
    domain, options = a_domain(), {"batch_images": 4, "last": 1}
    kept = DecodedCache([domain], LOOK, place="host", decoder="pillow")
    (cached,) = dict(CachedStream(kept, in_turn(4, 4), LOOK, **options)).values()
    (decoded,) = dict(ImageStream([domain], in_turn(4, 4), LOOK, decoder="pillow", **options)).values()
    assert torch.equal(cached, decoded)
    assert np.array_equal(cached[3].numpy(), decode_reference(ENCODED[3], LOOK, False, domain.landmark_N52[3]))


@pytest.mark.parametrize("decoder", EITHER)
def test_a_batch_of_too_many_pixels_and_one_that_fails_are_aligned_too(decoder, monkeypatch):
    domain = a_domain()
    want = dict(ImageStream([domain], in_turn(4, 4), LOOK, batch_images=4, last=1, decoder=decoder))[0]
    monkeypatch.setattr("fastmfr.decode.source.MOST_PIXELS", 1 << 16)
    got = dict(ImageStream([domain], in_turn(4, 4), LOOK, batch_images=4, last=1, decoder=decoder))[0]
    assert torch.equal(got, want)
    one_by_one = ImageStream([domain], in_turn(4, 4), LOOK, batch_images=4, last=1, decoder=decoder)
    batch = one_by_one._source.fetch(np.zeros(4, int), np.arange(4))
    with one_by_one:
        assert np.array_equal(one_by_one._one_by_one(batch).permute(0, 3, 1, 2).float(), want)


def test_landmarks_name_points_of_the_upright_image():
    upright = picture(60, 90, 1)
    turned = Image.Image.getexif(upright)
    turned[0x0112] = 6  # to be turned clockwise by a quarter to be seen upright
    stored = encode(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=turned.tobytes())
    landmark_52 = somewhere(1, 60, seed=2)[0]
    got = decode_reference(stored, LOOK, False, landmark_52)
    assert np.array_equal(got, decode_reference(encode(upright, "PNG"), LOOK, False, landmark_52))


@needs_dali
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="decodes on a CUDA device")
@pytest.mark.parametrize("decoder", ["cpu", "mixed"])
def test_a_gpu_gets_aligned_images(decoder):
    """Out of PNG, which nvJPEG leaves to the CPU: what differs is the warp alone, DALI's for `mixed`."""
    domain = a_domain()
    options = {"batch_images": 4, "last": 1, "device": "cuda:0", "decoder": decoder}
    ((_, image_B3HW),) = ImageStream([domain], in_turn(4, 4), LOOK, **options)
    assert image_B3HW.device == torch.device("cuda:0")
    for image in (0, 1, 3):
        want_3HW = decode_reference(ENCODED[image], LOOK, False, domain.landmark_N52[image])
        assert np.abs(image_B3HW[image].cpu().numpy() - want_3HW).max() <= 1
