"""Images decoded once and kept, so that a batch is one gather: no decoding, no waiting.

A batch of kept pixels equals the batch that an ImageStream decodes bit for bit: both end in finish.py. Bad images are
replaced by the same rule, once; `bad` then lists those of all domains, asked for or not.
Shape suffixes: N = images of all domains, one domain after the other, B = images of a batch, 3 = RGB, H W = image.
"""

import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch

from fastmfr.config import Preprocess
from fastmfr.config.checks import require_choice
from fastmfr.config.choices import Cache
from fastmfr.image_set import ImageSet, part_of
from fastmfr.runtime import available_bytes

from .batches import Batches, Requests, check_whole, checked_device, checked_request
from .finish import Finish
from .stream import ImageStream
from .verdicts import Verdicts

Place = Literal["gpu", "host"]
AUTO_PART = 0.5  # of the free memory, for "auto": weights, activations and the system need the rest
_FILL = 256  # images decoded at a time while the cache is filled


class DecodedCache:
    """All images of several domains, decoded, in one tensor; made once, for any number of streams.

    Args:
        domains: the domains.
        preprocess: its size and fit count; the streams normalise and change the images.
        place: where the images are kept, "host" or "gpu".
        device: where batches are wanted; a CUDA device for "gpu". Images are decoded for this device.
        threads: as ImageStream takes it.
        decoder: as ImageStream takes it.
        vet: as ImageStream takes it.
        verdicts: as ImageStream takes it.
        progress: progress(images done, images in all), called as images are decoded.

    Attributes:
        image_NHW3: uint8, all images, one domain after the other.
        starts: int64, the number of each domain's first image.
        bad: {"domain/key": reason} of every bad image.

    Raises:
        ValueError: as ImageStream does, or `place` is not possible.
    """

    def __init__(
        self,
        domains: Sequence[ImageSet],
        preprocess: Preprocess,
        *,
        place: Place,
        device: str | torch.device = "cpu",
        threads: int = 2,
        decoder: str = "cpu",
        vet: bool = False,
        verdicts: Verdicts | None = None,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ):
        """Decode all images."""
        check_whole(number_of_domains=(len(domains), 1))
        self.domains, self.size, self.fit = list(domains), preprocess.size, preprocess.fit
        self.place, self.device = place, checked_device(device)
        if place not in ("host", "gpu") or (place == "gpu" and self.device.type != "cuda"):
            raise ValueError(f"want a cache on the host, or on the gpu of a CUDA device; got {place!r}, {self.device}")
        *starts, images = accumulate((domain.images for domain in domains), initial=0)
        self.starts = np.array(starts)
        shape = images, self.size, self.size, 3
        if place == "gpu":
            self.image_NHW3 = torch.empty(shape, dtype=torch.uint8, device=self.device)
        else:  # NumPy asks Linux for huge pages, torch does not: random reads are a tenth to a fifth faster
            self.image_NHW3 = torch.from_numpy(np.empty(shape, np.uint8))
        decoding: dict[str, Any] = {"threads": threads, "decoder": decoder, "vet": vet, "verdicts": verdicts}
        with _Filling(self, preprocess, min(images, _FILL), **decoding) as filling:
            for _ in filling:
                progress(min(filling.done, images), images)
            filling.hand_over()
        self.bad = dict(filling.bad)

    def holds(self, domains: Sequence[ImageSet], preprocess: Preprocess) -> bool:
        """Tell whether the cache was made of these domains, in this order, and of images of this size and fit."""
        same = len(domains) == len(self.domains) and all(map(lambda a, b: a is b, domains, self.domains))
        return same and (preprocess.size, preprocess.fit) == (self.size, self.fit)


