"""Choose the decoder, the CPU's or the GPU's (nvJPEG): the faster one depends on the machine and on the images.

Faces of about 112 pixels are so small that nvJPEG reads their bits on the host, and many cores may be faster. So both
decoders are measured on a sample of the user's images. If DALI is not installed, torchvision's nvJPEG and Pillow are
measured on a CUDA device that torchvision can decode for; elsewhere Pillow decodes. A sentence says so.
"""

import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Literal, cast

import numpy as np
import torch

from fastmfr.config import Preprocess
from fastmfr.image_set import ImageSet

from .batches import checked_device
from .encoded import checked_size
from .nvjpeg import obstacle
from .pipeline import NVJPEG, PILLOW, Vetting, build_pipeline, dali_installed, pixels
from .preprocess import Frame, jpeg_or_png, needed
from .source import MOST_PIXELS

Chosen = Literal["cpu", "mixed", "nvjpeg", "pillow"]
DECODERS = ("cpu", "mixed")  # DALI's; "mixed" is DALI's word for nvJPEG: encoded bytes on the host, pixels on the GPU
WITHOUT_DALI: tuple[Chosen, ...] = (PILLOW, NVJPEG)
SAMPLE = 512  # images
_BATCH = 64  # images decoded at once
_ROUNDS = 9
_INSTALL = "`pip install nvidia-dali-cuda130`"
_SCORES = "; scores are of images decoded on the CPU, whose chroma is finer"
_LOOKING, _TIMING = 0.7, 1.0  # about how many seconds finding good images and timing may take


def exact_decoder(decoder: str) -> str:
    """Return the decoder that scores and embeddings are made with: "cpu" for "nvjpeg", whose chroma is coarser."""
    return "cpu" if decoder == NVJPEG else decoder


def checked_decoder(decoder: str, device: torch.device) -> Chosen:
    """Return the decoder that stands for `decoder` on this machine.

    Args:
        decoder: "cpu", "mixed", "nvjpeg" or "pillow".
        device: where the images are wanted.

    Returns:
        The same decoder; "pillow" for "cpu" if DALI is not installed.

    Raises:
        ValueError: there is no such decoder, or it cannot decode for `device`, without DALI or without torchvision.
    """
    known = (*DECODERS, NVJPEG, PILLOW)
    if decoder not in known:
        raise ValueError(f"want decoder out of {', '.join(map(repr, known))}, got {decoder!r}")
    if decoder in ("mixed", NVJPEG) and device.type != "cuda":
        raise ValueError(f"decoder {decoder} decodes on a CUDA device, but the device is {device}; want cpu or auto")
    if decoder == NVJPEG and (reason := obstacle(device)):
        raise ValueError(f"decoder nvjpeg is torchvision's, which cannot decode here: {reason}; want cpu or auto")
    if decoder in WITHOUT_DALI or dali_installed():
        return decoder
    if decoder == "mixed":
        raise ValueError(
            f"decoder mixed is nvidia-dali's, which is not installed; {_INSTALL}, or want nvjpeg, which is "
            "torchvision's, or cpu or auto"
        )
    return PILLOW


def choose_decoder(
    wanted: str,
    domains: Sequence[ImageSet],
    preprocess: Preprocess | None,
    device: str | torch.device,
    threads: int,
    measure: Callable[..., tuple[dict[str, float | str], int]] | None = None,
    exact: bool = False,
) -> tuple[Chosen, str]:
    """Choose the decoder.

    Args:
        wanted: "cpu", "mixed", "nvjpeg", "pillow", or "auto" for the one that is faster on these images. Without DALI,
            "cpu" is "pillow", and "auto" measures "pillow" and "nvjpeg" if torchvision can decode for the device.
        domains: the images; unused if there is no choice.
        preprocess: their size; None if there is no choice.
        device: where the images are wanted.
        threads: CPU threads that decode.
        measure: called in place of `measure_decoders`.
        exact: whether the images are for scores or embeddings: "nvjpeg" is not taken then.

    Returns:
        The choice, and a sentence that says which it is and why.

    Raises:
        ValueError: the decoder asked for cannot be had.
    """
    device, wanted = torch.device(device), exact_decoder(wanted) if exact else wanted
    choice = checked_decoder("cpu" if wanted == "auto" else wanted, device)
    measure = partial(measure or measure_decoders, domains, preprocess, device, threads)
    if choice == PILLOW != wanted:
        why, missing = "", "nvidia-dali is not installed"
        if wanted == "auto" and device.type == "cuda" and not exact:
            if not (reason := obstacle(device)):
                return _faster(*measure(WITHOUT_DALI), f"; {missing}")
            why = f" and nvJPEG of torchvision cannot be had ({reason})"
        return choice, (
            f"decoder pillow: {missing}{why}; Pillow decodes on {threads} thread{'s' * (threads != 1)} instead. "
            f"{_INSTALL} is faster"
        )
    if wanted != "auto":
        return choice, f"decoder {wanted}, as asked for{_SCORES * (choice == NVJPEG)}"
    if device.type != "cuda":
        return "cpu", "decoder cpu: there is no CUDA device"
    return _faster(*measure(DECODERS))


