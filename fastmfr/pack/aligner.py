"""Align images on their way into the records, by the landmarks in files."""

import os
from collections.abc import Sequence

import numpy as np

from fastmfr.decode.align import PLACES_SIZE, exchanged
from fastmfr.protocols.landmarks import Landmarks, read_landmarks


class Aligner:
    """Finds the landmarks of each image of several sources, and keeps account of what is missing or looks wrong.

    Attributes:
        size: pixels a side of the crops.
    """

    def __init__(self, files: Sequence[str | os.PathLike], sources: int, size: int | None):
        """Read the landmarks.

        Args:
            files: one file for all sources, or one for each source, in their order.
            sources: the number of sources.
            size: pixels a side of the crops; None takes 112.

        Raises:
            FileNotFoundError, ValueError: as read_landmarks does, or there is another number of files.
        """
        if len(files) not in (1, sources):
            raise ValueError(f"want one file of landmarks for all sources, or {sources}, one each; got {len(files)}")
        self.size, read = size or PLACES_SIZE, [read_landmarks(file) for file in files]
        self._of_source: list[Landmarks] = read if len(read) == sources else read * sources
        self._missing: list[tuple[int, int, str]] = []  # (source, image, key); threads append to both
        self._outside: list[tuple[int, int, str]] = []

    def landmarks_of(self, source: int, image: int, key: str) -> np.ndarray:
        """Return the landmarks (5, 2) of an image.

        Args:
            source: the number of the source.
            image: the number of the image within the source.
            key: what the source calls the image.

        Raises:
            ValueError: the source's file has none, or several rows that could be meant.
        """
        landmarks = self._of_source[source]
        row = landmarks.row_of(key)
        if row < 0:
            self._missing.append((source, image, key))
            raise ValueError(f"no landmarks in {landmarks.path}")
        return landmarks.landmark_N52[row]

    def note_size(self, source: int, image: int, key: str, landmark_52: np.ndarray, size: tuple[int, int]) -> None:
        """Take note if the landmarks of an image lie outside of its (width, height)."""
        if not ((landmark_52 > -1).all() and (landmark_52 < size).all()):
            self._outside.append((source, image, key))

    def notes(self) -> list[str]:
        """Return sentences on images without landmarks, on landmarks outside of an image, and on exchanged sides."""
        said = []
        if self._missing:
            first = min(self._missing)[2]
            said.append(f"{len(self._missing):,} images were left out, for they have no landmarks, the first {first}")
        if self._outside:
            said.append(
                f"{len(self._outside):,} images have landmarks outside of the image, the first {min(self._outside)[2]}"
            )
        for landmarks in dict.fromkeys(self._of_source):
            wrong_N = exchanged(landmarks.landmark_N52)
            if wrong_N.any():
                said.append(
                    f"{wrong_N.sum():,} of {len(wrong_N):,} rows of {landmarks.path} have left and right exchanged, "
                    f"the first of {landmarks.entries[int(np.argmax(wrong_N))]}: such a face is turned over"
                )
        return said
