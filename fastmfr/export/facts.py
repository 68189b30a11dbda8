"""What is known of a model: its images, its run, its results and its data; and the metadata of exported files."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fastmfr import __version__
from fastmfr.results import Results, Scores, from_json
from fastmfr.run_folder import steps_of_weights
from fastmfr.training.resuming import RECORD, Held
from fastmfr.weights import Model

from .graph import Graph

RUNS_MIRROR = "concat"  # what a run scores with, which its results do not say


@dataclass(frozen=True)
class Facts:
    """A model and what its run folder says.

    Attributes:
        model: the model, on the CPU.
        digest: the SHA-256 of its file of weights.
        steps: after how many steps of their stage the weights were kept; None if the file does not say.
        run: the run folder, or None for weights whose settings were typed.
        results: what the run found, of this model alone.
        held: what each domain that the run trained on holds, by name.
    """

    model: Model
    digest: str
    steps: int | None = None
    run: Path | None = None
    results: Results | None = None
    held: Mapping[str, Held] | None = None

    @property
    def name(self) -> str:
        """The name of the run and of its model, or of the file of weights."""
        weights = self.model.weights
        return f"{self.run.name}/{weights.stem}" if self.run else weights.name

    @property
    def scored(self) -> dict[str, tuple[bool, Scores]]:
        """The scores of the model, and whether the domain was never seen in training, by target."""
        targets = self.results.scored if self.results else {}
        return {name: (target.unseen, next(iter(target.models.values()))) for name, target in targets.items()}


def facts_of(model: Model, *, of_run: bool) -> Facts:
    """Collect what is known of a model.

    Args:
        model: the model.
        of_run: whether the settings are those of the run folder in which the weights lie.

    Raises:
        ValueError: results.json or made_with.json of the run is damaged.
    """
    with model.weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    safe = model.weights.suffix == ".safetensors"
    steps = steps_of_weights(model.weights) if safe else None
    if not of_run:
        return Facts(model, digest, steps)
    run = model.weights.resolve().parent
    return Facts(model, digest, steps, run, _results(run, model.weights.stem), _held(run / RECORD))


def _results(run, name):
    """The results of one model of a run, or None."""
    if not (run / "results.json").is_file():
        return None
    found = Results.load(run / "results.json")
    for target in found.targets.values():
        target.models = {model: scores for model, scores in target.models.items() if model == name}
    return found


def _held(path):
    """What the domains of a run hold, or None."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text())["data"]
        return {name: from_json(Held, held, name) for name, held in data.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): what the model was trained on is not known") from None


def metadata_of(facts: Facts, graph: Graph) -> dict[str, str]:
    """Return what a program must know to use an exported file, as text by name.

    Args:
        facts: the model.
        graph: what the file computes.
    """
    look, config = graph.preprocess, facts.model.config
    with torch.inference_mode():
        length = graph(graph.examples(1)).shape[1]
    known = {
        "made_by": f"fastmfr {__version__}",
        "backbone": config.model.name,
        "input": f"N x 3 x {look.size} x {look.size}, float32",
        "channels": "RGB",
        "size": str(look.size),
        "pixels": "0 to 255" if graph.raw_input else "(pixel - mean) / std, of pixels 0 to 255",
        "mean": str(look.mean),
        "std": str(look.std),
        "fit": look.fit,
        "normalisation": "in the file" if graph.raw_input else "by the caller",
        "embedding": str(length),
        "unit_length": str(graph.normalise).lower(),
        "mirror": graph.mirror,
        "weights_sha256": facts.digest,
    }
    if facts.run:
        known |= {"run": facts.run.name, "recipe": config.recipe, "seed": str(config.seed)}
        known |= {"scored_with_mirror": RUNS_MIRROR} if facts.scored else {}
    return known | ({"steps": str(facts.steps)} if facts.steps is not None else {})
