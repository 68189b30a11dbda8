"""Backbones of others: timm/NAME and torchvision/NAME with a layer to the embedding, and package.module:factory.

The layer to the embedding is an iResNet's: a linear layer, and BatchNorm1d, whose weight is fixed to 1. These networks
end in the mean of an activation such as ReLU, whose values are nearly all positive: cosines between images would
be near 1 at the start. BatchNorm takes what all images share off, and brings all numbers to one scale.
Shape suffixes: B = batch, D = embedding, H W = image.
"""

import difflib
import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from fastmfr.config.model_settings import is_code

__all__ = [
    "CLASSES",
    "EMBEDDING",
    "HEAD",
    "LIBRARIES",
    "STRIDED_FROM",
    "TIMM",
    "TORCHVISION",
    "build_external",
    "check_on_cpu",
    "is_external",
]

TIMM, TORCHVISION = "timm/", "torchvision/"
LIBRARIES = (TIMM, TORCHVISION)
CLASSES = 1000  # outputs of a network of torchvision
EMBEDDING = 512  # of a network that leaves the number open
# From fewer input channels, oneDNN's weight gradient of a 1 x 1 convolution with a stride writes past its memory where
# channels are last: below 8 with AVX2, below 16 with AVX-512 (uxlfoundation/oneDNN issue 6035).
STRIDED_FROM = 16
HEAD = "replaced_head"  # the attribute of a network that names the layer in the place of its classifier


def is_external(name: str) -> bool:
    """Whether a backbone is made by code of others."""
    return name.startswith(LIBRARIES) or is_code(name)


def build_external(name: str, embedding: int | None, image_size: int, dropout: float = 0.0) -> nn.Module:
    """Build a backbone with fresh weights, and check it by one forward pass of two images.

    Args:
        name: timm/NAME or torchvision/NAME, a network of that library; or package.module:factory, where the factory is
            a callable that returns a torch.nn.Module. Of the arguments `embedding` and `size` the factory gets those
            that its signature names.
        embedding: Outputs D. None is 512 for timm and torchvision, and what the factory makes of no number.
        image_size: Width and height of the images in pixels.
        dropout: Probability of a zero before the last layer, for networks of timm; in every dropout of a network of
            torchvision.

    Returns:
        The network, which maps image_B3HW to embedding_BD, with its D as the attribute `embedding`.

    Raises:
        ImportError: timm or torchvision is missing, or does not go with the installed torch.
        ValueError: there is no such network or factory, or it does not make embeddings (B, D) of such images.
    """
    if name.startswith(TIMM):
        network, made_for = _of_timm(name.removeprefix(TIMM), embedding or EMBEDDING, image_size, dropout)
        wanted, hint = embedding or EMBEDDING, f"timm made it for {made_for} pixels a side" if made_for else ""
    elif name.startswith(TORCHVISION):
        network = _of_torchvision(name.removeprefix(TORCHVISION), embedding or EMBEDDING, image_size, dropout)
        wanted, hint = embedding or EMBEDDING, "most networks of torchvision were made for 224 pixels a side"
    else:
        network, wanted, hint = _of_factory(name, embedding, image_size), embedding, ""
    length = _length_of_embedding(network, name, image_size, hint)
    if wanted is not None and length != wanted:
        raise ValueError(
            f"want {wanted} numbers in an embedding (model.embedding), got {length} from {name}; want "
            f"--model.embedding {length}, or a factory that takes `embedding`"
        )
    if not isinstance(getattr(network, "embedding", 0), int):
        raise ValueError(f"{name} has an attribute `embedding` that is no whole number; want it under another name")
    network.__dict__["embedding"] = length  # as an assignment would, which type checkers take for a tensor's
    return network


def check_on_cpu(network: nn.Module, name: str) -> None:
    """Raise ValueError if training the network on a CPU would write past the memory of a gradient."""
    for path, module in network.named_modules():
        if not isinstance(module, nn.Conv2d) or module.in_channels >= STRIDED_FROM:
            continue
        if module.kernel_size == (1, 1) and max(module.stride) > 1 and module.groups == 1:
            raise ValueError(
                f"{name} cannot be trained on a CPU: the gradient of {path}, a 1 x 1 convolution of "
                f"{module.in_channels} channels with a stride, writes past its memory there (uxlfoundation/oneDNN "
                f"issue 6035); want a GPU, {STRIDED_FROM} channels or more, or x[:, :, ::2, ::2] before a stride of 1"
            )


def _library(module: str, how: str) -> Any:
    """The library of a module, once the module is imported. Raises ImportError; `how`: a sentence on installing it."""
    name = module.partition(".")[0]
    try:
        import_module(module)
        return import_module(name)
    except Exception as error:  # RuntimeError where it, or a torchvision beneath it, was built for another torch
        reason = " ".join(str(error).split())
        raise ImportError(
            f"to build a network of {name}, {name} is needed, and cannot be imported ({reason}): {how}"
        ) from None


