"""JPEG to pixels on the device: our streams by Pillow's threads and by torchvision's nvJPEG, and nvJPEG alone.

DALI is measured where it is installed. The bare call of nvJPEG gets the same bytes in batches, and leaves out what a
stream does besides: choosing images, their order, resizing, turning pixels into the network's input.
"""

import os
import tempfile
import warnings
from importlib.util import find_spec

import numpy as np
import torch

from fastmfr.decode import Preprocess, open_stream
from fastmfr.domains import open_domain
from fastmfr.synthetic import write_records

from . import lines
from .timing import DEVICE, GPU, arguments, compare

BATCH, BATCHES = 128, 8


def requested(number, images):
    return np.random.default_rng(number).integers(images, size=BATCH)


def stream(domain, size, decoder, threads):
    """A function that takes BATCHES batches from a stream without end, onto the device."""
    batches = open_stream(
        [domain],
        lambda number: (np.zeros(BATCH, int), requested(number, domain.images)),
        Preprocess(size, 127.5, 127.5),
        batch_images=BATCH,
        threads=threads,
        device=DEVICE,
        decoder=decoder,
    )
    taken = iter(batches)

    def call():
        for _ in range(BATCHES):
            next(taken)

    return call


def nvjpeg(domain):
    from torchvision.io import decode_jpeg

    encoded = [
        [torch.from_numpy(np.array(domain.jpeg(image))) for image in requested(number, domain.images)]
        for number in range(BATCHES)
    ]

    def call():
        for batch in encoded:
            decode_jpeg(batch, device=DEVICE)

    return call


def main():
    options = arguments(__doc__)
    warnings.simplefilter("ignore")
    threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as root:
        for size in (32,) if options.small else (112, 250):
            write_records(f"{root}/{size}", "studio", identities=20, images=10, size=size)
            domain = open_domain(f"{root}/{size}")
            makers = {"ours, Pillow": lambda domain=domain, size=size: stream(domain, size, "pillow", threads)}
            if find_spec("nvidia.dali"):
                makers["ours, DALI on the CPU"] = lambda domain=domain, size=size: stream(domain, size, "cpu", threads)
                if GPU:
                    makers["ours, DALI and nvJPEG"] = lambda domain=domain, size=size: stream(
                        domain, size, "mixed", threads
                    )
            if GPU:
                makers["ours, torchvision's nvJPEG"] = lambda domain=domain, size=size: stream(
                    domain, size, "nvjpeg", threads
                )
                makers["nvJPEG by torchvision"] = lambda domain=domain: nvjpeg(domain)
            contenders = {}
            for who, make in makers.items():
                try:
                    contenders[who] = make()
                except Exception as error:
                    lines.write("decode", what="JPEG to pixels", who=who, failed=lines.reason(error))
            compare(
                "decode",
                "JPEG to pixels",
                contenders,
                images=BATCH * BATCHES,
                size=size,
                threads=threads,
                seconds=2 * options.seconds,
            )
            contenders.clear()


if __name__ == "__main__":
    main()
