"""What tests of whole runs and of their states share beside the fixtures `faces` and `small`."""

import json

import torch
from helpers import command

from fastmfr.backbone import build_backbone
from fastmfr.config import parse
from fastmfr.training import Logbook
from fastmfr.weights import save_weights

DOMAINS = ("studio", "street", "nir")
PEOPLE, IMAGES = 24, 4  # of each domain
main = command("train")


def arguments(faces, place, patch, pictures=()):
    """Arguments of a run of seconds in `place`/runs. It draws no page and no sheets that `pictures` does not name."""
    if "page" not in pictures:
        patch.setattr("fastmfr.report.write_report", lambda folder: folder / "report.html")
    if "sheets" not in pictures:
        for drawing in ("draw_domains", "draw_hardest"):
            patch.setattr(f"fastmfr.training.diagnose.Diagnosis.{drawing}", lambda *_: None)
    return [
        f"--folder={place / 'runs'}",
        *(f"--data.sources.{name}={faces[name]}" for name in DOMAINS[:2]),
        f"--data.targets.nir={faces['nir']}",
        "--threads=1",
        "--data.threads=1",
        "--data.size=32",
        "--model.width=0.0625",
        "--pretrain.steps=6",
        "--pretrain.batch_identities=8",
        "--pretrain.warmup=2",
        "--meta.steps=3",
        "--meta.batch_identities=6",
        "--save_every=100",
    ]


def only_run(tmp_path):
    (folder,) = (tmp_path / "runs").iterdir()
    return folder


def records(folder, stage):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage]


def interrupted(argv, monkeypatch, stop):
    """Starts a run, or goes on with one, and interrupts it after the (stage, step) `stop` was recorded."""
    record = Logbook.record

    def stopping(self, stage, step, **values):
        record(self, stage, step, **values)
        if (stage, step) == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Logbook, "record", stopping)
        assert main(argv) == 130


def trained(steps, seed=0):
    """A small network after a few steps, and its optimizer."""
    from fastmfr.backbone import build
    from fastmfr.training.optim import set_rate, sgd

    torch.manual_seed(seed)
    network = build("mfr28", width=0.0625)
    optimizer = sgd(network.parameters(), 0.9, 5e-4)
    for _ in range(steps):
        set_rate(optimizer, 0.01)
        network(torch.randn(4, 3, 16, 16)).square().sum().backward()
        optimizer.step()
    return network, optimizer


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def untrained_run(folder, *settings):
    """The folder of a run whose small network nobody trained, with these settings on a command line."""
    torch.manual_seed(0)
    typed = [
        "--config",
        "mfr",
        "--data.sources.a",
        "a",
        "--model.width=0.0625",
        "--device=cpu",
        "--threads=1",
        *settings,
    ]
    config, _ = parse(typed)
    (folder / "config.yaml").write_text(config.to_yaml())
    save_weights(build_backbone(config), folder / "mfr.safetensors")
    return folder
