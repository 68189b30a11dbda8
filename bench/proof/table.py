"""Means, spreads and paired differences with intervals, as Markdown.

A cell is one seed and one domain left out. Arms of a cell share their base, images and people, so they are compared
within it. Shape suffixes: R cells, P people of a target, K draws.
"""

from collections.abc import Mapping

import numpy as np

from .arms import ARMS
from .rows import Task
from .scores import FIGURES

DRAWS = 2000
CONTROLS = {"base_agg": None, "no_meta": None, "no_meta_batch": ("mfr_batch",)}  # and who is held against it alone


def report(rows: Mapping[Task, dict], arms: list[str]) -> str:
    """All tables: for the domains left out, together and each by itself, and for every other target, such as a real
    folder.

    Only cells that have all of `arms` count, so that every line of a table is of the same runs.
    """
    cells = sorted({(task.seed, task.left_out) for task in rows})
    whole = [cell for cell in cells if all(Task(*cell, arm) in rows for arm in arms)]
    if not whole:
        return "No seed and domain has all arms yet; the tables begin when one has."
    found = {arm: [rows[Task(*cell, arm)] for cell in whole] for arm in arms}
    others = sorted({name for row in found[arms[0]] for name in row["scores"] if name != row["left_out"]})
    parts = [_part("Domains left out", arms, found, lambda row: row["left_out"])]
    domains = sorted({left_out for _, left_out in whole})
    for domain in domains if len(domains) > 1 else []:
        of_domain = {arm: [row for row in rows if row["left_out"] == domain] for arm, rows in found.items()}
        parts.append(_part(f"Left out: {domain}", arms, of_domain, lambda row: row["left_out"]))
    parts += [_part(f"Unseen: {name}", arms, found, lambda _, name=name: name) for name in others]
    return "\n\n".join(parts)


def _part(title, arms, found, target_of):
    scores = {arm: [row["scores"][target_of(row)] for row in rows] for arm, rows in found.items()}
    first = found[arms[0]]
    targets, seeds = [target_of(row) for row in first], [row["seed"] for row in first]
    left_out = sorted({row["left_out"] for row in first})
    lines = [
        f"## {title}",
        "",
        f"Left out in turn: {', '.join(left_out)}; seeds {', '.join(map(str, sorted(set(seeds))))}; "
        f"runs of each arm: {len(first)}. In percent, mean and standard deviation over the seeds. TAR@f: share of "
        "genuine pairs accepted at false accept rate f; the lower the EER, the better.",
        "",
        *_means(arms, found, scores, np.array(seeds)),
    ]
    for control, alone in CONTROLS.items():
        against = [arm for arm in arms if arm != control and (alone is None or arm in alone)]
        if control in arms and against:
            lines += [
                "",
                f"Gain over {ARMS[control].title}, in points; in brackets 95 % of what drawing the runs "
                "and the people anew gives, thresholds kept.",
                "",
            ]
            lines += _differences(against, control, scores, targets)
    return "\n".join(lines)


def _means(arms, found, scores, seeds):
    lines = _head("arm", *FIGURES.values(), r"alpha \|Hv\| / \|v\|", "seconds")
    for arm in arms:
        texts = []
        for figure in FIGURES:
            value_R = _figure(scores[arm], figure)
            texts.append("-" if value_R is None else _mean_and_spread(100 * value_R, seeds))
        ratios = [row["alpha_hv_over_v"] for row in found[arm] if "alpha_hv_over_v" in row]
        texts.append(f"{np.mean(ratios):.3f}" if ratios else "-")
        texts.append(f"{np.median([row['seconds'] for row in found[arm]]):.1f}")
        lines.append(_line(ARMS[arm].title, *texts))
    return lines


def _figure(scores_R, figure):
    """(R,), or None where one of the runs lacks it."""
    if not all(figure in score for score in scores_R):
        return None
    return np.array([np.average(score[figure], weights=score["probes"]) for score in scores_R])


def _mean_and_spread(value_R, seeds):
    by_seed = [value_R[seeds == seed].mean() for seed in np.unique(seeds)]
    spread = f" ± {np.std(by_seed, ddof=1):.1f}" if len(by_seed) > 1 else ""
    return f"{value_R.mean():.1f}{spread}"


def _differences(arms, control, scores, targets):
    lines = _head("arm", *FIGURES.values())
    for arm in arms:
        texts = []
        for figure in FIGURES:
            mine, theirs = (_figure(scores[name], figure) for name in (arm, control))
            if mine is None or theirs is None:
                texts.append("-")
                continue
            low, high = 100 * difference_interval(scores[arm], scores[control], targets, figure)
            texts.append(f"{100 * (mine - theirs).mean():+z.2f} [{low:+z.2f}, {high:+z.2f}]")
        lines.append(_line(ARMS[arm].title, *texts))
    return lines


def difference_interval(mine_R, theirs_R, targets, figure, draws=DRAWS) -> np.ndarray:
    """[low, high]: the middle 95 % of the mean difference of a figure, cells and people drawn anew.

    The people of a target are drawn once a draw, for all cells that score it: they are the same people.
    """
    rng = np.random.default_rng(0)
    weights, difference_KR = {}, np.empty((draws, len(targets)))
    for cell, (mine, theirs, target) in enumerate(zip(mine_R, theirs_R, targets, strict=True)):
        probes_P = np.array(mine["probes"])
        people = len(probes_P)
        if target not in weights:
            weights[target] = rng.multinomial(people, np.full(people, 1 / people), size=draws)
        weight_KP = weights[target] * probes_P
        delta_P = np.array(mine[figure]) - np.array(theirs[figure])
        difference_KR[:, cell] = weight_KP @ delta_P / weight_KP.sum(1)
    cells = len(targets)
    share_KR = rng.multinomial(cells, np.full(cells, 1 / cells), size=draws) / cells
    return np.quantile((share_KR * difference_KR).sum(1), [0.025, 0.975])


def _head(*names):
    return [_line(*names), "|---" + "|---:" * (len(names) - 1) + "|"]


def _line(*texts):
    return "| " + " | ".join(texts) + " |"
