import numpy as np
import pytest
import torch
from decode_fakes import GOOD, PLAIN, SMALL_PNG, FakeDomain, encode, flip_bits, in_turn, level, picture

from fastmfr.decode import CachedStream, DecodedCache, ImageStream, Preprocess, cache, choose_cache, open_stream

CHANGED = Preprocess(size=16, std=60.0, translate=2, low_resolution=0.5, brightness=30.0, contrast=0.4)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="decodes on a CUDA device")],
    ),
]


def domains():
    """Two, of 12 and 8 images in all sizes; broken in both ways, one at the very end."""
    encoded = [encode(picture(20 + n, 24, seed=n)) for n in range(20)]
    encoded[2], encoded[6], encoded[7], encoded[14], encoded[19] = (
        flip_bits(SMALL_PNG),
        GOOD[:100],
        flip_bits(SMALL_PNG),
        b"",
        flip_bits(SMALL_PNG),
    )
    return [FakeDomain(encoded[:12], name="studio"), FakeDomain(encoded[12:], name="street")]


def requests(number):
    draw = np.random.default_rng(number)
    domain_B = draw.integers(0, 2, 6)
    return domain_B, draw.integers(0, np.array([12, 8])[domain_B])


def batches(stream):
    with stream:
        return [(i, image_B3HW.clone()) for i, image_B3HW in stream]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("place", ["host", "gpu"])
def test_a_cached_run_equals_a_decoding_one_bit_for_bit(place, device):
    if (place, device) == ("gpu", "cpu"):
        pytest.skip("a cache on the GPU is for batches on the GPU")
    options = {"batch_images": 6, "seed": 3, "first": 2, "last": 30}
    want = ImageStream(domains(), requests, CHANGED, device=device, **options)
    kept = DecodedCache(domains(), CHANGED, place=place, device=device)
    got = CachedStream(kept, requests, CHANGED, **options)
    for (i, image_B3HW), (j, other_B3HW) in zip(batches(got), batches(want), strict=True):
        assert i == j
        assert image_B3HW.dtype == torch.float32
        assert image_B3HW.is_contiguous()
        assert torch.equal(image_B3HW, other_B3HW)
    assert got.bad == want.bad
    assert set(got.bad) == {"studio/2.jpg", "studio/6.jpg", "studio/7.jpg", "street/2.jpg", "street/7.jpg"}
    assert got.wait_seconds > 0


def test_fills_itself_in_several_batches_and_says_how_far_it_is(monkeypatch):
    monkeypatch.setattr(cache, "_FILL", 8)
    told, encoded = [], [[level(n) for n in range(12)], [level(100 + n) for n in range(7)]]
    kept = DecodedCache(
        [FakeDomain(encoded[0]), FakeDomain(encoded[1])], PLAIN, place="host", progress=lambda *done: told.append(done)
    )
    assert told == [(8, 19), (16, 19), (19, 19)]
    assert kept.image_NHW3[:, 0, 0, 0].tolist() == [*range(12), *range(100, 107)]
    assert kept.starts.tolist() == [0, 12]
    assert kept.bad == {}


def test_serves_several_streams():
    kept = DecodedCache([FakeDomain([level(n) for n in range(8)])], PLAIN, place="host")
    streams = [CachedStream(kept, in_turn(size, 8), PLAIN, batch_images=size) for size in (2, 3)]
    got = [[next(stream)[1][:, 0, 0, 0].tolist() for stream in streams] for _ in range(3)]
    assert got == [[[0, 1], [0, 1, 2]], [[2, 3], [3, 4, 5]], [[4, 5], [6, 7, 0]]]


def test_batches_stay_the_callers_own_while_memory_is_taken_again():
    kept = DecodedCache([FakeDomain([level(n) for n in range(8)])], PLAIN, place="host")
    stream = CachedStream(kept, in_turn(2, 8), PLAIN, batch_images=2)
    held = [next(stream)[1] for _ in range(3)]
    rows = [image_B3HW[1, 2] for image_B3HW in held]  # a view keeps its batch too
    places = {image_B3HW.data_ptr() for image_B3HW in held}
    assert len(places) == 3
    held.clear()
    later = [next(stream)[1] for _ in range(3)]
    assert not places & {image_B3HW.data_ptr() for image_B3HW in later}
    assert [row.unique().tolist() for row in rows] == [[1], [3], [5]]
    rows.clear()
    assert next(stream)[1].data_ptr() in places
    assert [image_B3HW[0, 0, 0, 0].item() for image_B3HW in later] == [6, 0, 2]


def test_a_closed_stream_ends_and_a_finished_one_is_closed():
    kept = DecodedCache([FakeDomain([level(0)] * 4)], PLAIN, place="host")
    with CachedStream(kept, in_turn(4, 4), PLAIN, batch_images=4) as stream:
        assert next(stream)[0] == 0
    assert list(stream) == []
    assert list(CachedStream(kept, in_turn(4, 4), PLAIN, batch_images=4, first=3, last=3)) == []


