"""Whether several inner steps, or changed copies of domains, gain anything: `python bench/proof/inner_steps.py --help`.

An experiment, no part of the package. With a = the length of an inner step, K steps on one meta-train batch:

    theta_{k+1} = theta_k - a grad L_S(theta_k)      v = grad L_T at theta_K      H_k = Hessian of L_S at theta_k
    d L_T / d theta_0 = (I - a H_0) ... (I - a H_{K-1}) v      exact, by one Hessian-vector product for each step

At K = 1 that is MetaTrainer's step. Shape suffix: P = parameters laid end to end.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fastmfr.kernels import add_split  # pyright: ignore[reportMissingImports]  # the folder kernels/
from fastmfr.kernels.meta_update import look_ahead  # pyright: ignore[reportMissingImports]  # the folder kernels/
from torch import Tensor, nn

from fastmfr.config import narrowed, parse
from fastmfr.losses import MfrLosses
from fastmfr.meta import MetaSettings, MetaStep, Split
from fastmfr.meta.engine import gradients_on, make_engine
from fastmfr.meta.optimizer import FlatOptimizer
from fastmfr.meta.types import Summand
from fastmfr.progress import new_console
from fastmfr.prove.arms import ARMS as OF_PROVE
from fastmfr.prove.arms import NO_META, config_of
from fastmfr.prove.cell import Cell, leaving_out
from fastmfr.results import BASE, LAST, META, MFR
from fastmfr.runtime import seed_and_set_threads
from fastmfr.training import Run
from fastmfr.training.meta import meta_train, mfr_trainer


@dataclass(frozen=True)
class Ahead:
    """An arm: `steps` inner steps, whose lengths have the sum of `total` times alpha."""

    steps: int
    total: float = 1.0


ARMS = {
    NO_META: Ahead(1, 0.0),
    MFR: Ahead(1),
    "two": Ahead(2),
    "four": Ahead(4),
    "two_long": Ahead(2, 2.0),
    "one_long": Ahead(1, 2.0),
}
COMPARED = "compared"  # an arm that is MFR and compares the gradients of all arms


class InnerStepsTrainer:
    """Takes meta steps as MetaTrainer does, exactly and without a recording, but looks ahead by several inner steps."""

    graph = "steps run operation by operation"

    def __init__(self, backbone: nn.Module, optimizer: torch.optim.SGD, settings: MetaSettings, ahead: Ahead):
        """`settings`: of order 2, without sharing."""
        self._optimizer, self._gamma, self._ahead = FlatOptimizer(backbone, optimizer), settings.gamma, ahead
        self._engine, _ = make_engine(backbone, self._optimizer.flat.names, settings)

    @gradients_on()
    def step(self, splits: Iterable[Split], *, alpha: float, rate: float, losses: MfrLosses) -> MetaStep:
        """Take one step along the gradient of one meta-batch, as MetaTrainer.step says."""
        optimizer, total_P = self._optimizer, None
        optimizer.link()
        parts = [self._of_split(split, alpha, losses) for split in splits]
        for part in parts[:-1]:
            total_P = optimizer.flat.zeros() if total_P is None else total_P
            add_split(total_P, part.g_P, part.v_P, None, 0.0, self._gamma)
        norm = optimizer.step(total_P, parts[-1], gamma=self._gamma, splits=len(parts), rate=rate)
        terms = {name: torch.stack([part.losses[name] for part in parts]) for name in parts[0].losses}
        return MetaStep(terms, {}, norm)

    @gradients_on()
    def gradient(self, splits: Iterable[Split], ahead: Ahead, alpha: float, losses: MfrLosses) -> Tensor:
        """The gradient (P,) of one meta-batch with another look-ahead, without a step; length 0 is no look-ahead."""
        self._optimizer.link()
        self._ahead, before = ahead, self._ahead
        parts = [self._of_split(split, alpha, losses) for split in splits]
        self._ahead = before
        return torch.stack([self._gamma * part.g_P + (1 - self._gamma) * part.v_P for part in parts]).mean(0)

    def _of_split(self, split, alpha, losses) -> Summand:
        """The summand of one split: v_P is the whole gradient of meta-test on theta_0."""
        flat, (train, test) = self._optimizer.flat, split
        length = alpha * self._ahead.total / self._ahead.steps
        theta_P, passes, gradients = self._optimizer.theta_P, [], []
        for _ in range(self._ahead.steps):
            passes.append(self._engine.train(flat.views(theta_P), train, train.domain_B, losses, second_order=True))
            gradients.append(flat.fill(flat.empty(), passes[-1].gradient))
            theta_P = self._moved(theta_P, gradients[-1], length)
        tested = self._engine.test(flat.views(theta_P), test, losses)
        v_P = flat.fill(flat.empty(), tested.gradient)
        for there in reversed(passes):
            v_P = self._moved(v_P, flat.fill(flat.empty(), there.hvp(flat.views(v_P))), length)
        terms = {"total": passes[0].terms.total.detach(), "total_test": tested.terms.total.detach()}
        return Summand(gradients[0], v_P, None, 0.0, terms, {})

    def _moved(self, from_P: Tensor, along_P: Tensor, length: float) -> Tensor:
        """A new buffer, `from_P - length * along_P`."""
        to_P = self._optimizer.flat.empty()
        look_ahead(to_P, from_P, along_P, length)
        return to_P


class Comparing:
    """Takes MFR's steps, and before each one writes how far each arm's gradient is from MFR's, in lengths of MFR's."""

    graph = InnerStepsTrainer.graph

    def __init__(self, run: Run, backbone: nn.Module, optimizer: torch.optim.SGD):
        """Distances go to distances.jsonl in the run's folder."""
        self._trainer, self._path = further_trainer(run, backbone, optimizer, ARMS[MFR]), run.folder / "distances.jsonl"

    def step(self, splits: Iterable[Split], *, alpha: float, rate: float, losses: MfrLosses) -> MetaStep:
        """Compare, then take MFR's step."""
        splits = list(splits)
        made = {name: self._trainer.gradient(splits, ahead, alpha, losses) for name, ahead in ARMS.items()}
        of_mfr_P = made.pop(MFR)
        with self._path.open("a") as file:
            far = {name: ((made_P - of_mfr_P).norm() / of_mfr_P.norm()).item() for name, made_P in made.items()}
            print(json.dumps(far), file=file)
        return self._trainer.step(splits, alpha=alpha, rate=rate, losses=losses)


