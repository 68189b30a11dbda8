"""What is embedded: a class folder, a RecordIO file or a list of paths, with the person of each image."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmfr.domains import SIZED, open_domain
from fastmfr.image_set import ImageSet
from fastmfr.protocols.files import refuse_unless_regular
from fastmfr.protocols.images import ImageFiles, find_image
from fastmfr.protocols.lists import image_root, lines, path_and_identity


@dataclass(frozen=True)
class Source:
    """Images in their order.

    Attributes:
        images: the images.
        names: the name of each person.
        person: int (N,), the number of the person in each image.
        path: where the images, or their list, are.
        fingerprint: a hash that changes if images are added, removed or exchanged.
    """

    images: ImageSet
    names: list[str]
    person: np.ndarray
    path: Path
    fingerprint: str


def open_source(path: str | os.PathLike) -> Source:
    """Open a class folder, a RecordIO folder or its .rec file, or a list of paths.

    A line of a list is as of `path_and_identity`: `path<TAB>identity`, a path alone, or a line of mxnet's .lst. Paths
    are relative to the list's folder, or to a folder above. An image that is listed twice is embedded twice.

    Raises:
        FileNotFoundError: nothing is at `path`.
        ValueError: `path` is no source, or holds no image.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; a source is a class folder, a RecordIO folder or a list of paths")
    if not path.is_dir() and path.suffix != ".rec":
        return _open_list(path)
    domain = open_domain(path)
    names = [domain.identity_name(identity) for identity in range(domain.identities)]
    person = np.repeat(np.arange(domain.identities), np.diff(domain.offsets))
    return Source(domain, names, person, path.resolve(), domain.fingerprint())


def _open_list(path):
    refuse_unless_regular(path)
    rows = [path_and_identity(line) for _, line in lines(path)]
    if not rows:
        raise ValueError(f"{path} names no image; want a line `path` or `path<TAB>identity` an image")
    entries = [entry for entry, _ in rows]
    names = list(dict.fromkeys(identity for _, identity in rows))
    number = {name: place for place, name in enumerate(names)}
    root = image_root(path, entries)
    person = np.array([number[identity] for _, identity in rows])
    return Source(ImageFiles(path.stem, root, entries), names, person, path.resolve(), _fingerprint(root, rows))


def _fingerprint(root, rows):
    """A hash of the list, and of the sizes of the files if they are few, as in `Domain.fingerprint`."""
    digest = hashlib.sha256()
    for entry, identity in rows:
        digest.update("\0".join(["", entry, identity]).encode("utf-8", "surrogateescape"))
        if len(rows) <= SIZED:
            found = find_image(root, entry)
            digest.update(b"%d" % (found.stat().st_size if found else -1))
    return digest.hexdigest()
