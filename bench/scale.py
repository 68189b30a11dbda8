"""What training sends, holds and writes on 1 to 1024 GPUs: `python bench/scale.py` counts and says what binds first.

The figures come from formulas for this code's messages and memory. `--check 4` starts 1, 2 and 4 processes, counts
what they really send in a step, and compares. `--weak` times steps of one and of two processes with one thread each.
What the machines have is assumed, not measured: options say otherwise.
"""

import argparse
from collections.abc import Sequence

from scaling import page, weak
from scaling.counted import count
from scaling.plan import GB, MACHINE, Machines, Plan, network_by_name

from fastmfr.commands.frame import status_of

SIZES = (  # (GPUs, identities, images, part of the classes)
    (1, 1_000_000, 50_000_000, 1.0),
    (1, 10_000_000, 100_000_000, 1.0),
    *((8, *rest) for rest in ((10_000_000, 100_000_000, 1.0), (30_000_000, 300_000_000, 1.0))),
    (8, 100_000_000, 1_000_000_000, 0.1),
    *((64, 100_000_000, 1_000_000_000, rate) for rate in (1.0, 0.1)),
    *((256, 100_000_000, 1_000_000_000, rate) for rate in (1.0, 0.1)),
    *((1024, 100_000_000, 1_000_000_000, rate) for rate in (1.0, 0.1)),
)
DEFAULT = Machines()
MEASURES = {  # option: (attribute of Machines, unit, help)
    "gpu-memory": ("gpu", GB, "GB of a GPU"),
    "host-memory": ("host", GB, "GB of a machine of 8 GPUs"),
    "disk": ("disk", GB, "GB of disk that all machines share"),
    "inside": ("inside", GB, "GB/s that a GPU sends within a machine"),
    "between": ("between", GB, "GB/s that a GPU sends to another machine"),
    "latency": ("latency", 1e-6, "microseconds of a message from GPU to GPU"),
    "speed": ("speed", 1, "images a second of a GPU, without the classifier"),
    "operations": ("operations", 1e12, "TFLOP/s of the classifier"),
    "writing": ("writing", GB, "GB/s that a process writes"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 1 if what ranks send is not what the formulas say."""
    options = _parser().parse_args(argv)
    if options.check:
        return status_of(lambda: check(options.check))
    if options.weak:
        return status_of(lambda: weak.main(options.seconds))
    return status_of(lambda: table(options))


def _parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, base = parser.add_argument, Plan.__dataclass_fields__
    add("--check", type=int, metavar="N", help="count what 1, 2, 4, ... up to N processes send, instead of the table")
    add("--weak", action="store_true", help="time one and two processes with as many images each, instead of the table")
    add("--seconds", type=float, default=10.0, help="of each measurement of --weak; by default 10")
    for name, help_of in (("gpus", "GPUs"), ("identities", "identities"), ("images", "images in all domains")):
        add(f"--{name}", type=lambda text: int(float(text)), nargs="+", metavar="N", help=f"{help_of}, one or several")
    add("--sample-rate", type=float, nargs="+", metavar="R", help="part of the classes in each step, one or several")
    add("--model", default="iresnet50", help="the backbone; by default iresnet50")
    add("--parameters", type=int, help="of the backbone in all; by default those of --model")
    for name, help_of in (
        ("embedding", "numbers of an embedding"),
        ("people", "identities of a batch on each GPU, two images of each"),
        ("pairs", "pairs of each half of a split on each GPU"),
        ("domains", "source domains"),
    ):
        add(f"--{name}", type=int, default=base[name].default, help=f"{help_of}; by default {base[name].default}")
    add(
        "--batch-norm", choices=("batch", "frozen"), default=base["batch_norm"].default, help="statistics of meta steps"
    )
    add("--activation", type=float, default=27.5, help="MB of an image on a GPU; by default 27.5, of iresnet50 in bf16")
    add("--jpeg", type=float, default=10, help="kB of an image on disk; by default 10")
    add("--parts", action="store_true", help="also print what takes the bytes of each run")
    for name, (field, unit, help_of) in MEASURES.items():
        value = getattr(DEFAULT, field) / unit
        add(f"--{name}", type=float, default=value, metavar="X", help=f"{help_of}; by default {value:g}")
    return parser


def plans(options: argparse.Namespace) -> list[Plan]:
    """Return the runs of the table: SIZES, or all combinations of what was asked for.

    Raises:
        ValueError: If an option is out of range.
    """
    for name in ("people", "pairs", "domains", "embedding"):
        if getattr(options, name) < 1:
            raise ValueError(f"want --{name} of at least 1, got {getattr(options, name)}")
    network = network_by_name(options.model, options.embedding, options.parameters)
    same = {name: getattr(options, name) for name in ("people", "pairs", "domains", "embedding")}
    same |= {"batch_norm": options.batch_norm, "activation": options.activation * 1e6, "jpeg": options.jpeg * 1e3}
    asked = [options.gpus, options.identities, options.images, options.sample_rate]
    sizes = SIZES
    if any(asked):
        usual = ([8], [10_000_000], [100_000_000], [1.0])
        some = [values or default for values, default in zip(asked, usual, strict=True)]
        sizes = [(g, c, n, r) for g in some[0] for c in some[1] for n in some[2] for r in some[3]]
    for gpus, identities, images, rate in sizes:
        if gpus < 1 or identities < gpus or images < identities or not 0 < rate <= 1:
            raise ValueError(
                "want at least one GPU, an identity for each, an image for each identity and a sample rate above 0 and "
                f"at most 1, got {gpus} GPUs, {identities:,} identities, {images:,} images and {rate:g}"
            )
    return [Plan(network, g, c, n, sample_rate=r, **same) for g, c, n, r in sizes]


def machines_of(options: argparse.Namespace) -> Machines:
    """Return what the machines have, by the options.

    Raises:
        ValueError: If an option is not above 0.
    """
    had = {}
    for name, (field, unit, _) in MEASURES.items():
        value = getattr(options, name.replace("-", "_"))
        if not 0 < value < float("inf"):
            raise ValueError(f"want --{name} above 0, got {value:g}")
        had[field] = value * unit
    return Machines(**had)


def table(options: argparse.Namespace) -> int:
    """Print the table, and the largest run on one machine."""
    runs, machines = plans(options), machines_of(options)
    print(page.HEAD)
    for plan in runs:
        print(page.row(plan, machines))
    print()
    if options.parts:
        print("\n\n".join(page.parts(plan, machines) for plan in runs), end="\n\n")
    machine = next((plan for plan in runs if plan.gpus == MACHINE), runs[0].but(gpus=MACHINE))
    print(page.largest(machine, machines))
    return 0


def check(most: int) -> int:
    """Print what ranks send in a step beside the formulas; 1 if they differ."""
    differ, world = 0, 1
    print("| processes | step | messages | bytes | by the formula | |\n|---|---|---|---|---|---|")
    while world <= most:
        found, (written, wanted) = count(world)
        for name, (measured, formula) in found.items():
            said = "equal" if measured == formula else f"{measured - formula} more, {formula - measured} fewer"
            sums = [sum(each.bytes * times for each, times in noted.items()) for noted in (measured, formula)]
            print(f"| {world} | {name} | {measured.total()} | {sums[0]:,} | {sums[1]:,} | {said} |", flush=True)
            differ += measured != formula
        said = "equal" if written == wanted else "differ"
        print(f"| {world} | a state on disk | | {written:,} | {wanted:,} | {said} |", flush=True)
        differ += written != wanted
        world *= 2
    return 1 if differ else 0


if __name__ == "__main__":
    raise SystemExit(main())
