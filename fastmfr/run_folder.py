"""Where a run keeps its weights and its settings. Needs no torch, so that a wrong path is answered at once."""

from pathlib import Path

from fastmfr.results import BASE, MFR


def weights_of(run_or_file: Path | str) -> Path:
    """The file of weights: the path itself, or what a run left in its folder, MFR's before the base's.

    Raises:
        FileNotFoundError: the path is neither a file nor a folder with weights.
    """
    path = Path(run_or_file)
    if path.is_file():
        return path
    names = [f"{model}.safetensors" for model in (MFR, BASE)]
    for name in names:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(
        f"there are no weights at {path}; want a .safetensors, .pt or .pth file, or a run folder with "
        f"{' or '.join(names)} in it"
    )


def settings_beside(weights: Path) -> Path:
    """The config.yaml in the folder of the weights.

    Raises:
        ValueError: there is none.
    """
    beside = weights.parent / "config.yaml"
    if not beside.is_file():
        raise ValueError(
            f"no config.yaml lies beside {weights}; name the model's settings by --config RECIPE, for "
            "InsightFace's for instance --config mfr --model.name iresnet50 --data.size 112 --data.std 127.5"
        )
    return beside