def test_refuses_what_a_decoding_stream_refuses():
    kept = DecodedCache([FakeDomain([level(0)] * 4)], PLAIN, place="host")
    with pytest.raises(ValueError, match="batch_images: want a whole number, at least 1, got 0"):
        CachedStream(kept, in_turn(4, 4), PLAIN, batch_images=0)
    with pytest.raises(ValueError, match="last: want a whole number, at least 3, got 2"):
        CachedStream(kept, in_turn(4, 4), PLAIN, batch_images=4, first=3, last=2)
    with pytest.raises(ValueError, match=r"batch 0: requests gave image 4 of domain studio, want 0\.\.3"):
        next(CachedStream(kept, lambda i: (np.zeros(1, int), np.full(1, 4)), PLAIN, batch_images=1))
    with pytest.raises(ValueError, match="and so are all images tried in its place"):
        DecodedCache([FakeDomain([b""] * 4)], PLAIN, place="host")


def test_refuses_another_size_place_and_other_domains():
    kept = DecodedCache([FakeDomain([level(0)] * 4)], PLAIN, place="host")
    with pytest.raises(ValueError, match="holds images of 8 pixels by fit crop, want 16 by crop"):
        CachedStream(kept, in_turn(4, 4), CHANGED, batch_images=4)
    with pytest.raises(ValueError, match="made of other domains, for another size, fit or device"):
        open_stream([FakeDomain([level(0)] * 4)], in_turn(4, 4), PLAIN, cache=kept, batch_images=4)
    with pytest.raises(ValueError, match="want a cache on the host, or on the gpu of a CUDA device; got 'gpu', cpu"):
        DecodedCache([FakeDomain([level(0)] * 4)], PLAIN, place="gpu")


@pytest.fixture
def memory(monkeypatch):
    """Half of it free for `auto`: two images of 8 pixels on the GPU, four on the host."""
    monkeypatch.setattr(cache, "_free_gpu", lambda device: 2 * 2 * 192)
    monkeypatch.setattr(cache, "_available_host", lambda device: 2 * 4 * 192)


@pytest.mark.parametrize(
    ("images", "slots", "device", "choice", "why"),
    [
        (2, None, "cuda", "gpu", "cache on the gpu: 2 images of 8 x 8 pixels"),
        (3, None, "cuda", "host", "cache on the host: 3 images"),
        (2, 100, "cpu", "host", "cache on the host: 2 images"),
        (4, 5, "cpu", "host", "cache on the host: 4 images"),
        (5, None, "cpu", "none", "more than half of what is free, 0.0 MB on the host"),
        (5, None, "cuda", "none", "0.0 MB on the gpu and 0.0 MB on the host"),
        (4, 4, "cpu", "none", "4 images are asked for of 4, so keeping them would not pay"),
        (2, 2, "cuda:0", "none", "2 images are asked for of 2"),
    ],
)
def test_auto_keeps_what_fits_and_is_used_again(memory, images, slots, device, choice, why):
    got, sentence = choose_cache("auto", [FakeDomain([b""] * images)], PLAIN, slots, device)
    assert got == choice
    assert why in sentence


def test_takes_the_cache_asked_for_or_says_why_not(memory):
    few, more = [FakeDomain([b""] * 3)], [FakeDomain([b""] * 20)]
    assert choose_cache("none", few, PLAIN, None, "cpu")[0] == "none"
    assert choose_cache("host", few, PLAIN, 1, "cpu")[0] == "host"
    assert choose_cache("gpu", few, PLAIN, 1, "cuda")[0] == "gpu"  # all that is free, not half of it
    for wanted, device, message in (
        ("gpu", "cpu", "gpu wants a CUDA device, but the device is cpu"),
        ("host", "cpu", "cache host: 20 images of 8 x 8 pixels, .* do not fit"),
        ("gpu", "cuda", "cache gpu: 20 images .* do not fit"),
        ("ram", "cpu", "want cache out of 'auto', .* got 'ram'"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_cache(wanted, more, PLAIN, None, device)


def test_the_machines_own_memory_is_read():
    assert 0 < cache._available_host(None) < 2**50


def test_opens_the_stream_that_was_chosen_and_says_why():
    encoded, told = [FakeDomain([level(n) for n in range(8)])], []
    kept = DecodedCache(encoded, PLAIN, place="host")
    streams = [
        open_stream(
            encoded,
            in_turn(4, 8),
            PLAIN,
            cache=wanted,
            batch_images=4,
            last=5,
            progress=lambda *done: told.append(done),
        )
        for wanted in ("none", "host", "auto", kept)
    ]
    assert told == [(8, 8), (8, 8)]
    assert [type(stream) for stream in streams] == [ImageStream, CachedStream, CachedStream, CachedStream]
    said = "no cache: ", "cache on the host: 8 images", "cache on the host: 8 images", "cache on the host, filled"
    for stream, sentence in zip(streams, said, strict=True):
        assert stream.sentence.startswith(sentence)
    for other in zip(*map(batches, streams), strict=True):
        assert all(torch.equal(other[0][1], image_B3HW) for _, image_B3HW in other)


def test_a_stream_that_uses_each_image_once_is_not_cached_by_auto():
    encoded = [FakeDomain([level(n) for n in range(8)])]
    with open_stream(encoded, in_turn(4, 8), PLAIN, cache="auto", batch_images=4, last=2) as stream:
        assert isinstance(stream, ImageStream)
        assert "8 images are asked for of 8" in stream.sentence
