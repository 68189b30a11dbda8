"""Settings: what they are, and how they are read from a recipe and the command line. Nothing here needs torch.

sections.py        a class for each section of a recipe, and all of them as a Config
data_settings.py, model_settings.py, choose_settings.py, profile_settings.py   sections in files of their own
images.py, meta_settings.py, margins.py, choices.py   what components compute with, inherited by the sections
checks.py          a failed check is one sentence
yaml_file.py       files of strangers
command.py         from a command line and a recipe to a Config
"""

from fastmfr.config.checks import narrowed
from fastmfr.config.command import load_config, parse
from fastmfr.config.data_settings import Data, Synthetic
from fastmfr.config.images import Augment, Preprocess
from fastmfr.config.meta_settings import GradientSettings, LossSettings, MetaSettings
from fastmfr.config.model_settings import Model
from fastmfr.config.sections import Config, Evaluate, Meta, Pretrain
from fastmfr.config.yaml_file import read_yaml

__all__ = [
    "Augment",
    "Config",
    "Data",
    "Evaluate",
    "GradientSettings",
    "LossSettings",
    "Meta",
    "MetaSettings",
    "Model",
    "Preprocess",
    "Pretrain",
    "Synthetic",
    "load_config",
    "narrowed",
    "parse",
    "read_yaml",
]
