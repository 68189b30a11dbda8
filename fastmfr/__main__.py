"""python -m fastmfr COMMAND: train and evaluate models, pack, split and inspect data, report and compare runs."""

import sys
from importlib import import_module

USAGE = """usage: python -m fastmfr COMMAND ...

  train [OPTIONS]      pretrain, meta-train and score; --help lists the options
  evaluate RUN ...     score a model on sets: lists, pairs, LFW-type .bin, IJB-style templates, domains
  pack SOURCE... OUT   class folders, lists, tar or Parquet files into one RecordIO folder
  inspect DOMAIN...    what is in a domain: people, images, damage, duplicates, contact sheets
  split FOLDER ...     share the people of a folder out into train, gallery and probe lists
  report RUN...        write a run's report again; compare several runs on one page
"""

# imported when asked for: training takes seconds to import, and each has a main(arguments) that gives the exit status
MODULES = {
    "train": "fastmfr.train",
    "evaluate": "fastmfr.commands.evaluate",
    "pack": "fastmfr.commands.pack",
    "inspect": "fastmfr.commands.inspect",
    "split": "fastmfr.commands.split",
    "report": "fastmfr.commands.report",
}


def main(argv=None) -> int:
    """The exit status of the command that `argv` names; 2 and the usage where it names none."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in MODULES:
        return import_module(MODULES[command]).main(rest)
    asked = command in ("--help", "-h")
    print(USAGE, end="", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    raise SystemExit(main())
