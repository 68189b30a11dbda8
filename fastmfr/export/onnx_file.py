"""A network as ONNX: traced by torch, cleaned of this machine's paths, and compared with torch in onnxruntime.

Shape suffixes: N images, D embedding.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fastmfr.atomic import replacing

from .graph import Graph

INPUT, OUTPUT = "data", "embedding"  # as in InsightFace's exports
MOST = 1e-5  # difference from torch, as a part of the embedding's length
NEEDED = ("onnx", "onnxscript", "onnxruntime")
LOOKED_AT = 8  # first nodes in which InsightFace's loader looks for a normalisation


def check_installed() -> None:
    """Raise ImportError with one sentence if a package is missing that ONNX files need."""
    for name in NEEDED:
        try:
            import_module(name)
        except ImportError:
            raise ImportError(
                f"to write ONNX, {', '.join(NEEDED)} are needed, and {name} is not installed: "
                "`pip install 'fastmfr[export]'`; .safetensors and .pth need nothing more"
            ) from None


def write_onnx(graph: Graph, path: Path, metadata: Mapping[str, str]) -> float:
    """Write a graph as ONNX and check the file; a file that fails is not left behind.

    Args:
        graph: the network, on the CPU; its input is `data` (N, 3, H, W) and its output `embedding`, for any N.
        path: where the file is written.
        metadata: kept in the file.

    Returns:
        The largest difference from torch, as `largest_difference` has it.

    Raises:
        ImportError: a package is missing.
        ValueError: the file's embeddings are not torch's; or torch cannot export the network.
    """
    check_installed()
    model = _traced(graph)
    _clean(model, named=graph.raw_input)
    for name, value in metadata.items():
        model.metadata_props.add(key=name, value=value)
    with replacing(path) as partial:
        partial.write_bytes(model.SerializeToString())
        difference = largest_difference(graph, partial)
        if not difference <= MOST:  # NaN is none either
            raise ValueError(
                f"the embeddings of {path} differ from torch's by {difference:.1e} of their length in onnxruntime; "
                f"want at most {MOST:g}. The file was not kept; the weights may hold NaN or infinity"
            )
        partial.chmod(0o644)
    return difference


def largest_difference(graph: Graph, path: Path) -> float:
    """Return the largest difference of a number of an embedding, divided by the embedding's length in torch.

    Args:
        graph: the network in torch.
        path: the same network as ONNX; it is given 1 random image, then 5.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3  # errors alone
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    differences = []
    for images in (1, 5):
        image_N3HW = graph.examples(images)
        with torch.inference_mode():
            want_ND = graph(image_N3HW)
        (found_ND,) = session.run([OUTPUT], {INPUT: image_N3HW.numpy()})
        differences.append((torch.from_numpy(found_ND) - want_ND).abs().amax(1) / want_ND.norm(dim=1))
    return torch.cat(differences).max().item()


def _traced(graph: Graph) -> Any:
    """The graph as onnx.ModelProto."""
    rows = ({0: torch.export.Dim("N")},)
    with _quiet():
        try:
            program = torch.onnx.export(
                graph,
                (graph.examples(2),),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=rows,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"torch cannot write this backbone as ONNX; want .safetensors or .pth: {reason}"
            ) from error
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch says of its own deprecated calls and of packages that are not needed here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _clean(model: Any, *, named: bool) -> None:
    """Remove what torch notes of each node: lines of source with their paths, two thirds of a small file.

    Args:
        model: an onnx.ModelProto.
        named: whether the first subtraction and multiplication get the names by which InsightFace's loader sees that
            pixels are normalised in the file.
    """
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for part in (graph, *graph.node, *values, *model.functions):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for node in graph.node[:LOOKED_AT]:
        if named and node.op_type in ("Sub", "Mul"):
            node.name = f"{node.op_type}_pixels"
