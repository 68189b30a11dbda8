"""python -m fastmfr COMMAND: train, evaluate, embed, export, prove and report, and pack, split and inspect data."""

import sys
from collections.abc import Sequence
from importlib import import_module

from fastmfr.commands.frame import status_of

__all__ = ["MODULES", "USAGE", "main"]

USAGE = """usage: python -m fastmfr COMMAND ...

  train [OPTIONS]      pretrain, meta-train and score; --help lists the options
  evaluate RUN ...     score a model on sets: lists, pairs, LFW-type .bin, IJB-style templates, domains
  embed RUN SOURCE     the embeddings of all images of a folder, RecordIO file or list, with their keys
  export RUN           a model as ONNX, safetensors or .pth, checked, with a model card
  pack SOURCE... OUT   class folders, lists, tar or Parquet files into one RecordIO folder
  inspect DOMAIN...    what is in a domain: people, images, damage, duplicates, contact sheets
  split FOLDER ...     divide the people of a folder into train, gallery and probe lists
  prove [OPTIONS]      leave each domain out in turn: is MFR better on what it has not seen?
  report RUN...        write a run's report again; compare several runs on one page
"""

# Each module has a main(arguments) that returns the exit status. A module is imported when its command is asked for.
MODULES = {
    "train": "fastmfr.train",
    "evaluate": "fastmfr.commands.evaluate",
    "embed": "fastmfr.commands.embed",
    "export": "fastmfr.commands.export",
    "pack": "fastmfr.commands.pack",
    "inspect": "fastmfr.commands.inspect",
    "split": "fastmfr.commands.split",
    "prove": "fastmfr.commands.prove",
    "report": "fastmfr.commands.report",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names.

    Args:
        argv: the command and its arguments; None takes those of the process.

    Returns:
        The exit status: 0, or 1 after an error, 2 after a wrong word, 130 after Ctrl-C, 143 after SIGTERM.
    """
    command, *arguments = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if command not in MODULES:
        asked = command in ("--help", "-h")
        print(USAGE, end="", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    return status_of(lambda: import_module(MODULES[command]).main(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
