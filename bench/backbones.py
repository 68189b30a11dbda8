"""Networks of timm in a meta step: `python bench/backbones.py` prints engine, error of H v and time beside autograd.

For each network, on 3 pairs of random images: which engine it gets; the error of H v against autograd used twice in
float64, of the R-operator in float64 and of both in float32; and the processor time of a gradient with its H v, where
autograd used twice on the same images is 1. The two are timed in turn, on one thread. The figures of each network are a
line of JSON, and a table follows. `python bench/backbones.py FILE` makes the table of a file of such lines.
"""

import copy
import json
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch.nn import functional as F

from fastmfr.backbone import build
from fastmfr.config import MetaSettings
from fastmfr.losses import MfrLosses
from fastmfr.meta import PairBatch
from fastmfr.meta.engine import make_engine

NETWORKS = (
    *("resnet18", "seresnet18", "regnety_002", "mobilenetv2_050", "mobilenetv3_small_050"),
    *("efficientnet_b0", "ghostnet_050", "inception_next_atto", "convnext_atto", "vit_tiny_patch16_224"),
)
SIZE, PAIRS, EMBEDDING, ROUNDS = 64, 3, 128, 3
LOSSES = MfrLosses(tau_p=1.0, tau_n=-1.0)  # every pair counts


@contextmanager
def smooth_twice():
    """PyTorch has no double backward of hardsigmoid: within the block, relu6(x + 3) / 6 stands for it."""
    with mock.patch.object(F, "hardsigmoid", lambda x, inplace=False: F.relu6(x + 3) / 6):
        yield


def pairs(dtype):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, PAIRS, 3, SIZE, SIZE, generator=generator).to(dtype)
    return PairBatch(*(half.contiguous(memory_format=torch.channels_last) for half in images), torch.arange(PAIRS) % 2)


class Contender:
    """One engine on one network."""

    def __init__(self, network, engine):
        self.theta = {name: value.detach() for name, value in network.named_parameters() if value.requires_grad}
        self.engine, self.reason = make_engine(network, list(self.theta), MetaSettings(engine=engine))
        self.batch = pairs(next(iter(self.theta.values())).dtype)
        generator = torch.Generator().manual_seed(2)
        self.v = [torch.randn(value.shape, generator=generator).to(value) for value in self.theta.values()]

    def hv(self):
        """H v as one vector in float64."""
        theta = list(self.theta.values())
        done = self.engine.train(theta, self.batch, self.batch.domain_B, LOSSES, second_order=True)
        return torch.cat([value.flatten().double() for value in done.hvp(self.v)])

    def seconds(self):
        begin = time.process_time()
        self.hv()
        return time.process_time() - begin


def error(hv, truth):
    return ((hv - truth).norm() / truth.norm()).item()


def measure(name):
    torch.manual_seed(0)
    network = build(f"timm/{name}", EMBEDDING, image_size=SIZE).to(memory_format=torch.channels_last)
    chosen, twice = Contender(network, "auto"), Contender(network, "autograd")
    row = {
        "network": name,
        "parameters": sum(value.numel() for value in network.parameters()),
        "engine": chosen.engine.name,
        "reason": chosen.reason,
    }
    wide = copy.deepcopy(network).double()
    with smooth_twice():
        truth = Contender(wide, "autograd").hv()
        row["error_autograd"] = error(twice.hv(), truth)
    if chosen.engine.name != "rop":
        return row
    row |= {"error_float64": error(Contender(wide, "rop").hv(), truth), "error": error(chosen.hv(), truth)}
    ratios = []
    for _ in range(ROUNDS):
        mine = chosen.seconds()
        with smooth_twice():
            ratios.append(mine / twice.seconds())
    return row | {"time": statistics.median(ratios), "times": [round(ratio, 3) for ratio in ratios]}


def table(rows):
    """The rows as Markdown."""
    errors = "error of H v in float64", "in float32", "autograd's in float32"
    titles = "network", "million parameters", "engine", *errors, "time (least to most)"
    yield f"| {' | '.join(titles)} |"
    yield "|" + "---|" * len(titles)
    for row in rows:
        time_of = f"{row['time']:.2f} ({min(row['times']):.2f} to {max(row['times']):.2f})" if "time" in row else "-"
        errors = [f"{row[key]:.1e}" if key in row else "-" for key in ("error_float64", "error", "error_autograd")]
        cells = [row["network"], f"{row['parameters'] / 1e6:.2f}", row["engine"], *errors]
        yield f"| {' | '.join([*cells, time_of])} |"


def main(arguments):
    if arguments:
        lines = [json.loads(line) for line in Path(arguments[0]).read_text().splitlines()]
        rows = [line for line in lines if "network" in line]
    else:
        torch.set_num_threads(1)
        rows = []
        for name in NETWORKS:
            rows.append(measure(name))
            print(json.dumps(rows[-1]), flush=True)
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