def further_trainer(run: Run, backbone: nn.Module, optimizer: torch.optim.SGD, ahead: Ahead) -> InnerStepsTrainer:
    """The trainer of an arm, by the run's settings."""
    return InnerStepsTrainer(backbone, optimizer, narrowed(run.config.meta, MetaSettings, order=2), ahead)


class FurtherCell(Cell):
    """One seed and one domain left out; arms go on from the base in its folder."""

    def base(self) -> dict:
        """Train the base unless it is there; return its figures."""
        return self._figures(self._base(with_head=False)[0])

    def go_on(self, name: str, steps: int) -> dict:
        """Train an arm up to `steps`, from its state after fewer steps if there is one; return its figures."""
        arm = OF_PROVE.get(name, OF_PROVE[MFR])
        backbone, _ = self._base(with_head=False)
        self._run.before_stage(META)
        config = config_of(name, arm, self._run.config)
        seed_and_set_threads(config.seed, config.threads)
        trainer = Comparing if name == COMPARED else partial(further_trainer, ahead=ARMS.get(name))
        trainer = mfr_trainer if name in OF_PROVE else trainer
        with self._beside(name, replace(config, meta=replace(config.meta, steps=steps))) as run:
            meta_train(run, backbone, None, trainer)
        return self._figures(backbone)


def main() -> None:
    """Make the base and the arms of one cell, and append a line for each to rows.jsonl in --out."""
    options, settings = _parser().parse_known_args()
    config, _ = parse(settings, prog="inner_steps.py")
    left_out = options.leave_out
    folder = Path(options.out) / f"{config.seed}-{left_out}"
    if options.base and not (folder / BASE).is_dir():
        (folder / BASE).mkdir(parents=True)
        shutil.copyfile(Path(options.base) / f"{LAST}.safetensors", folder / BASE / f"{LAST}.safetensors")
    cell = FurtherCell(leaving_out(config, left_out, config.seed), folder, {}, new_console())
    with (Path(options.out) / "rows.jsonl").open("a") as rows:
        where = {"seed": config.seed, "left_out": left_out, "sources": len(config.data.sources) - 1}
        for name, steps in [(BASE, 0), *((name, steps) for name in options.arms for steps in options.steps)]:
            begin = time.monotonic()
            scores = cell.go_on(name, steps) if steps else cell.base()
            figures = {key: round(100 * value, 3) for key, value in _means(scores[left_out]).items()}
            took = {"steps": steps, "seconds": round(time.monotonic() - begin, 1)}
            print(json.dumps({**where, "name": name, **took, **figures}), file=rows, flush=True)
    cell.close()


def _means(scores: dict) -> dict[str, float]:
    """Each figure as a mean over people, weighted by their probes."""
    skipped = ("probes", "impostors")
    return {name: np.average(value, weights=scores["probes"]) for name, value in scores.items() if name not in skipped}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leave-out", required=True, metavar="NAME", help="the source that no arm sees")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=[*ARMS, COMPARED], help="default: all")
    parser.add_argument("--steps", nargs="+", type=int, default=[100], help="score each arm after so many, rising")
    parser.add_argument("--out", default="runs/inner", metavar="FOLDER", help="bases, arms and rows.jsonl")
    parser.add_argument("--base", metavar="FOLDER", help="go on from the base in this folder instead of training one")
    return parser


if __name__ == "__main__":
    main()
