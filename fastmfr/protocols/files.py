"""Files that a stranger's folder or list names: regular files only, of bounded size; and how lists are read.

Every reader of lists uses `list_text` and `entry_path`, so that a list means the same wherever the list was saved.
"""

import codecs
import os
import stat
from pathlib import Path

MOST = 1 << 30  # bytes; a larger file is no image of a face


def refuse_unless_regular(path: Path) -> None:
    """Raise ValueError for a device, pipe or socket before it is opened: reading may never end or never begin."""
    _check(path, os.stat(path))


def regular_bytes(path: Path, most: int | None = MOST) -> bytes:
    """Read a regular file, or the regular file that a link leads to.

    Args:
        path: the file.
        most: the largest size in bytes; None sets no bound.

    Raises:
        OSError: the file cannot be read.
        ValueError: `path` is no regular file, or holds more than `most` bytes.
    """
    refuse_unless_regular(path)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        _check(path, status)  # again, for another may have taken its place
        if most is not None and status.st_size > most:
            raise ValueError(f"{path} has {status.st_size:,} bytes; want an image of at most {most:,}")
        return file.read(status.st_size)


def list_text(path: Path) -> str:
    """Read the text of a list; a byte order mark is dropped and every line ends in \\n.

    A list is UTF-8, or UTF-16 if a byte order mark says so.

    Raises:
        UnicodeDecodeError: the file is no text.
        OSError: the file cannot be read.
        ValueError: `path` is no regular file.
    """
    content = regular_bytes(path, most=None)
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if marked else "utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def entry_path(entry: str) -> str:
    """Turn a list's entry into a path: \\ becomes /; blanks around the entry and a leading ./ are dropped."""
    path = entry.strip().replace("\\", "/")
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return path


def _check(path: Path, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):  # opening a folder gives an error of its own
        return
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    kind = kinds.get(stat.S_IFMT(status.st_mode), "something else")
    raise ValueError(f"{path} is {kind}; want a regular file: copy its content into one")