def _faster(found: dict[str, float | str], images: int, note: str = "") -> tuple[Chosen, str]:
    """The faster of two decoders, the first one unless the second is faster, and why; `note` ends the sentence.

    `found` and `images` are what `measure_decoders` returns.
    """
    (first, rate), (second, other) = sorted(found.items(), key=lambda item: item[0] not in ("cpu", PILLOW))
    choice = second
    if isinstance(rate, str) and isinstance(other, str):
        choice, why = first, f"{first} failed ({rate}) and {second} failed ({other})"
    elif isinstance(rate, str):
        why = f"{first} failed ({rate})"
    elif isinstance(other, str):
        choice, why = first, f"{second} failed ({other})"
    else:
        choice, slower = (first, second) if rate >= other else (second, first)
        rates = f"{max(rate, other):,.0f} images/s against {min(rate, other):,.0f}"
        why = f"{rates} in {slower}, measured on {images:,} images"
    return cast(Chosen, choice), f"decoder {choice}: {why}{note}{_SCORES * (choice == NVJPEG)}"


def measure_decoders(
    domains: Sequence[ImageSet],
    preprocess: Preprocess,
    device: str | torch.device,
    threads: int,
    decoders: Sequence[str] = DECODERS,
) -> tuple[dict[str, float | str], int]:
    """Measure decoders on the same images in turn, after one turn to warm up; takes about two seconds.

    Args:
        domains: the images; at most SAMPLE of them are decoded.
        preprocess: their size.
        device: where the images are wanted.
        threads: CPU threads that decode.
        decoders: the decoders to measure.

    Returns:
        {decoder: images a second, by the median, or why the decoder failed}, and the number of images measured on.
    """
    device, failed = checked_device(device), dict[str, str]()
    sample = _sample(domains, {name: Vetting(device, name) for name in decoders}, failed)
    if not sample:
        return {**dict.fromkeys(decoders, "no image was decoded by each"), **failed}, 0
    frame = Frame(preprocess.size, preprocess.fit)
    turns = {name: _turns(sample, frame, device, name, threads) for name in decoders if name not in failed}
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    until = time.monotonic() + _TIMING
    for round_ in range(1 + _ROUNDS):
        for name in [name for name in turns if name not in failed]:
            try:
                seconds[name].append(next(turns[name]))
            except RuntimeError as error:
                failed[name] = _one_line(error)
        if round_ and time.monotonic() > until:
            break
    rates = {name: len(sample) / statistics.median(spent[1:]) for name, spent in seconds.items() if name not in failed}
    return rates | failed, len(sample)


def _sample(
    domains: Sequence[ImageSet], vetting: dict[str, Vetting], failed: dict[str, str]
) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """(encoded, size) of images from all over the domains that every decoder of `vetting` can decode.

    Other images are left out: DALI can crash on a batch with an image that it cannot decode. The reason of a decoder
    that fails on every image is put into `failed`.
    """
    looked, decoded, until = [], {name: set() for name in vetting}, time.monotonic() + _LOOKING
    for encoded, size in _images(domains):
        for name in [name for name in vetting if name not in failed]:
            try:
                vetting[name](encoded)
                decoded[name].add(len(looked))
            except ValueError:  # the image's fault
                continue
            except RuntimeError as error:
                failed[name] = _one_line(error)
        looked.append((encoded, size))
        if len(looked) >= _BATCH and time.monotonic() > until:
            break
    for name in vetting:
        if not decoded[name]:
            failed.setdefault(name, f"it decoded none of {len(looked)} images")
    working = [decoded[name] for name in vetting if name not in failed]
    return [looked[number] for number in sorted(set.intersection(*working))] if working else []


def _images(domains: Sequence[ImageSet]) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """(encoded, (width, height)) of at most SAMPLE images, evenly out of all, in a mixed order, without bad files."""
    *starts, images = accumulate((domain.images for domain in domains), initial=0)
    numbers = np.linspace(0, images - 1, min(images, SAMPLE)).astype(np.int64)
    for number in np.random.default_rng(0).permutation(numbers).tolist():
        domain = bisect_right(starts, number) - 1
        try:
            encoded = domains[domain].jpeg(number - starts[domain])
            size = checked_size(encoded)
            encoded = jpeg_or_png(encoded)
        except (ValueError, OSError):
            continue
        yield encoded, size


def _turns(
    sample: list[tuple[np.ndarray, tuple[int, int]]], frame: Frame, device: torch.device, decoder: str, threads: int
) -> Iterator[float]:
    """The seconds that decoding the sample takes, without end."""
    largest = max(width * height for _, (width, height) in sample)
    images = max(1, min(_BATCH, len(sample), MOST_PIXELS // largest))
    runs = []
    for start in range(0, len(sample), images):
        chosen = [sample[number % len(sample)] for number in range(start, start + images)]
        need_B = needed([side for _, side in chosen], frame)
        runs.append(([encoded for encoded, _ in chosen], need_B, np.zeros((images, 2, 3))))
    pipeline = build_pipeline(
        lambda k: runs[k % len(runs)], frame, device, decoder, images=images, threads=threads, prefetch=2
    )
    while True:
        pixels(pipeline)  # not timed: meanwhile the batch that the other decoder began ahead is finished
        _wait_for(device)
        start = time.perf_counter()
        for _ in runs:
            pixels(pipeline)
        _wait_for(device)  # nvJPEG's work is only queued so far
        yield (time.perf_counter() - start) * len(sample) / (len(runs) * images)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
