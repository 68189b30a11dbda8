"""Train a face model on several source domains by Meta Face Recognition and score it on domains it never saw.

With no argument it runs the recipe `quickstart`: it makes procedural faces, pretrains, meta-trains and scores an unseen
domain in about five minutes on two CPU cores. Your own folders: --data.sources.NAME PATH --data.targets.NAME PATH.
"""

import os
import sys
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from fastmfr.commands.frame import is_rank, status_of
from fastmfr.config import Config, parse
from fastmfr.config.model_settings import is_code
from fastmfr.run_folder import begun_before, in_use, note_begun
from fastmfr.stopping import status_of_stop

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run `python -m fastmfr train`: arguments -> Run -> report.

    Under torchrun the processes share every batch; the first one alone prints and writes.

    Raises:
        ValueError, OSError, NonFiniteLoss: what went wrong, in a sentence.
        KeyboardInterrupt: the run was stopped; a note says how to go on.
    """
    if not is_rank():
        if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
            raise ValueError(
                f"WORLD_SIZE says that this is one of {processes} processes, but torchrun did not start it; want "
                f"torchrun --nproc-per-node {processes} -m fastmfr.train ..., or no WORLD_SIZE"
            )
        _train(*parse(arguments))  # before torch, whose import takes seconds, is needed: a typo is answered at once
        return 0
    from fastmfr.distributed import OnAllRanks, Ranks, joined_ranks, lost_rank

    ranks = Ranks()
    try:
        with joined_ranks() as group:
            ranks = Ranks(group)
            _train(*_restarted(*parse(arguments)), ranks)
    except (OnAllRanks, KeyboardInterrupt) as error:
        if ranks.is_first:
            raise
        return status_of_stop(error) if isinstance(error, KeyboardInterrupt) else 1
    except RuntimeError as error:
        raise lost_rank(error, ranks) or error from None
    except Exception as error:
        error.add_note(f"so in process {ranks.number} of {ranks.world}, counted from 0")
        raise
    return 0


def _train(config: Config, resume: str | None, ranks: Any = None) -> None:
    """Trains and scores a model, or goes on with the run in the folder `resume`."""
    from fastmfr.distributed import ALONE
    from fastmfr.report import write_report
    from fastmfr.training import Logbook, Run, complete
    from fastmfr.watch import Watch

    ranks = ranks or ALONE
    new = Path(config.folder) / f"{config.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    with ExitStack() as held, Logbook(Path(resume) if resume else new, writes=ranks.is_first) as logbook:
        if resume:
            _hold(held, logbook.folder, ranks)
        run = Run.open(config, logbook, new=not resume, ranks=ranks)
        if not resume:
            _hold(held, run.folder, ranks)
        logbook.say(f"run folder {run.folder}")
        try:
            with Watch(ranks, logbook.warn):
                results = complete(run)
            page = ranks.by_first(partial(write_report, run.folder))
        except (KeyboardInterrupt, OSError) as stopped:
            name = run.config.model.name
            code = f" --model.name {name}" if is_code(name) else ""
            stopped.add_note(f"go on with: python -m fastmfr.train --resume {run.folder}{code}")
            raise
        _say_results(results, run.folder, page, logbook)


def _hold(held, folder, ranks):
    """Holds the run folder for the processes of this run, as long as `held` lasts."""
    with ranks.alike():
        if ranks.is_first:
            held.enter_context(in_use(folder))
            note_begun(folder)


def _restarted(config, resume):
    """The settings, and the run to go on with: the one that these processes began, if torchrun has restarted them."""
    begun = None if resume else begun_before(Path(config.folder))
    return parse(["--resume", str(begun)]) if begun else (config, resume)


def _say_results(results, folder, page, logbook):
    """Prints the table, the images that could not be read and where the report is."""
    from fastmfr.report import final_table

    logbook.console.print(final_table(results), soft_wrap=False)
    if bad := results.bad_images:
        some = "; ".join(f"{key} ({reason})" for key, reason in list(bad.items())[:3])
        logbook.warn(
            f"unreadable images, replaced in training and left out of scores: {len(bad)}, all listed in "
            f"{folder / 'bad_images.tsv'}: {some}{' ...' if len(bad) > 3 else ''}"
        )
    logbook.say(f"report    {page}")


if __name__ == "__main__":
    raise SystemExit(status_of(lambda: main(sys.argv[1:])))
