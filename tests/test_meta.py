"""The meta-gradient against an explicit Hessian, central differences and hand-made special cases, in float64."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fastmfr.losses import MfrLosses
from fastmfr.meta import PairBatch, meta_gradient

ALPHA, GAMMA = 0.2, 0.3
LOSSES = MfrLosses(tau_p=2.0, tau_n=-2.0, scale=3.0)  # every pair is mined, so no mask flips under a difference
APART = replace(LOSSES, domain_alignment=0.0)


def network(batch_norm=True):
    torch.manual_seed(0)
    norm = [nn.BatchNorm2d(4)] if batch_norm else []
    layers = [nn.Conv2d(3, 4, 3, 2, bias=False), *norm, nn.Softplus(), nn.Flatten(), nn.Linear(36, 3)]
    return nn.Sequential(*layers).double()


def splits(count=1):
    gen = torch.Generator().manual_seed(1)

    def batch(domain_B):
        gallery, probe = (torch.randn(6, 3, 8, 8, generator=gen, dtype=torch.float64) for _ in range(2))
        return PairBatch(gallery, probe, domain_B)

    return [(batch(torch.arange(6) % 2), batch(torch.full((6,), 2))) for _ in range(count)]


def flat(gradient):
    return torch.cat([value.flatten() for value in gradient.values()])


def loss_of(net, batch, domain_B=None):
    """The loss as a function of one flat vector of parameters."""
    shapes = {name: value.shape for name, value in net.named_parameters()}

    def at(theta):
        parts = theta.split([shape.numel() for shape in shapes.values()])
        parameters = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        images = torch.cat([batch.gallery_B3HW, batch.probe_B3HW])
        return LOSSES(*functional_call(net, parameters, (images,)).chunk(2), domain_B).total

    return at, torch.cat([value.detach().flatten() for value in net.parameters()])


def gradient_at(loss, theta):
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(loss(theta), theta)[0]


def test_equals_the_formula_with_an_explicit_hessian():
    net, [(train, test)] = network(), splits()
    result = meta_gradient(net, [(train, test)], alpha=ALPHA, gamma=GAMMA, losses=LOSSES)
    loss_S, theta = loss_of(net, train, train.domain_B)
    loss_T, _ = loss_of(net, test)
    g = gradient_at(loss_S, theta)
    v = gradient_at(loss_T, theta - ALPHA * g)
    H = torch.autograd.functional.hessian(loss_S, theta)
    expected = GAMMA * g + (1 - GAMMA) * (v - ALPHA * H @ v)
    torch.testing.assert_close(flat(result.grad), expected, rtol=1e-9, atol=1e-11)
    assert result.norms["alpha_hv_over_v"].item() == pytest.approx((ALPHA * (H @ v).norm() / v.norm()).item(), rel=1e-9)
    assert result.norms["alpha_hv_over_v"] > 0.01  # otherwise the Hessian was not put to the test


def test_equals_central_differences_of_the_whole_objective():
    net, [(train, test)] = network(), splits()
    loss_S, theta = loss_of(net, train, train.domain_B)
    loss_T, _ = loss_of(net, test)

    def objective(theta):
        return GAMMA * loss_S(theta) + (1 - GAMMA) * loss_T(theta - ALPHA * gradient_at(loss_S, theta))

    got = flat(meta_gradient(net, [(train, test)], alpha=ALPHA, gamma=GAMMA, losses=LOSSES).grad)
    gen = torch.Generator().manual_seed(2)
    for _ in range(4):
        direction = torch.randn(len(theta), generator=gen, dtype=torch.float64)
        h = 1e-5
        slope = (objective(theta + h * direction) - objective(theta - h * direction)) / (2 * h)
        assert slope.item() == pytest.approx((got @ direction).item(), rel=1e-6)


def test_first_order_drops_the_hessian_and_keeps_the_look_ahead():
    net, [(train, test)] = network(), splits()
    got = flat(meta_gradient(net, [(train, test)], alpha=ALPHA, gamma=GAMMA, order=1, losses=LOSSES).grad)
    loss_S, theta = loss_of(net, train, train.domain_B)
    loss_T, _ = loss_of(net, test)
    g = gradient_at(loss_S, theta)
    torch.testing.assert_close(got, GAMMA * g + (1 - GAMMA) * gradient_at(loss_T, theta - ALPHA * g))


def test_no_look_ahead_is_the_plain_sum_of_both_losses():
    net, [(train, test)] = network(), splits()
    loss_S, theta = loss_of(net, train, train.domain_B)
    loss_T, _ = loss_of(net, test)
    plain = GAMMA * gradient_at(loss_S, theta) + (1 - GAMMA) * gradient_at(loss_T, theta)
    for setting in ({"alpha": ALPHA, "order": 0}, {"alpha": 0.0, "order": 2}, {"alpha": 0.0, "order": 1}):
        got = flat(meta_gradient(net, [(train, test)], gamma=GAMMA, losses=LOSSES, **setting).grad)
        torch.testing.assert_close(got, plain)


def test_the_three_orders_differ():
    net, data = network(), splits()
    none, first, second = (
        flat(meta_gradient(net, data, alpha=ALPHA, gamma=GAMMA, order=order, losses=LOSSES).grad) for order in (0, 1, 2)
    )
    for a, b in ((none, first), (first, second), (none, second)):
        assert (a - b).norm() / b.norm() > 1e-3


def test_splits_are_averaged_and_logged_apart():
    net, data = network(), splits(3)
    whole = meta_gradient(net, data, alpha=ALPHA, gamma=GAMMA, losses=LOSSES)
    single = [meta_gradient(net, [split], alpha=ALPHA, gamma=GAMMA, losses=LOSSES) for split in data]
    torch.testing.assert_close(flat(whole.grad), sum(flat(result.grad) for result in single) / 3)
    for name, values in whole.losses.items():
        torch.testing.assert_close(values, torch.cat([result.losses[name] for result in single]))


def test_weights_stay_and_running_statistics_see_the_pass_at_theta_only():
    net, [(train, test)] = network(), splits()
    before = {name: value.clone() for name, value in net.named_parameters()}
    twin = network()
    twin.train()(torch.cat([train.gallery_B3HW, train.probe_B3HW]))
    meta_gradient(net, [(train, test)], alpha=ALPHA, gamma=GAMMA, losses=LOSSES)
    for name, value in net.named_parameters():
        assert torch.equal(value, before[name])
        assert value.grad is None
    for name, value in net.named_buffers():
        assert torch.equal(value, dict(twin.named_buffers())[name]), name


def test_frozen_batch_norm_uses_and_keeps_its_running_statistics():
    net, [(train, test)] = network(), splits()
    net[1].running_mean.uniform_(-1, 1)
    before = net[1].running_mean.clone()
    frozen = meta_gradient(net, [(train, test)], alpha=ALPHA, gamma=GAMMA, losses=LOSSES, batch_norm="frozen")
    assert torch.equal(net[1].running_mean, before)
    assert net[1].training
    net.eval()  # the explicit formula in eval mode is what "frozen" means
    loss_S, theta = loss_of(net, train, train.domain_B)
    loss_T, _ = loss_of(net, test)
    g = gradient_at(loss_S, theta)
    v = gradient_at(loss_T, theta - ALPHA * g)
    H = torch.autograd.functional.hessian(loss_S, theta)
    expected = GAMMA * g + (1 - GAMMA) * (v - ALPHA * H @ v)
    torch.testing.assert_close(flat(frozen.grad), expected, rtol=1e-9, atol=1e-11)


def test_per_domain_batch_norm_is_a_pass_a_domain():
    net, [(train, test)] = network(), splits()
    result = meta_gradient(net, [(train, test)], alpha=0.0, gamma=1.0, losses=LOSSES, batch_norm="per_domain")
    net.train()
    gallery, probe = torch.empty(6, 3, dtype=torch.float64), torch.empty(6, 3, dtype=torch.float64)
    for rows in (slice(0, None, 2), slice(1, None, 2)):  # domains 0 and 1 alternate
        halves = net(torch.cat([train.gallery_B3HW[rows], train.probe_B3HW[rows]])).chunk(2)
        gallery[rows], probe[rows] = halves
    LOSSES(gallery, probe, train.domain_B).total.backward()
    expected = {name: value.grad for name, value in net.named_parameters()}
    torch.testing.assert_close(flat(result.grad), flat(expected))


def test_shares_say_which_loss_pulls():
    net, data = network(), splits()
    tiny = MfrLosses(tau_p=2.0, tau_n=-2.0, scale=3.0, hard_pair=1e-9, soft_classification=1e-9)
    norms = meta_gradient(net, data, alpha=0.0, gamma=GAMMA, losses=tiny).norms
    assert norms["share_domain_alignment"] > 0.99
    shares = [norms[f"share_{name}"].item() for name in ("hard_pair", "soft_classification", "domain_alignment")]
    assert sum(shares) == pytest.approx(1)


def test_a_frozen_parameter_gets_no_gradient():
    net, data = network(), splits()
    net[0].weight.requires_grad = False
    result = meta_gradient(net, data, alpha=ALPHA, gamma=GAMMA, losses=LOSSES)
    assert "0.weight" not in result.grad
    assert "4.weight" in result.grad


def test_refuses_a_backbone_without_a_double_backward():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return 2 * ctx.saved_tensors[0] * grad

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return Square.apply(self.inner(x))

    with pytest.raises(RuntimeError, match="Square has no double backward"):
        meta_gradient(Net(), splits(), alpha=ALPHA, gamma=GAMMA, losses=LOSSES)
    assert meta_gradient(Net(), splits(), alpha=ALPHA, gamma=GAMMA, order=1, losses=LOSSES).grad


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"order": 3}, "want order 0"),
        ({"alpha": -1.0}, "alpha >= 0"),
        ({"gamma": 1.5}, r"gamma in \[0, 1\]"),
        ({"engine": "magic"}, "engine out of 'auto', 'autograd', 'rop', got 'magic'"),
        ({"engine": "rop"}, "the operation `Softplus` at node .* has no R-operator here"),
        ({"memory": "none"}, "got 'none'"),
        ({"sharing": "all"}, "got 'all'"),
        (
            {"sharing": "per_domain", "losses": APART},
            "needs statistics that do not mix domains, got batch_norm 'batch'",
        ),
        ({"sharing": "per_domain", "batch_norm": "frozen"}, "want the weight domain_alignment 0, got 1"),
        ({"batch_norm": "group"}, "got 'group'"),
    ],
)
def test_refuses_settings_outside_their_range(setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        meta_gradient(network(), splits(), **{"alpha": ALPHA, "gamma": GAMMA, **setting})


def test_refuses_no_splits():
    with pytest.raises(ValueError, match="at least one split"):
        meta_gradient(network(), [], alpha=ALPHA, gamma=GAMMA)
