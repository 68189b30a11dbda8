"""Which model a run hands out: the best candidate of both stages on people of the sources kept out of training.

No target is looked at. The best candidate so far always lies in the run's folder.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from fastmfr.atomic import write_text
from fastmfr.domains import people_of
from fastmfr.evaluate import draw_evenly
from fastmfr.evaluate.validation import validate
from fastmfr.profiling import SCORING, part_of_step
from fastmfr.results import CHOSEN, LAST, META, MODEL_OF_STAGE, Candidate, Choice, from_json, model_of, to_json
from fastmfr.training.averages import Averages
from fastmfr.training.run import Run
from fastmfr.weights import save_weights

RECORD = "choosing.json"
MOST = 2048  # images scored in all: two million pairs, a fraction of a second
STATISTICS = 16  # batches that BatchNorm's running statistics are made from


def first_batches(stream: Callable[..., Any], batches: int) -> Iterator[Tensor]:
    """Yield all images of the first of a stage's `batches`, which `stream` opens by their numbers; on all ranks alike.

    Args:
        stream: (slot_B, first, last) -> a stream, as `TrainingImages.open` opens them.
        batches: how many the stage has.
    """
    last = min(STATISTICS, batches)
    with stream(first=0, last=last) as images:
        for _, image_B3HW in images:
            yield image_B3HW


class Choosing:
    """The candidates of one run, and the best one of them.

    Attributes:
        choice: the candidates and the scores of each; empty where nobody is kept for validation.
        path: where the weights of the best candidate are.
    """

    def __init__(self, run: Run):
        self._run, self._record = run, run.folder / RECORD
        self.path = run.folder / f"{CHOSEN}.safetensors"
        kept = run.people.validation
        most = MOST // max(1, len(kept))
        self._drawn = {name: draw_evenly(domain.offsets, most, run.config.seed) for name, domain in kept.items()}
        self.choice = self._recorded()
        self.choice.people = sum(domain.identities for domain in kept.values())
        self.choice.images = sum(map(len, self._drawn.values()))

    def _recorded(self) -> Choice:
        if not self._record.is_file():
            return Choice()
        try:
            return from_json(Choice, json.loads(self._record.read_text()), self._record.name)
        except (ValueError, RecursionError, OSError) as error:
            self._run.logbook.warn(
                f"{self._record} cannot be read ({error}): which model before was the best is not known, and "
                "the model handed out will be the best of those that follow"
            )
            return Choice()

    @property
    def is_on(self) -> bool:
        """Whether anybody is kept for validation; else there are no candidates."""
        return bool(self._drawn)

    def knows(self, *key: str | int) -> bool:
        """Whether the candidate (stage, steps, weights) has been scored."""
        return any(candidate.key == key for candidate in self.choice.candidates)

    def consider(self, network: nn.Module, stage: str, steps: int, weights: str = LAST) -> None:
        """Score a candidate that has no score yet; the best one so far is written to `path`."""
        if self.knows(stage, steps, weights):
            return
        with self._run.timed("validate"):
            embedded = {
                name: self._run.embed(network, self._run.people.validation[name], drawn)
                for name, drawn in self._drawn.items()
            }
            told_apart = {name: rows for name, rows in embedded.items() if len(np.unique(rows[1])) > 1}
            ranks, people = self._run.ranks, people_of(self._run.people.validation)
            found = ranks.by_first(partial(validate, told_apart, people))
            model = model_of(stage, self._run.config.meta.method)
            candidate = Candidate(of_stage=stage, steps=steps, weights=weights, model=model, **vars(found))
            self.choice.candidates.append(candidate)
            with ranks.alike():
                if self.choice.best is candidate and ranks.is_first:
                    save_weights(network, self.path, steps=steps)
                self._write()
        if weights == LAST and steps:
            self._run.logbook.record(
                f"{stage}/validation", steps - 1, score=found.score, together=found.together, **found.within
            )

    def has_stalled(self, patience: int) -> bool:
        """Whether stage two's last `patience` scores are no better than the best one before; 0 has no end."""
        lasts = [candidate for candidate in self.choice.candidates if candidate.weights == LAST]
        recent, before = lasts[-patience:], lasts[:-patience]
        if not patience or not before or any(candidate.of_stage != META for candidate in recent):
            return False
        return max(candidate.score for candidate in recent) <= max(candidate.score for candidate in before)

    def end(self, stage: str, after: int, of: int) -> None:
        """Note that a stage was ended early."""
        self.choice.ended[stage] = [after, of]
        self._write()

    def steps_of(self, stage: str, wanted: int) -> int:
        """The steps after which a stage ends: those wanted, or fewer if it was ended early when as many were wanted."""
        after, of = self.choice.ended.get(stage, [wanted, wanted])
        return after if of == wanted else wanted

    def explain(self) -> str:
        """Say which model is handed out and why, and keep the sentence."""
        best = self.choice.best
        if best is None:
            return "no model was scored on people kept for validation"
        lasts = map(self.choice.last_of, MODEL_OF_STAGE)
        others = ", ".join(f"{other.name} {100 * other.score:.1f}" for other in lasts if other and other is not best)
        self.choice.why = (
            f"Handed out: {best}, {100 * best.score:.1f} on {self.choice.people} people of the sources kept out of "
            f"training{f' ({others})' if others else ''}: TAR in percent, a mean over FAR 1e-2 and 1e-3, within "
            "domains and over all of them"
        )
        return self.choice.why

    def _write(self):
        if self._run.ranks.is_first:
            write_text(self._record, json.dumps(to_json(self.choice), indent=1))


class Candidates:
    """The candidates of one stage: its weights every so many steps, and at its end their averages.

    Args:
        choosing: those of the run; None, or one that is off, has no candidates.
        run: the run.
        stage: the stage.
        steps: how many it takes.
        backbone: what is trained.

    Attributes:
        averages: what a state of the stage holds of the averages.
    """

    def __init__(self, choosing: Choosing | None, run: Run, stage: str, steps: int, backbone: nn.Module):
        self._choosing = choosing if choosing and choosing.is_on else None
        settings = run.config.choose
        self._stage, self._steps, self._backbone = stage, steps, backbone
        self._every, self._patience = settings.every or run.config.save_every, settings.patience
        begin = min(math.floor(settings.mean_from * steps), steps - 1)
        self._averages = Averages(backbone, settings.ema, begin) if self._choosing else None
        self.averages = nn.ModuleDict({"of_weights": self._averages} if self._averages else {})

    @property
    def steps(self) -> int:
        """The steps that the stage takes; fewer than wanted if it was ended early."""
        return self._choosing.steps_of(self._stage, self._steps) if self._choosing else self._steps

    def update(self, done: int) -> None:
        """Take the weights after `done` steps into the averages."""
        if self._averages:
            self._averages.update(done)

    def consider(self, done: int) -> None:
        """Score the weights after `done` steps if it is time for that."""
        if not self._choosing or (done % self._every and done != self._steps):
            return
        with part_of_step(SCORING):
            self._choosing.consider(self._backbone, self._stage, done)
        if self._stage == META and done < self._steps and self._choosing.has_stalled(self._patience):
            self._choosing.end(META, done, self._steps)

    def finish(self, batches: Callable[[], Iterable[Tensor]] | None) -> None:
        """Score the averages; `batches` as `Averages.finished` takes them."""
        if not self._choosing or not self._averages:
            return
        for name, network in self._averages.finished(batches):
            self._choosing.consider(network, self._stage, self.steps, name)
