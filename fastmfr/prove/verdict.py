"""What the gains say, in sentences: does it help, by how much, what part is the look-ahead's, which model to take."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastmfr.prove.arms import COSFACE, NO_META
from fastmfr.prove.gains import Gain, View, followed
from fastmfr.results import BASE, CHOSEN, MFR

SEEDS = 5  # fewer are a first look
MOST_SEEDS = 200  # beyond this many nobody is advised to go on


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Attributes:
        headline: one sentence.
        sentences: what it rests on.
        take: the model to hand out, a name; the base if nothing is better, None if nothing is decided.
    """

    headline: str
    sentences: Sequence[str] = field(default_factory=list)
    take: str | None = BASE


def said(gain: Gain | None) -> str:
    """A gain in points, with its interval."""
    if gain is None:
        return "not measured"
    interval = "" if gain.low is None or gain.high is None else f" ({100 * gain.low:+z.1f} to {100 * gain.high:+z.1f})"
    return f"{100 * gain.mean:+z.1f}{interval}"


def verdict(views: Sequence[View], titles: Mapping[str, str], figure: str, called: str) -> Verdict:
    """Judge the models.

    Args:
        views: as `gains.views` returns them.
        titles: what each model is called.
        figure: the figure to judge by, which every cell has.
        called: what the figure is called.
    """
    if not views:
        return Verdict("No seed and domain has all models yet: there is nothing to judge.", take=None)
    view, seeds = views[0], len({seed for seed, _ in views[0].cells})
    domains = list(dict.fromkeys(left_out for _, left_out in view.cells))
    names = [name for name in view.rows if name != BASE]
    if not names:
        return Verdict("Only the base was scored: there is nothing to compare it with.", take=None)
    gains = {name: _measured(view.gain(name, BASE, figure)) for name in names}
    best = max(names, key=lambda name: gains[name].mean)
    worth = followed(view, figure) or gains[best]
    where = f"domains that it has not seen ({', '.join(domains)})"
    if len(domains) == 1:
        where = f"{domains[0]}, which it has not seen"
    sentences = [*_parts(view, gains, figure, called), *_by_domain(views, domains, figure, titles)]
    if len(domains) > 1:
        sentences.append(
            f"Had you taken, for each domain, the model that is best on the other domains, you would have gained "
            f"{said(worth)} over the base: so much is this comparison worth on a domain of which you have no people."
        )
    elif len(names) > 1:
        sentences.append(f"The best of {len(names)} models on one domain flatters itself; leave out other domains too.")
    if seeds < SEEDS:
        sentences.append(_first_look(seeds))
    best_so_far = f"{titles[best]}, {called} {said(gains[best])} points over its base on {where}"
    if gains[best].low is None:
        return Verdict(f"One seed decides nothing; the best so far is {best_so_far}.", sentences, None)
    if gains[best].is_above and worth.is_above:
        headline = f"{titles[best]} is better than its base on {where}: {called} {said(gains[best])} points."
        return Verdict(headline, sentences, best)
    if gains[best].is_above:
        headline = (
            f"Which model is best changes from domain to domain: hand out the base. On average it is {best_so_far}."
        )
        return Verdict(headline, sentences)
    if all(gain.is_below for gain in gains.values()):
        return Verdict(f"Everything that was tried is worse than the base on {where}: hand out the base.", sentences)
    return Verdict(
        f"Nothing that was tried can be told from its base on {where}: hand out the base"
        f"{_how_many(titles[best], gains[best], seeds)}.",
        sentences,
    )


def _measured(gain):
    if gain is None:
        raise ValueError("a cell lacks the figure that the models are judged by")
    return gain


def _first_look(seeds):
    if seeds < 2:
        return f"One seed allows no interval: runs of one setting differ by points. Want --seeds {SEEDS}."
    return f"{seeds} seeds are a first look; want --seeds {SEEDS} or more before you believe an interval."


def _parts(view, gains, figure, called):
    """What the whole of MFR gains, and which part of it comes from where."""
    told = []
    if MFR in gains:
        told.append(f"MFR over its base: {said(gains[MFR])} points of {called}")
        for other, what in (
            (COSFACE, "MFR over as many steps more of stage one"),
            (NO_META, "the look-ahead's part, MFR over the same losses without it"),
            ("first_order", "the second order's part, MFR over its first order"),
        ):
            if other in view.rows:
                told.append(f"{what}: {said(view.gain(MFR, other, figure))}")
    brackets = " In brackets 95 % of what other seeds and people would give." if _has_intervals(gains) else ""
    sentences = [f"{'; '.join(told)}.{brackets}"] if told else []
    chosen = f"{MFR}:{CHOSEN}"
    if chosen in gains:
        sentences.append(f"The model that a run hands out, chosen on people of its sources: {said(gains[chosen])}.")
    return sentences


def _has_intervals(gains):
    return all(gain.low is not None for gain in gains.values())


def _by_domain(views, domains, figure, titles):
    """On how many domains each of the main models is above its base, and below it."""
    alone = [view for view in views if view.title in domains]
    if len(alone) < 2 or min(len(view.cells) for view in alone) < 2:
        return []
    told = []
    for name in (MFR, f"{MFR}:{CHOSEN}"):
        if name in alone[0].rows:
            found = [_measured(view.gain(name, BASE, figure)) for view in alone]
            above, below = sum(gain.is_above for gain in found), sum(gain.is_below for gain in found)
            told.append(
                f"{titles[name]}: above its base beyond the interval on {above} of {len(alone)}, below on {below}"
            )
    return [f"Domain by domain. {'. '.join(told)}."] if told else []


def _how_many(title, gain, seeds):
    """How many seeds could tell a gain as large as the one seen from nothing, if its spread is that of the runs."""
    if gain.low is None or gain.mean <= 0:
        return ""
    wanted = math.ceil(seeds * ((gain.high - gain.low) / 2 / gain.mean) ** 2)
    if not seeds < wanted <= MOST_SEEDS:
        return ""
    return f", or try about {wanted} seeds, which could tell the {100 * gain.mean:+.1f} points of {title} from nothing"
