"""The page for one's own trainer, run as it stands, in plain torch and in Lightning."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastmfr.batch_sampler import PairBatchSampler

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def of_lightning(block):
    return "import lightning" in block


@pytest.fixture(scope="module")
def plain():
    """(the names that the page's plain loops leave, what they print)."""
    names, printed = {"print": lambda text: printed.append(text)}, []
    for block in BLOCKS:
        if not of_lightning(block):
            exec(compile(block, str(PAGE), "exec"), names)
    return names, printed


def losses(lines):
    return [float(loss) for line in lines for loss in re.findall(r"-?\d+\.\d+", line)]


def test_the_plain_loops_of_the_page_train(plain):
    names, printed = plain
    assert [line[:9] for line in printed] == ["stage one", "stage one", "stage two", "stage two"]
    first, last = losses(printed[:2])
    assert last < first
    assert all(line.endswith(" by rop") for line in printed[2:])
    assert {value.grad is not None for value in names["backbone"].parameters()} == {True}


NOT_INSTALLED = "lightning is not installed; pip install lightning runs what the page shows of it"
OF_LIGHTNING = pytest.mark.filterwarnings("ignore")  # its advice on workers, and deprecations of its own


@OF_LIGHTNING
def test_lightning_trains_as_the_plain_loops_do(plain, monkeypatch, tmp_path):
    pytest.importorskip("lightning", reason=NOT_INSTALLED)
    monkeypatch.chdir(tmp_path)
    names, printed = plain
    (block,) = filter(of_lightning, BLOCKS)
    said = []
    exec(compile(block, str(PAGE), "exec"), {**names, "print": said.append})
    assert [line.split(":")[0] for line in said] == ["StageOne", "StageTwo"]
    assert losses(said) == pytest.approx([losses(printed)[1], losses(printed)[3]], abs=0.011)


@OF_LIGHTNING
def test_lightning_resumes_with_the_batches_of_the_next_epoch(tmp_path):
    lightning = pytest.importorskip("lightning", reason=NOT_INSTALLED)

    class Recording(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(1, 1), []

        def training_step(self, batch):
            self.seen.append(batch[0].flatten().tolist())
            return self.layer(batch[0]).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def seen(epochs, state=None, kept=None):
        module, batches = Recording(), PairBatchSampler(torch.arange(20) // 2, batch_identities=5, steps=3)
        quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
        trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", **quiet)
        image = torch.arange(20.0).unsqueeze(1)
        trainer.fit(module, DataLoader(TensorDataset(image), batch_sampler=batches), ckpt_path=state)
        if kept:
            trainer.save_checkpoint(kept)
        return module.seen

    state = tmp_path / "two_epochs.ckpt"
    assert seen(2, kept=state) + seen(4, state=state) == seen(4)


def test_the_page_is_whole():
    assert len(BLOCKS) == 6
    assert sum(map(of_lightning, BLOCKS)) == 1
