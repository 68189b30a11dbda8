"""Small backbones of a convolution and what stands behind it, and batches for a meta step."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastmfr.losses import MfrLosses
from fastmfr.meta import PairBatch

ALPHA, GAMMA = 0.2, 0.3
LOSSES = MfrLosses(tau_p=2.0, tau_n=-2.0, scale=3.0)
SETTINGS = {"alpha": ALPHA, "gamma": GAMMA, "losses": LOSSES}


class Net(nn.Module):
    """`call(net, images)`, with submodules by name; `plain` is set where a network is to do nothing unusual."""

    def __init__(self, call, **modules):
        super().__init__()
        self.call, self.plain = call, False
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, image):
        return self.call(self, image)

    def checkpoint(self, function, x, **settings):
        return function(x) if self.plain else checkpoint(function, x, **settings)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


def net(call, middle=nn.Softplus, last=linear):
    """A network of a convolution, whose output is (B, 4, 3, 3), and of what `middle` and `last` make."""
    torch.manual_seed(0)
    return Net(call, first=nn.Conv2d(3, 4, 3, 2), middle=middle(), last=last()).double()


def body():
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Softplus(), nn.Dropout(0.2))


def one_after_the_other(net, image):
    return net.last(F.softplus(net.middle(net.first(image))))


def splits(seed, size=8, count=2):
    """So many splits: four pairs of two domains, and four of a third one that is left out; float64."""
    gen = torch.Generator().manual_seed(seed)

    def batch(domain_B):
        gallery, probe = (torch.randn(4, 3, size, size, generator=gen, dtype=torch.float64) for _ in range(2))
        return PairBatch(gallery, probe, domain_B)

    return [(batch(torch.arange(4) % 2), batch(torch.full((4,), 2))) for _ in range(count)]


def batches():
    return splits(1, count=1)[0]


def images_of(batch):
    return torch.cat([batch.gallery_B3HW, batch.probe_B3HW])


def bias_free():
    return nn.Linear(36, 3, bias=False)
