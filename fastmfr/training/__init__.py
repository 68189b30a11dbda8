"""Training: a run and its stages in order, the two loops, their states, rates and records.

run.py         Run: settings, folder, device, data and records in one room
stages.py      `complete`: the stages of a run in order
data.py        the run's domains, batches and images
pretrain.py    stage one; pretraining_step.py takes one of its steps
meta.py        stage two
after_step.py  after every step of both: states, scores on the way, signals
checkpoint.py  states to resume from    resuming.py  what a run was made with, and what may change when it is resumed
optim.py       SGD and schedules        logbook.py   what a run says and records
balance.py     the weight of domain alignment where a run chooses it, and warnings of losses that drown the others
diagnose.py    pictures and figures of the data and the models            errors.py    what ends a run
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmfr.training.errors import NonFiniteLoss
    from fastmfr.training.logbook import Logbook
    from fastmfr.training.run import Run
    from fastmfr.training.stages import complete

__all__ = ["Logbook", "NonFiniteLoss", "Run", "complete"]
_PLACES = {"Logbook": "logbook", "NonFiniteLoss": "errors", "Run": "run", "complete": "stages"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: Run needs torch, whose import takes seconds."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