class _Filling(ImageStream):
    """Decodes all images in order, into the cache; the last batch is filled up with the last image."""

    def __init__(self, cache: DecodedCache, preprocess: Preprocess, batch_images: int, **decoding: Any):
        self._cache, self._batch_images, self.done = cache, batch_images, 0
        images = len(cache.image_NHW3)
        super().__init__(
            cache.domains,
            self._requests,
            preprocess,
            batch_images=batch_images,
            device=cache.device,
            last=-(-images // batch_images),
            **decoding,
        )
        if self._aside:  # the cache's memory may still be in use by what was queued before it was allocated
            self._aside.wait_stream(torch.cuda.current_stream(self._device))

    def hand_over(self) -> None:
        """Make the current stream of the device wait until the cache is written."""
        if self._aside:
            torch.cuda.current_stream(self._device).wait_stream(self._aside)

    def _requests(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        wanted = np.arange(number * self._batch_images, (number + 1) * self._batch_images)
        wanted = wanted.clip(max=len(self._cache.image_NHW3) - 1)
        domain_B = part_of(self._cache.starts, wanted)
        return domain_B, wanted - self._cache.starts[domain_B]

    def _use(self, number: int, pixel_BHW3: torch.Tensor) -> torch.Tensor:
        kept_BHW3 = self._cache.image_NHW3[self.done : self.done + self._batch_images]
        kept_BHW3.copy_(pixel_BHW3[: len(kept_BHW3)])
        self.done += len(kept_BHW3)
        return kept_BHW3


class CachedStream(Batches):
    """The batches of an ImageStream out of a DecodedCache: the same arguments, batches and errors."""

    def __init__(
        self,
        cache: DecodedCache,
        requests: Requests,
        preprocess: Preprocess,
        *,
        batch_images: int,
        seed: int = 0,
        first: int = 0,
        last: int | None = None,
        slot_B: np.ndarray | None = None,
    ):
        """Prepare to stream; ValueError if an argument is out of range or the cache has another size or fit."""
        check_whole(
            batch_images=(batch_images, 1),
            seed=(seed, 0),
            first=(first, 0),
            last=(first if last is None else last, first),
        )
        if (preprocess.size, preprocess.fit) != (cache.size, cache.fit):
            raise ValueError(
                f"the cache holds images of {cache.size} pixels by fit {cache.fit}, want {preprocess.size} by "
                f"{preprocess.fit}; make another"
            )
        super().__init__(first)
        self.bad = cache.bad
        self._cache, self._requests, self._images, self._last = cache, requests, batch_images, last
        self._finish = Finish(preprocess, seed, cache.device, slot_B)

    def _make(self, number: int) -> torch.Tensor:
        if self._last is not None and number >= self._last:
            raise StopIteration
        cache = self._cache
        domain_B, image_B = checked_request(cache.domains, self._requests, number, self._images)
        index_B = cache.starts[domain_B] + image_B
        if cache.image_NHW3.device == cache.device:
            return self._finish(number, cache.image_NHW3, index_B)
        # Pinned memory, or the copy to the GPU would wait for the work queued before it.
        pixel_BHW3 = torch.empty((len(index_B), *cache.image_NHW3.shape[1:]), dtype=torch.uint8, pin_memory=True)
        torch.index_select(cache.image_NHW3, 0, torch.from_numpy(index_B), out=pixel_BHW3)
        return self._finish(number, pixel_BHW3.to(cache.device, non_blocking=True))


def choose_cache(
    wanted: Cache,
    domains: Sequence[ImageSet],
    preprocess: Preprocess,
    slots: int | None,
    device: str | torch.device,
) -> tuple[Literal["gpu", "host", "none"], str]:
    """Choose where to keep decoded images.

    Args:
        wanted: "gpu", "host", "none" or "auto". "auto" keeps images that will be asked for more than once on average:
            on the GPU if they fit in half of its free memory, else on the host if they fit in half of its available
            memory.
        domains: the images.
        preprocess: their size.
        slots: how many images all streams will ask for, counted every time; None is without end.
        device: where batches are wanted.

    Returns:
        The choice, and a sentence that says which it is and why.

    Raises:
        ValueError: the cache asked for cannot be had.
    """
    require_choice("cache", wanted, Cache)
    images, device = sum(domain.images for domain in domains), torch.device(device)
    size = images * preprocess.size**2 * 3
    what = f"{images:,} images of {preprocess.size} x {preprocess.size} pixels, {_bytes(size)}"
    if wanted == "none":
        return "none", f"no cache: images are decoded for every batch ({what} decoded)"
    if wanted == "gpu" and device.type != "cuda":
        raise ValueError(f"cache gpu wants a CUDA device, but the device is {device}; want host, auto or none")
    if wanted == "auto" and slots is not None and slots <= images:
        return "none", f"no cache: {slots:,} images are asked for of {images:,}, so keeping them would not pay"
    return _place_with_room(wanted, size, what, device)


def _place_with_room(
    wanted: Literal["auto", "gpu", "host"], size: int, what: str, device: torch.device
) -> tuple[Literal["gpu", "host", "none"], str]:
    """Where `size` bytes fit, and why; `what` describes them."""
    on_cuda: tuple[Place, ...] = ("gpu", "host")
    places = (wanted,) if wanted != "auto" else on_cuda if device.type == "cuda" else on_cuda[1:]
    tried = []
    for place in places:
        free = _free_gpu(device) if place == "gpu" else _available_host(device)
        allowed = int(free * (AUTO_PART if wanted == "auto" else 1))
        if size <= allowed:
            return place, f"cache on the {place}: {what}; {_bytes(free)} are free there"
        tried.append(f"{_bytes(allowed)} on the {place}")
    if wanted != "auto":
        raise ValueError(f"cache {wanted}: {what}, do not fit in the {tried[0]}; want auto or none, or a smaller size")
    return "none", f"no cache: {what}, are more than half of what is free, {' and '.join(tried)}"


def open_stream(
    domains: Sequence[ImageSet],
    requests: Requests,
    preprocess: Preprocess,
    *,
    cache: Cache | DecodedCache = "none",
    batch_images: int,
    seed: int = 0,
    first: int = 0,
    last: int | None = None,
    device: str | torch.device = "cpu",
    threads: int = 2,
    decoder: str = "cpu",
    prefetch: int = 2,
    vet: bool = False,
    verdicts: Verdicts | None = None,
    slot_B: np.ndarray | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> ImageStream | CachedStream:
    """Open an ImageStream, or a CachedStream with the same batches; the stream's `sentence` says which and why.

    Args:
        cache: where to keep decoded images, as `choose_cache` takes it; they are decoded now. Or a DecodedCache.
        progress: as DecodedCache takes it. All other arguments are those of ImageStream.

    Raises:
        ValueError: as ImageStream does, or the cache cannot be had, or was made for other images.
    """
    decoding = {"device": device, "threads": threads, "decoder": decoder, "vet": vet, "verdicts": verdicts}
    slots = None if last is None else (last - first) * batch_images
    kept, sentence = _kept(cache, domains, preprocess, slots, progress, decoding)
    options: dict[str, Any] = {
        "batch_images": batch_images,
        "seed": seed,
        "first": first,
        "last": last,
        "slot_B": slot_B,
    }
    if kept:
        stream = CachedStream(kept, requests, preprocess, **options)
    else:
        stream = ImageStream(domains, requests, preprocess, prefetch=prefetch, **options, **decoding)
    stream.sentence = sentence
    return stream


def _kept(
    cache: Cache | DecodedCache,
    domains: Sequence[ImageSet],
    preprocess: Preprocess,
    slots: int | None,
    progress: Callable[[int, int], object],
    decoding: dict[str, Any],
) -> tuple[DecodedCache | None, str]:
    """The cache to stream from, if any, and why."""
    if isinstance(cache, DecodedCache):
        if not cache.holds(domains, preprocess) or cache.device != checked_device(decoding["device"]):
            raise ValueError(
                f"the cache was made of other domains, for another size, fit or device (it has {cache.size} "
                f"pixels, {cache.device}); make one for this stream, or give cache='none'"
            )
        return cache, f"cache on the {cache.place}, filled before"
    place, sentence = choose_cache(cache, domains, preprocess, slots, decoding["device"])
    if place == "none":
        return None, sentence
    return DecodedCache(domains, preprocess, place=place, progress=progress, **decoding), sentence


def _free_gpu(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]


def _available_host(_: torch.device) -> int:
    return available_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # the ranks of a machine share its memory


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
