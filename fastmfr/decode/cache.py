"""Images decoded once and kept, so that a batch is one gather: no decoding, no waiting.

A batch made of kept pixels equals, bit for bit, the one that an ImageStream decodes: both end in finish.py. Bad images
are replaced by the same rule, once; `bad` then names those of all domains, asked for or not.
Shape suffixes: N = images of all domains, one domain after the other, B = images of a batch, 3 = RGB, H W = image.
"""

from itertools import accumulate

import numpy as np
import torch

from fastmfr.runtime import available_bytes

from .batches import Batches, check_whole, checked_device, checked_request
from .finish import Finish
from .stream import Decoding, ImageStream

CACHES = ("auto", "gpu", "host", "none")
SHARE = 0.5  # of the free memory that `auto` may take: weights, activations and the system need the rest
_FILL = 256  # images decoded at a time while the cache is filled


class DecodedCache:
    """All images of `domains`, decoded, in one tensor; made once, for any number of streams.

    `place`: "host" or "gpu". `device`: where batches are wanted, a CUDA device for "gpu"; images are decoded for it.
    `image_NHW3`: uint8. `starts`: the number of each domain's first image. `bad`: as ImageStream's.
    `progress(done, total)` is called as images are decoded. Raises ValueError where ImageStream would, or where
    `place` is neither.
    """

    def __init__(
        self,
        domains,
        preprocess,
        *,
        place,
        device="cpu",
        threads=2,
        decoder="cpu",
        vet=False,
        verdicts=None,
        progress=lambda done, total: None,
    ):
        check_whole(number_of_domains=(len(domains), 1))
        self.domains, self.size, self.place, self.device = list(domains), preprocess.size, place, checked_device(device)
        if place not in ("host", "gpu") or (place == "gpu" and self.device.type != "cuda"):
            raise ValueError(f"want a cache on the host, or on the gpu of a CUDA device; got {place!r}, {self.device}")
        *self.starts, images = accumulate((domain.images for domain in domains), initial=0)
        self.starts = np.array(self.starts)
        shape = images, self.size, self.size, 3
        if place == "gpu":
            self.image_NHW3 = torch.empty(shape, dtype=torch.uint8, device=self.device)
        else:  # NumPy asks Linux for huge pages, torch does not: reading at random is a tenth to a fifth faster
            self.image_NHW3 = torch.from_numpy(np.empty(shape, np.uint8))
        decoding = {"threads": threads, "decoder": decoder, "vet": vet, "verdicts": verdicts}
        with _Filling(self, preprocess, min(images, _FILL), **decoding) as filling:
            for _ in filling:
                progress(min(filling.done, images), images)
            filling.hand_over()
        self.bad = dict(filling.bad)

    def holds(self, domains, size):
        """Whether these are its domains, in its order and size."""
        same = len(domains) == len(self.domains) and all(map(lambda a, b: a is b, domains, self.domains))
        return same and size == self.size


class _Filling(Decoding):
    """Decodes all images in order, into the cache; the last batch is filled up with the last image."""

    def __init__(self, cache, preprocess, batch_images, **decoding):
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

    def hand_over(self):
        """Has the current stream of the device wait until the cache is written."""
        if self._aside:
            torch.cuda.current_stream(self._device).wait_stream(self._aside)

    def _requests(self, number):
        wanted = np.arange(number * self._batch_images, (number + 1) * self._batch_images)
        wanted = wanted.clip(max=len(self._cache.image_NHW3) - 1)
        domain_B = np.searchsorted(self._cache.starts, wanted, side="right") - 1
        return domain_B, wanted - self._cache.starts[domain_B]

    def _use(self, number, pixel_BHW3):
        kept_BHW3 = self._cache.image_NHW3[self.done : self.done + self._batch_images]
        kept_BHW3.copy_(pixel_BHW3[: len(kept_BHW3)])
        self.done += len(kept_BHW3)
        return kept_BHW3


