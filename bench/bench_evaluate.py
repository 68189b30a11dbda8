"""Verification beside InsightFace's way: 6000 pairs out of a .bin, and 1e8 pairs of 10,000 x 10,000 embeddings.

The network is next to nothing, so that what is measured is the path around it; memory is what a call takes at most
beside what was there before.
"""

import pickle
from itertools import cycle, islice

import numpy as np
import pytest
import torch
from conftest import peak_bytes, seconds

from fastmfr.decode import Preprocess
from fastmfr.domains import open_domain
from fastmfr.evaluate import open_sets, score, score_set
from fastmfr.evaluate.all_pairs import AllPairs
from fastmfr.evaluate.roc import score_curve
from fastmfr.protocols import GalleryProbe
from fastmfr.synthetic import write_folders

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
PAIRS, SIZE, BATCH_IMAGES, THREADS = 6000, 112, 128, 2
IMAGES, D, FAR = 10_000, 512, (1e-3, 1e-4, 1e-5)
DIFFERENT = 600  # images drawn; the set repeats them


@pytest.fixture(scope="module")
def lfw_like(tmp_path_factory):
    """A .bin of 6000 pairs in ten folds of 300 genuine and 300 impostor pairs."""
    folder = tmp_path_factory.mktemp("faces")
    write_folders(folder / "made", "studio", identities=DIFFERENT // 2, images=2, size=SIZE)
    domain = open_domain(folder / "made")
    encoded = [bytes(domain.jpeg(image)) for image in range(DIFFERENT)]
    flags = [number % 600 < 300 for number in range(PAIRS)]
    firsts = islice(cycle(range(0, DIFFERENT, 2)), PAIRS)
    images = [
        encoded[place]
        for first, same in zip(firsts, flags, strict=True)
        for place in (first, first + 1 if same else (first + 7) % DIFFERENT)
    ]
    (folder / "lfw.bin").write_bytes(pickle.dumps((images, flags)))
    return folder / "lfw.bin"


class Tiny(torch.nn.Sequential):
    """Pools to 7 x 7 colours and multiplies by a matrix."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(torch.nn.AvgPool2d(SIZE // 7), torch.nn.Flatten(), torch.nn.Linear(3 * 49, D))


def measured(calls):
    """(calls, peaks, results): calls that also note the memory they take, in MB, and what they return.

    On a GPU machine no memory is noted: what counts is the host's, and peak_bytes sees the GPU's.
    """
    peaks, results = {}, {}

    def noting(name, call):
        def run():
            results[name] = call()

        return (lambda: peaks.update({name: round(peak_bytes(run) / 1e6)})) if not GPU else run

    return {name: noting(name, call) for name, call in calls.items()}, peaks, results


def beside(compare, benchmark, contenders, **facts):
    """What each contender returns; `compare` times them, two turns of each, the peers being as slow as they are."""
    calls, peaks, results = measured(contenders)
    compare(calls.pop("ours"), calls, rounds=2, warm=False, device=DEVICE, **facts)
    for name, megabytes in peaks.items():
        benchmark.extra_info[name]["peak_megabytes"] = megabytes
    return results


def test_pairs(compare, benchmark, lfw_like):
    """From the file to accuracy, TAR and intervals; `vet` decodes each image alone first, against a crash of DALI."""
    peers = pytest.importorskip("peers_evaluate")
    network = Tiny().to(DEVICE).eval()

    def ours(vet):
        (found,) = open_sets("lfw", lfw_like)
        return score_set(
            network, found, Preprocess(SIZE, 127.5, 127.5), DEVICE, batch_images=BATCH_IMAGES, vet=vet, threads=THREADS
        )

    contenders = {
        "ours": lambda: ours(True),
        "ours, vet off": lambda: ours(False),
        "InsightFace's way": lambda: peers.verify(network, lfw_like, BATCH_IMAGES, DEVICE),
    }
    results = beside(compare, benchmark, contenders, pairs=PAIRS, images=2 * PAIRS)
    benchmark.extra_info["our accuracy"] = round(results["ours"].accuracy["grid_0.01"].mean, 5)
    benchmark.extra_info["InsightFace's accuracy"] = round(float(results["InsightFace's way"][0]), 5)


def test_all_pairs(compare, benchmark):
    """1e8 scores to the curve, TAR at three FARs and rank-1; what intervals add is timed once."""
    peers = pytest.importorskip("peers_evaluate")
    generator = torch.Generator().manual_seed(0)
    centre_GD = torch.randn(IMAGES, D, generator=generator)
    noisy = [centre_GD + 2 * torch.randn(IMAGES, D, generator=generator) for _ in range(2)]
    gallery_GD, probe_PD = (torch.nn.functional.normalize(rows) for rows in noisy)
    identity, both_ND = np.arange(IMAGES), torch.cat([gallery_GD, probe_PD]).to(DEVICE)

    def ours():
        roc, rank_P = AllPairs(both_ND[:IMAGES], identity, both_ND[IMAGES:], identity).roc_and_ranks()
        return score_curve(roc, FAR), (rank_P < 1).mean()

    def sorting():
        return peers.all_pairs(gallery_GD, identity, probe_PD, identity, FAR)

    results = beside(compare, benchmark, {"ours": ours, "sorting all scores": sorting}, pairs=IMAGES**2, D=D)
    lists = GalleryProbe(identity, identity, identity + IMAGES, identity)
    benchmark.extra_info["our seconds with intervals"] = round(seconds(lambda: score(both_ND, lists, FAR)), 2)
    ours_at, theirs_at = results["ours"][0].tar_at_far, results["sorting all scores"]
    benchmark.extra_info["TAR, ours and theirs"] = {
        f: (round(ours_at[str(f)].tar, 5), round(float(theirs_at[f]), 5)) for f in FAR
    }
