"""What runs on a CUDA device as on the CPU: operations of the R-operator, recorded steps, and whole commands."""

import copy
import sys

import pytest
import torch
from helpers import DEVICE
from small_runs import arguments, main, only_run, records
from test_external import NETS
from test_meta_trainer import LOSSES, meta_batch, on_gpu, optimizer_of
from test_rop import direction, flat, loss_of, miss
from test_rop_operations import OPERATIONS, SIZE, network_of

from fastmfr.__main__ import main as fastmfr_main
from fastmfr.backbone import build
from fastmfr.freezing import hold_stages
from fastmfr.meta import MetaSettings, MetaTrainer
from fastmfr.rop import Program, Tape

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cpu", reason="runs on a device")]


def gradient_and_hv(network, image, memory, device):
    network, image = copy.deepcopy(network).to(device), image.to(device)
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    V = {name: value.to(device) for name, value in direction({k: v.cpu() for k, v in parameters.items()}).items()}
    tape = Tape(Program(network, list(parameters)), parameters)
    leaf = tape.forward(image).requires_grad_()
    dz = torch.autograd.grad(loss_of(leaf.cpu()), leaf, create_graph=True)[0]
    gradient = tape.backward(dz.detach(), keep=memory == "kept")
    if memory == "kept":
        hv = tape.second(torch.autograd.grad(dz, leaf, tape.tangent(V))[0])
    else:
        tape = Tape(Program(network, list(parameters)), parameters)
        _, zd = tape.forward_tangent(image, V)
        hv = tape.second_streaming(dz.detach(), torch.autograd.grad(dz, leaf, zd)[0])
    return flat(gradient.values()).cpu(), flat(hv.values()).cpu()


@pytest.mark.parametrize("memory", ["kept", "streaming"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_the_cpus_in_float64(name, memory):
    network = network_of(name).double()
    image = torch.randn(6, 3, SIZE, SIZE, dtype=torch.float64)
    for got, expected in zip(
        *(gradient_and_hv(network, image, memory, device) for device in (DEVICE, "cpu")), strict=True
    ):
        # PyTorch's hardswish and hardsigmoid on CUDA have 1/6 in float32, and the operator's derivatives have it exact.
        assert miss(got, expected) < (1e-6 if "hards" in name else 1e-10)


@pytest.fixture
def networks(tmp_path, monkeypatch):
    (tmp_path / "nets_of_a_user.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "nets_of_a_user"
    sys.modules.pop("nets_of_a_user", None)


@pytest.mark.parametrize("settings", [{}, {"memory": "streaming"}, {"batch_norm": "frozen"}], ids=str)
@pytest.mark.parametrize("kind", ["held", "of a user"])
def test_a_step_of_another_backbone_is_recorded_and_is_the_cpus(kind, settings, networks):
    """In float64, so that rounding hardly ever moves a value over a kink; the second and third steps are replayed."""
    torch.manual_seed(3)
    name, options = (f"{networks}:MobileFaceNet", {}) if kind == "of a user" else ("mfr28", {"width": 0.125})
    net = build(name, 16, image_size=32, **options).double()
    if kind == "held":
        hold_stages(net, 2)
    pair = [net, copy.deepcopy(net).to(DEVICE)]
    trainers = [MetaTrainer(one, optimizer_of(one), MetaSettings(0.3, engine="rop", **settings)) for one in pair]
    for seed in range(3):
        splits = meta_batch(seed, pairs=8, size=32)
        for trainer, given in zip(trainers, (splits, on_gpu(splits)), strict=True):
            trainer.step(given, alpha=1e-3, rate=1e-3, losses=LOSSES)
    assert trainers[1].graph == "steps are replayed from a CUDA graph"
    for (key, mine), other in zip(pair[1].state_dict().items(), pair[0].state_dict().values(), strict=True):
        torch.testing.assert_close(mine.cpu(), other, rtol=1e-7, atol=1e-9, msg=key)


RUNS = {
    "averages": ["--data.validation=0.25", "--choose.every=2", "--choose.ema=0.9", "--meta.steps=4"],
    "MLDG": ["--meta.method=mldg"],
    "domains by weight": ["--data.temperature=2", "--meta.batch_norm=per_domain"],
    "statistics held": ["--meta.batch_norm=frozen", "--meta.memory=streaming"],
    "16 bits": ["--pretrain.precision=bf16", "--meta.precision=bf16", "--meta.curvature=tf32"],
    "a share of the identities": ["--pretrain.sample_rate=0.5"],
    "first order": ["--meta.method=first_order"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_and_its_model_embeds_and_exports(name, faces, tmp_path, monkeypatch):
    small = arguments(faces, tmp_path, monkeypatch)
    assert main([*small, f"--device={DEVICE}", *RUNS[name]]) == 0
    run = only_run(tmp_path)
    assert all(abs(row["loss"]) < 1e3 for stage in ("pretrain", "meta") for row in records(run, stage))
    embed = ["embed", str(run), str(faces["nir"]), "--out", str(tmp_path / "rows")]
    assert fastmfr_main(embed) == 0
    assert fastmfr_main(["export", str(run), "--out", str(tmp_path / "m.safetensors")]) == 0


def test_a_run_stopped_on_a_device_ends_there_as_if_it_had_not(faces, tmp_path, monkeypatch):
    small = [*arguments(faces, tmp_path, monkeypatch), f"--device={DEVICE}", "--save_every=1", "--pretrain.steps=6"]
    assert main([*small, "--meta.steps=1"]) == 0
    run = only_run(tmp_path)
    assert main(["--resume", str(run), "--meta.steps=3"]) == 0
    assert [row["step"] for row in records(run, "meta")] == [0, 1, 2]
