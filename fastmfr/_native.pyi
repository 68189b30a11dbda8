"""Types of the compiled extension (csrc/bindings.cpp); fastmfr.native imports them."""

from collections.abc import Sequence
from os import PathLike

import numpy as np
from numpy.typing import NDArray

_Three = tuple[int, int, int]
_Five = tuple[int, int, int, int, int]

def batchnorm_statistics(
    is_double: bool,
    sizes: _Three,
    running_mean: int,
    running_variance: int,
    momentum: float,
    eps: float,
    x: int,
    mean: int,
    r: int,
) -> None: ...
def batchnorm_forward(is_double: bool, sizes: _Three, layer: _Five, slopes: int, x: int, y: int) -> None: ...
def batchnorm_backward(
    is_double: bool, sizes: _Three, layer: _Five, slopes: int, batch: bool, x: int, dy: int, dx: int, sum: int
) -> None: ...
def batchnorm_tangent(
    is_double: bool,
    sizes: _Three,
    layer: _Five,
    slopes: int,
    moving: _Three,
    batch: bool,
    x: int,
    xd: int,
    yd: int,
    moved: int,
) -> None: ...
def batchnorm_second_backward(
    is_double: bool,
    sizes: _Three,
    layer: _Five,
    slopes: int,
    moving: _Three,
    batch: bool,
    x: int,
    dy: int,
    xd: int,
    dyd: int,
    sum: int,
    moved: int,
    dxd: int,
    sum_d: int,
) -> None: ...
def gather_images(
    images: NDArray[np.uint8],
    index: NDArray[np.int64] | None,
    mirror: NDArray[np.bool_] | None,
    shift: NDArray[np.int32] | None,
    block: NDArray[np.int32] | None,
    gain: NDArray[np.float32] | None,
    offset: NDArray[np.float32] | None,
    mean: float,
    scale: float,
    out: NDArray[np.float32],
) -> None: ...
def warp_image(image: NDArray[np.uint8], map: NDArray[np.float64], out: NDArray[np.uint8]) -> None: ...

class FileChanged(ValueError): ...

class RecordFile:
    def __init__(self, records: str | PathLike[str], index: str | PathLike[str]) -> None: ...
    @property
    def images(self) -> int: ...
    @property
    def identities(self) -> int: ...
    @property
    def offsets(self) -> NDArray[np.int64]: ...
    @property
    def note(self) -> str: ...
    def key(self, image: int) -> int: ...
    def label(self, image: int) -> int: ...
    def jpeg(self, image: int) -> NDArray[np.uint8]: ...
    def jpegs(self, images: NDArray[np.int64]) -> list[NDArray[np.uint8]]: ...

class Sampler:
    def __init__(
        self,
        names: Sequence[str | bytes],
        offsets: Sequence[NDArray[np.int64]],
        share: int,
        seed: int,
        rank: int,
        world: int,
        augment: bool,
        per_domain: bool,
        people: Sequence[NDArray[np.uint32]] = ...,
        turns: NDArray[np.uint32] = ...,
    ) -> None: ...
    def dropped(self, domain: int) -> int: ...
    def batch(self, step: int) -> NDArray[np.int64]: ...
    def split(self, step: int, meta_test: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
