"""From encoded images to batches on the device, in order, even if some images are bad.

DALI, or Pillow in its place, decodes on its own threads, `prefetch` batches ahead. A batch that the decoder fails on
raises an error that names no image and is lost to the decoder, while later batches still come in order. The lost batch
is then decoded image by image, with bad images replaced, so the user sees every batch, in order. A batch of more
pixels than source.MOST_PIXELS is decoded part by part.
Shape suffixes: B = images of a batch, 3 = RGB, H W = preprocess.size.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from fastmfr.config import Preprocess
from fastmfr.image_set import ImageSet

from .backend import checked_decoder
from .batches import Batches, Requests, check_whole, checked_device
from .finish import Finish
from .pipeline import Vetting, build_pipeline, close_pipeline, decoding_failure, pixels
from .preprocess import Frame
from .source import Batch, Reader, Source
from .verdicts import Verdicts


class ImageStream(Batches):
    """Iterate to get (i, image_B3HW) for i = first, first + 1, ... below `last`.

    Each image_B3HW is float32, contiguous, on `device`, and the caller may keep and change it. Use the stream as a
    context manager, or call close(); a stream that ended or was dropped has closed itself.

    Args:
        domains: the images, by domain.
        requests: requests(i) returns two whole-number arrays (batch_images,), domain and image of every slot of batch
            i. The result must depend on i alone; it is asked for up to `prefetch` batches ahead.
        preprocess: size, fit, normalisation and changes at random. Images with landmarks are aligned.
        batch_images: images of a batch.
        seed: of the changes at random.
        first: the first batch.
        last: the batch to end before; None streams without end.
        device: where the batches are put.
        threads: CPU threads that decode.
        decoder: "cpu"; "mixed" to decode and resize on the GPU that `device` is; without DALI "nvjpeg", torchvision's,
            on that GPU, or "pillow", as "cpu" is if DALI is not installed. `choose_decoder` finds the faster one.
        prefetch: batches decoded ahead.
        vet: whether to decode each image alone when it is first met. DALI 2.4 can crash the process on a batch with an
            image that it cannot decode (32 images or more were enough); a vetted batch has no such image.
        verdicts: which images are good and bad. Streams with one decoder may share an object, so that each image is
            vetted once for all.
        slot_B: as Finish takes it, for a stream that has a part of every batch.

    Raises:
        ValueError: an argument is out of range; while iterating, a request is outside the domains, or a domain has no
            good image.
    """

    def __init__(
        self,
        domains: Sequence[ImageSet],
        requests: Requests,
        preprocess: Preprocess,
        *,
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
    ):
        """Start to decode."""
        check_whole(
            seed=(seed, 0),
            batch_images=(batch_images, 1),
            first=(first, 0),
            last=(first if last is None else last, first),
            threads=(threads, 1),
            prefetch=(prefetch, 1),
            number_of_domains=(len(domains), 1),
        )
        super().__init__(first)
        where = self._device = checked_device(device)
        decoder = checked_decoder(decoder, where)
        self._aside = torch.cuda.Stream(where) if where.type == "cuda" else None
        self._vetting = Vetting(where, decoder)
        # For a stream dropped without being closed: DALI's graph is a cycle that holds source, reader and vetting.
        weakref.finalize(self, self._vetting.close).atexit = False
        frame = Frame(preprocess.size, preprocess.fit, any(domain.landmark_N52 is not None for domain in domains))
        self._reader = Reader(domains, verdicts or Verdicts(), frame, self._vetting if vet else None)
        self._source = Source(self._reader, requests, batch_images=batch_images, first=first, last=last)
        self.bad = self._reader.bad
        self._build = partial(build_pipeline, frame=frame, device=where, decoder=decoder, threads=threads)
        self._pipeline = self._build(self._source, images=batch_images, prefetch=prefetch)
        self._finish = Finish(preprocess, seed, where, slot_B)

    def close(self) -> None:
        """Stop the decoder's threads. Batches already returned stay valid; further iteration ends at once."""
        super().close()
        close_pipeline(self._pipeline)
        self._pipeline = None  # the only reference, so this runs DALI's destructor, which joins the threads
        self._vetting.close()
        self._source.ahead.clear()

    def _use(self, number: int, pixel_BHW3: torch.Tensor) -> torch.Tensor:
        """The result of batch `number`. The pixels, uint8, are valid during the call only."""
        return self._finish(number, pixel_BHW3)

    def _make(self, number: int) -> torch.Tensor:
        with self._borrowing():
            try:
                pixel_BHW3 = pixels(self._pipeline)
                asked = self._source.ahead[number]
                if asked.most < len(asked.encoded):
                    pixel_BHW3 = self._part_by_part(asked)
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

    def _part_by_part(self, batch: Batch) -> torch.Tensor:
        """Decode a batch of too many pixels, as many images at once as the bound allows."""
        parts = [slice(start, start + batch.most) for start in range(0, len(batch.encoded), batch.most)]
        runs = iter([(batch.encoded[part], batch.need_B[part], batch.map_B23[part]) for part in parts])
        pipeline = self._build(lambda _: next(runs), images=batch.most, prefetch=1)
        decoded = []
        try:
            for _ in parts:
                with self._borrowing():
                    decoded.append(pixels(pipeline).clone())
        finally:
            close_pipeline(pipeline)
        return torch.cat(decoded)

    def _one_by_one(self, batch: Batch) -> torch.Tensor:
        """Decode a batch that the decoder failed on, each image alone, with bad images replaced."""
        images: list[torch.Tensor] = []
        run: list = []  # (encoded, need_B, map_B23) of the image to decode
        pipeline = self._build(lambda _: tuple(run), images=1, threads=1, prefetch=1)
        for slot in range(len(batch.encoded)):
            one = slice(slot, slot + 1)
            while len(images) == slot:
                alone = self._source.fetch(batch.domain_B[one], batch.image_B[one])
                run[:] = alone[:3]
                try:
                    with self._borrowing():
                        images.append(pixels(pipeline).clone())
                except RuntimeError as error:
                    self._reader.reject(int(batch.domain_B[slot]), int(alone.found_B[0]), decoding_failure(error))
        close_pipeline(pipeline)
        return torch.cat(images)

    @contextmanager
    def _borrowing(self) -> Iterator[None]:
        """Keep DALI from writing to its output: DALI may do so as soon as the output's tensor is dropped.

        On a GPU that could happen before the kernels that read the output have run. These kernels run on a separate
        CUDA stream, and this waits for that stream, not for the training step.
        """
        if self._aside is None:
            yield
            return
        with torch.cuda.stream(self._aside):
            yield
        self._aside.synchronize()
