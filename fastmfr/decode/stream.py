"""From encoded images to batches on the device, in order, whatever the images are like.

DALI, or Pillow in its place, decodes on its own threads, `prefetch` batches ahead. A batch it cannot decode raises an
error that names no image and is lost to it, while later batches still come in order; that one batch is then decoded
image by image, its culprits replaced, so the user sees every batch, in order.
Shape suffixes: B = images of a batch, 3 = RGB, H W = preprocess.size.
"""

import weakref
from contextlib import contextmanager
from functools import partial

import torch

from .backend import checked_decoder
from .batches import Batches, check_whole, checked_device
from .finish import Finish
from .pipeline import Vetting, build_pipeline, close_pipeline, decoding_failure, pixels
from .source import Reader, Source
from .verdicts import Verdicts


class Decoding(Batches):
    """Batches of decoded pixels, each handed to `_use`; the arguments, errors and the rest are ImageStream's."""

    def __init__(
        self,
        domains,
        requests,
        preprocess,
        *,
        batch_images,
        first=0,
        last=None,
        device="cpu",
        threads=2,
        decoder="cpu",
        prefetch=2,
        vet=False,
        verdicts=None,
    ):
        check_whole(
            batch_images=(batch_images, 1),
            first=(first, 0),
            last=(first if last is None else last, first),
            threads=(threads, 1),
            prefetch=(prefetch, 1),
            number_of_domains=(len(domains), 1),
        )
        super().__init__(first)
        self._device = checked_device(device)
        decoder = checked_decoder(decoder, self._device)
        self._aside = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._vetting = Vetting(self._device, decoder)
        # A stream dropped without being closed: DALI's graph is a cycle, which holds the source, the reader and this.
        weakref.finalize(self, self._vetting.close).atexit = False
        self._reader = Reader(domains, verdicts or Verdicts(), preprocess.size, self._vetting if vet else None)
        self._source = Source(self._reader, requests, batch_images=batch_images, first=first, last=last)
        self.bad = self._reader.bad
        self._build = partial(build_pipeline, size=preprocess.size, device=self._device, decoder=decoder)
        self._pipeline = self._build(self._source, images=batch_images, threads=threads, prefetch=prefetch)

    def close(self):
        """Stop the decoder's threads. Batches already given out stay valid; iterating on ends at once."""
        super().close()
        close_pipeline(self._pipeline)
        self._pipeline = None  # the only reference, so this runs DALI's destructor, which joins the threads
        self._vetting.close()
        self._source.ahead.clear()

    def _use(self, number, pixel_BHW3):
        """What batch `number` is given out as: a tensor. The pixels, uint8, are valid during the call only."""
        raise NotImplementedError

    def _make(self, number):
        with self._borrowing():
            try:
                pixel_BHW3 = pixels(self._pipeline)
            except StopIteration:
                if self._source.error:
                    raise self._source.error from None
                raise
            except RuntimeError as error:
                decoding_failure(error)  # raises what is not an image's fault
                pixel_BHW3 = self._one_by_one(self._source.ahead[number])
            batch = self._use(number, pixel_BHW3)
        if batch.is_cuda:
            batch.record_stream(torch.cuda.current_stream(self._device))
        del self._source.ahead[number]
        return batch

    def _one_by_one(self, batch):
        """Decode a batch the decoder refused, each image alone, replacing those that fail."""
        images, run = [], []
        pipeline = self._build(lambda _: run, images=1, threads=1, prefetch=1)
        for slot in range(len(batch.encoded)):
            one = slice(slot, slot + 1)
            while len(images) == slot:
                alone = self._source.fetch(batch.domain_B[one], batch.image_B[one])
                run[:] = alone[:2]
                try:
                    with self._borrowing():
                        images.append(pixels(pipeline).clone())
                except RuntimeError as error:
                    self._reader.reject(int(batch.domain_B[slot]), int(alone.found_B[0]), decoding_failure(error))
        close_pipeline(pipeline)
        return torch.cat(images)

    @contextmanager
    def _borrowing(self):
        """While it lasts DALI leaves its output alone; it may write to it again as soon as the tensor is dropped.

        On a GPU that could be before the kernels that read it have run. They therefore get a stream apart, which is
        waited for: that does not wait for the training step.
        """
        if self._aside is None:
            yield
            return
        with torch.cuda.stream(self._aside):
            yield
        self._aside.synchronize()


class ImageStream(Decoding):
    """Iterate to get (i, image_B3HW) for i = first, first + 1, ... below `last` (None: for ever).

    `domains`: objects with .name .images .offsets .jpeg(i) .jpegs(image_B) .key(i), like fastmfr.domains.Domain.
    `requests(i)`: two whole-number arrays (batch_images,), domain and image of every slot; must be pure in i, and is
    called up to `prefetch` batches ahead. Each image_B3HW is float32, contiguous, on `device`, and the caller's own.
    `decoder`: "cpu", or "mixed" to decode and resize on the GPU that `device` is; choose_decoder finds the faster one.
    "pillow" does without DALI, and is what "cpu" means where DALI is not installed.
    `wait_seconds`: time spent waiting for data so far. `bad`: "domain/key" -> reason, of every bad image met so far.
    `vet`: decode each image alone when it is first met. DALI 2.4 can crash the process on a batch that holds an image
    it cannot decode (32 images or more were enough); vetted, it never sees one.
    `verdicts`: a Verdicts that several streams of one decoder share, so that an image is first met once for them all.
    Use as a context manager, or call close(); a stream that ended or was dropped has closed itself.

    Raises ValueError for arguments out of range; when its turn comes, for a request outside the domains or a domain
    without a good image.
    """

    def __init__(
        self,
        domains,
        requests,
        preprocess,
        *,
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
    ):
        check_whole(seed=(seed, 0))
        super().__init__(
            domains,
            requests,
            preprocess,
            batch_images=batch_images,
            first=first,
            last=last,
            device=device,
            threads=threads,
            decoder=decoder,
            prefetch=prefetch,
            vet=vet,
            verdicts=verdicts,
        )
        self._finish = Finish(preprocess, seed, self._device)

    def _use(self, number, pixel_BHW3):
        return self._finish(number, pixel_BHW3)