class CachedStream(Batches):
    """What ImageStream does, out of a DecodedCache: the same batches, the same interface, the same errors."""

    def __init__(self, cache, requests, preprocess, *, batch_images, seed=0, first=0, last=None):
        check_whole(
            batch_images=(batch_images, 1),
            seed=(seed, 0),
            first=(first, 0),
            last=(first if last is None else last, first),
        )
        if preprocess.size != cache.size:
            raise ValueError(f"the cache holds images of {cache.size} pixels, want {preprocess.size}; decode them anew")
        super().__init__(first)
        self.bad = cache.bad
        self._cache, self._requests, self._images, self._last = cache, requests, batch_images, last
        self._finish = Finish(preprocess, seed, cache.device)

    def _make(self, number):
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


def choose_cache(wanted, domains, preprocess, slots, device):
    """(choice, sentence): "gpu", "host" or "none" out of CACHES, and which it is and why.

    `slots`: how many images all streams will ask for, each counted every time; None means without end. "auto" keeps
    images that will be asked for more than once on average, on the GPU if they fit in half of its free memory, else on
    the host if they fit in half of its available memory. Raises ValueError where the cache asked for cannot be had.
    """
    if wanted not in CACHES:
        raise ValueError(f"want cache out of {', '.join(map(repr, CACHES))}, got {wanted!r}")
    images, device = sum(domain.images for domain in domains), torch.device(device)
    size = images * preprocess.size**2 * 3
    what = f"{images:,} images of {preprocess.size} x {preprocess.size} pixels, {_bytes(size)}"
    if wanted == "none":
        return "none", f"no cache: images are decoded for every batch ({what} decoded)"
    if wanted == "gpu" and device.type != "cuda":
        raise ValueError(f"cache gpu wants a CUDA device, but the device is {device}; want host, auto or none")
    if wanted == "auto" and slots is not None and slots <= images:
        return "none", f"no cache: {slots:,} images are asked for of {images:,}, so keeping them would not pay"
    places = {"gpu": _free_gpu, "host": _available_host}
    tried = []
    for place in [wanted] if wanted != "auto" else places if device.type == "cuda" else ["host"]:
        free = places[place](device)
        allowed = int(free * (SHARE if wanted == "auto" else 1))
        if size <= allowed:
            return place, f"cache on the {place}: {what}; {_bytes(free)} are free there"
        tried.append(f"{_bytes(allowed)} on the {place}")
    if wanted != "auto":
        raise ValueError(f"cache {wanted}: {what}, do not fit in the {tried[0]}; want auto or none, or a smaller size")
    return "none", f"no cache: {what}, are more than half of what is free, {' and '.join(tried)}"


def open_stream(
    domains,
    requests,
    preprocess,
    *,
    cache="none",
    batch_images,
    seed=0,
    first=0,
    last=None,
    device="cpu",
    threads=2,
    decoder="cpu",
    prefetch=2,
    vet=False,
    verdicts=None,
    progress=lambda done, total: None,
):
    """An ImageStream, or a CachedStream with the same batches; its `sentence` says which and why.

    `cache`: one of CACHES, filled now where one is chosen, or a DecodedCache of these domains. The other arguments, the
    batches and the errors are ImageStream's; `progress` is DecodedCache's.
    """
    options = {"batch_images": batch_images, "seed": seed, "first": first, "last": last}
    decoding = {"device": device, "threads": threads, "decoder": decoder, "vet": vet, "verdicts": verdicts}
    if isinstance(cache, DecodedCache):
        if not cache.holds(domains, preprocess.size) or cache.device != checked_device(device):
            raise ValueError(
                f"the cache was made of other domains, for another size or device (it has {cache.size} "
                f"pixels, {cache.device}); make one for this stream, or give cache='none'"
            )
        sentence = f"cache on the {cache.place}, filled before"
    else:
        slots = None if last is None else (last - first) * batch_images
        place, sentence = choose_cache(cache, domains, preprocess, slots, device)
        if place != "none":
            cache = DecodedCache(domains, preprocess, place=place, progress=progress, **decoding)
    if isinstance(cache, DecodedCache):
        stream = CachedStream(cache, requests, preprocess, **options)
    else:
        stream = ImageStream(domains, requests, preprocess, prefetch=prefetch, **options, **decoding)
    stream.sentence = sentence
    return stream


def _free_gpu(device):
    return torch.cuda.mem_get_info(device)[0]


def _available_host(_):
    return available_bytes()


def _bytes(count):
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
