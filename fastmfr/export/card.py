"""MODEL_CARD.md beside exported files: what the model is, how its images are prepared, its results and its data.

A card that is written again keeps what the user wrote on the intended use, sections that the user added, and those on
other files.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fastmfr.atomic import write_text
from fastmfr.protocols.landmarks import UNUSED
from fastmfr.report.tables import columns
from fastmfr.text import printable

from .facts import Facts

CARD = "MODEL_CARD.md"
USE = "Intended use"
BLANK = """\
> **TO BE FILLED IN by whoever hands this model on:** what it is for, by whom and on whom it may be used, with whose
> consent, what it must not be used for, at which threshold, and who answers for it."""
FILE = "File "
FITS = {  # data.fit: what it does
    "crop": "Resize the shorter side to {size} pixels, with antialiasing, and crop the centre, {pixels}.",
    "pad": "Resize the longer side to {size} pixels, with antialiasing, and add black at both ends of the other side, "
    "{pixels}.",
    "stretch": "Resize both sides, with antialiasing, to {pixels} pixels.",
}


def check_card(folder: Path, facts: Facts) -> None:
    """Raise ValueError if the folder has a model card of another model, or of somebody else."""
    path = folder / CARD
    if path.is_file() and facts.digest not in path.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{path} is not of these weights; move it, or name a file in another folder by --out")


def write_card(path: Path, facts: Facts, metadata: Mapping[str, str], checked: str) -> Path:
    """Write the model card beside an exported file.

    Args:
        path: the exported file.
        facts: the model.
        metadata: the metadata of the file.
        checked: how the file was checked, in a sentence.

    Returns:
        The card.
    """
    card = path.with_name(CARD)
    before = _sections(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else {}
    sections = {
        "What it is": list(_what(facts)),
        "How images must be prepared": list(_preparation(facts)),
        f"{FILE}`{_cell(path.name)}`": [checked[0].upper() + checked[1:] + ".", "", *_table(metadata)],
    }
    for title, body in before.items():
        if title.startswith(FILE) and (path.parent / title.removeprefix(FILE).strip("`")).is_file():
            sections.setdefault(title, [body])
    sections |= {
        "Results": list(_results(facts)),
        "Trained on": list(_trained_on(facts)),
        USE: [before.get(USE, BLANK)],
    }
    sections |= {title: [body] for title, body in before.items() if title not in sections and FILE not in title}
    lines = [f"# Model card of {_cell(facts.name)}", "", *_introduction(facts)]
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body]
    write_text(card, "\n".join(lines) + "\n")
    return card


def _sections(text) -> dict[str, str]:
    """{title: body} of a card."""
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)[1:]
    return {title.strip(): body.strip() for title, body in zip(parts[::2], parts[1::2], strict=True)}


def _introduction(facts) -> Iterator[str]:
    yield "Written by `python -m fastmfr export`. If it is written again, what stands under *Intended use* is kept."
    yield f"The weights have the SHA-256 `{facts.digest}`."


def _what(facts) -> Iterator[str]:
    config, backbone = facts.model.config, facts.model.backbone
    size = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
    yield f"- A face-recognition backbone, {config.model.name}, of {size:.2f} million parameters."
    yield "- It maps an aligned face to an embedding. The cosine of two embeddings says how alike two faces are."
    if not facts.run:
        yield "- The weights lie in no run folder, so how they were trained is not known here."
        return
    yield f"- Trained by fastmfr in the run {_cell(facts.run.name)}, recipe {_cell(config.recipe)}, seed {config.seed}."
    if facts.steps is not None:
        yield f"- The weights were kept after {facts.steps:,} steps of their stage of training."
    if config.model.weights:
        yield f"- Training began from the weights {_cell(Path(config.model.weights).name)}, trained elsewhere."
    choice = facts.results and facts.results.choice
    if choice and choice.why and facts.model.weights.stem == "chosen":
        yield f"- Why this model was chosen: {_cell(choice.why)}."


def _preparation(facts) -> Iterator[str]:
    look = facts.model.preprocess
    pixels = f"{look.size} x {look.size}"
    yield f"1. Crop and align each face as the training images were. {_alignment(facts.model.config.data)}"
    yield "2. Take the channels in the order RGB. OpenCV reads BGR."
    yield f"3. {FITS[look.fit].format(size=look.size, pixels=pixels)}"
    yield f"4. Take (pixel - {look.mean:g}) / {look.std:g} of pixels from 0 to 255, unless the file normalises."
    yield "5. Lay out a batch as N x 3 x height x width, float32."
    if facts.scored:
        yield "6. The results below are of embeddings with the mirror image's embedding beside, compared by the cosine."


def _alignment(data) -> str:
    """What the run says of how its images were aligned."""
    if aligned := [name for name in (*data.sources, *data.pretrain) if data.landmarks.get(name, UNUSED) != UNUSED]:
        return (
            "fastmfr aligned the images of these domains by five landmarks to ArcFace's places: "
            f"{_cell(', '.join(aligned))}."
        )
    return "fastmfr took the training images as they were."


def _results(facts) -> Iterator[str]:
    scored = facts.scored
    if not scored:
        yield "This model was not scored by its run."
        return
    shown = columns(facts.results)
    yield (
        "In percent, with 95 % intervals over the people scored. TAR@f: share of genuine pairs accepted at false "
        "accept rate f. The figures are of these images; on others they will be other ones."
    )
    yield ""
    yield from _rows(["Target", "seen in training", "people", *[column.title for column in shown]])
    for name, (unseen, scores) in scored.items():
        figures = [_figure(column, scores) for column in shown]
        seen = "never" if unseen else "the domain; not these people"
        people = "-" if scores.identities is None else f"{scores.identities:,}"
        yield _row([name, seen, people, *figures])
    refused = {
        f"{name}: {rate.refused}"
        for name, (_, scores) in scored.items()
        for rate in scores.tar_at_far.values()
        if rate.refused
    }
    yield from (f"\n`-` on {_cell(reason)}." for reason in sorted(refused))


def _figure(column, scores) -> str:
    share, interval = column.share(scores), column.interval(scores)
    if share is None:
        return "-"
    ends = f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
    return f"{100 * share:.{column.decimals}f}{ends}"


def _trained_on(facts) -> Iterator[str]:
    if not facts.held:
        yield "What the model was trained on is not recorded beside its weights."
        return
    data, is_base = facts.model.config.data, facts.model.weights.stem == "base"
    yield from _rows(["Domain", "people", "images", "learned from in"])
    for name, held in facts.held.items():
        first, second = name in (data.pretrain or data.sources), name in data.sources and not is_base
        stages = " and ".join(["stage one"] * first + ["stage two"] * second)
        if stages:
            yield _row([name, f"{held.people:,}", f"{held.images:,}", stages])
    if data.new_people:
        yield f"\nOf the people of domains of both stages, {100 * data.new_people:g} % were kept for stage two alone."
    paths = {**data.sources, **data.pretrain}
    if made := [name for name in facts.held if paths.get(name, "").startswith("synthetic:")]:
        yield f"\nProcedural faces, no photographs of people: {_cell(', '.join(made))}."


def _table(values: Mapping[str, str]) -> Iterator[str]:
    yield from _rows(["", ""])
    for name, value in values.items():
        yield _row([name, value])


def _rows(titles: Sequence[str]) -> Iterator[str]:
    """The head of a table."""
    yield _row(titles)
    yield _row(["---"] * len(titles))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """The text of a stranger in one line of Markdown."""
    return printable(text).replace("|", "\\|").replace("<", "&lt;")
