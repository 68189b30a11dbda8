"""Which engine takes a meta step: the R-operator if it applies to the backbone, else autograd."""

import torch
from torch import nn

from fastmfr.config.meta_settings import MetaSettings
from fastmfr.meta.autograd_engine import AutogradEngine
from fastmfr.meta.rop_engine import OperatorEngine
from fastmfr.precision import check_precision
from fastmfr.rop import NoROperator


def make_engine(
    backbone: nn.Module, names: list[str], settings: MetaSettings
) -> tuple[AutogradEngine | OperatorEngine, str]:
    """Make the engine that the settings ask for.

    Args:
        backbone: The network to take gradients of.
        names: The names of its trained parameters, in the order of every list of tensors.
        settings: What to compute, and how.

    Returns:
        The engine, and why it is not the R-operator, or "".

    Raises:
        ValueError: If engine "rop" is asked for and does not apply to the backbone, or if the backbone's device does
            not have a precision.
    """
    device = next((value.device for value in backbone.parameters()), torch.device("cpu"))
    precision, curvature = settings.precision, settings.hvp_precision
    check_precision(precision, device)
    check_precision(curvature, device)
    # with sharing, every batch is of one domain: the statistics of the domain are those of the batch
    one_domain = settings.sharing != "none" and settings.batch_norm == "per_domain"
    batch_norm = "batch" if one_domain else settings.batch_norm
    if settings.engine == "autograd":
        engine = AutogradEngine(backbone, names, batch_norm, precision=precision, curvature=curvature)
        return engine, "autograd was asked for"
    try:
        engine = OperatorEngine(backbone, names, batch_norm, settings.memory, precision=precision, curvature=curvature)
        return engine, ""
    except NoROperator as error:
        if settings.engine == "rop":
            raise
        return AutogradEngine(backbone, names, batch_norm, precision=precision, curvature=curvature), str(error)
