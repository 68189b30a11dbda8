"""Files that are replaced as a whole: a reader, and a process killed while it writes, find the old file or the new."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["of_usual_mode", "replacing", "write_text"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to, which replaces `path` when the block ends without an error.

    Raises:
        OSError: the folder cannot be written to.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def of_usual_mode(path: Path) -> Iterator[None]:
    """Give `path` the mode of any new file, by the umask, after a block that writes to it.

    safetensors makes files that their owner alone can read, whatever the umask says.
    """
    path.touch()
    mode = path.stat().st_mode & 0o777
    yield
    path.chmod(mode)


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` by `text`, in UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
