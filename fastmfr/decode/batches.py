"""What all streams of batches share: iteration in order, the time spent waiting, closing, the check of arguments."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from fastmfr.image_set import ImageSet
from fastmfr.profiling import DATA, part_of_step

Requests = Callable[[int], tuple[np.ndarray, np.ndarray]]  # batch number -> (domain_B, image_B)
Runs = Callable[[int], tuple[list[np.ndarray], np.ndarray, np.ndarray]]  # run number -> a run, see pipeline.py


class Batches:
    """Iterate to get (i, batch i) for i = first, first + 1, ... until `_make(i)` raises StopIteration, or `close()`.

    A context manager. A stream that ended has closed itself.

    Attributes:
        wait_seconds: the time spent waiting for data so far.
        sentence: why this kind of stream was chosen; empty if nothing was chosen.
        bad: {"domain/key": reason} of every bad image found so far.
    """

    bad: dict[str, str]

    def __init__(self, first: int):
        """Begin with batch `first`."""
        self.wait_seconds, self.sentence = 0.0, ""
        self._next, self._closed = first, False

    def __iter__(self):
        return self

    def __next__(self):
        if self._closed:
            raise StopIteration
        start = time.perf_counter()
        try:
            with part_of_step(DATA):
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

    def close(self) -> None:
        """Release memory and threads. Batches already returned stay valid; further iteration ends at once."""
        self._closed = True

    def _make(self, number: int) -> torch.Tensor:
        raise NotImplementedError


def check_whole(**least_by_name: tuple[object, int]) -> None:
    """Raise ValueError unless every value, passed as name=(value, least), is a whole number of at least `least`."""
    for name, (value, least) in least_by_name.items():
        if not (isinstance(value, int) and value >= least):
            raise ValueError(f"{name.replace('_of_', ' of ')}: want a whole number, at least {least}, got {value!r}")


def checked_device(name: str | torch.device) -> torch.device:
    """Return the torch device of this name, a CUDA device with its number; ValueError if there is no such device."""
    device = torch.device(name)
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(f"device: want cpu, or cuda on a machine where torch finds a GPU, got {name}")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def checked_request(
    domains: Sequence[ImageSet], requests: Requests, number: int, images: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (domain_B, image_B) of batch `number` of `requests`.

    Raises:
        ValueError: these are not `images` whole numbers each, or the domains do not hold them.
    """
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
