"""How others get batches of images: a torch DataLoader, an image decoded in Pillow, OpenCV or simplejpeg.

All read the bytes as fastmfr does, in place, and give what it gives: float32 (B, 3, H, W), normalised, half mirrored.
"""

import io
import random
from importlib.util import find_spec

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from fastmfr.domains import open_domain

MEAN, STD = 127.5, 128.0


def pillow(encoded):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def opencv(encoded):
    import cv2

    return cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)


def simplejpeg(encoded):
    from simplejpeg import decode_jpeg

    return decode_jpeg(encoded, "RGB")


DECODERS = {"pillow": pillow} | {
    function.__name__: function
    for function, module in ((opencv, "cv2"), (simplejpeg, "simplejpeg"))
    if find_spec(module)
}
MISSING = sorted({"opencv", "simplejpeg"} - set(DECODERS))


class Faces(Dataset):
    """The images of a domain, opened by each worker for itself."""

    def __init__(self, folder, decode):
        self._folder, self._decode, self._domain = folder, decode, None
        self._images = open_domain(folder).images

    def __len__(self):
        return self._images

    def __getitem__(self, image):
        if self._domain is None:
            self._domain = open_domain(self._folder)
        pixel_HW3 = self._decode(self._domain.jpeg(image))
        if random.random() < 0.5:
            pixel_HW3 = pixel_HW3[:, ::-1]
        image_3HW = torch.from_numpy(np.ascontiguousarray(pixel_HW3.transpose(2, 0, 1)))
        return image_3HW.float().sub_(MEAN).div_(STD)


def endless_loader(folder, decode, batch_images, workers):
    """Batches without end, in random order; workers are started once and run ahead as they do by default."""
    faces = Faces(folder, decode)
    order = RandomSampler(faces, replacement=True, num_samples=1 << 40)
    # spawn: a fork of a process with threads, such as one that has used DALI, may hang
    return iter(
        DataLoader(
            faces,
            batch_images,
            sampler=order,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
    )
