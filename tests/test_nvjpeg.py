"""torchvision's nvJPEG in DALI's place: what it gets, what Pillow gets, and what comes out.

A stand-in decodes in torchvision's place, by Pillow; test_nvjpeg_on_device.py compares nvJPEG itself with Pillow.
"""

import io
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from decode_fakes import FakeDomain, batches, encode, flip_bits, in_turn, picture
from PIL import Image

from fastmfr.decode import ImageStream, Preprocess, nvjpeg
from fastmfr.decode.pillow import PillowPipeline, Undecodable, decoded
from fastmfr.decode.plain_jpeg import plain_size
from fastmfr.decode.preprocess import ALIGN, AS_IS, CROP, RESIZE, Frame, upright_rgb

SIZE = 40
CPU = torch.device("cpu")
LOOK = Preprocess(size=SIZE, mean=0.0, std=1.0, flip=0.0)


def oriented(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def adobe(encoded, transform):
    """With a segment that names Adobe's transform in place of JFIF's."""
    assert encoded[2:4] == b"\xff\xe0"
    rest = encoded[4 + int.from_bytes(encoded[4:6]) :]
    return encoded[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0" + bytes([transform]) + rest


def pale(width, height, seed=0):
    """Colours about as strong as a face's: between stronger ones coarse chroma would be many grey levels off."""
    coloured = picture(width, height, seed)
    return Image.blend(coloured.convert("L").convert("RGB"), coloured, 0.25)


FACE = pale(SIZE, SIZE, seed=5)
JPEG = encode(FACE)
_TABLE = JPEG.index(b"\xff\xc4") + 5  # how many codes of each length a Huffman table has
BROKEN = JPEG[:_TABLE] + b"\xff" * 16 + JPEG[_TABLE + 16 :]  # only decoding finds that
PLAIN = {  # of JPEGs
    "4:2:0": JPEG,
    "4:2:2": encode(FACE, subsampling="4:2:2"),
    "4:4:4": encode(FACE, subsampling="4:4:4"),
    "progressive": encode(FACE, progressive=True),
    "upright by EXIF": encode(FACE, exif=oriented(1)),
    "with a comment": encode(FACE, comment=b"face"),
    "Adobe's YCbCr": adobe(JPEG, 1),
    "not square": encode(pale(SIZE, 24)),
    "with bytes after its end": JPEG + b"\0" * 9,
}
OTHER = {
    "PNG": encode(FACE, "PNG"),
    "grey": encode(FACE.convert("L")),
    "CMYK": encode(FACE.convert("CMYK")),
    "turned by EXIF": encode(FACE, exif=oriented(6)),
    "EXIF without an orientation": encode(FACE, exif=oriented(1)).replace(b"\x01\x12\x00\x03", b"\x01\x13\x00\x03", 1),
    "Adobe's RGB": adobe(JPEG, 0),
    "RGB": encode(FACE, keep_rgb=True),
    "of 4:1:1": JPEG.replace(b"\x01\x22\x00", b"\x01\x41\x00", 1),
    "without a scan": JPEG[: JPEG.index(b"\xff\xda")],
    "cut within its header": JPEG[:30],
    "empty": b"",
}


def array(encoded):
    return np.frombuffer(encoded, np.uint8)


def pixels_of(encoded):
    return np.asarray(upright_rgb(encoded))


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_jpeg_is_known_and_decoded_to_the_same_bits_without_being_opened(name, monkeypatch):
    want = pixels_of(PLAIN[name])
    assert plain_size(array(PLAIN[name])) == want.shape[1::-1]
    monkeypatch.setattr("fastmfr.decode.pillow.upright_rgb", None)
    assert np.array_equal(np.asarray(decoded(array(PLAIN[name]))), want)


@pytest.mark.parametrize("name", OTHER)
def test_any_other_image_is_not_taken_for_plain(name):
    assert plain_size(array(OTHER[name])) is None


def test_a_plain_jpeg_that_the_short_way_cannot_decode_is_decoded_or_refused_as_a_file():
    for damaged, reason in ((JPEG[:-40], "truncated"), (BROKEN, "broken data stream")):
        assert plain_size(array(damaged))
        with pytest.raises(Undecodable, match=reason):
            decoded(array(damaged))


class StandIn:
    """torchvision.io.decode_jpeg by Pillow, on the CPU; raises for BROKEN and the comment b"refuse"."""

    def __init__(self):
        self.calls = []  # the number of images of each

    def __call__(self, images, mode, device):
        assert mode == "RGB"
        self.calls.append(len(images))
        for image in images:
            assert image.dtype == torch.uint8
            if b"refuse" in bytes(image.numpy()) or bytes(image.numpy()) == BROKEN:
                raise RuntimeError("Error while decoding JPEG images:\nFailed to decode batch: 3")
        return [torch.tensor(pixels_of(image.numpy())).permute(2, 0, 1) for image in images]


def install(decoder, monkeypatch):
    """Have torchvision.io with a decoder in place of decode_jpeg."""
    package, module = types.ModuleType("torchvision"), types.ModuleType("torchvision.io")
    module.decode_jpeg, module.ImageReadMode = decoder, types.SimpleNamespace(RGB="RGB")
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.io", module)


@pytest.fixture
def stand_in(monkeypatch):
    decoder = StandIn()
    install(decoder, monkeypatch)
    nvjpeg._say_once.cache_clear()
    return decoder


def faces(count, **options):
    return [encode(pale(SIZE, SIZE, seed), **options) for seed in range(count)]


REFUSED = encode(FACE, comment=b"refuse")
MIXED = [*PLAIN.values(), *(OTHER[name] for name in ("PNG", "grey", "CMYK", "turned by EXIF")), *faces(3)]

NEEDS = [AS_IS if Image.open(io.BytesIO(one)).size == (SIZE, SIZE) else RESIZE for one in MIXED]


def run_of(encoded, needs=None, pipeline=nvjpeg.NvjpegPipeline, device=CPU, size=SIZE):
    """The pixels of one run, uint8 (B, H, W, 3) on the CPU."""
    need_B = np.array([AS_IS] * len(encoded) if needs is None else needs, np.uint8)
    map_B23 = np.tile(np.array([[1.0, 0, 0], [0, 1, 0]]), (len(encoded), 1, 1))
    runs = iter([([array(one) for one in encoded], need_B, map_B23)])
    started = pipeline(lambda _: next(runs), Frame(size), device, threads=2, prefetch=1)
    try:
        return started.run().cpu()
    finally:
        started.close()


def test_plain_jpegs_go_to_nvjpeg_in_one_call_and_the_rest_into_its_row_by_pillow(stand_in):
    got = run_of(MIXED, NEEDS)
    assert stand_in.calls == [11]
    assert torch.equal(got, run_of(MIXED, NEEDS, PillowPipeline))
    assert got.is_contiguous()


@pytest.mark.parametrize("need", [CROP, RESIZE, ALIGN])
def test_an_image_with_something_to_be_done_goes_to_pillow(need, stand_in):
    got = run_of([JPEG, *faces(2)], [AS_IS, need, need])
    assert stand_in.calls == [1]
    assert np.array_equal(got[1], pixels_of(faces(1)[0]))


def test_a_run_without_a_plain_jpeg_never_calls_nvjpeg(stand_in):
    assert run_of([OTHER["PNG"]] * 3).shape == (3, SIZE, SIZE, 3)
    assert stand_in.calls == []


def test_a_run_that_nvjpeg_refuses_is_decoded_by_pillow_and_it_is_said_once(stand_in):
    encoded = [*faces(3), REFUSED, OTHER["PNG"], *faces(2)]
    with pytest.warns(RuntimeWarning, match="refused a batch .*Failed to decode batch: 3.*; Pillow decodes the batch"):
        got = run_of(encoded)
    assert stand_in.calls == [6]
    with warnings.catch_warnings(action="error"):  # a second refusal with the same reason says nothing
        again = run_of(encoded)
    assert torch.equal(got, again)
    assert torch.equal(got, run_of(encoded, pipeline=PillowPipeline))


def test_images_of_another_size_than_the_markers_say_are_decoded_again_by_pillow(stand_in, monkeypatch):
    monkeypatch.setattr(sys.modules["torchvision.io"], "decode_jpeg", lambda images, **_: [torch.zeros(3, 8, 8)] * 2)
    with pytest.warns(RuntimeWarning, match="returned images of the shape"):
        got = run_of(faces(2))
    assert np.array_equal(got[1], pixels_of(faces(2)[1]))


@pytest.mark.parametrize("bad", [BROKEN, flip_bits(OTHER["PNG"])], ids=["plain", "other"])
def test_a_damaged_image_costs_its_run_only_and_the_stream_goes_on(stand_in, bad):
    runs = [[JPEG, *faces(2)], [*faces(2), bad], [OTHER["PNG"], *faces(2)]]

    def source(call):
        if call == len(runs):
            raise StopIteration
        return [array(one) for one in runs[call]], np.zeros(3, np.uint8), np.zeros((3, 2, 3))

    pipeline = nvjpeg.NvjpegPipeline(source, Frame(SIZE), CPU, threads=2, prefetch=2)
    with warnings.catch_warnings(action="ignore"):
        first = pipeline.run()
        with pytest.raises(Undecodable):
            pipeline.run()
        last = pipeline.run()
    assert torch.equal(first, run_of(runs[0], pipeline=PillowPipeline))
    assert torch.equal(last, run_of(runs[2], pipeline=PillowPipeline))
    with pytest.raises(StopIteration):
        pipeline.run()
    pipeline.close()
    assert not any(thread.is_alive() for thread in pipeline._pool._threads)


def damaged_stream(device, decoder, **options):
    """{number: image_B3HW} and bad images of a stream over JPEGs, PNGs and images that cannot be decoded."""
    encoded = [*faces(6, subsampling="4:4:4"), *(encode(pale(SIZE, SIZE, n), "PNG") for n in range(6))]
    encoded[2], encoded[8], encoded[10] = BROKEN, flip_bits(encoded[8]), encode(picture(60, 50))
    encoded = [encoded[n] for n in np.random.default_rng(0).permutation(12)]
    got, bad = batches(encoded, LOOK, batch_images=6, last=4, device=device, decoder=decoder, **options)
    return {number: image_B3HW.cpu() for number, image_B3HW in got.items()}, bad, encoded


@pytest.mark.parametrize("vet", [False, True])
def test_a_stream_replaces_bad_images_as_pillows_does(stand_in, monkeypatch, vet):
    want, want_bad, _ = damaged_stream("cpu", "pillow", vet=vet)
    monkeypatch.setattr("fastmfr.decode.stream.checked_decoder", lambda decoder, _: decoder)  # for the CPU, here
    with warnings.catch_warnings(action="ignore"):
        got, bad, _ = damaged_stream("cpu", "nvjpeg", vet=vet)
    assert len(stand_in.calls) >= 4
    assert bad == want_bad
    assert len(bad) == 2
    assert all(torch.equal(got[number], want[number]) for number in want)


def test_a_resumed_stream_is_the_tail_of_the_whole_one(stand_in, monkeypatch):
    monkeypatch.setattr("fastmfr.decode.stream.checked_decoder", lambda decoder, _: decoder)
    domain = FakeDomain([*faces(5), OTHER["PNG"], OTHER["grey"]])
    options = {"batch_images": 3, "seed": 7, "last": 6, "decoder": "nvjpeg"}
    whole = dict(ImageStream([domain], in_turn(3, 7), Preprocess(size=SIZE), **options))
    tail = dict(ImageStream([domain], in_turn(3, 7), Preprocess(size=SIZE), first=4, **options))
    assert list(tail) == [4, 5]
    assert all(torch.equal(image_B3HW, whole[number]) for number, image_B3HW in tail.items())


def test_a_pipeline_that_is_dropped_stops_its_threads(stand_in):
    source = lambda _: ([array(JPEG), array(OTHER["PNG"])], np.zeros(2, np.uint8), np.zeros((2, 2, 3)))  # noqa: E731
    pipeline = nvjpeg.NvjpegPipeline(source, Frame(SIZE), CPU, threads=2, prefetch=2)
    pipeline.run()
    threads = list(pipeline._pool._threads)
    del pipeline
    for thread in threads:
        thread.join(5)
    assert threads
    assert not any(thread.is_alive() for thread in threads)
