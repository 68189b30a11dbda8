"""What the meta step is worth: `python bench/proof.py --folder runs/proof` compares it with its controls, over seeds.

For every seed and every domain left out it pretrains one base and lets each arm go on from there, matched in optimizer
steps and images, then scores them on the domain that none has seen. A finished arm is a line of FOLDER/rows.jsonl;
started again, the command does what is missing. The tables are printed and kept in FOLDER/table.md.
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

from proof.arms import ARMS, open_cell, score_arm, train_arm
from proof.rows import Rows, Task
from proof.settings import FIRST_SEED, POOLS, SCALES, changed, config_of, targets_of
from proof.table import report

from fastmfr.commands.frame import status_of
from fastmfr.domains import open_domain
from fastmfr.runtime import environment
from fastmfr.training import NonFiniteLoss


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is 0, 1 with a sentence on what went wrong, or 130 when interrupted."""
    options = _parser().parse_args(argv)
    return status_of(lambda: _prove(options))


def _prove(options):
    settings = changed(SCALES[options.scale], options.set)
    targets = targets_of(settings, options.pool, options.targets)
    arms = [name for name in ARMS if name == "base" or name in (options.arms or ARMS)]
    seeds = range(FIRST_SEED[options.pool], FIRST_SEED[options.pool] + options.seeds)
    tasks = [Task(seed, target, arm) for seed in seeds for target in targets for arm in arms]
    real = _real(options.real, options.pool)
    rows = Rows(options.folder, asdict(settings) | {"pool": options.pool, "real": real})
    if options.dry_run:
        _tell(tasks, rows, settings)
        return 0
    try:
        _run(tasks, rows, settings, options, real)
    except KeyboardInterrupt as stopped:
        stopped.add_note("the same command goes on from here")
        raise
    wanted = set(tasks)
    text = report({task: row for task, row in rows.by_task.items() if task in wanted}, arms)
    (options.folder / "table.md").write_text(text + "\n")
    print(text)
    return 0


def _parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="rows, bases, faces and tables; found again")
    parser.add_argument(
        "--scale",
        choices=SCALES,
        default="cpu",
        help="cpu: an hour on two cores; gpu: 50 times the arithmetic; toy: to see that it runs",
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings other than the scale's")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument(
        "--pool",
        choices=POOLS,
        default="reported",
        help="the seeds and domains: those to report, or those to tune the settings on",
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM", help=f"out of {', '.join(ARMS)}")
    parser.add_argument("--targets", nargs="+", metavar="DOMAIN", help="domains of the pool to leave out in turn")
    parser.add_argument("--real", metavar="PATH", help="a domain of photographs, scored by every arm and never seen")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 takes all cores")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no further arm is begun")
    parser.add_argument("--dry-run", action="store_true", help="say what would run and how long it would take")
    return parser


def _real(path, pool):
    """The folder of photographs as an absolute path, opened once so that a wrong one is told before hours of work."""
    if path is None:
        return None
    real = Path(path).resolve()
    if real.name in POOLS[pool]:
        raise ValueError(f"--real {path} is called like the domain {real.name!r} of the pool; rename the folder")
    open_domain(real)
    return str(real)


def _tell(tasks, rows, settings):
    """--dry-run: a line a seed and domain left out."""
    for seed, left_out in dict.fromkeys((task.seed, task.left_out) for task in tasks):
        mine = [task for task in tasks if (task.seed, task.left_out) == (seed, left_out)]
        missing = [task.arm for task in mine if task not in rows.by_task]
        what = f"{_minutes(rows.left(mine, settings))}: {', '.join(missing)}" if missing else "done"
        print(f"seed {seed}, {left_out} left out: {what}")
    measured = "by the rows there are" if rows.by_task else "by a guess, for there are no rows yet"
    print(
        f"{sum(task not in rows.by_task for task in tasks)} of {len(tasks)} arms to run, "
        f"{_minutes(rows.left(tasks, settings))} in all {measured}"
    )


def _run(tasks, rows, settings, options, real):
    """Every task that has no row, those of a seed and domain one after the other, with their images decoded once."""
    begin, cell = time.monotonic(), None
    missing = [task for task in tasks if task not in rows.by_task]
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "environment.json").write_text(json.dumps(environment(), indent=1))
    for task in missing:
        if time.monotonic() - begin > 60 * options.minutes:
            print(f"{options.minutes:g} minutes are over; the same command goes on from here")
            return
        folder = options.folder / f"{task.seed}-{task.left_out}"
        if cell is None or cell.folder.parent != folder:
            cell = None  # its images make room first
            config = config_of(settings, options.pool, task.seed, task.left_out, real, options.folder / "faces")
            cell = open_cell(replace(config, threads=options.threads), folder)
        start = time.monotonic()
        try:
            backbone, facts = train_arm(cell, task.arm, settings.agg_rate)
            facts["scores"] = score_arm(cell, backbone)
        except NonFiniteLoss as error:
            raise ValueError(f"{ARMS[task.arm].title}, seed {task.seed}, {task.left_out} left out: {error}") from error
        seconds = time.monotonic() - start
        rows.add(task, {"seconds": round(seconds, 1), **facts})
        done, left = sum(task in rows.by_task for task in tasks), _minutes(rows.left(tasks, settings))
        print(
            f"[{done}/{len(tasks)}] seed {task.seed}, {task.left_out} left out, {task.arm}: {seconds:.0f} s · {left} "
            "left",
            flush=True,
        )


def _minutes(seconds):
    return f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    raise SystemExit(main())
