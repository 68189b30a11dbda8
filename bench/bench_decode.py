"""Encoded images to normalised batches: DALI beside torch DataLoaders, where images a CPU second count; and a cache.

A call of each contender takes BATCHES batches out of a stream without end. Whoever runs ahead does as much during a
call's account as the call takes, see conftest.py.
"""

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def, types
from peers_decode import DECODERS, MEAN, MISSING, STD, endless_loader

from fastmfr.decode import Preprocess, Verdicts, open_stream
from fastmfr.domains import open_domain
from fastmfr.synthetic import write_folders, write_records

SIZE, QUALITY, IDENTITIES, IMAGES_EACH = 112, 92, 100, 20
BATCH_IMAGES, BATCHES, THREADS = 128, 16, 2
PREPROCESS = Preprocess(SIZE, MEAN, STD, flip=0.5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same images as records and as class folders."""
    root = tmp_path_factory.mktemp("faces")
    for write in (write_records, write_folders):
        write(root / write.__name__, "studio", identities=IDENTITIES, images=IMAGES_EACH, size=SIZE)
    return root / "write_records", root / "write_folders"


@pytest.fixture(autouse=True)
def _one_thread():
    """As in a DataLoader's workers; without workers torch's threads would wait for work in a busy loop."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def requested(number, images):
    """The images of batch `number`, at random."""
    return np.random.default_rng(number).integers(images, size=BATCH_IMAGES)


def our_stream(folder, **options):
    domain = open_domain(folder)
    return open_stream(
        [domain],
        lambda i: (np.zeros(BATCH_IMAGES, int), requested(i, domain.images)),
        PREPROCESS,
        batch_images=BATCH_IMAGES,
        threads=THREADS,
        **options,
    )


def first_pass(folder, vet, verdicts=None):
    """A function that takes every image once out of a stream made for that."""
    domain = open_domain(folder)

    def requests(number):
        in_turn = np.arange(number * BATCH_IMAGES, (number + 1) * BATCH_IMAGES)
        return np.zeros(BATCH_IMAGES, int), in_turn % domain.images

    def take():
        with open_stream(
            [domain],
            requests,
            PREPROCESS,
            batch_images=BATCH_IMAGES,
            threads=THREADS,
            vet=vet,
            last=-(-domain.images // BATCH_IMAGES),
            verdicts=verdicts,
        ) as stream:
            for _ in stream:
                pass

    return take


def dali_alone(folder, normalise):
    """DALI on the same bytes, all of them at hand: decoded and, with `normalise`, mirrored, normalised and transposed.

    Nothing is checked, no image is told apart from another, and nothing is handed on.
    """
    domain = open_domain(folder)
    encoded = domain.jpegs(np.arange(domain.images))

    @pipeline_def(
        batch_size=BATCH_IMAGES, num_threads=THREADS, device_id=None, prefetch_queue_depth=2, seed=0, exec_dynamic=True
    )
    def decode():
        batch = fn.external_source(
            source=lambda i: [encoded[image] for image in requested(i, domain.images)],
            batch=True,
            no_copy=True,
            dtype=types.UINT8,
            ndim=1,
        )
        image = fn.decoders.image(batch, output_type=types.RGB, jpeg_fancy_upsampling=True)
        if not normalise:
            return image
        return fn.crop_mirror_normalize(
            image, mirror=fn.random.coin_flip(), mean=[MEAN] * 3, std=[STD] * 3, dtype=types.FLOAT, output_layout="CHW"
        )

    pipeline = decode()
    pipeline.build()
    while True:
        yield pipeline.run()


def taking(stream):
    def take():
        for _ in range(BATCHES):
            next(stream)

    return take


def compared(compare, ours, peers, **facts):
    compare(
        taking(ours),
        {name: taking(stream) for name, stream in peers.items()},
        rounds=9,
        units=dict.fromkeys(["ours", *peers], BATCHES * BATCH_IMAGES),
        size=SIZE,
        quality=QUALITY,
        images=IDENTITIES * IMAGES_EACH,
        batch_images=BATCH_IMAGES,
        threads=THREADS,
        **facts,
    )


def test_images_a_cpu_second(compare, folders):
    """Peers without workers have one thread, ours has two: beside them the time on the clock says nothing."""
    records, classes = folders
    with our_stream(records) as ours, our_stream(classes) as ours_from_folders:
        peers = {
            "ours from folders": ours_from_folders,
            "DALI, decoding alone": dali_alone(records, False),
            "DALI, normalising too": dali_alone(records, True),
        }
        for name, decode in DECODERS.items():
            for workers in (2, 0):
                peers[f"{name}, {workers} workers"] = endless_loader(records, decode, BATCH_IMAGES, workers)
        compared(compare, ours, peers, not_installed=MISSING)


def test_cached_images(compare, folders):
    """Out of the cache, on the GPU where there is one, beside decoding the same batches anew by every decoder."""
    on_gpu = torch.cuda.is_available()
    device, cache, decoders = ("cuda", "gpu", ["cpu", "mixed"]) if on_gpu else ("cpu", "host", ["cpu"])
    with our_stream(folders[0], device=device, cache=cache) as cached:
        peers = {f"decoding, {name}": our_stream(folders[0], device=device, decoder=name) for name in decoders}
        compared(compare, cached, peers, device=device, cache=cache)


def test_first_pass_vetted(compare, folders):
    """Every image taken once out of a new stream, each decoded alone before (data.vet), beside the same without.

    Once found good, an image is not decoded alone again: the pass of a stream that is told so is the third contender.
    """
    known = Verdicts()
    first_pass(folders[0], True, known)()
    peers = {"not vetted": first_pass(folders[0], False), "vetted before": first_pass(folders[0], True, known)}
    images = -(-IDENTITIES * IMAGES_EACH // BATCH_IMAGES) * BATCH_IMAGES
    compare(
        first_pass(folders[0], True),
        peers,
        rounds=9,
        units=dict.fromkeys(["ours", *peers], images),
        size=SIZE,
        quality=QUALITY,
        images=images,
        batch_images=BATCH_IMAGES,
        threads=THREADS,
    )
