"""From encoded images to batches on the device, in order, whatever the images are like.

DALI decodes on its own threads, `prefetch` batches ahead. A batch it cannot decode raises an error that names no image
and is lost to it, while later batches still come in order; that one batch is then decoded image by image, its culprits
replaced, so the user sees every batch, in order.
Shape suffixes: B = images of a batch, 3 = RGB, H W = preprocess.size.
"""

import time

import torch

from .pipeline import build_pipeline
from .source import Reader, Source


class ImageStream:
    """Iterate to get (i, image_B3HW) for i = first, first + 1, ... below `last` (None: for ever).

    `domains`: objects with .name .images .offsets .jpeg(i) .jpegs(image_B) .key(i), like fastmfr.domains.Domain.
    `requests(i)`: two whole-number arrays (batch_images,), domain and image of every slot; must be pure in i, and is
    called up to `prefetch` batches ahead. Each image_B3HW is float32, contiguous, on `device`, and the caller's own.
    `wait_seconds`: time spent waiting for data so far. `bad`: "domain/key" -> reason, of every bad image met so far.
    Use as a context manager, or call close(); a stream that ended or was dropped has closed itself.

    Raises ValueError for arguments out of range; when its turn comes, for a request outside the domains or a domain
    without a good image.
    """

    def __init__(self, domains, requests, preprocess, *, batch_images, seed=0, first=0, last=None, device="cpu",
                 threads=2, prefetch=2):
        for name, value, least in (("batch_images", batch_images, 1), ("seed", seed, 0), ("first", first, 0),
                                   ("last", first if last is None else last, first), ("threads", threads, 1),
                                   ("prefetch", prefetch, 1), ("number of domains", len(domains), 1)):
            if not (isinstance(value, int) and value >= least):
                raise ValueError(f"{name}: want a whole number, at least {least}, got {value!r}")
        self.wait_seconds = 0.0
        self._next, self._device, self._preprocess = first, _checked_device(device), preprocess
        self._copying = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._reader = Reader(domains)
        self._source = Source(self._reader, requests, preprocess, batch_images=batch_images, seed=seed, first=first,
                              last=last)
        self.bad = self._reader.bad
        self._pipeline = build_pipeline(self._source, preprocess, self._device, images=batch_images,
                                        threads=threads, prefetch=prefetch)

    def __iter__(self):
        return self

    def __next__(self):
        if self._pipeline is None:
            raise StopIteration
        start = time.perf_counter()
        try:
            image_B3HW = self._decoded(self._pipeline)
        except BaseException:
            self.close()
            raise
        finally:
            self.wait_seconds += time.perf_counter() - start
        number, self._next = self._next, self._next + 1
        del self._source.ahead[number]
        return number, image_B3HW

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """Stop DALI's threads. Batches already given out stay valid; iterating on ends at once."""
        self._pipeline = None  # the only reference, so this runs its destructor, which joins the threads
        self._source.ahead.clear()

    def _decoded(self, pipeline):
        try:
            return self._own(pipeline.run())
        except StopIteration:
            if self._source.error:
                raise self._source.error from None
            raise
        except RuntimeError as error:
            _decoding_failure(error)  # raises what is not an image's fault
            return self._one_by_one(self._source.ahead[self._next])

    def _one_by_one(self, batch):
        """Decode a batch DALI refused, each image alone, replacing those that fail."""
        todo, images = [], []
        pipeline = build_pipeline(lambda _: todo.pop(), self._preprocess, self._device, images=1, threads=1, prefetch=1)
        for slot in range(len(batch.encoded)):
            one = slice(slot, slot + 1)
            while len(images) == slot:
                alone = self._source.fetch(batch.domain_B[one], batch.image_B[one], batch.mirror_B[one])
                todo.append(alone[:3])
                try:
                    images.append(self._own(pipeline.run()))
                except RuntimeError as error:
                    self._reader.reject(int(batch.domain_B[slot]), alone.found_B[0], _decoding_failure(error))
        return torch.cat(images)

    def _own(self, outputs):
        """The pipeline's one output as a torch tensor that nothing else will write to."""
        image_B3HW = outputs[0].as_tensor()
        if self._copying is None:
            return torch.from_dlpack(image_B3HW)  # DALI never reuses an output that someone still holds
        # On a GPU it may, once the tensor is dropped, while kernels that read it are still queued. So copy, on a stream
        # apart: waiting for the copy then does not wait for the training step.
        with torch.cuda.stream(self._copying):
            copy_B3HW = torch.from_dlpack(image_B3HW).clone()
        self._copying.synchronize()
        copy_B3HW.record_stream(torch.cuda.current_stream(self._device))
        return copy_B3HW


def _decoding_failure(error):
    """DALI's reason in one line, if an image could not be decoded; any other error is raised again."""
    operator, _, reason = str(error).partition("encountered:")
    if "decoders.image" not in operator:
        raise error
    reason = " ".join(reason.partition("Current pipeline object")[0].split()).strip(" :")
    return f"cannot be decoded ({reason})"


def _checked_device(name):
    device = torch.device(name)
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(f"device: want cpu, or cuda on a machine where torch finds a GPU, got {name}")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
