"""Which decoder: the CPU's or the GPU's (nvJPEG)? Which one is faster depends on the machine and on the images.

Faces of about 112 pixels are so small that nvJPEG reads their bits on the host as well, and many cores may outrun it;
so both are measured on a sample of the user's own images. Where DALI is not installed, Pillow decodes, and it is said.
"""

import statistics
import time
from bisect import bisect_right
from itertools import accumulate

import numpy as np
import torch

from .batches import checked_device
from .encoded import checked_size
from .pipeline import PILLOW, Vetting, build_pipeline, dali_installed, pixels
from .preprocess import needed

DECODERS = ("cpu", "mixed")  # DALI's; mixed is its word for nvJPEG: encoded bytes on the host, pixels on the GPU
SAMPLE = 512  # images
_BATCH = 64  # images decoded at once
_ROUNDS = 9
_INSTALL = "`pip install nvidia-dali-cuda130`"
_LOOKING, _TIMING = 0.7, 1.0  # seconds that finding good images and timing may take, or little more


def checked_decoder(decoder, device):
    """The decoder, "pillow" for "cpu" where DALI is not installed; a ValueError where it cannot be had on `device`."""
    if decoder not in (*DECODERS, PILLOW):
        raise ValueError(f"want decoder out of {', '.join(map(repr, (*DECODERS, PILLOW)))}, got {decoder!r}")
    if decoder == "mixed" and device.type != "cuda":
        raise ValueError(f"decoder mixed decodes on a CUDA device, but the device is {device}; want cpu or auto")
    if decoder == PILLOW or dali_installed():
        return decoder
    if decoder == "mixed":
        raise ValueError(f"decoder mixed is nvidia-dali's, which is not installed; {_INSTALL}, or want cpu or auto")
    return PILLOW


def choose_decoder(wanted, domains, preprocess, device, threads, measure=None):
    """(choice, sentence): "cpu", "mixed" or "pillow", and which it is and why.

    `wanted`: one of those, or "auto" for the one that is faster on these images; `measure` defaults to
    measure_decoders. Without DALI "cpu" and "auto" are "pillow". Raises ValueError where the decoder asked for cannot
    be had.
    """
    device = torch.device(device)
    choice = checked_decoder("cpu" if wanted == "auto" else wanted, device)
    if choice == PILLOW != wanted:
        return choice, (
            f"decoder pillow: nvidia-dali is not installed; Pillow decodes on {threads} "
            f"thread{'s' * (threads != 1)} instead. {_INSTALL} is faster"
        )
    if wanted != "auto":
        return choice, f"decoder {wanted}, as asked for"
    if device.type != "cuda":
        return "cpu", "decoder cpu: there is no CUDA device"
    found, images = (measure or measure_decoders)(domains, preprocess, device, threads)
    rates = {decoder: rate for decoder, rate in found.items() if not isinstance(rate, str)}
    if not rates:
        return "cpu", "decoder cpu: " + " and ".join(f"{decoder} failed ({why})" for decoder, why in found.items())
    choice = max(rates, key=lambda decoder: rates[decoder])
    (other,) = set(DECODERS) - {choice}
    if other not in rates:
        return choice, f"decoder {choice}: {other} failed ({found[other]})"
    return choice, (
        f"decoder {choice}: {rates[choice]:,.0f} images/s against {rates[other]:,.0f} in {other}, "
        f"measured on {images:,} images"
    )


def measure_decoders(domains, preprocess, device, threads, decoders=DECODERS):
    """({decoder: images a second, or why it failed}, how many images that was measured on).

    All decode the same images in turn, after a turn to warm up; what counts is the median. It takes about two seconds.
    """
    device, failed = checked_device(device), {}
    sample = _sample(domains, {name: Vetting(device, name) for name in decoders}, failed)
    if not sample:
        return dict.fromkeys(decoders, "no image was decoded by each") | failed, 0
    turns = {name: _turns(sample, preprocess.size, device, name, threads) for name in decoders if name not in failed}
    seconds = {name: [] for name in turns}
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


def _sample(domains, vetting, failed):
    """(encoded, size) of images from all over the domains that each decoder of `vetting`, {name: Vetting}, can decode.

    DALI can crash on a batch that holds an image it cannot. A decoder that fails whatever the image gets its reason
    into `failed`.
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


def _images(domains):
    """(encoded, (width, height)) of at most SAMPLE images, evenly out of all, in a mixed order; bad files left out."""
    *starts, images = accumulate((domain.images for domain in domains), initial=0)
    numbers = np.linspace(0, images - 1, min(images, SAMPLE)).astype(np.int64)
    for number in np.random.default_rng(0).permutation(numbers).tolist():
        domain = bisect_right(starts, number) - 1
        try:
            encoded = domains[domain].jpeg(number - starts[domain])
            size = checked_size(encoded)
        except (ValueError, OSError):
            continue
        yield encoded, size


def _turns(sample, size, device, decoder, threads):
    """Without end: the seconds that decoding the sample took."""
    images = min(_BATCH, len(sample))
    runs = []
    for start in range(0, len(sample), images):
        chosen = [sample[number % len(sample)] for number in range(start, start + images)]
        runs.append(([encoded for encoded, _ in chosen], needed([side for _, side in chosen], size)))
    pipeline = build_pipeline(
        lambda k: runs[k % len(runs)], size, device, decoder, images=images, threads=threads, prefetch=2
    )
    while True:
        pixels(pipeline)  # not timed: meanwhile the batch that the other decoder has begun ahead comes to its end
        _wait_for(device)
        start = time.perf_counter()
        for _ in runs:
            pixels(pipeline)
        _wait_for(device)  # nvJPEG's work is only queued so far
        yield (time.perf_counter() - start) * len(sample) / (len(runs) * images)


def _wait_for(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _one_line(error):
    return " ".join(str(error).split())[:200]
