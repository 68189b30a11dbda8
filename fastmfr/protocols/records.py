"""RecordIO folders under any name: opened in place, or by an index that is made if theirs is missing or of no use."""

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmfr.atomic import write_text

from .record_index import Index, index_of

if TYPE_CHECKING:
    from fastmfr.native import RecordFile

RECORDS, INDEX = "train.rec", "train.idx"
_NAMED = 3  # records left out that a note names


def find_records(path: Path) -> tuple[Path, Path | None] | None:
    """Find a RecordIO file, and the index beside it.

    Args:
        path: a .rec file, or the folder of one.

    Returns:
        (records, index): the file, or train.rec, or the only .rec file of a folder without folders; and the index of
        that name, or train.idx, or None. None if there is no such file.

    Raises:
        ValueError: there are several .rec files, and none is train.rec.
    """
    is_file = path.suffix == ".rec" and path.is_file()
    records = path if is_file else path / RECORDS
    if not records.is_file():
        found = sorted(file for file in path.glob("*.rec") if file.is_file())
        if not found or any(entry.is_dir() for entry in path.iterdir()):
            return None
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise ValueError(f"{path} holds {names}, and want one domain; name one of them, {path / found[0].name}")
        records = found[0]
    beside = (records.with_suffix(".idx"), records.parent / INDEX)
    return records, next((path for path in beside if path.is_file()), None)


class Records:
    """Images of a RecordIO file, read in place; the source of a Domain."""

    def __init__(self, records: Path, index: Path | None):
        """Open the file `records` by its index; None makes an index, and keeps the index beside the file if possible.

        Raises:
            ValueError: there is no record that can be used.
            ImportError: the compiled extension is not built.
        """
        self.records, self.notes = records, ()
        self._index, self._file = (index, self._opened(index)) if index else self._made()
        self.offsets = self._file.offsets
        self.jpeg, self.jpegs = self._file.jpeg, self._file.jpegs
        if self._file.note:
            self.notes += (self._file.note,)

    def key(self, image: int) -> str:
        """Return the name of the file and the key of the record."""
        return f"{self.records.name}:{self._file.key(image)}"

    def identity_name(self, identity: int) -> str:
        """Return the label of an identity."""
        return str(self._file.label(int(self.offsets[identity])))

    def add_to(self, digest: Any) -> None:
        """Hash the index and the size of the records."""
        digest.update(b"%d" % self.records.stat().st_size)
        if isinstance(self._index, str):
            digest.update(self._index.encode())
            return
        with self._index.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())

    def _made(self) -> "tuple[Path | str, RecordFile]":
        """An index made out of the records, the file of it or its text if the folder cannot be written to; opened."""
        made, beside = index_of(self.records), self.records.with_suffix(".idx")
        if not made.text:
            raise ValueError(f"{self.records} holds no record that can be used; copy or pack it again")
        file = self._opened_by(made.text)
        self._note_left_out(made)
        try:
            write_text(beside, made.text)
        except OSError as error:
            self.notes += (f"{self.records} has no index, and the one made of it cannot be kept beside it: {error}",)
            return made.text, file
        self.notes += (f"{self.records} had no index; {beside.name} was made of it",)
        return beside, file

    def _opened(self, index: Path) -> "RecordFile":
        from fastmfr.native import FileChanged, RecordFile  # here, since class folders do without the extension

        try:
            return RecordFile(self.records, index)
        except FileChanged:
            raise
        except ValueError:
            sound = self._sound_part(index)
            if sound is None:
                raise
        self._note_left_out(sound)
        return self._opened_by(sound.text)

    def _sound_part(self, index: Path) -> Index | None:
        """The index of the records that can be used, if they are most; None for a file that is cut short."""
        try:
            sound = index_of(self.records, index)
        except (ValueError, OSError):
            return None
        few = 0 < len(sound.left_out) <= sound.text.count("\n")
        return None if sound.cut_short or not few else sound

    def _opened_by(self, text: str) -> "RecordFile":
        """The file opened by an index that is in no file."""
        from fastmfr.native import RecordFile

        with tempfile.TemporaryDirectory(prefix="fastmfr-") as place:
            index = Path(place) / INDEX
            index.write_text(text)
            try:
                return RecordFile(self.records, index)  # which has read the index when it returns
            except ValueError as error:
                raise ValueError(str(error).replace(str(index), f"the index of {self.records}")) from error

    def _note_left_out(self, index: Index) -> None:
        if index.left_out:
            first = "; ".join(f"{key}: {reason}" for key, reason in index.left_out[:_NAMED])
            self.notes += (
                f"{len(index.left_out):,} records of {self.records} are left out, for they are damaged or of nobody "
                f"known ({first}{'; ...' if len(index.left_out) > _NAMED else ''}); pack the folder to be rid of them",
            )
