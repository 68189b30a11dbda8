"""Images that are not square: one policy, whatever decodes them."""

from dataclasses import replace

import numpy as np
import pytest
from decode_fakes import EITHER, PLAIN, FakeDomain, batches, encode, in_turn, picture
from PIL import Image

from fastmfr.decode import DecodedCache, ImageStream, Preprocess, decode_reference
from fastmfr.decode.cache import CachedStream
from fastmfr.decode.preprocess import AS_IS, CROP, RESIZE, Frame, fitted, needed

# Each size takes one path: as it is, one side right, both even and odd rests, up and down, tall and wide.
SIZES = [(24, 24), (24, 31), (31, 24), (24, 20), (19, 24), (92, 112), (112, 92), (10, 13), (50, 50), (200, 17)]


def stripes(width, height):
    """White in the middle half of the longer side, black at its ends."""
    pixel_HW3 = np.zeros((height, width, 3), np.uint8)
    pixel_HW3[height // 4 : height - height // 4 if height > width else height] = 255
    return Image.fromarray(pixel_HW3)


@pytest.mark.parametrize("decoder", EITHER)
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_every_decoder_follows_the_policy(fit, decoder):
    look = replace(PLAIN, size=24, fit=fit)
    encoded = [encode(picture(*size, seed), "PNG") for seed, size in enumerate(SIZES)]
    (image_B3HW,) = batches(encoded, look, batch_images=len(encoded), decoder=decoder, last=1)[0].values()
    for size, one, got_3HW in zip(SIZES, encoded, image_B3HW.numpy(), strict=True):
        assert np.abs(got_3HW - decode_reference(one, look, mirror=False)).max() <= 2, size


def test_crop_cuts_pad_adds_black_and_stretch_distorts():
    image = stripes(8, 16)
    assert (fitted(image, 8, "crop") == 255).all()  # the ends are gone
    padded = fitted(image, 16, "pad")
    assert (padded[:, :4] == 0).all()
    assert (padded[:, 12:] == 0).all()
    assert (padded[:, 4:12] == np.asarray(image)).all()
    stretched = fitted(image, 16, "stretch")
    assert (stretched[4:12] == 255).all()
    assert (stretched[:4] == 0).all()


def test_a_square_image_is_the_same_by_every_policy():
    encoded = encode(picture(50, 50))
    crop, pad, stretch = (
        decode_reference(encoded, Preprocess(size=24, fit=fit), False) for fit in ("crop", "pad", "stretch")
    )
    assert np.array_equal(crop, pad)
    assert np.array_equal(crop, stretch)


def test_what_a_size_needs_depends_on_the_policy():
    sizes = [(24, 24), (24, 30), (20, 24), (30, 40)]
    assert needed(sizes, Frame(24)).tolist() == [AS_IS, CROP, RESIZE, RESIZE]
    assert needed(sizes, Frame(24, "pad")).tolist() == [AS_IS, RESIZE, CROP, RESIZE]
    assert needed(sizes, Frame(24, "stretch")).tolist() == [AS_IS, RESIZE, RESIZE, RESIZE]


def test_a_cache_keeps_the_policy_it_was_made_by():
    domain, look = FakeDomain([encode(picture(20, 30))] * 4), replace(PLAIN, size=16, fit="pad")
    kept = DecodedCache([domain], look, place="host", decoder="pillow")
    options = {"batch_images": 4, "last": 1}
    (cached,) = dict(CachedStream(kept, in_turn(4, 4), look, **options)).values()
    (decoded,) = dict(ImageStream([domain], in_turn(4, 4), look, decoder="pillow", **options)).values()
    assert np.array_equal(cached, decoded)
    with pytest.raises(ValueError, match="by fit pad, want 16 by crop"):
        CachedStream(kept, in_turn(4, 4), replace(look, fit="crop"), **options)


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match="want fit out of 'crop', 'pad', 'stretch', got 'squeeze'"):
        Preprocess(fit="squeeze")
