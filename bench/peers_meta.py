"""How others get the exact gradient of a split: torch.func's jvp of grad, and the inner loops of higher and torchopt.

Each is made from (backbone, losses, alpha, gamma) and turns (train, test) batches into a list of gradients. All use
batch statistics in both passes. `PEERS` holds those that are installed, `ABSENT` names the others. learn2learn is not
among them: the C files of its last release, 0.2.0, do not compile for Python 3.11 and later.
"""

import copy
from importlib.util import find_spec

import torch
from torch import nn
from torch.func import functional_call, grad, jvp


def _stateless(backbone):
    """A copy without running statistics, which torch.func could not update under its transforms."""
    backbone = copy.deepcopy(backbone)
    for module in backbone.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    return backbone


def _loss(embed, losses, pairs, domain_B=None):
    return losses(*embed(torch.cat([pairs.gallery_B3HW, pairs.probe_B3HW])).chunk(2), domain_B).total


def torch_func(backbone, losses, alpha, gamma):
    """Forward over reverse: the Hessian-vector product is the tangent of torch.func.grad."""
    backbone = _stateless(backbone)
    parameters = {name: value.detach() for name, value in backbone.named_parameters()}

    def loss(at, pairs, domain_B=None):
        return _loss(lambda images: functional_call(backbone, at, (images,)), losses, pairs, domain_B)

    def gradient(train, test):
        def of_train(at):
            return grad(loss)(at, train, train.domain_B)

        g = of_train(parameters)
        inner = {name: value - alpha * g[name] for name, value in parameters.items()}
        v = grad(loss)(inner, test)
        hv = jvp(of_train, (parameters,), (v,))[1]
        return [gamma * g[name] + (1 - gamma) * (v[name] - alpha * hv[name]) for name in parameters]

    return gradient


def higher(backbone, losses, alpha, gamma):
    """higher's patched module and differentiable SGD; the gradient goes back through its step."""
    from higher import innerloop_ctx

    optimizer = torch.optim.SGD(backbone.parameters(), lr=alpha)

    def gradient(train, test):
        with innerloop_ctx(backbone, optimizer) as (network, inner):
            loss_train = _loss(network, losses, train, train.domain_B)
            inner.step(loss_train)
            total = gamma * loss_train + (1 - gamma) * _loss(network, losses, test)
            return torch.autograd.grad(total, list(network.parameters(time=0)))

    return gradient


def torchopt(backbone, losses, alpha, gamma):
    """torchopt's differentiable SGD, which replaces the weights of the network itself; they are put back afterwards."""
    from torchopt import MetaSGD, extract_state_dict, recover_state_dict

    backbone = copy.deepcopy(backbone)
    optimizer = MetaSGD(backbone, lr=alpha)
    parameters = list(backbone.parameters())
    before = [extract_state_dict(part, by="reference") for part in (backbone, optimizer)]

    def gradient(train, test):
        loss_train = _loss(backbone, losses, train, train.domain_B)
        optimizer.step(loss_train)
        total = gamma * loss_train + (1 - gamma) * _loss(backbone, losses, test)
        result = torch.autograd.grad(total, parameters)
        for part, state in zip((backbone, optimizer), before, strict=True):
            recover_state_dict(part, state)
        return result

    return gradient


NEEDED = {"torch.func": (torch_func, "torch"), "higher": (higher, "higher"), "torchopt": (torchopt, "torchopt")}
PEERS = {name: make for name, (make, package) in NEEDED.items() if find_spec(package)}
ABSENT = [name for name in NEEDED if name not in PEERS]
