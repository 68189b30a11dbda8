"""Which images can be decoded and which are bad, found out once for all streams of a run."""

from collections.abc import Callable

import numpy as np

from fastmfr.image_set import ImageSet

UNKNOWN, GOOD, BAD = range(3)


class Verdicts:
    """Verdicts on the images of any number of domains, by one decoder; several streams may share them.

    Attributes:
        bad: {"domain/key": reason} of every bad image, in the order found.
    """

    def __init__(self, report: Callable[[dict[str, str]], object] = lambda bad: None):
        """Begin with no verdict.

        Args:
            report: called with {"domain/key": reason} of each bad image, once.
        """
        self.bad: dict[str, str] = {}
        self._report, self._known = report, {}

    def of(self, domain: ImageSet, image: int | np.ndarray) -> np.ndarray:
        """Return UNKNOWN, GOOD (decoded alone before) or BAD for each image number of one domain object, uint8."""
        return self._of_all(domain)[image]

    def accept(self, domain: ImageSet, image: int) -> None:
        """Note that the image can be decoded."""
        self._of_all(domain)[image] = GOOD

    def reject(self, domain: ImageSet, image: int, reason: str) -> None:
        """Note that the image is bad, even after `accept`; the first reason is kept."""
        self._of_all(domain)[image] = BAD
        label = domain.label_of(image)
        if label not in self.bad:
            self.bad[label] = reason
            self._report({label: reason})

    def _of_all(self, domain: ImageSet) -> np.ndarray:
        if domain not in self._known:
            self._known[domain] = np.zeros(domain.images, np.uint8)
        return self._known[domain]
