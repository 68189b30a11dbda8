"""What follows every step of both stages: states are kept, scores taken, and the run stops if it was asked to."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fastmfr.stopping import Stop
from fastmfr.training.run import Run


class AfterStep:
    """Called after every step of a stage with the number of steps done; a block around the loop.

    A state is kept after `save_every` steps, after the last one, and when a signal asks the process to end.

    Args:
        run: the run.
        stage: the stage.
        steps: how many the stage takes.
        backbone: what is scored on the way.
        networks: what a state holds, beside the optimizer.
        optimizer: the optimizer of the backbone.
        settle: called before a state is kept: raises if a loss that was not read yet is not finite.
    """

    def __init__(
        self,
        run: Run,
        stage: str,
        steps: int,
        backbone: nn.Module,
        networks: nn.Module,
        optimizer: Optimizer,
        settle: Callable[[], Any] = lambda: None,
    ):
        self._run, self._stage, self._steps, self._backbone = run, stage, steps, backbone
        self._state, self._settle = (networks, optimizer), settle
        self._stop = Stop(run.logbook.warn)

    def __enter__(self) -> "AfterStep":
        self._stop.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.__exit__(*error)

    def __call__(self, done: int) -> None:
        """Keep a state and score the targets if it is time for that after `done` steps.

        Raises:
            KeyboardInterrupt: a signal has asked the process to end; the state is kept.
            NonFiniteLoss: the weights are NaN or infinite.
        """
        is_due = done % self._run.config.save_every == 0 or done == self._steps
        if is_due or self._stop.asked:
            self._keep(done)
        self._stop.if_asked()
        try:
            with self._stop.at_once():
                self._run.score_on_the_way(self._stage, self._backbone, done)
        except KeyboardInterrupt:
            if not is_due:
                self._keep(done)
            raise

    def _keep(self, done):
        self._settle()
        self._run.checkpoints(self._stage).save(done, *self._state)
