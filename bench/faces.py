"""How far procedural faces lead: `python bench/faces.py RUN --real PATH --out FOLDER` compares them with photographs.

RUN is a run folder whose sources are procedural, or a file of weights beside its config.yaml. The model embeds your
photographs, other people of the domains it was trained on, and domains that it has never seen. FOLDER/faces.md has the
figures, beside those of bare pixels and of networks without training; FOLDER/faces.png has the cosines of genuine and
impostor pairs.
"""

import argparse
from pathlib import Path

from faces.measure import REAL, SEEN, UNSEEN, draw_domains, measure, seen_domains, untrained
from faces.page import page, plot

from fastmfr.commands.frame import status_of
from fastmfr.domains import open_domain
from fastmfr.runtime import environment
from fastmfr.synthetic import DOMAINS
from fastmfr.weights import open_model


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is 0, 1 with a sentence on what went wrong, or 130 when interrupted."""
    options = _parser().parse_args(argv)
    return status_of(lambda: _compare(options))


def _parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder, or a file of weights")
    parser.add_argument("--real", metavar="PATH", type=Path, help="a domain of photographs: a class folder or a .rec")
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="the page, the picture and the faces")
    parser.add_argument("--unseen", nargs="+", choices=DOMAINS, metavar="DOMAIN", help="by default all not trained on")
    parser.add_argument("--people", type=int, default=100, help="of each procedural domain; by default 100")
    parser.add_argument("--twins", type=float, default=0.0, help="the part of these people who are twins; by default 0")
    return parser


def _compare(options):
    real = [(open_domain(options.real), REAL)] if options.real else []  # a wrong path is told before minutes of work
    model = open_model(options.run)
    seen = seen_domains(model.config)
    unseen = [name for name in options.unseen or DOMAINS if name not in seen]
    names = [*seen, *unseen]
    if real and real[0][0].name in names:
        raise ValueError(f"--real {options.real} is called like a procedural domain; rename the folder")
    if options.people < 2:
        raise ValueError(f"want --people of at least 2, got {options.people}")
    drawn = draw_domains(model.config, names, options.people, options.out / "drawn", options.twins)
    kinds = [SEEN] * len(seen) + [UNSEEN] * len(unseen)
    rows = measure(model, [*zip(drawn, kinds, strict=True), *real])
    plot(rows, options.out / "faces.png")
    chance = untrained(model, real[0][0]) if real else []
    text = page(rows, _intro(model, options), chance)
    (options.out / "faces.md").write_text(text)
    print(text)
    return 0


def _intro(model, options):
    machine = environment()
    where = machine["gpu"] or f"{machine['cores']} CPU cores"
    twins = f" {100 * options.twins:g} % of the people drawn are twins." if options.twins else ""
    return (
        f"One model, `{model.weights.name}` of the recipe {model.config.recipe}, at {model.preprocess.size} pixels; "
        f"people of procedural domains whom no run has met.{twins} Measured on {where}, "
        f"fastmfr at {machine['commit']}."
    )


if __name__ == "__main__":
    raise SystemExit(main())
