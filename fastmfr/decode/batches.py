"""What all streams of batches share: iteration in order, the time spent waiting, closing, the check of arguments."""

import time

import numpy as np
import torch


class Batches:
    """Iterate to get (i, batch i) for i = first, first + 1, ... until `_make(i)` raises StopIteration, or `close()`.

    `wait_seconds`: time spent waiting for data so far. `sentence`: why this kind of stream, where one was chosen.
    A context manager; a stream that ended has closed itself.
    """

    def __init__(self, first):
        self.wait_seconds, self.sentence = 0.0, ""
        self._next, self._closed = first, False

    def __iter__(self):
        return self

    def __next__(self):
        if self._closed:
            raise StopIteration
        start = time.perf_counter()
        try:
            batch = self._make(self._next)
        except BaseException:
            self.close()
            raise
        finally:
            self.wait_seconds += time.perf_counter() - start
        number, self._next = self._next, self._next + 1
        return number, batch

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """Let go of everything. Batches already given out stay valid; iterating on ends at once."""
        self._closed = True

    def _make(self, number):
        raise NotImplementedError


def check_whole(**least_by_name):
    """Raises ValueError unless every value is a whole number; each is given as name=(value, least)."""
    for name, (value, least) in least_by_name.items():
        if not (isinstance(value, int) and value >= least):
            raise ValueError(f"{name.replace('_of_', ' of ')}: want a whole number, at least {least}, got {value!r}")


def checked_device(name):
    """The torch device of this name, a CUDA one with its number; ValueError where there is none."""
    device = torch.device(name)
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(f"device: want cpu, or cuda on a machine where torch finds a GPU, got {name}")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def checked_request(domains, requests, number, images):
    """(domain_B, image_B) that `requests` asks for in batch `number`; ValueError where the domains do not hold that."""
    domain_B, image_B = map(np.asarray, requests(number))
    for name, value_B in (("domain", domain_B), ("image", image_B)):
        if value_B.shape != (images,) or value_B.dtype.kind not in "iu":
            raise ValueError(
                f"batch {number}: requests gave {name} numbers {value_B.dtype} {value_B.shape}, want "
                f"whole numbers ({images},), one for each image of the batch"
            )
    if domain_B.min() < 0 or domain_B.max() >= len(domains):
        raise ValueError(
            f"batch {number}: requests gave domains {domain_B.min()}..{domain_B.max()}, want 0..{len(domains) - 1}"
        )
    images_B = np.array([domain.images for domain in domains])[domain_B]
    outside_B = (image_B < 0) | (image_B >= images_B)
    if outside_B.any():
        domain, image, held = (int(value_B[outside_B][0]) for value_B in (domain_B, image_B, images_B))
        raise ValueError(
            f"batch {number}: requests gave image {image} of domain {domains[domain].name}, want 0..{held - 1}"
        )
    return domain_B, image_B
