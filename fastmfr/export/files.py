"""One file of a model, of the kind that its suffix names."""

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from fastmfr.atomic import replacing
from fastmfr.external import LIBRARIES, is_external

from .facts import Facts, metadata_of
from .graph import Graph
from .onnx_file import check_installed, write_onnx

ONNX, SAFETENSORS, PTH = ".onnx", ".safetensors", ".pth"
SUFFIXES = (ONNX, SAFETENSORS, PTH)


def checked_path(out: Path | str, weights: Path, *, in_graph: bool) -> Path:
    """Return `out` if a file can be exported to it; exporting takes long.

    Args:
        out: the file.
        weights: the file of the model's weights, which is not written over.
        in_graph: whether something was asked for that only ONNX can hold.

    Raises:
        ValueError, OSError: the path has another suffix, or its folder is not there or cannot be written to.
        ImportError: a package is missing.
    """
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"want --out as a file that ends in {', '.join(SUFFIXES)}, got {path}")
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"want --out as a file in a folder that is there, got {path}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent} cannot be written to; name a file elsewhere by --out")
    if path.exists() and path.samefile(weights):
        raise ValueError(f"{path} is the file of the weights itself; name another file by --out")
    if in_graph and path.suffix != ONNX:
        raise ValueError(
            f"--raw-input, --normalise and --mirror-fused are computed within a graph, which {path.suffix} has not; "
            f"name an {ONNX} file, or leave them out"
        )
    if path.suffix == ONNX:
        check_installed()
    return path


def export_model(facts: Facts, graph: Graph, path: Path) -> tuple[dict[str, str], str]:
    """Write a model to a file of the kind that the suffix names; the file is complete or not there at all.

    Args:
        facts: the model.
        graph: the model as it is exported.
        path: what `checked_path` returned.

    Returns:
        The metadata of the file, and a sentence on how it was checked, or what it holds.

    Raises:
        ValueError: an ONNX file does not compute what torch computes.
    """
    metadata = metadata_of(facts, graph)
    if path.suffix == ONNX:
        difference = write_onnx(graph, path, metadata)
        return metadata, (
            "checked in onnxruntime on 1 and 5 random images: the largest difference from torch is "
            f"{difference:.1e} of the embedding's length"
        )
    _write_weights(graph.backbone, path, metadata)
    return metadata, f"the backbone's parameters and buffers, under {_names(facts.model.config.model.name)}"


def _names(backbone):
    """Whose names the parameters have."""
    if backbone.startswith(LIBRARIES):
        return f"{backbone.partition('/')[0]}'s names, but for the layer to the embedding"
    if is_external(backbone):
        return "its own names"
    return "InsightFace's names" if backbone.startswith("iresnet") else "fastmfr's own names"


def _write_weights(backbone: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    tensors: dict[str, Tensor] = {name: value.contiguous() for name, value in backbone.state_dict().items()}
    with replacing(path) as partial:
        if path.suffix == SAFETENSORS:
            safetensors.torch.save_file(tensors, partial, dict(metadata))
        else:
            torch.save(tensors, partial)
        partial.chmod(0o644)
