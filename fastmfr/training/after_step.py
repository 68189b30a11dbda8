"""What follows every step of both stages: states are kept, scores taken, and the stage ends if it is time for that."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fastmfr.profiling import SAVING, UPDATE, part_of_step
from fastmfr.stopping import Stop
from fastmfr.training.choosing import Candidates
from fastmfr.training.profile import StageProfile
from fastmfr.training.run import Run


class AfterStep:
    """Called after every step of a stage with the number of steps done; a block around the loop.

    A state is kept after `save_every` steps, after the last one, and when a signal asks the process to end. States that
    are due are written while training goes on.

    Args:
        run: the run.
        stage: the stage.
        first: the step that the stage goes on with.
        steps: how many the stage takes.
        backbone: what is scored on the way.
        networks: what a state holds, beside the optimizer.
        optimizer: the optimizer of the backbone.
        candidates: what the stage offers to be handed out.
        settle: called before a state is kept: raises if a loss that was not read yet is not finite.
    """

    def __init__(
        self,
        run: Run,
        stage: str,
        first: int,
        steps: int,
        backbone: nn.Module,
        networks: nn.Module,
        optimizer: Optimizer,
        candidates: Candidates,
        settle: Callable[[], Any] = lambda: None,
    ):
        self._run, self._stage, self._first, self._steps, self._backbone = run, stage, first, steps, backbone
        self._state, self._candidates, self._settle = (networks, optimizer), candidates, settle
        self._states = run.checkpoints(stage)
        self._stop = Stop(run.logbook.warn, patient=run.ranks.world > 1)
        self._profile = StageProfile(run, stage, steps - first)

    def __enter__(self) -> "AfterStep":
        self._stop.__enter__()
        if self._first:  # a kill may have come between a state and its score
            self._candidates.consider(self._first)
        self._profile.begin()
        return self

    def __exit__(self, *error: Any) -> None:
        self._profile.end()
        self._stop.__exit__(*error)
        if error[0] is None:
            self._states.wait()

    def __call__(self, done: int) -> bool:
        """Keep a state, score the targets and a candidate if it is time for that after `done` steps.

        Returns:
            Whether the stage ends here.

        Raises:
            KeyboardInterrupt: a signal has asked the process to end; the state is kept.
            NonFiniteLoss: the weights are NaN or infinite.
        """
        with part_of_step(UPDATE):
            self._candidates.update(done)
        is_due = done % self._run.config.save_every == 0 or done == self._steps
        if self._run.ranks.any(self._stop.asked):
            self._stop.ask()
        if is_due or self._stop.asked:
            self._keep(done, aside=not self._stop.asked)
        self._stop.if_asked()
        try:
            with self._stop.at_once():
                self._run.score_on_the_way(self._stage, self._backbone, done)
                self._candidates.consider(done)
        except KeyboardInterrupt:
            if not is_due:
                self._keep(done)
            self._states.wait()
            raise
        ends = done >= self._candidates.steps
        if ends and not is_due:
            self._keep(done)
        self._profile.step()
        return ends

    def _keep(self, done, *, aside=False):
        with part_of_step(SAVING):
            self._settle()
            self._states.save(done, *self._state, aside=aside)
