"""Where DALI is not installed Pillow decodes, says so, and gives the reference's pixels; DALI is hidden here."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from decode_fakes import GOOD, PLAIN, SMALL_PNG, FakeDomain, encode, flip_bits, in_turn, level, levels, picture
from helpers import command, on_ranks

from fastmfr import synthetic
from fastmfr.decode import DecodedCache, ImageStream, Preprocess, choose_decoder, decode_reference, mirror_flags
from fastmfr.decode.pillow import PillowPipeline, Undecodable
from fastmfr.decode.preprocess import Frame
from fastmfr.domains import open_domain

SENTENCE = (
    "decoder pillow: nvidia-dali is not installed; Pillow decodes on 2 threads instead. "
    "`pip install nvidia-dali-cuda130` is faster"
)
main = command("train")


@pytest.fixture(autouse=True)
def _hidden(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "fastmfr.decode.dali", raising=False)


def _import_everything(_rank):
    """Import what commands import, as a new process would, where nvidia.dali is not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "fastmfr" and name != "fastmfr._native"]:
        del sys.modules[name]
    sys.modules["nvidia.dali"] = None
    for name in ("__main__", "train", "training.stages", "weights"):
        importlib.import_module(f"fastmfr.{name}")
    for name in ("scoring", "pack", "inspect", "split"):
        importlib.import_module(f"fastmfr.commands.{name}")


def test_everything_is_imported_without_it():
    on_ranks(_import_everything, world=1)


def test_pillow_is_taken_and_it_is_said():
    for wanted, device in (("auto", "cpu"), ("cpu", "cpu"), ("cpu", "cuda")):
        assert choose_decoder(wanted, [], PLAIN, device, 2) == ("pillow", SENTENCE)
    assert choose_decoder("pillow", [], PLAIN, "cpu", 2) == ("pillow", "decoder pillow, as asked for")


def test_mixed_is_refused():
    with pytest.raises(ValueError, match="decoder mixed is nvidia-dali's, which is not installed; `pip install nvidia"):
        choose_decoder("mixed", [], PLAIN, "cuda", 2)


@pytest.mark.parametrize("size", [24, 32, 40])  # reduced, left alone, enlarged
def test_a_stream_over_a_folder_equals_the_reference_to_the_bit(tmp_path, size):
    paths = synthetic.make(tmp_path, domains=("studio",), identities=5, images=4, size=32, workers=1)
    domain, preprocess = open_domain(paths["studio"]), Preprocess(size=size)
    with ImageStream([domain], in_turn(10, 20), preprocess, batch_images=10, seed=3, last=2) as stream:
        for number, image_B3HW in stream:
            for slot, mirror in enumerate(mirror_flags(3, number, 10, preprocess.flip)):
                want_3HW = decode_reference(domain.jpeg(10 * number + slot), preprocess, mirror)
                assert np.array_equal(image_B3HW[slot].numpy(), want_3HW)


@pytest.mark.parametrize("vet", [False, True])
def test_a_bad_image_is_replaced_and_reported(vet):
    encoded = [level(number) for number in range(12)]
    encoded[5], encoded[10] = flip_bits(SMALL_PNG), GOOD[:100]
    got, bad = levels(encoded, vet=vet)
    assert got == [0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 11, 11]
    assert set(bad) == {"studio/5.jpg", "studio/10.jpg"}
    assert bad["studio/5.jpg"].startswith("cannot be decoded (")
    kept = DecodedCache([FakeDomain(encoded)], PLAIN, place="host", vet=vet)
    assert kept.image_NHW3[:, 0, 0, 0].tolist() == got


@pytest.mark.parametrize("prefetch", [1, 3])
def test_runs_come_in_order_begun_ahead_and_a_failed_one_is_only_itself(prefetch):
    asked = []

    def source(call):
        if call == 4:
            raise StopIteration
        asked.append(call)
        encoded = np.frombuffer(flip_bits(SMALL_PNG) if call == 1 else level(call), np.uint8)
        return [encoded] * 20, np.zeros(20, np.uint8), np.zeros((20, 2, 3))

    pipeline = PillowPipeline(source, Frame(8), torch.device("cpu"), threads=2, prefetch=prefetch)
    for call in range(4):
        if call == 1:
            with pytest.raises(Undecodable):
                pipeline.run()
        else:
            assert pipeline.run().unique().tolist() == [call]
        assert asked == list(range(min(4, call + prefetch)))
    with pytest.raises(StopIteration):
        pipeline.run()
    pipeline.close()
    assert not any(thread.is_alive() for thread in pipeline._pool._threads)


def test_a_resumed_stream_is_the_tail_of_the_whole_one():
    encoded = [encode(picture(20 + n, 24, seed=n)) for n in range(12)]
    options = {"batch_images": 5, "seed": 7, "last": 6}
    whole = dict(ImageStream([FakeDomain(encoded)], in_turn(5, 12), Preprocess(size=16), **options))
    tail = dict(ImageStream([FakeDomain(encoded)], in_turn(5, 12), Preprocess(size=16), first=4, threads=1, **options))
    assert list(tail) == [4, 5]
    assert all(torch.equal(image_B3HW, whole[number]) for number, image_B3HW in tail.items())


def test_a_whole_run_is_trained_and_says_which_decoder_it_took(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastmfr.report.write_report", lambda folder: folder / "report.html")
    names = ("studio", "street", "nir")
    paths = synthetic.make(tmp_path / "faces", domains=names, identities=20, images=4, size=32, workers=1)
    argv = [
        f"--folder={tmp_path / 'runs'}",
        f"--data.sources.studio={paths['studio']}",
        f"--data.sources.street={paths['street']}",
        f"--data.targets.nir={paths['nir']}",
        "--threads=1",
        "--data.threads=2",
        "--data.size=32",
        "--model.width=0.0625",
        "--pretrain.steps=2",
        "--pretrain.batch_identities=4",
        "--pretrain.warmup=1",
        "--meta.steps=1",
        "--meta.batch_identities=4",
        "--device=cpu",
    ]
    assert main(argv) == 0
    assert " ".join(capsys.readouterr().out.split()).count(SENTENCE) == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert "decode: auto" in (folder / "config.yaml").read_text()
    assert json.loads((folder / "made_with.json").read_text())["settings"]["data.decode"] == "pillow"
    assert (folder / "results.json").is_file()
