"""What is known of images: which ones can be decoded and which are bad; found out once, for all streams of a run."""

import numpy as np

UNKNOWN, GOOD, BAD = range(3)


def full_key(domain, image):
    """What a bad image is reported as: "domain/key"."""
    return f"{domain.name}/{domain.key(image)}"


class Verdicts:
    """Verdicts on the images of any number of domains, as one decoder finds them; shared by the streams it is given to.

    `bad`: "domain/key" -> reason, in the order found. `report({name: reason})` is called for each bad image, once.
    """

    def __init__(self, report=lambda bad: None):
        self.bad, self._report, self._known = {}, report, {}

    def of(self, domain, image):
        """UNKNOWN, GOOD (decoded alone before) or BAD of an image, or of several; a domain is known by the object."""
        return self._of_all(domain)[image]

    def accept(self, domain, image):
        """The image can be decoded."""
        self._of_all(domain)[image] = GOOD

    def reject(self, domain, image, reason):
        """The image is bad, whatever was known before; the first reason is kept."""
        self._of_all(domain)[image] = BAD
        name = full_key(domain, image)
        if name not in self.bad:
            self.bad[name] = reason
            self._report({name: reason})

    def _of_all(self, domain):
        if domain not in self._known:
            self._known[domain] = np.zeros(domain.images, np.uint8)
        return self._known[domain]
