"""The backbone with BatchNorm and PReLU as one operation: the same numbers, names and memory as the plain one."""

import copy
from types import SimpleNamespace

import pytest
import torch
import triton_interpreter
from fastmfr.kernels import batchnorm_prelu
from helpers import DEVICE, assert_as_accurate
from torch import nn

from fastmfr.backbone import IResNet, build
from fastmfr.distributed import ALONE
from fastmfr.fused import BatchNormPReLU, fused
from fastmfr.head import MarginHead, make_margin
from fastmfr.precision import autocast, matmul_precision
from fastmfr.training.pretrain import _network, _why_not_fused
from fastmfr.training.pretraining_step import PretrainingStep

if DEVICE == "cpu":
    triton_interpreter.repair()
NETWORKS = ["mfr28", "shallow iresnet"]
SENTENCES = {
    "shallow iresnet": "19 BatchNorms run as fused kernels, 5 of them together with the PReLU after",
    "mfr28": "45 BatchNorms run as fused kernels, 15 of them together with the PReLU after",
    "iresnet18": "31 BatchNorms run as fused kernels, 9 of them together with the PReLU after",
}


def make(name, dtype=torch.float64, device="cpu"):
    torch.manual_seed(0)
    shallow = name == "shallow iresnet"  # one block a stage: all kinds of layers at two fifths of iresnet18's size
    network = IResNet((1, 1, 1, 1), 24, 16) if shallow else build(name, 24, width=0.0625, image_size=16)
    return moved(network).to(device, dtype).train()


def moved(network):
    """The same network with parameters of BatchNorm and PReLU that matter."""
    for value in network.parameters():
        if value.ndim == 1 and value.requires_grad:
            value.data.add_(torch.randn_like(value), alpha=0.2)
    return network


def images(seed, B=6, size=16):
    return torch.randn(B, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def steps(network, backbone, dtype=torch.float64, device="cpu", precision=None, rate=1e-3, count=2):
    """Everything that some steps of descent leave: outputs, gradients, parameters and buffers."""
    results = {}
    for seed in range(count):
        image = images(seed).to(device, dtype).contiguous(memory_format=torch.channels_last)
        with autocast(precision, torch.device(device), cache=False):
            z = network(image)
        backbone.zero_grad()
        dz = torch.randn(z.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        with matmul_precision(precision):
            z.backward(dz.to(device, z.dtype))
        results[f"{seed}.z"] = z.detach().clone()
        for name, value in backbone.named_parameters():
            if value.requires_grad:
                assert value.grad.dtype == value.dtype
                results[f"{seed}.{name}"] = value.grad.clone()
                value.data.sub_(value.grad, alpha=rate)
            else:
                assert value.grad is None
    return {**results, **{name: value.clone() for name, value in backbone.state_dict().items()}}


def assert_near(mine, theirs, off=1e-9):
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=off, atol=off, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", NETWORKS)
def test_two_steps_are_those_of_the_backbone(name):
    plain, backbone = make(name), make(name)
    network, sentence = fused(backbone)
    assert sentence == SENTENCES[name]
    assert sum(isinstance(module, BatchNormPReLU) for module in network.modules()) == int(sentence.split()[0])
    assert_near(steps(network, backbone), steps(plain, plain))


@pytest.mark.parametrize("name", [*NETWORKS, "iresnet18"])
def test_names_and_memory_are_the_backbones(name):
    backbone = make(name)
    before = list(backbone.state_dict())
    network, sentence = fused(backbone)
    assert sentence == SENTENCES[name]
    mine, theirs = network.state_dict(keep_vars=True), backbone.state_dict(keep_vars=True)
    assert list(backbone.state_dict()) == before
    assert mine.keys() == theirs.keys()
    assert all(mine[key] is theirs[key] for key in theirs)
    assert {id(value) for value in network.parameters()} == {id(value) for value in backbone.parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_in_evaluation_pytorchs_layers_run(name, monkeypatch):
    backbone = make(name)
    network, _ = fused(backbone)
    backbone.eval()
    monkeypatch.setattr(batchnorm_prelu, "forward", None)
    assert torch.equal(network(images(0)), backbone(images(0)))
    monkeypatch.undo()
    backbone.train()
    assert_near(steps(network, backbone), steps(*[make(name)] * 2))


LAYERS = {
    "several dimensions": nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.PReLU(), nn.Flatten(2), nn.BatchNorm1d(5), nn.PReLU(5)
    ),
    "no statistics": nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, track_running_stats=False), nn.PReLU(5)),
    "no weights": nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False), nn.PReLU(5)),
    "a mean of all": nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=None), nn.PReLU(5)),
    "another momentum": nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, 1e-2, 0.4), nn.PReLU(5)),
    "one in evaluation": nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5).eval(), nn.PReLU(5)),
    "changed in place": nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("frozen", ["", "weight", "bias"])
