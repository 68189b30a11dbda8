"""Settings: sections.py says what they are, command.py reads them from a recipe and the command line."""

from fastmfr.config.command import parse
from fastmfr.config.sections import Config, Data, Evaluate, Meta, Model, Pretrain, Synthetic

__all__ = ["Config", "Data", "Evaluate", "Meta", "Model", "Pretrain", "Synthetic", "parse"]