def _of_timm(name, embedding, image_size, dropout):
    """(the network with its classifier replaced, the pixels a side that timm says it was made for, or None)."""
    how = "`pip install 'fastmfr[timm]'`; timm needs the torchvision that goes with the installed torch"
    timm = _library("timm", how)
    if not timm.is_model(name):
        raise _no_network(timm, TIMM, name, timm.list_models())
    options = {"num_classes": embedding, "drop_rate": dropout}
    try:
        network = timm.create_model(name, img_size=image_size, **options)
    except TypeError:  # most networks take any size and know no img_size
        network = timm.create_model(name, **options)
    known = network.pretrained_cfg
    where = known.get("classifier")
    old = network.get_submodule(where) if isinstance(where, str) else None
    if not isinstance(old, nn.Linear):
        raise ValueError(
            f"want a network of timm whose classifier is one linear layer, got {TIMM}{name}, which has "
            f"{where if old is None else type(old).__name__}; want another network, or wrap this one in a factory of "
            "yours and name it by package.module:factory"
        )
    _put_head(network, where, old.in_features, embedding)
    return network, known.get("input_size", (None,))[-1]


def _no_network(library, prefix, name, names):
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"; did you mean {' or '.join(prefix + one for one in near)}?" if near else ""
    return ValueError(f"{prefix.rstrip('/')} {library.__version__} has no network {name!r}{hint}")


def _of_torchvision(name, embedding, image_size, dropout):
    """The network with its classifier replaced, its dropouts as asked for, and without stochastic depth."""
    how = f"install the one that was built for torch {torch.__version__}, from where torch came"
    torchvision = _library("torchvision.models", how)
    models = torchvision.models
    names = models.list_models(module=models)
    if name not in names:
        raise _no_network(torchvision, TORCHVISION, name, names)
    network = _made(models, name, image_size)
    linear = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    where, old = linear[-1] if linear else ("", None)
    if old is None or old.out_features != CLASSES:
        raise ValueError(
            f"want a network of torchvision that ends in a linear layer to {CLASSES} classes, got {TORCHVISION}{name}; "
            "want another network, or wrap this one in a factory of yours and name it by package.module:factory"
        )
    _put_head(network, where, old.in_features, embedding)
    dropouts = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    if dropout and not dropouts:
        raise ValueError(f"want model.dropout 0 with {TORCHVISION}{name}, which has no dropout, got {dropout:g}")
    for module in dropouts:
        module.p, module.inplace = dropout, False  # the R-operator reads what a dropout in place would overwrite
    for path, module in list(network.named_modules()):
        if type(module).__name__ == "StochasticDepth":
            network.set_submodule(path, nn.Identity())
    return network


def _made(models, name, image_size):
    """The network with the first of these options that its builder knows; most builders know none of them."""
    for options in ({"aux_logits": False, "init_weights": True}, {"image_size": image_size}):
        try:
            return models.get_model(name, weights=None, **options)
        except TypeError:
            continue
    return models.get_model(name, weights=None)


def _put_head(network, where, features, embedding):
    """Puts the layer to the embedding in the place of the network's classifier, and notes where that is."""
    norm = nn.BatchNorm1d(embedding)
    norm.weight.requires_grad = False  # the embedding's scale is meaningless under a cosine
    network.set_submodule(where, nn.Sequential(nn.Linear(features, embedding), norm))
    setattr(network, HEAD, where)


def _of_factory(name, embedding, image_size):
    """What the factory returns. Raises ValueError with a sentence for all that can be wrong with it."""
    factory = _found(name)
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        raise ValueError(f"want model.name as package.module:factory, but {name} has no readable signature") from None
    offered = {"embedding": embedding, "size": image_size}
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [one.name for one in parameters.values() if one.default is one.empty and one.kind not in fixed]
    if unknown := [one for one in required if one not in offered]:
        raise ValueError(
            f"want a factory that takes `embedding` and `size` or fewer, but {name} also wants {', '.join(unknown)}; "
            "give these a default"
        )
    if embedding is None:
        offered["embedding"] = EMBEDDING
    given = {key: offered[key] for key in offered if key in parameters}
    if embedding is None and "embedding" not in required:
        given.pop("embedding", None)
    said = ", ".join(f"{key}={value}" for key, value in given.items())
    try:
        network = factory(**given)
    except Exception as error:  # code of others may raise anything
        raise ValueError(f"{name}({said}) failed: {_words(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"want a torch.nn.Module from {name}({said}), got {type(network).__name__}")
    return network


def _found(name) -> Callable[..., Any]:
    """The callable that package.module:factory names."""
    module, _, path = name.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise ValueError(f"want a factory of networks as model.name, got {name}, of Python's standard library")
    try:
        found = import_module(module)
    except Exception as error:  # code of others may raise anything
        raise ValueError(
            f"cannot import {module}, which model.name={name} asks for ({_words(error)}); install it, or start the "
            "command in the folder it lies in"
        ) from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(f"want model.name as package.module:factory, but {module} has no callable {path}")
    return found


def _length_of_embedding(network: nn.Module, name: str, size: int, hint: str) -> int:
    """D, by one forward pass of two images in evaluation, laid out as training lays them out."""
    modes = [(module, module.training) for module in network.modules()]
    image_B3HW = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            made = network.eval()(image_B3HW.contiguous(memory_format=torch.channels_last))
    except Exception as error:  # code of others may raise anything
        more = f"; {hint}" if hint else ""
        raise ValueError(
            f"{name} fails on images (2, 3, {size}, {size}) in channels-last layout: {_words(error)}; want a data.size "
            f"that the network takes{more}"
        ) from error
    for module, training in modes:
        module.training = training
    if not isinstance(made, Tensor) or made.ndim != 2 or len(made) != 2:
        got = tuple(made.shape) if isinstance(made, Tensor) else f"a {type(made).__name__}"
        raise ValueError(f"want embeddings (2, D) of 2 images from {name}, got {got}")
    return made.shape[1]


def _words(error):
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
