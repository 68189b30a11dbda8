"""Train a face model on several source domains by Meta Face Recognition and score it on domains it never saw.

With no argument it runs the recipe `quickstart`: it makes procedural faces, pretrains, meta-trains and scores an unseen
domain in two to five minutes on two CPU cores. Your own folders: --data.sources.NAME PATH --data.targets.NAME PATH.
"""

import os
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from fastmfr.commands.frame import status_of
from fastmfr.config import parse
from fastmfr.run_folder import in_use


def main(arguments: list[str]) -> int:
    """Run `python -m fastmfr train`: arguments -> Run -> report.

    Raises:
        ValueError, OSError, NonFiniteLoss: what went wrong, in a sentence.
        KeyboardInterrupt: the run was stopped; a note says how to go on.
    """
    config, resume = parse(arguments)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:
        raise ValueError(
            f"the trainer runs as one process, and torchrun started {processes}, which would train the same model "
            "into one folder; start the trainer with python -m fastmfr.train"
        )
    from fastmfr.report import write_report  # these need torch, whose import takes seconds: a typo is answered before
    from fastmfr.training import Logbook, Run, complete

    new = Path(config.folder) / f"{config.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    with ExitStack() as held, Logbook(Path(resume) if resume else new) as logbook:
        if resume:
            held.enter_context(in_use(logbook.folder))
        run = Run.open(config, logbook, new=not resume)
        if not resume:
            held.enter_context(in_use(run.folder))
        logbook.say(f"run folder {run.folder}")
        try:
            results = complete(run)
            page = write_report(run.folder)
        except (KeyboardInterrupt, OSError) as stopped:
            stopped.add_note(f"go on with: python -m fastmfr.train --resume {run.folder}")
            raise
        _say_results(results, run.folder, page, logbook)
    return 0


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
