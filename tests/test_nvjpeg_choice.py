"""When torchvision's nvJPEG is taken in DALI's place, what is said of it, and which images it never decodes."""

import sys
import types

import pytest
import torch
from test_nvjpeg import CPU, LOOK, StandIn, install

from fastmfr.decode import checked_decoder, choose_decoder, exact_decoder, nvjpeg
from fastmfr.training.run import Run


@pytest.fixture
def without_dali(monkeypatch):
    monkeypatch.setattr("fastmfr.decode.backend.dali_installed", lambda: False)
    nvjpeg.obstacle.cache_clear()
    yield
    nvjpeg.obstacle.cache_clear()


def test_refuses_a_decoder_that_cannot_be_had(monkeypatch, without_dali):
    with pytest.raises(ValueError, match="nvjpeg decodes on a CUDA device, but the device is cpu; want cpu or auto"):
        checked_decoder("nvjpeg", CPU)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.io", raising=False)
    with pytest.raises(ValueError, match=r"is torchvision's, which cannot decode here: torchvision.* is not installed"):
        checked_decoder("nvjpeg", torch.device("cuda"))
    with pytest.raises(ValueError, match=r"mixed is nvidia-dali's, which is not installed; .*or want nvjpeg"):
        checked_decoder("mixed", torch.device("cuda"))


def test_a_torchvision_that_cannot_decode_is_an_obstacle_in_one_line(monkeypatch, without_dali):
    install(StandIn(), monkeypatch)
    assert nvjpeg.obstacle(CPU) == ""
    for decode, reason in (
        (lambda images, **_: [torch.zeros(3, 4, 4)] * len(images), "nvJPEG decoded a red image to another colour"),
        (lambda *_, **__: 1 / 0, "ZeroDivisionError: division by zero"),
    ):
        sys.modules["torchvision.io"].decode_jpeg = decode
        nvjpeg.obstacle.cache_clear()
        assert nvjpeg.obstacle(CPU) == reason


MEASURED = [
    (
        {"pillow": 2572.0, "nvjpeg": 19768.0},
        "nvjpeg",
        "decoder nvjpeg: 19,768 images/s against 2,572 in pillow, measured on 512 images; nvidia-dali is not "
        "installed; scores are of images decoded on the CPU, whose chroma is finer",
    ),
    (
        {"nvjpeg": 2000.0, "pillow": 2572.0},
        "pillow",
        "decoder pillow: 2,572 images/s against 2,000 in nvjpeg, measured on 512 images; nvidia-dali is not installed",
    ),
    (
        {"nvjpeg": "out of memory", "pillow": 2572.0},
        "pillow",
        "decoder pillow: nvjpeg failed (out of memory); nvidia-dali is not installed",
    ),
]


@pytest.mark.parametrize(("found", "choice", "sentence"), MEASURED)
def test_auto_measures_nvjpeg_beside_pillow_where_dali_is_missing(found, choice, sentence, monkeypatch, without_dali):
    monkeypatch.setattr("fastmfr.decode.backend.obstacle", lambda device: "")

    def measure(*arguments):
        assert arguments == ("domains", LOOK, torch.device("cuda"), 3, ("pillow", "nvjpeg"))
        return found, 512

    assert choose_decoder("auto", "domains", LOOK, "cuda", 3, measure) == (choice, sentence)


def test_without_nvjpeg_pillow_is_taken_and_it_is_said_why(monkeypatch, without_dali):
    monkeypatch.setattr("fastmfr.decode.backend.obstacle", lambda device: "torchvision is not installed")
    assert choose_decoder("auto", [], LOOK, "cuda", 2) == (
        "pillow",
        "decoder pillow: nvidia-dali is not installed and nvJPEG of torchvision cannot be had (torchvision is not "
        "installed); Pillow decodes on 2 threads instead. `pip install nvidia-dali-cuda130` is faster",
    )


def test_scores_are_never_of_images_that_nvjpeg_decoded(monkeypatch, without_dali):
    monkeypatch.setattr("fastmfr.decode.backend.obstacle", lambda device: "")
    for wanted in ("auto", "nvjpeg", "cpu"):
        choice, sentence = choose_decoder(wanted, [], LOOK, "cuda", 2, exact=True)
        assert choice == "pillow"
        assert sentence.startswith("decoder pillow: nvidia-dali is not installed; Pillow decodes on 2 threads")
    assert [exact_decoder(name) for name in ("nvjpeg", "mixed", "pillow", "cpu")] == ["cpu", "mixed", "pillow", "cpu"]
    run = types.SimpleNamespace(decoding={"decoder": "nvjpeg", "threads": 3})
    assert Run.exact_decoding.fget(run) == {"decoder": "cpu", "threads": 3}
    choice, sentence = choose_decoder("nvjpeg", [], LOOK, "cuda", 2)
    assert (choice, sentence.split(";")[0]) == ("nvjpeg", "decoder nvjpeg, as asked for")
