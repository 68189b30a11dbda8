"""YAML files of strangers: read within bounds, and refused in a sentence."""

from pathlib import Path
from typing import Any

import yaml

DEEPEST = 20  # levels; deeper ones take the reader seconds and end in a RecursionError
OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


def read_yaml(path: Path) -> Any:
    """Read a YAML file that has no tags of Python's, no aliases and few levels; UTF-16 if a byte order mark says so.

    Raises:
        ValueError: the file is no such YAML.
        OSError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
        _check(path, content)
        return yaml.safe_load(content)
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as YAML: {reason}") from None


def _check(path, content):
    """Raises ValueError for aliases, which could make the content endless, and for too many levels."""
    level = 0
    for token in yaml.scan(content):
        if isinstance(token, yaml.AliasToken):
            raise ValueError(f"{path} uses an alias (*name); write the values out")
        level += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if level > DEEPEST:
            raise ValueError(f"{path} cannot be read as YAML: it has more than {DEEPEST} levels")
