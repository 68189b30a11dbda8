"""Faults that were met by trying what users do, each with the value that is right."""

import copy
import math
import os
import re

import pytest
import torch
from test_rop import by_autograd, by_operator, direction, miss
from torch import nn
from torch.nn import functional as F

from fastmfr.backbone import build
from fastmfr.config import Config, Data, Meta, Model, Pretrain, parse
from fastmfr.config.meta_settings import LossSettings, MetaSettings
from fastmfr.domains import open_domain
from fastmfr.inspect.survey import survey
from fastmfr.pack.build import pack
from fastmfr.rop import NoROperator, Program
from fastmfr.training.checkpoint import FACTS, TENSORS, Checkpoints


def strided(network):
    """The input channels of the 1 x 1 convolutions with a stride."""
    return [m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size < m.stride]


@pytest.mark.parametrize("width", [1 / 64, 0.0625, 0.125, 0.2, 0.25, 1])
def test_no_narrow_backbone_has_the_convolution_that_damages_memory(width):
    assert all(channels >= 16 for channels in strided(build("mfr28", width=width)))


def test_a_narrow_backbone_computes_what_its_strided_convolutions_did():
    torch.manual_seed(0)
    network = build("mfr28", width=0.0625).double()
    with_strides = copy.deepcopy(network)
    for module in with_strides.modules():
        if getattr(module, "skip", 1) > 1:
            module.skip, module.downsample[0].stride = 1, (2, 2)
    assert strided(with_strides) == [4, 8, 16]
    image_B3HW = torch.randn(4, 3, 37, 37, dtype=torch.float64)
    got, wanted = network(image_B3HW), with_strides(image_B3HW)
    torch.testing.assert_close(got, wanted)
    both = (network, got), (with_strides, wanted)
    grads = [torch.autograd.grad(out.square().sum(), list(net.parameters())) for net, out in both]
    torch.testing.assert_close(*grads)


class Parts(nn.Module):
    """Convolutions of parts of what the layer before made."""

    def __init__(self, index):
        super().__init__()
        self.first, self.second, self.index = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), index

    def forward(self, x):
        return self.second(F.relu(self.first(x))[self.index]).mean((2, 3))


@pytest.mark.parametrize(
    "index",
    [
        (slice(None), slice(None), slice(None, None, 2), slice(None, None, 3)),
        (Ellipsis, slice(1, -1), slice(-4, None)),
        (slice(None), slice(None), slice(2, 3)),
    ],
)
def test_the_r_operator_takes_parts_of_tensors(index):
    torch.manual_seed(0)
    network = Parts(index).double().to(memory_format=torch.channels_last)
    P = dict(network.named_parameters())
    V = direction(P)
    image_B3HW = torch.randn(6, 3, 9, 9, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    expected = by_autograd(network, P, image_B3HW, V)
    for memory in ("kept", "streaming"):
        for got, wanted in zip(by_operator(network, P, image_B3HW, V, memory, "batch"), expected, strict=True):
            assert miss(got, wanted) < 1e-12


def test_the_r_operator_refuses_parts_that_tensors_name():
    with pytest.raises(NoROperator, match="`getitem` at node getitem has no R-operator"):
        Program(Parts(([0, 0, 1],)), ["first.weight"])


def as_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def as_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", [TENSORS, FACTS])
@pytest.mark.parametrize(("put", "reason"), [(as_a_pipe, "is a pipe"), (as_a_folder, "cannot be read: Is a directory")])
def test_a_state_of_no_regular_files_is_passed_over(tmp_path, put, reason, name):
    said = []
    network = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    states = Checkpoints(tmp_path, "meta", said.append)
    states.save(1, network, optimizer)
    states.save(2, network, optimizer)
    put(tmp_path / "meta-00000002" / name)
    assert states.resume(network, optimizer) == 1
    assert reason in said[0]
    assert "meta-00000002 is passed over" in said[0]


def test_folders_that_no_run_named_are_no_states(tmp_path):
    for name in ("meta-x3", "meta-old-00000007", "meta-"):
        (tmp_path / name).mkdir()
    states = Checkpoints(tmp_path, "meta")
    network = nn.Linear(2, 2)
    assert states.newest == states.resume(network, torch.optim.SGD(network.parameters(), lr=0.1)) == 0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LossSettings(detach_prototypes="no"), "detach_prototypes as True or False, got 'no'"),
        (lambda: LossSettings(tau_p="0.3"), "tau_p as a number, got '0.3'"),
        (lambda: LossSettings(hard_pair=True), "hard_pair as a number, got True"),
        (lambda: LossSettings(scale=math.inf), "scale > 0 and finite, got inf"),
        (lambda: MetaSettings().check(math.inf, LossSettings()), "alpha >= 0 and finite, got inf"),
        (lambda: Meta(cuda_graph="false"), "meta.cuda_graph as True or False, got 'false'"),
        (lambda: Meta(steps=True), "meta.steps as a whole number, got True"),
        (lambda: Pretrain(fused=0), "pretrain.fused as True or False, got 0"),
        (lambda: Data(size="112"), "data.size as a whole number, got '112'"),
        (lambda: Model(width="0.5"), "model.width as a number, got '0.5'"),
        (lambda: Config(threads="all"), "threads as a whole number, got 'all'"),
    ],
)
def test_settings_made_in_python_are_of_their_kinds(make, sentence):
    with pytest.raises(ValueError, match=re.escape(f"want {sentence}")):
        make()


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("model.embedding=true", "want model.embedding as a whole number or null, got true"),
        ("pretrain.margin_values=x", "want pretrain.margin_values as numbers or null, got ['x']"),
        ("pretrain=5", "pretrain is a section: want --pretrain.NAME VALUE or a .yaml file of its settings, got '5'"),
        ("meta.order=1", "there is no option --meta.order; did you mean --meta.method?"),
        ("meta.alpha=.inf", "want meta.alpha >= 0 and finite, got inf"),
    ],
)
def test_what_is_typed_wrongly_is_answered_with_what_is_wanted(capsys, option, sentence):
    with pytest.raises(SystemExit):
        parse([f"--{option}"])
    assert capsys.readouterr().err.startswith(f"error: {sentence}")


def test_a_refused_pack_leaves_no_folder_that_it_made(tmp_path):
    (tmp_path / "mine").mkdir()
    for out in ("new", "mine"):
        with pytest.raises(FileNotFoundError, match="gone"):
            pack([tmp_path / "gone"], tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_inspection_wants_a_thread(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="want workers of at least 1, got 0"):
        survey(open_domain(tmp_path), workers=0)
