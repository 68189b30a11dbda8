"""The settings of a profile of training."""

from dataclasses import dataclass
from typing import ClassVar

from fastmfr.config.checks import require_at_least, require_kinds


@dataclass(frozen=True)
class Profile:
    """Where the time of a step goes, on a page in the run's folder. A profile does not change what is trained."""

    prefix: ClassVar[str] = "profile."

    steps: int = 0
    """steps of each stage that are timed, and as many that are traced; on a GPU as many again that run operation by
    operation; 0 takes no profile"""
    after: int = 10
    """steps of each stage before those, to warm up"""

    def __post_init__(self):
        require_kinds(self)
        require_at_least(self, 0, "steps", "after")
