import dataclasses

import numpy as np
import pytest

from fastmfr.decode import Augment, Preprocess, changes, mirror_flags

EVERYTHING = Augment(translate=3, low_resolution=0.4, brightness=20.0, contrast=0.25)
SWITCHES = {"mirror_B": {"flip": 0.5}, "shift_B2": {"translate": 3}, "block_B": {"low_resolution": 0.4}}


def same(some, other):
    return all(np.array_equal(a, b) for a, b in zip(some, other, strict=True))


def test_is_a_function_of_seed_batch_and_slot():
    whole = changes(EVERYTHING, 5, 7, 400)
    assert same(changes(EVERYTHING, 5, 7, 400), whole)
    assert same(changes(EVERYTHING, 5, 7, 90), [value[:90] for value in whole])
    for other in (changes(EVERYTHING, 6, 7, 400), changes(EVERYTHING, 5, 8, 400)):
        assert not any(np.array_equal(a, b) for a, b in zip(whole, other, strict=True))


def test_draws_every_value_as_often_as_it_should():
    mirror_B, shift_B2, block_B, gain_B, offset_B = changes(EVERYTHING, 1, 2, 20000)
    assert abs(mirror_B.mean() - 0.5) < 0.02
    for shift_B in shift_B2.T:
        values, counts = np.unique(shift_B, return_counts=True)
        assert values.tolist() == list(range(-3, 4))
        assert np.abs(counts / 20000 - 1 / 7).max() < 0.02
    values, counts = np.unique(block_B, return_counts=True)
    assert values.tolist() == [1, 2, 3, 4]
    assert np.abs(counts / 20000 - [0.6, 0.4 / 3, 0.4 / 3, 0.4 / 3]).max() < 0.02
    assert 0.75 <= gain_B.min() < 0.76
    assert 1.24 < gain_B.max() <= 1.25
    mid_grey = gain_B.astype(float) * 127.5 + offset_B  # contrast leaves it, brightness moves it
    assert -20.001 <= mid_grey.min() - 127.5 < -19
    assert 19 < mid_grey.max() - 127.5 <= 20.001


def test_no_two_kinds_of_change_and_no_two_slots_go_together():
    mirror_B, shift_B2, block_B, gain_B, offset_B = changes(EVERYTHING, 3, 0, 20000)
    brightness_B = offset_B - 127.5 * (1 - gain_B)
    values = np.stack([mirror_B, *shift_B2.T, block_B > 1, gain_B, brightness_B]).astype(float)
    assert np.abs(np.corrcoef(values) - np.eye(6)).max() < 0.04
    for shift in (1, 4):  # a Philox block holds four draws
        assert np.abs(np.corrcoef(values[:, shift:], values[:, :-shift])[:6, 6:]).max() < 0.04


@pytest.mark.parametrize("name", SWITCHES)
def test_switching_a_change_on_leaves_the_draws_of_the_others(name):
    alone = changes(Augment(**{"flip": 0.0, **SWITCHES[name]}), 2, 9, 50)._asdict()
    assert np.array_equal(alone.pop(name), getattr(changes(EVERYTHING, 2, 9, 50), name))
    assert all(value is None for value in alone.values())


def test_mirrors_the_images_that_mirror_flags_names():
    assert np.array_equal(changes(EVERYTHING, 4, 6, 60).mirror_B, mirror_flags(4, 6, 60, 0.5))
    first = np.random.Generator(np.random.Philox(key=4, counter=6 << 64)).random(60) < 0.5  # runs made before this file
    assert np.array_equal(mirror_flags(4, 6, 60, 0.5), first)


def test_contrast_alone_keeps_mid_grey_and_brightness_alone_the_contrast():
    contrast = changes(Augment(contrast=0.5), 0, 0, 30)
    np.testing.assert_allclose(127.5 * contrast.gain_B + contrast.offset_B, 127.5, atol=1e-4)
    brightness = changes(Augment(brightness=9.0), 0, 0, 30)
    assert brightness.gain_B is None
    assert 5 < np.abs(brightness.offset_B).max() <= 9


def test_plain_switches_every_change_off_and_keeps_the_rest():
    preprocess = Preprocess(size=64, mean=100.0, std=50.0, **dataclasses.asdict(EVERYTHING))
    assert preprocess.translate == 3
    assert preprocess.plain() == Preprocess(size=64, mean=100.0, std=50.0, flip=0.0)
    assert all(value is None for value in changes(preprocess.plain(), 1, 2, 10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": -0.1}, r"want the probability flip in \[0, 1\], got -0.1"),
        ({"low_resolution": 1.5}, r"want the probability low_resolution in \[0, 1\], got 1.5"),
        ({"translate": -1}, "whole number of pixels 0..4096, got -1"),
        ({"translate": 2.0}, "whole number of pixels 0..4096, got 2.0"),
        ({"brightness": float("nan")}, "want brightness in grey levels 0..255, got nan"),
        ({"contrast": 1.0}, "want contrast at least 0 and below 1, got 1.0"),
    ],
)
@pytest.mark.parametrize("kind", [Augment, Preprocess])
def test_refuses_values_out_of_range(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)
