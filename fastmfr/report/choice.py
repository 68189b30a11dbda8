"""Which model a run hands out, beside the others it could have handed out, as a table for the page."""

from html import escape

from fastmfr.results import Candidate, Choice

from .markup import footnote

READING = (
    "In percent, on people of the sources who were kept out of training; no target was looked at. Over all: TAR over "
    "all pairs, a mean over FAR 1e-2 and 1e-3; then the same within each domain. Score: the mean of Over all and of "
    "the mean over the domains. Few people make a coarse score: differences of a few points are within its noise."
)


def shown(choice: Choice) -> list[Candidate]:
    """Return the candidate handed out, and of each stage the last weights and their averages, in order of training."""
    last = {candidate.of_stage: candidate.steps for candidate in choice.candidates}
    return [
        candidate
        for candidate in choice.candidates
        if candidate is choice.best or candidate.steps == last[candidate.of_stage]
    ]


def choice_parts(choice: Choice | None) -> list[str]:
    """Return the part of the page as pieces of HTML; none if no candidate was scored."""
    if choice is None or choice.best is None:
        return []
    why = [f"<p>{escape(choice.why)}.</p>"] if choice.why else []
    return ["<h2>Model handed out</h2>", *why, _table(choice, choice.best), footnote(READING)]


def _table(choice: Choice, best: Candidate) -> str:
    domains = list(best.within)
    head = "".join(f"<th>{escape(title)}</th>" for title in ("Model", "Score", "Over all", *domains))
    lines = []
    for candidate in shown(choice):
        shares = (candidate.score, candidate.together, *(candidate.within.get(domain) for domain in domains))
        figures = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in (str(candidate), *figures))
        lines.append(f"<tr{' class=main' if candidate is best else ''}>{cells}</tr>")
    table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table class="gap">{table}</table></div>'