def test_every_kind_of_batchnorm_is_right_or_left_alone(kind, frozen):
    layers = nn.Sequential(*copy.deepcopy(LAYERS[kind]), nn.Flatten()).double()
    if frozen and layers[1].affine:
        getattr(layers[1], frozen).requires_grad = False
    plain, (network, sentence) = copy.deepcopy(layers), fused(layers)
    assert (network is layers) == (kind in ("no weights", "a mean of all")), sentence
    if network is layers:
        assert sentence.endswith("for no BatchNorm of this backbone is of a kind that the kernels take")
    assert_near(steps(network, layers), steps(plain, plain))


class ReadTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.prelu = nn.BatchNorm1d(4), nn.PReLU()

    def forward(self, x):
        z = self.bn(x)
        return z + self.prelu(z)


def test_a_prelu_that_is_not_the_only_reader_stays_by_itself():
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(768, 4), ReadTwice()).double()
    plain, (network, sentence) = copy.deepcopy(layers), fused(layers)
    assert sentence == "1 BatchNorms run as fused kernels, 0 of them together with the PReLU after"
    assert_near(steps(network, layers), steps(plain, plain))


def test_what_pytorch_refuses_is_refused():
    network, _ = fused(nn.Sequential(nn.BatchNorm1d(4), nn.PReLU(4)))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(torch.randn(1, 4))
    with pytest.raises(RuntimeError, match="running_mean should contain 5 elements"):
        network(torch.randn(3, 5))


@pytest.mark.parametrize("way", ["backward", "grad"])
def test_a_second_order_step_is_refused(way):
    backbone = make("mfr28")
    network, _ = fused(backbone)
    loss, trained = network(images(0)).square().mean(), [*backbone.parameters()][-3:]
    differentiate = {"backward": loss.backward, "grad": lambda **how: torch.autograd.grad(loss, trained, **how)}[way]
    with pytest.raises(RuntimeError, match=r"a second-order step .* was wanted .* take the backbone"):
        differentiate(create_graph=True)


def test_a_graph_that_is_kept_gives_the_same_gradients_again_and_finds_what_was_changed():
    network, _ = fused(nn.Sequential(nn.BatchNorm1d(4), nn.PReLU(4)))
    weight = network.get_parameter("0.weight")
    loss = network(torch.randn(5, 4)).square().sum()
    first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_are_summed_over_passes_and_may_be_changed():
    network, _ = fused(nn.Sequential(nn.BatchNorm1d(4), nn.PReLU(4)))
    image = torch.randn(5, 4)
    network(image).square().sum().backward()
    first = [value.grad.clone() for value in network.parameters()]
    network(image).square().sum().backward()
    for value, once in zip(network.parameters(), first, strict=True):
        torch.testing.assert_close(value.grad.mul_(0.5), once)


def test_gradients_keep_nothing_else_alive(monkeypatch):
    inner = batchnorm_prelu.backward

    def rows_of_many(left, dy):
        dx, *gradients = inner(left, dy)
        return dx, *(torch.cat([row[None], torch.zeros(99, len(row))])[0] for row in gradients)

    monkeypatch.setattr(batchnorm_prelu, "backward", rows_of_many)
    for slope in (nn.PReLU(4), nn.PReLU()):
        network, _ = fused(nn.Sequential(nn.BatchNorm1d(4), slope))
        network(torch.randn(5, 4)).square().sum().backward()
        assert all(value.grad.untyped_storage().nbytes() <= 3 * 4 * 4 for value in network.parameters())


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(x) if x.sum() > 0 else x


