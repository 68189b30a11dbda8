"""Files that a stranger's folder or list names: regular files only, of bounded size; and how lists are read.

Every reader of lists goes by `list_text` and `entry_path`, so that a list means the same wherever it was saved.
"""

import codecs
import os
import stat
from pathlib import Path

MOST = 1 << 30  # bytes of an image; one that claims more is no image


def refuse_unless_regular(path: Path) -> None:
    """Raises ValueError for a device, pipe or socket, which may never end or never begin, before it is opened."""
    _check(path, os.stat(path))


def regular_bytes(path: Path, most: int | None = MOST) -> bytes:
    """The content of a regular file, or of one that a link leads to.

    Raises OSError where it cannot be read, ValueError where it is no regular file or holds more than `most` bytes.
    """
    refuse_unless_regular(path)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        _check(path, status)  # again, for another may have taken its place
        if most is not None and status.st_size > most:
            raise ValueError(f"{path} has {status.st_size:,} bytes; want an image of at most {most:,}")
        return file.read(status.st_size)


def list_text(path: Path) -> str:
    """The text of a list, UTF-8 or, where a byte order mark says so, UTF-16; without the mark, lines end in \\n.

    Raises UnicodeDecodeError where it is none, and as `regular_bytes` does.
    """
    content = regular_bytes(path, most=None)
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if marked else "utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def entry_path(entry: str) -> str:
    """A list's entry as a path: / or \\ between folders, blanks around it and a leading ./ dropped."""
    path = entry.strip().replace("\\", "/")
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return path


def _check(path, status):
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):  # opening a folder gives an error of its own
        return
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    kind = kinds.get(stat.S_IFMT(status.st_mode), "something else")
    raise ValueError(f"{path} is {kind}; want a regular file: copy its content into one")
