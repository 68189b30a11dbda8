"""The page of a profile, in Markdown: where the time of a step goes, stage by stage, and what binds."""

import json
from collections.abc import Iterator
from pathlib import Path

from fastmfr.atomic import write_text
from fastmfr.profiling import (
    BACKWARD,
    CURVATURE,
    DATA,
    FORWARD,
    LOSSES,
    PARTS,
    RECORDS,
    REPLAY,
    SAVING,
    SCORING,
    UPDATE,
)
from fastmfr.results import META, PRETRAIN, from_json
from fastmfr.training.profile_figures import REST, Figures

COMPUTING = (FORWARD, LOSSES, BACKWARD, CURVATURE, UPDATE, REPLAY)
IDLE = 0.2  # part of a step that a GPU waits, from which on the page looks for the reason on the host
OFTEN = 0.1  # part of all steps from which on the page advises to score or save less often
LESS_OFTEN = {SCORING: "choose.every or evaluate.every", SAVING: "save_every"}
MEANINGS = {
    DATA: "the step waits for the next images",
    FORWARD: "the backbone on the images",
    LOSSES: "losses, and their gradients on the embeddings",
    BACKWARD: "gradients on the weights",
    CURVATURE: "Hessian-vector products, forward and backward of theirs included",
    UPDATE: "inner steps, the optimizer, averages of the weights",
    REPLAY: "launching a step that is recorded as a CUDA graph",
    RECORDS: "on a GPU the host waits here until the step is computed",
    SCORING: "scores taken on the way",
    SAVING: "what of keeping a state holds training up; files are written meanwhile",
    REST: "laying images out, and Python between the parts",
}
HEAD = """# Where the time goes

Seconds are the host's, a step each, in the process that trains. A part within another one counts as the outer one.
"""


def write_page(folder: Path) -> None:
    """Write page.md out of the figures of the stages that lie in `folder`, as STAGE.json."""
    paths = [folder / f"{stage}.json" for stage in (PRETRAIN, META)]
    stages = [from_json(Figures, json.loads(path.read_text()), path.name) for path in paths if path.is_file()]
    write_text(folder / "page.md", "\n".join([HEAD, *(line for figures in stages for line in _section(figures))]))


def binding(figures: Figures) -> str:
    """Return what binds the steps of a stage, and what would change that, in a sentence."""
    shares = figures.steady.shares
    data = shares.get(DATA, 0.0)
    if figures.on_device and figures.on_device.idle >= IDLE and data < figures.on_device.idle / 2:
        return (
            f"host: the GPU is idle for {_percent(figures.on_device.idle)} of a step, and not for want of images; let "
            "steps be replayed (cuda_graph true), or give the process more of a core"
        )
    computing = sum(shares.get(name, 0.0) for name in COMPUTING)
    if figures.on_device:  # the host waits for the GPU where it reads losses
        computing += shares.get(RECORDS, 0.0)
    rest = 1 - computing - data
    most = max(computing, data, rest)
    if most == data:
        return (
            f"data: {_percent(data)} of a step waits for images; raise data.threads (now {figures.threads}) up to the "
            f"cores that are free, or let data.cache keep decoded images (now {figures.cache!r})"
        )
    if most == computing:
        return (
            f"arithmetic: {_percent(computing)} of a step computes, {_longest_part(figures)}; a faster data path would "
            f"save at most {_percent(data)}"
        )
    return (
        f"host: {_percent(most)} of a step is in none of the parts; the steps are small beside Python's work for each"
    )


def too_often(figures: Figures) -> str:
    """Return which of scores and states take much of all steps, in sentences, or ""."""
    shares = figures.whole.shares
    return "".join(
        f" Over all steps, {name} takes {_percent(shares[name])}; raise {setting}."
        for name, setting in LESS_OFTEN.items()
        if shares.get(name, 0.0) >= OFTEN
    )


