"""Which decoder is taken, what is said of it, and that both end in the same batches."""

import numpy as np
import pytest
import torch
from decode_fakes import GOOD, PLAIN, SMALL_PNG, FakeDomain, batches, encode, flip_bits, level, needs_dali, picture

from fastmfr.decode import DecodedCache, Preprocess, backend, choose_decoder

LOOK = Preprocess(size=24)
pytestmark = needs_dali  # it is the choice between its decoders; without it see test_decode_without_dali.py
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="decodes on a CUDA device")]


def chosen(wanted, device, *found):
    """The choice when `found` was measured; nothing may be measured where it is not given."""

    def measure(*arguments):
        assert arguments == ("domains", LOOK, torch.device("cuda"), 3, backend.DECODERS)
        return found

    return choose_decoder(wanted, "domains", LOOK, device, 3, measure if found else None)


@pytest.mark.parametrize(
    ("cpu", "mixed", "choice", "sentence"),
    [
        (8900.4, 4100.0, "cpu", "decoder cpu: 8,900 images/s against 4,100 in mixed, measured on 512 images"),
        (8900.0, 20100.0, "mixed", "decoder mixed: 20,100 images/s against 8,900 in cpu, measured on 512 images"),
        (8900.0, 8900.0, "cpu", "decoder cpu: 8,900 images/s against 8,900 in mixed, measured on 512 images"),
        (8900.0, "no nvJPEG", "cpu", "decoder cpu: mixed failed (no nvJPEG)"),
        ("no codec", 20100.0, "mixed", "decoder mixed: cpu failed (no codec)"),
        ("no codec", "no nvJPEG", "cpu", "decoder cpu: cpu failed (no codec) and mixed failed (no nvJPEG)"),
    ],
)
def test_auto_takes_the_faster_one_and_says_by_how_much(cpu, mixed, choice, sentence):
    assert chosen("auto", "cuda", {"cpu": cpu, "mixed": mixed}, 512) == (choice, sentence)


@pytest.mark.parametrize(
    ("wanted", "device", "choice", "sentence"),
    [
        ("auto", "cpu", "cpu", "decoder cpu: there is no CUDA device"),
        ("cpu", "cpu", "cpu", "decoder cpu, as asked for"),
        ("cpu", "cuda", "cpu", "decoder cpu, as asked for"),
        ("mixed", "cuda:1", "mixed", "decoder mixed, as asked for"),
    ],
)
def test_measures_nothing_where_there_is_no_choice(wanted, device, choice, sentence):
    assert chosen(wanted, device) == (choice, sentence)


def test_refuses_a_decoder_that_cannot_be_had():
    sentence = "decoder mixed decodes on a CUDA device, but the device is cpu; want cpu or auto"
    domain = FakeDomain([level(0)] * 4)
    with pytest.raises(ValueError, match=sentence):
        chosen("mixed", "cpu")
    with pytest.raises(ValueError, match=sentence):
        batches([level(0)] * 4, decoder="mixed")
    with pytest.raises(ValueError, match=sentence):
        DecodedCache([domain], PLAIN, place="host", decoder="mixed")
    with pytest.raises(ValueError, match="want decoder out of 'cpu', 'mixed', 'nvjpeg', 'pillow', got 'gpu'"):
        batches([level(0)] * 4, decoder="gpu")


def test_measures_on_good_images_out_of_all_domains(monkeypatch):
    monkeypatch.setattr(backend, "_BATCH", 8)
    monkeypatch.setattr(backend, "_LOOKING", float("inf"))  # else a slow machine would look at fewer images
    encoded = [encode(picture(20 + n, 30, seed=n)) for n in range(30)]
    encoded[3], encoded[9], encoded[20], encoded[25] = b"", GOOD[:100], flip_bits(SMALL_PNG), OSError("gone")
    domains = [FakeDomain(encoded[:12], name="studio"), FakeDomain(encoded[12:], name="street")]
    found, images = backend.measure_decoders(domains, LOOK, "cpu", 1, decoders=("cpu",))
    assert images == 26
    assert found["cpu"] > 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no\nnvJPEG here"), "no nvJPEG here"),  # whatever the image
        (ValueError("cannot be decoded"), "it decoded none of 8 images"),
    ],
)
def test_a_decoder_that_fails_is_told_with_its_reason(monkeypatch, error, reason):
    class Failing(backend.Vetting):
        def __call__(self, encoded):
            if self._decoder == "mixed":
                raise error
            super().__call__(encoded)

    monkeypatch.setattr(backend, "Vetting", Failing)
    found, images = backend.measure_decoders([FakeDomain([level(n) for n in range(8)])], LOOK, "cpu", 1)
    assert images == 8
    assert found["cpu"] > 0
    assert found["mixed"] == reason


def test_a_decoder_that_fails_while_it_is_timed_is_told_with_its_reason(monkeypatch):
    def out_of_memory(*_):
        yield 1.0
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(backend, "_turns", out_of_memory)
    found, _ = backend.measure_decoders([FakeDomain([level(0)] * 4)], LOOK, "cpu", 1, decoders=("cpu",))
    assert found == {"cpu": "out of memory"}


def test_decoders_that_agree_on_no_image_are_not_timed(monkeypatch):
    class Picky(backend.Vetting):
        def __call__(self, encoded):
            if (bytes(encoded) == level(0)) == (self._decoder == "mixed"):
                raise ValueError("cannot be decoded")

    monkeypatch.setattr(backend, "Vetting", Picky)
    found = backend.measure_decoders([FakeDomain([level(0), level(1)] * 2)], LOOK, "cpu", 1)
    assert found == (dict.fromkeys(["cpu", "mixed"], "no image was decoded by each"), 0)


@pytest.mark.parametrize("encoded", [[b""] * 4, [flip_bits(SMALL_PNG)] * 4], ids=["unreadable", "undecodable"])
def test_without_a_good_image_nothing_is_measured(encoded):
    found, images = backend.measure_decoders([FakeDomain(encoded)], LOOK, "cpu", 1, decoders=("cpu",))
    assert images == 0
    assert found == {"cpu": f"it decoded none of {4 if encoded[0] else 0} images"}


@pytest.mark.parametrize("decoder", ["cpu", pytest.param("mixed", marks=needs_gpu)])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs_gpu)])
def test_images_decoded_for_a_gpu_are_there_and_equal_those_of_the_cpu(device, decoder):
    encoded = [encode(picture(40 + n, 50, seed=n)) for n in range(8)]
    encoded[2], encoded[5] = flip_bits(SMALL_PNG), GOOD[:100]
    want, want_bad = batches(encoded, LOOK)
    for vet in (False, True):
        got, bad = batches(encoded, LOOK, device=device, decoder=decoder, vet=vet)
        assert set(bad) == set(want_bad)
        for number, image_B3HW in got.items():
            assert image_B3HW.is_cuda
            miss = np.abs(image_B3HW.cpu().numpy() - want[number].numpy()).max() * LOOK.std
            assert miss <= (0.01 if decoder == "cpu" else 4.01)  # nvJPEG's inverse transform and upsampling are its own


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="decodes on a CUDA device")
def test_both_decoders_are_measured_on_a_gpu():
    domain = FakeDomain([encode(picture(112, 112, seed=n)) for n in range(100)])
    found, images = backend.measure_decoders([domain], Preprocess(size=112), "cuda", 2)
    assert images == 100
    assert all(rate > 0 for rate in found.values())
    choice, sentence = choose_decoder("auto", [domain], Preprocess(size=112), "cuda", 2)
    assert sentence.startswith(f"decoder {choice}: ")
    assert sentence.endswith("measured on 100 images")