class WithMask(nn.Module):
    """A second argument, which training leaves at its default."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x, mask=None, double=False):
        x = self.norm(x)
        return x if mask is None and not double else 2 * x


def test_arguments_that_are_not_given_have_their_defaults():
    backbone, image = WithMask().double(), images(0)
    network, sentence = fused(backbone)
    assert sentence.startswith("1 BatchNorms run as fused kernels")
    torch.testing.assert_close(network(image), backbone(image))


def test_what_cannot_be_traced_runs_as_it_is():
    network = Branching()
    same, reason = fused(network)
    assert same is network
    assert reason.startswith("BatchNorm and PReLU run as PyTorch has them, for torch.fx cannot trace this backbone (")
    hooked = nn.Sequential(nn.BatchNorm2d(3))
    hooked[0].register_forward_hook(lambda *_: None)
    same, reason = fused(hooked)
    assert same is hooked
    assert reason.endswith("for module 0 has hooks, which would be left out")


@pytest.mark.parametrize("name", NETWORKS)
def test_under_autocast_it_is_as_accurate_as_the_backbone(name):
    truth = steps(*[make(name)] * 2, count=1)
    plain = steps(*[make(name, torch.float32)] * 2, torch.float32, precision="bf16", count=1)
    backbone = make(name, torch.float32)
    network, _ = fused(backbone)
    assert_as_near(steps(network, backbone, torch.float32, precision="bf16", count=1), plain, truth)


def assert_as_near(mine, plain, truth, slack=1.3, floor=1e-4):
    """All outputs, gradients and buffers, each kind as a whole, miss the truth by little more than the plain ones."""
    for name, value in plain.items():
        assert mine[name].dtype == value.dtype, name
    kinds = {
        "outputs": lambda name: name.endswith(".z"),
        "gradients": lambda name: name[0] in "01" and not name.endswith(".z"),
        "means": lambda name: name.endswith("_mean"),
        "variances": lambda name: name.endswith("_var"),
    }
    for kind, is_one in kinds.items():
        whole = lambda values: torch.cat([values[name].double().cpu().flatten() for name in truth if is_one(name)])  # noqa: B023, E731
        exact = whole(truth)
        miss, allowed = (whole(mine) - exact).norm(), slack * (whole(plain) - exact).norm() + floor * exact.norm()
        assert miss <= allowed, f"{kind} miss float64 by {miss:.2e}, allowed {allowed:.2e}"


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_through_the_kernels(dtype, monkeypatch):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.BatchNorm2d(5), nn.PReLU(5), nn.Flatten(), nn.BatchNorm1d(80))
    layers = moved(layers).to(DEVICE)
    plain, (network, _) = copy.deepcopy(layers), fused(layers)
    exact = copy.deepcopy(layers).double()
    monkeypatch.setattr(batchnorm_prelu, "forward", kernels_forward)
    image, dy = (torch.randn(6, *size, device=DEVICE, dtype=dtype) for size in ((5, 4, 4), (80,)))
    got = [
        all_of(one, image.to(kind), dy.to(kind))
        for one, kind in ((network, dtype), (plain, dtype), (exact, torch.float64))
    ]
    for mine, theirs, truth in zip(*got, strict=True):
        assert mine.dtype == theirs.dtype
        assert_as_accurate(mine, theirs, truth, (1e-5 if dtype == torch.float32 else 1e-2) * truth.abs().max().item())


def kernels_forward(ctx, *arguments, group, **options):
    assert group is None
    ctx.path = batchnorm_prelu.fused
    return ctx.path.forward(ctx, *arguments, **options)


def all_of(network, image, dy):
    image = image.clone().requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=image.dtype == torch.bfloat16):
        y = network(image)
    y.backward(dy)
    return [
        y.detach(),
        image.grad,
        *(value.grad for value in network.parameters()),
        *(value for value in network.buffers() if value.is_floating_point()),
    ]


def test_the_stage_takes_it_and_says_so(monkeypatch):
    """Unless asked for, on a GPU only where steps are replayed: launched, it took 97 ms and PyTorch's 42 (H200)."""
    said, backbone = [], make("mfr28")
    logbook = SimpleNamespace(say=said.append)
    monkeypatch.setattr("fastmfr.cuda_graph.obstacle", lambda network: "")
    for wanted, device, rate, cuda_graph, is_plain in (
        (None, "cpu", 1.0, True, False),
        (True, "cpu", 1.0, True, False),
        (False, "cpu", 1.0, True, True),
        (False, "cuda", 1.0, True, True),
        (True, "cuda", 0.5, False, False),
        (None, "cuda", 1.0, True, False),
        (None, "cuda", 0.5, True, True),
        (None, "cuda", 1.0, False, True),
    ):
        settings = {"fused": wanted, "sync_batch_norm": True, "batch_norm": "batch", "cuda_graph": cuda_graph}
        settings |= {"precision": "fp32", "compile": "off"}
        config, head = (
            SimpleNamespace(pretrain=SimpleNamespace(**settings)),
            SimpleNamespace(sample_rate=rate, group=None),
        )
        run = SimpleNamespace(config=config, device=torch.device(device), logbook=logbook, ranks=ALONE)
        assert (_network(run, backbone, head, 8, 100) is backbone) == is_plain
    plainly = "pretrain: BatchNorm and PReLU run as PyTorch has them,"
    busy = f"{plainly} for fused kernels that are not replayed would keep the host busy for longer"
    fused_ones = f"pretrain: {SENTENCES['mfr28']}"
    asked = f"{plainly} as was asked for"
    assert said == [fused_ones, fused_ones, asked, asked, fused_ones, fused_ones, busy, busy]