def _longest_part(figures):
    if figures.on_device:
        parts, whole = figures.on_device.parts, sum(figures.on_device.parts.values()) or 1.0
        name = max(parts, key=parts.__getitem__, default=REST)
        return f"{_percent(parts.get(name, 0.0) / whole)} of the GPU's work in {name}"
    shares = figures.steady.shares
    name = max(COMPUTING, key=lambda part: shares.get(part, 0.0))
    return f"most of it in {name} ({_percent(shares.get(name, 0.0))})"


def _section(figures: Figures) -> Iterator[str]:
    steady, whole, device = figures.steady, figures.whole, figures.on_device
    yield f"## {figures.stage}\n"
    yield f"What binds: {binding(figures)}.{too_often(figures)}\n"
    yield (
        f"{steady.steps} steps after {figures.after} of warming up took {_seconds(steady.step_seconds)} each on "
        f"{figures.device}, scores and states apart. The last columns are of {whole.steps:,} steps, all of this "
        "process but the traced ones.\n"
    )
    extra = " GPU, operation by operation |" if device else ""
    yield f"| part | a steady step | share |{extra} all steps, each | share | times | what it is |"
    yield f"|---|---:|---:|{'---:|' if device else ''}---:|---:|---:|---|"
    for name in (*PARTS, REST):
        if name in steady.shares or name in whole.shares or (device and name in device.parts):
            yield _row(name, figures)
    cells = ["all", _seconds(steady.step_seconds), _percent(sum(steady.shares.values()))]
    cells += [_seconds(sum(device.parts.values()) / _steps_apart(figures))] if device else []
    cells += [_seconds(whole.step_seconds), _percent(sum(whole.shares.values())), "", ""]
    yield f"| {' | '.join(cells)} |\n"
    if device:
        yield f"The GPU is idle for {_percent(device.idle)} of a step as training takes it.\n"
    yield from _of_trace(figures)


def _row(name, figures):
    steady, whole, device = figures.steady, figures.whole, figures.on_device
    cells = [name, _seconds(_of_a_step(steady, name)), _percent(steady.shares.get(name, 0.0))]
    cells += [_seconds(device.parts.get(name, 0.0) / _steps_apart(figures))] if device else []
    cells += [_seconds(_of_a_step(whole, name)), _percent(whole.shares.get(name, 0.0))]
    cells += [f"{whole.times[name]:,}" if name in whole.times else "", MEANINGS[name]]
    return f"| {' | '.join(cells)} |"


def _of_trace(figures):
    """What the traced steps tell."""
    slower = figures.traced.step_seconds / figures.steady.step_seconds
    yield (
        f"[The trace]({figures.stage}.trace.json.gz) opens in ui.perfetto.dev or chrome://tracing; its ranges "
        f'"fastmfr: ..." are the parts. Tracing made a step {slower:.2f} times as long.\n'
    )
    if figures.apart.steps:
        yield (
            "A step that is replayed from a CUDA graph is one launch to the host, and opaque: its parts cannot be told "
            f"apart. So {figures.apart.steps} more steps ran operation by operation (`step, apart` in the trace) and "
            f"took {_seconds(figures.apart.step_seconds)} each; the GPU's seconds of the parts are theirs. How long "
            "the GPU is idle was seen in steps as training takes them.\n"
        )
    yield f"The longest operations of the traced steps, on the {'GPU' if figures.on_device else 'CPU'}:\n"
    yield "| operation | calls | seconds |\n|---|---:|---:|"
    for one in figures.longest:
        yield f"| `{one.name[:90].replace('|', '/')}` | {one.calls:,} | {one.seconds:.4f} |"
    yield ""


def _steps_apart(figures):
    return max(1, figures.apart.steps or figures.traced.steps)


def _of_a_step(span, name):
    return span.shares.get(name, 0.0) * span.step_seconds


def _seconds(seconds):
    return f"{1e3 * seconds:,.2f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _percent(share):
    return f"{100 * share:.0f} %" if share >= 0.095 or share < 0.0005 else f"{100 * share:.1f} %"
