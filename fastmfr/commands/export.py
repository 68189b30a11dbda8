"""python -m fastmfr export RUN_OR_WEIGHTS --out FILE: a model as ONNX, safetensors or .pth, with a model card.

With --classifier it is the classifier of stage one, with the list of its people.
"""

import argparse
import sys
from pathlib import Path

from fastmfr.commands.typed_model import SETTINGS, add_model, refuse_ranks, typed_model
from fastmfr.run_folder import settings_beside
from fastmfr.text import printable

PROG = "python -m fastmfr export"
FILES = f"""\
what a file is
  FILE.onnx          input `data` (N, 3, height, width), RGB, any N; output `embedding`; kept if it equals torch in
                     onnxruntime; needs `pip install 'fastmfr[export]'`
  FILE.safetensors   the parameters, with the same metadata
  FILE.pth           the parameters as a plain state dict; an iresnet's have InsightFace's names
MODEL_CARD.md is written beside the file. What you write there under "Intended use" is kept.

--classifier
  FILE.safetensors   `weight` (people, embedding), the rows of stage one's classifier out of the states of a run folder
  FILE.csv           whose each row is: row,domain,name
{SETTINGS}"""


def main(arguments: list[str]) -> int:
    """Run the command line: write the file and the model card, and print what was written.

    Raises:
        ValueError, OSError, ImportError: what went wrong, in a sentence.
    """
    options, settings = _parser().parse_known_args(arguments)
    refuse_ranks(PROG)
    if options.classifier:
        return _classifier(options, settings)
    weights, config = typed_model(options, settings, PROG)
    from fastmfr.export import Graph, check_card, checked_path, export_model, facts_of, write_card  # needs torch
    from fastmfr.runtime import seed_and_set_threads
    from fastmfr.weights import open_model

    mirror = options.mirror_fused or "none"
    in_graph = options.raw_input or options.normalise or mirror != "none"
    path = checked_path(options.out, weights, in_graph=in_graph)
    seed_and_set_threads(config.seed, config.threads)
    model = open_model(weights, config, device="cpu")
    facts = facts_of(model, of_run=options.config is None)
    check_card(path.parent, facts)
    graph = Graph(
        model.backbone,
        model.preprocess,
        raw_input=options.raw_input,
        mirror=mirror,
        normalise=options.normalise,
    )
    metadata, checked = export_model(facts, graph, path)
    card = write_card(path, facts, metadata, checked)
    print(printable(f"{path} ({path.stat().st_size / 1e6:,.1f} MB): {checked}"))
    print(printable(f"{card}: fill in what the model may be used for"))
    return 0


def _classifier(options, settings) -> int:
    """Writes the classifier of a run."""
    of_models = {"--raw-input": options.raw_input, "--normalise": options.normalise, "--config": options.config}
    of_models |= {"--mirror-fused": options.mirror_fused, **dict.fromkeys(settings[:1], True)}
    if strange := [name for name, value in of_models.items() if value]:
        raise ValueError(
            f"want RUN --classifier --out FILE alone, got {', '.join(strange)} too, which a classifier has not"
        )
    from fastmfr.config import load_config
    from fastmfr.export import check_classifier, export_classifier  # needs torch

    check_classifier(options.model, options.out)
    config = load_config(settings_beside(Path(options.model) / "any"), code=True)  # no code of the run is called
    warn = lambda sentence: print(printable(sentence), file=sys.stderr)  # noqa: E731
    (people, embedding), belongs = export_classifier(options.model, config, options.out, warn)
    out = Path(options.out)
    print(printable(f"{out} ({out.stat().st_size / 1e6:,.1f} MB): {people:,} people, {embedding} numbers each"))
    print(printable(f"{out.with_suffix('.csv')}: whose each row is, by domain and name; names of people stand there"))
    print(printable(f"the rows belong to {belongs}"))
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Write a model to a file for other programs.",
        epilog=FILES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model(parser)
    parser.add_argument("--out", metavar="FILE", required=True, help="a file that ends in .onnx, .safetensors or .pth")
    parser.add_argument(
        "--classifier", action="store_true", help="write the classifier of stage one in place of a backbone"
    )
    parser.add_argument(
        "--raw-input", action="store_true", help="take pixels 0 to 255, and normalise them in the graph"
    )
    parser.add_argument("--normalise", action="store_true", help="bring embeddings to length 1 in the graph")
    parser.add_argument(
        "--mirror-fused",
        choices=("sum", "concat"),
        help="embed the mirror image in the graph too, and add its embedding or put it beside",
    )
    return parser
