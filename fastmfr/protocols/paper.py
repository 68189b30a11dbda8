"""The protocols of Meta Face Recognition (arXiv 2003.07733): their domains, and the sizes of these.

GFR-R leaves each of four races out in turn. GFR-V learns from all four races and is scored on five other kinds of
faces. The authors never released their lists: `python -m fastmfr split` draws lists of these sizes from any folder.
"""

from collections.abc import Collection
from dataclasses import dataclass

from .source_target import Protocol

RACES = ("caucasian", "asian", "african", "indian")
VARIETIES = ("cacd-vs", "casia-nir-vis", "multi-pie", "meglass", "public-ivs")
TRAIN = {"caucasian": (1957, 6757), "asian": (1492, 5784), "african": (1995, 6938), "indian": (1984, 6857)}
LOOKED_UP = {  # (people, images) of the gallery, then of the probes
    **dict.fromkeys(RACES, ((1000, 1000), (1000, 1000))),
    "cacd-vs": ((2000, 2000), (2000, 2000)),
    "casia-nir-vis": ((358, 358), (363, 6208)),  # each of its ten folds, about
    "multi-pie": ((337, 1184), (337, 1181)),
    "meglass": ((1710, 3420), (1710, 3420)),
    "public-ivs": ((1262, 1262), (1262, 4241)),
}


@dataclass(frozen=True)
class PaperProtocol:
    """A protocol of the paper.

    Attributes:
        sources: the names of the source domains.
        targets: the names of the target domains.
        far: the false accept rates that the paper reports.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    far: tuple[float, ...]

    def missing(self, names: Collection[str]) -> list[str]:
        """Return the targets that are not among `names`."""
        return [target for target in self.targets if target not in names]

    def over(self, paths: dict[str, str]) -> Protocol:
        """Return the protocol over a user's {domain: path}: all sources, and those targets that are there.

        Raises:
            ValueError: a source is missing, or every target.
        """
        lacking = [name for name in self.sources if name not in paths]
        targets = {name: paths[name] for name in self.targets if name in paths}
        if lacking or not targets:
            raise ValueError(f"the protocol lacks {', '.join(lacking or self.targets)}; give each as NAME: PATH")
        return Protocol({name: paths[name] for name in self.sources}, targets)


def _left_out(race: str) -> PaperProtocol:
    return PaperProtocol(tuple(name for name in RACES if name != race), (race,), (1e-2, 1e-3, 1e-4))


PROTOCOLS = {
    "gfr-r-1": _left_out("indian"),
    "gfr-r-2": _left_out("african"),
    "gfr-r-3": _left_out("asian"),
    "gfr-r-4": _left_out("caucasian"),
    "gfr-v": PaperProtocol(RACES, VARIETIES, (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)),
}


def paper_protocol(name: str) -> PaperProtocol:
    """Return the protocol named gfr-r-1 to gfr-r-4 (GFR-R I to IV) or gfr-v; ValueError for another name."""
    if name not in PROTOCOLS:
        raise ValueError(f"there is no protocol {name!r}; want one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def unlike_the_paper(name: str, gallery: tuple[int, int], probe: tuple[int, int]) -> str | None:
    """Compare the (people, images) of a domain's lists with the paper's.

    Args:
        name: the domain.
        gallery: (people, images) of the gallery.
        probe: (people, images) of the probes.

    Returns:
        A sentence if they differ; None if they are equal or the paper has no such domain.
    """
    wanted = LOOKED_UP.get(name)
    if wanted is None or wanted == (gallery, probe):
        return None
    ours, papers = (
        ", ".join(
            f"{kind} {people:,} people {images:,} images"
            for kind, (people, images) in zip(("gallery", "probe"), sizes, strict=True)
        )
        for sizes in ((gallery, probe), wanted)
    )
    return f"{name} is not of the paper's size, so that figures compare only roughly: {ours}; the paper has {papers}"
