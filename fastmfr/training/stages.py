"""The stages of a run in order: pretrain and score the base, meta-train and score MFR, choose, draw what was found."""

import time

from torch import nn

from fastmfr.config.model_settings import STAGES
from fastmfr.evaluate import paired_gains
from fastmfr.results import BASE, CHOSEN, META, MODEL_OF_STAGE, PRETRAIN, Results, TargetResult, model_of
from fastmfr.run_folder import commands_of, steps_of_weights
from fastmfr.training.choosing import Choosing
from fastmfr.training.diagnose import Diagnosis
from fastmfr.training.meta import meta_train
from fastmfr.training.pretrain import pretrain
from fastmfr.training.run import Run
from fastmfr.weights import load_weights, save_weights

__all__ = ["TRAIN", "complete"]

TRAIN = {PRETRAIN: pretrain, META: meta_train}


def complete(run: Run) -> Results:
    """Take every stage that has steps, score its model, and write results.json.

    The base is the model of stage one; if that stage has no steps, the base are the weights that the run starts from.

    A stage whose weights are in the run's folder was finished before the run was resumed: its weights are loaded. If
    more steps are wanted now, the stage goes on from its last state.

    Returns:
        What results.json holds.

    Raises:
        NonFiniteLoss: a loss became NaN or infinite.
    """
    diagnosis = Diagnosis(run)
    first = run.ranks.is_first
    if first:
        with run.timed("data"):
            diagnosis.draw_domains(run.folder / "domains.png")
    results = Results(
        recipe=run.config.recipe,
        sources=list(run.people.trained),
        targets={name: TargetResult(unseen=target.unseen) for name, target in run.targets.items()},
    )
    backbone, choosing = run.new_backbone(), Choosing(run)
    _say_what_is_held(run, backbone)
    begins_trained = bool(run.config.model.weights)
    if choosing.is_on and (begins_trained or not run.config.pretrain.steps):
        choosing.consider(backbone, PRETRAIN, 0)
    if begins_trained and not run.config.pretrain.steps:
        _score(run, BASE, backbone, diagnosis, results)
    for stage, steps in ((PRETRAIN, run.config.pretrain.steps), (META, run.config.meta.steps)):
        if steps:
            _train_or_load(run, stage, steps, backbone, choosing)
            _score(run, model_of(stage, run.config.meta.method), backbone, diagnosis, results)
    if choosing.choice.best:
        _hand_out(run, choosing, backbone, diagnosis, results)
    if first and any(target.models for target in results.targets.values()):
        with run.timed("evaluate"):
            diagnosis.draw_hardest(results.targets, run.folder / "hardest.png")
    results.seconds = {part: round(value, 1) for part, value in run.seconds.items()}
    for target in results.scored.values():
        target.gains = paired_gains(target.models)
    results.commands, results.wall_seconds = commands_of(run.folder), round(time.time() - run.began, 1)
    results.bad_images = run.logbook.bad
    if first:
        run.logbook.record_end(run.config.by_dotted_name(), results, run.folder / "domains.png")
        results.save(run.folder / "results.json")
    return results


def _say_what_is_held(run, backbone: nn.Module):
    if stages := run.config.model.freeze:
        every = sum(value.numel() for value in backbone.parameters())
        trained = sum(value.numel() for value in backbone.parameters() if value.requires_grad)
        run.logbook.say(
            f"held      the stem and {stages} of {STAGES} stages; {trained / 1e6:,.2f} of {every / 1e6:,.2f} million "
            "parameters are trained"
        )


def _train_or_load(run, stage, steps, backbone: nn.Module, choosing):
    weights = run.folder / f"{MODEL_OF_STAGE[stage]}.safetensors"
    if weights.is_file() and steps_of_weights(weights) in (choosing.steps_of(stage, steps), None):
        load_weights(backbone, weights)
        return
    run.before_stage(stage)
    with run.timed(stage):
        TRAIN[stage](run, backbone, choosing)
    for bad in run.ranks.gather(run.logbook.bad):
        run.logbook.note_bad(bad)
    taken = choosing.steps_of(stage, steps)
    if taken < steps:
        run.logbook.say(
            f"{stage} ended after {taken} of {steps} steps, no better for {run.config.choose.patience} scores"
        )
    with run.ranks.alike():
        if run.ranks.is_first:
            save_weights(backbone, weights, steps=taken)


def _hand_out(run, choosing, backbone: nn.Module, diagnosis, results):
    """Scores the model that is handed out, and says which one it is and why."""
    best, results.choice = choosing.choice.best, choosing.choice
    run.logbook.say(choosing.explain())
    model = model_of(best.of_stage, run.config.meta.method)
    if best is choosing.choice.last_of(best.of_stage) and model in results.gap:
        for target in results.targets.values():  # the same weights have the same scores
            target.models[CHOSEN] = target.models[model]
        results.gap[CHOSEN] = results.gap[model]
        return
    load_weights(backbone, choosing.path)
    _score(run, CHOSEN, backbone, diagnosis, results)


def _score(run, model, backbone: nn.Module, diagnosis, results):
    """Scores a model on all targets, and adds the scores, the hardest pairs and the domain gap to the results."""
    with run.timed("evaluate"):
        for name, scores, embedding_ND, bad in run.score(backbone):
            results.targets[name].models[model] = scores
            results.targets[name].hardest = diagnosis.of_target(name, model, embedding_ND, bad)
        results.gap[model] = diagnosis.gap(backbone)
