"""torchvision's nvJPEG on a CUDA device beside Pillow: near pixels where nvJPEG decodes, the same bits elsewhere."""

import json
import warnings

import numpy as np
import pytest
import torch
from decode_fakes import FakeDomain, encode, picture
from helpers import DEVICE
from test_nvjpeg import JPEG, MIXED, NEEDS, SIZE, array, damaged_stream, faces, pale, run_of

from fastmfr.decode import Preprocess, choose_decoder, nvjpeg
from fastmfr.decode.pillow import PillowPipeline
from fastmfr.decode.plain_jpeg import plain_size
from fastmfr.decode.preprocess import Frame

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cpu", reason="decodes on a CUDA device")]
NEAR = 3  # grey levels on average, also if chroma is at half size


@pytest.fixture
def device():
    """The CUDA device, if torchvision decodes there."""
    found = torch.device(DEVICE, 0)
    if reason := nvjpeg.obstacle(found):
        pytest.skip(reason)
    return found


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [40, 112, 250])
def test_nvjpegs_pixels_are_near_pillows(size, sampling, progressive, device):
    options = {"subsampling": sampling, "progressive": progressive, "quality": 90}
    encoded = [encode(pale(size, size, seed), **options) for seed in range(32)]
    with warnings.catch_warnings(action="error"):  # a batch that nvJPEG refuses would be decoded by Pillow
        got = run_of(encoded, device=device, size=size)
    miss_B = (got.int() - run_of(encoded, pipeline=PillowPipeline, size=size).int()).abs()
    facts = {"size": size, "sampling": sampling, "progressive": progressive, "most": miss_B.max().item()}
    facts |= {"mean": miss_B.float().mean().item(), "within_two": (miss_B <= 2).float().mean().item()}
    print(json.dumps({"what": "grey levels from Pillow", **facts}))
    assert facts["mean"] < NEAR, facts
    if sampling == "4:4:4":
        assert facts["within_two"] > 0.999, facts
        assert facts["most"] <= 8, facts


def test_a_run_of_all_kinds_has_pillows_bits_where_pillow_decodes(device):
    got, want = run_of(MIXED, NEEDS, device=device), run_of(MIXED, NEEDS, PillowPipeline)
    is_plain_B = torch.tensor([plain_size(array(one)) == (SIZE, SIZE) for one in MIXED])
    assert 0 < is_plain_B.sum() < len(MIXED)
    assert torch.equal(got[~is_plain_B], want[~is_plain_B])
    miss_B = (got.int() - want.int()).abs().float().mean((1, 2, 3))
    assert miss_B.max() < NEAR, miss_B


def test_what_is_decoded_is_not_written_over_by_later_runs(device):
    """Runs are read by work that is still queued on the CUDA stream when later runs are decoded."""
    encoded = [encode(picture(112, 112, seed=seed)) for seed in range(8)]
    runs = [[array(encoded[(call + slot) % 8]) for slot in range(8)] for call in range(8)]

    def source(call):
        return runs[call % 8], np.zeros(8, np.uint8), np.zeros((8, 2, 3))

    pipeline = nvjpeg.NvjpegPipeline(source, Frame(112), device, threads=1, prefetch=2)
    first, busy = pipeline.run().clone(), torch.randn(2000, 2000, device=device)
    differ = []
    for call in range(1, 40):
        got = pipeline.run()
        for _ in range(10):
            busy = (busy @ busy).clamp(-1, 1)
        differ.append((got.roll(call, 0) != first).sum())
    pipeline.close()
    assert sum(count.item() for count in differ) == 0


def test_nvjpeg_is_measured_beside_pillow_and_the_faster_one_is_chosen(device, monkeypatch):
    monkeypatch.setattr("fastmfr.decode.backend.dali_installed", lambda: False)
    domain = FakeDomain([encode(picture(112, 112, seed=seed)) for seed in range(100)])
    choice, sentence = choose_decoder("auto", [domain], Preprocess(size=112), DEVICE, 4)
    print(sentence)
    assert choice in ("nvjpeg", "pillow")
    assert "images/s against" in sentence
    assert "measured on 100 images" in sentence


@pytest.mark.filterwarnings("ignore:nvJPEG refused")
@pytest.mark.parametrize("vet", [True, False])
def test_a_stream_with_damaged_images_replaces_the_same_ones_and_is_near_pillows(vet, device):
    got, bad, encoded = damaged_stream(device, "nvjpeg", vet=vet)
    want, want_bad, _ = damaged_stream("cpu", "pillow", vet=vet)
    assert bad == want_bad
    assert list(got) == list(want)
    for number, image_B3HW in got.items():
        for slot, (mine, pillows) in enumerate(zip(image_B3HW, want[number], strict=True)):
            image = (6 * number + slot) % len(encoded)
            by_pillow = plain_size(array(encoded[image])) != (SIZE, SIZE) and f"studio/{image}.jpg" not in bad
            assert (mine - pillows).abs().mean() < (1e-9 if by_pillow else NEAR), image


@pytest.mark.filterwarnings("ignore:nvJPEG refused")
@pytest.mark.parametrize("damage", ["cut", "zeros", "noise"])
def test_a_damaged_scan_costs_no_other_image(damage, device):
    """Pillow decodes such an image to a wrong picture; nvJPEG may do so too, or refuse, but must go on after that."""
    middle = JPEG.index(b"\xff\xda") + 60
    noise = np.random.default_rng(0).integers(0, 255, 200, np.uint8).tobytes()
    rest = {"cut": b"", "zeros": bytes(200), "noise": noise}[damage]
    before = run_of(faces(4), device=device)
    encoded = [*faces(4), JPEG[:middle] + rest + JPEG[-2:], *faces(2)]
    got, want = run_of(encoded, device=device), run_of(encoded, pipeline=PillowPipeline)
    miss_B = (got.int() - want.int()).abs().float().mean((1, 2, 3))
    print(damage, miss_B.tolist())
    assert miss_B[[0, 1, 2, 3, 5, 6]].max() < NEAR
    assert torch.equal(run_of(faces(4), device=device), before)