def test_on_a_cpu_16_bits_are_left_to_pytorch():
    settings = SimpleNamespace(fused=None, precision="bf16", compile="off")
    reason = _why_not_fused(settings, torch.device("cpu"), make("mfr28"), None)
    assert reason == "for on the CPU bf16 has no fused passes"


@pytest.mark.skipif(DEVICE == "cpu", reason="runs on a device")
@pytest.mark.gpu
@pytest.mark.parametrize("name", SENTENCES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_device_it_is_as_accurate_as_the_backbone(name, precision):
    truth = steps(*[make(name)] * 2, rate=0)
    given = {"dtype": torch.float32, "device": "cuda", "precision": precision, "rate": 0}
    backbone, plain = (make(name, torch.float32).to("cuda", memory_format=torch.channels_last) for _ in range(2))
    network, _ = fused(backbone)
    mine, theirs = steps(network, backbone, **given), steps(plain, plain, **given)
    assert_as_near(mine, theirs, truth, floor=1e-4 if precision == "fp32" else 1e-2)


@pytest.mark.skipif(DEVICE == "cpu", reason="records a CUDA graph")
@pytest.mark.gpu
def test_on_a_device_its_steps_are_recorded_and_take_no_more_memory():
    peaks = []
    for is_fused in (False, True):
        backbone = make("iresnet18", torch.float32).to("cuda", memory_format=torch.channels_last)
        head = MarginHead(24, 50, make_margin("cosface"), 8.0).to("cuda")
        run = PretrainingStep(fused(backbone)[0] if is_fused else backbone, head, "bf16", cuda_graph=False)
        image, label = images(0, 256).to("cuda", torch.float32), torch.arange(256, device="cuda") % 50
        plain = run(image, label).clone()
        torch.cuda.reset_peak_memory_stats()
        run(image, label)
        peaks.append(torch.cuda.max_memory_allocated())
        if is_fused:
            replayed = PretrainingStep(fused(backbone)[0], head, "bf16")
            losses = [replayed(image, label).clone() for _ in range(4)]
            assert replayed.state == "steps are replayed from a CUDA graph", replayed.state
            torch.testing.assert_close(losses[-1], plain, rtol=3e-2, atol=3e-2)
        del run, backbone, head
    assert peaks[1] <= 1.02 * peaks[0], peaks
