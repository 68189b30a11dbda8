"""Parts of a backbone that training leaves as they are: whole stages, or the statistics of all BatchNorms.

Shape suffixes: B = batch, C = channels, H W = image.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from fastmfr.backbone import IResNet, MfrNet

__all__ = ["HeldBatchNorm", "hold_stages", "hold_statistics"]


class HeldBatchNorm(nn.Module):
    """A BatchNorm2d that always uses its running statistics and never changes them, whatever train() says.

    The module is no BatchNorm to torch, so nothing that resets or updates running statistics touches it.

    Args:
        norm: The BatchNorm whose parameters and buffers it takes over, under their names.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        self.eps = norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        for name, value in norm.named_buffers():
            self.register_buffer(name, value)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise a batch, of the same shape."""
        mean_C, var_C = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(x_BCHW, mean_C, var_C, self.weight, self.bias, False, 0.0, self.eps)


def hold_stages(backbone: nn.Module, stages: int) -> list[str]:
    """Hold the stem and the first stages of a backbone: no gradient, no update, running statistics as they are.

    Args:
        backbone: An MfrNet or IResNet, changed in place; the names of its state dict stay.
        stages: How many of the four stages are held, with the stem before them; 0 holds nothing.

    Returns:
        The names of the modules that are held.

    Raises:
        ValueError: If stages of another network are to be held.
    """
    if not stages:
        return []
    if not isinstance(backbone, MfrNet | IResNet):
        raise ValueError(f"want an MfrNet or an IResNet to hold stages of, got a {type(backbone).__name__}")
    if isinstance(backbone, MfrNet):
        names = ["stem", *(f"stages.{number}" for number in range(stages))]
    else:
        names = ["conv1", "bn1", "prelu", *(f"layer{number + 1}" for number in range(stages))]
    for name in names:
        _replace_norms(backbone, name)
        backbone.get_submodule(name).requires_grad_(False)
    return names


def _replace_norms(network, within):
    """Put a HeldBatchNorm in the place of every BatchNorm2d at or below a module."""
    for name, module in list(network.named_modules()):
        if type(module) is nn.BatchNorm2d and f"{name}.".startswith(f"{within}."):
            place, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(place), attribute, HeldBatchNorm(module))


def hold_statistics(network: nn.Module) -> None:
    """Put all BatchNorms of a network into evaluation until train() is called; their weights and biases still train."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
