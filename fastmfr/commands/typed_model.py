"""What commands that open one model share: its weights and settings as typed."""

import argparse
from pathlib import Path

from fastmfr.commands.frame import is_rank
from fastmfr.config import Config, parse
from fastmfr.run_folder import settings_beside, weights_of

SETTINGS = """\
settings of the model come from config.yaml beside the weights, from --config RECIPE, and from options such as
--data.size 112 --data.std 127.5; --config finetune reads the network off the weights
"""


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a model: RUN_OR_WEIGHTS and --config."""
    parser.add_argument("model", metavar="RUN_OR_WEIGHTS", help="a run folder, or a .safetensors, .pt or .pth file")
    parser.add_argument("--config", metavar="RECIPE", help="settings of the model, if no config.yaml lies beside it")


def refuse_ranks(prog: str) -> None:
    """Raise ValueError if torchrun started this process, for the command runs in one."""
    if is_rank():
        raise ValueError(f"{prog} runs in one process, but torchrun started this one; start it by `{prog} ...`")


def typed_model(options: argparse.Namespace, settings: list[str], prog: str) -> tuple[Path, Config]:
    """Find the file of the weights and read the settings of the model, those typed last.

    Args:
        options: what a parser with `add_model` read.
        settings: the words that the parser did not know.
        prog: the command, for --help and errors.

    Raises:
        FileNotFoundError, ValueError: there are no weights, or no settings.
        SystemExit: a setting has a wrong name or value.
    """
    weights = weights_of(options.model)
    recipe = options.config or str(settings_beside(weights))
    return weights, parse(["--config", recipe, *settings], prog=prog)[0]
