"""python -m fastmfr prove: is MFR better on domains that it has not seen? Each of your domains is left out in turn."""

import argparse
import math
import shlex
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from fastmfr.commands.typed_model import refuse_ranks
from fastmfr.config import Config, parse
from fastmfr.run_folder import in_use
from fastmfr.text import printable

EPILOG = """\
domains and settings are those of train: --data.sources.NAME PATH for each domain that is left out in turn, at least
three; --data.targets.NAME PATH for one that is never trained on and scored by every model; --config RECIPE; --seed for
the first seed. An arm is trained from the base of its seed and its domain left out; beside its last weights it has the
averages ARM:mean and ARM:ema, and ARM:chosen, which is what a run hands out.
"""


def main(arguments: list[str]) -> int:
    """Run the command line: make what is missing, write the page, print the verdict.

    Raises:
        ValueError, OSError: what went wrong, in a sentence.
        KeyboardInterrupt: stopped; a note says how to go on.
    """
    options, settings = _parser().parse_known_args(arguments)
    refuse_ranks("python -m fastmfr prove")
    config = _config(settings)
    out = Path(options.out)
    left_out = _left_out(options.leave_out, config)
    if out.exists() and not out.is_dir():
        raise ValueError(f"want --out as a folder, but {out} is none")
    if options.seeds < 1:
        raise ValueError(f"want --seeds of at least 1, got {options.seeds}")
    if not options.minutes > 0:
        raise ValueError(f"want --minutes above 0, got {options.minutes:g}")
    if options.jobs < 1:
        raise ValueError(f"want --jobs of at least 1, got {options.jobs}")
    if not config.meta.steps:
        raise ValueError("want --meta.steps above 0: all arms take as many steps as stage two")
    from fastmfr.progress import new_console  # these need torch, whose import takes seconds: a typo is answered before
    from fastmfr.prove.arms import arms_of, by_default, models_of, refused
    from fastmfr.prove.checks import check_data, without_chosen
    from fastmfr.prove.comparison import Comparison

    arms = arms_of(options.arm)
    own = [word.partition("=")[0] for word in options.arm]
    names = models_of([*(options.arms or by_default(config)), *own], arms)
    if reasons := refused(names, arms, config):
        raise ValueError("; ".join(f"the arm {name} {reason}" for name, reason in reasons.items()))
    seeds = range(config.seed, config.seed + options.seeds)
    again = f"python -m fastmfr prove {shlex.join(arguments)}"
    console = new_console()
    how = {"keep": options.keep_weights, "jobs": options.jobs}
    comparison = Comparison(config, out, arms, names, seeds, left_out, console, **how)
    out.mkdir(parents=True, exist_ok=True)
    with in_use(out):
        if comparison.missing:
            held, can_choose = check_data(config, comparison.trained, left_out, out, console)
            if not can_choose:
                names = without_chosen(names, asked=bool(options.arms), console=console)
                comparison = Comparison(config, out, arms, names, seeds, left_out, console, **how)
            comparison.check_data(held)
        return _compare(comparison, config, out, arms, names, options, again)


def _compare(comparison, config, out, arms, names, options, again):
    """Make what is missing, write the page and print the verdict."""
    from fastmfr.prove.jobs import Work, run_side_by_side
    from fastmfr.prove.report import write_report

    with closing(comparison):
        comparison.say_plan()
        if options.dry_run:
            return 0
        try:
            if options.jobs > 1:
                work = Work(config, out, arms, names, options.keep_weights)
                run_side_by_side(comparison, work, options.jobs, options.minutes)
            else:
                comparison.run(options.minutes)
        except (KeyboardInterrupt, OSError) as stopped:
            stopped.add_note(f"go on with: {again}")
            raise
        missing = len(comparison.missing)
        verdict, notes, page = write_report(out, config, arms, names, comparison.rows, missing=missing, again=again)
    said = ("", verdict.headline, *verdict.sentences, *(f"note: {note}" for note in notes), f"page    {page}")
    print(*map(printable, said), sep="\n")
    return 0


def _config(settings) -> Config:
    """The settings; a recipe's targets count only if its sources do, and domains that are left out are no targets."""
    config, resume = parse(settings, prog="python -m fastmfr prove")
    if resume:
        raise ValueError("prove has no --resume: the same command goes on where it was stopped")

    def typed(side):
        return any(word.startswith(f"--data.{side}.") for word in settings)

    targets = {} if typed("sources") and not typed("targets") else dict(config.data.targets)
    sources = config.data.sources
    if twice := [name for name in targets if name in sources]:
        if typed("targets"):
            raise ValueError(
                f"{', '.join(twice)} is among data.sources, which are left out and scored in turn; want --data.targets "
                "of other domains"
            )
        targets = {name: path for name, path in targets.items() if name not in sources}
    if odd := [name for name in sources if "/" in name or not name.isprintable()]:
        raise ValueError(f"want domains with names that can be part of a folder's, got {', '.join(map(repr, odd))}")
    if len(sources) < 3:
        raise ValueError(
            f"want three domains or more as --data.sources.NAME PATH: one is left out, and MFR needs two to train on; "
            f"got {', '.join(sources) or 'none'}"
        )
    return replace(  # whichever domain is left out, batches have one size
        config,
        data=replace(config.data, targets=targets),
        pretrain=replace(config.pretrain, batch_identities=config.pretrain.people),
        meta=replace(config.meta, batch_identities=config.meta.people),
    )


def _left_out(wanted, config):
    """The domains to leave out in turn."""
    sources = list(config.data.sources)
    if strange := [name for name in wanted or () if name not in sources]:
        raise ValueError(f"want --leave-out out of {', '.join(sources)}; got {', '.join(strange)}")
    return [name for name in sources if not wanted or name in wanted]


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m fastmfr prove",
        description="Leave each of several domains out in turn. Train on the others a base, and arms that go on from "
        "it, over seeds. Say, with intervals, whether meta-training helps on a domain that was not seen.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", metavar="FOLDER", default="runs/prove", help="figures and page (default: runs/prove)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="how many (default: 5)")
    parser.add_argument("--leave-out", nargs="+", metavar="NAME", help="sources to leave out in turn (default: all)")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="what to compare; see docs/proving.md for all")
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar='"NAME=SETTING=VALUE ..."',
        help="an arm of your own: stage two with other settings of the section meta",
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no model that would be ready later")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="seeds and domains left out at a time (default: 1)"
    )
    parser.add_argument("--keep-weights", action="store_true", help="keep the weights of all arms, which fill disks")
    parser.add_argument("--dry-run", action="store_true", help="say what would be made and how long it would take")
    return parser
