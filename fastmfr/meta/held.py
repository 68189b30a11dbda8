"""A backbone at other parameters than its own, for one pass and for what the backward of the pass computes again."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from fastmfr.config.choices import BatchNormStatistics

_SWAPPED = "_parameters", "_buffers", "training", "track_running_stats"  # attributes of modules


class Held:
    """What a pass reads of a backbone, so that its backward finds the same: parameters, buffers, modes of BatchNorm.

    Activation checkpoints compute a part of the forward pass again during backward, and custom operations or saved
    tensor hooks may read the backbone there. So each backward of a pass runs within `again`, as the pass ran within
    `first`. The pass reads copies of all buffers. `first` writes the copies back if the pass is tracked; otherwise the
    backbone's buffers, and the other attributes of its modules, stay as they were.

    Args:
        backbone: The network.
        parameters: {name: tensor}, in the place of the parameters of these names.
        batch_norm: The statistics of BatchNorm. "frozen" also puts other layers with a buffer running_mean, such as
            InstanceNorm, into their mode of evaluation, and writes no buffer back.
        tracking: Whether this is the pass that changes running statistics and other buffers.
        second_order: Whether the pass is differentiated twice. Attention is then computed by matrix products, because
            fused attention has no double backward, and compiled modules run as they were before compilation.
        repeats: A pass that this one repeats: from the same buffers, and with the same random numbers unless a CUDA
            graph is being recorded.
    """

    def __init__(
        self,
        backbone: nn.Module,
        parameters: Mapping[str, Tensor],
        batch_norm: BatchNormStatistics,
        *,
        tracking: bool,
        second_order: bool,
        repeats: "Held | None" = None,
    ):
        own = dict(backbone.named_parameters())
        self._instead = {id(own[name]): value for name, value in parameters.items()}
        self._fixed = {name: value for name, value in own.items() if name not in parameters}
        self._modules = list(backbone.modules())
        self._frozen, self._tracking, self._second_order = batch_norm == "frozen", tracking, second_order
        self._repeats = repeats
        if repeats:
            self._buffers, self._draws = repeats._buffers, repeats._draws
        else:  # as they are before the pass
            self._buffers = _copies(module._buffers for module in self._modules)
            self._draws = _Draws(next(iter(parameters.values())).device)

    @contextmanager
    def first(self) -> Iterator[None]:
        """Hold the backbone for the pass itself.

        Raises:
            RuntimeError: If the pass changes a parameter that is not trained.
        """
        versions = [value._version for value in self._fixed.values()]
        before = [dict(vars(module)) for module in self._modules]
        writes = self._tracking and not self._frozen
        with self._held(), self._draws.repeated() if self._repeats else nullcontext():
            yield
            after = [vars(module)["_buffers"] for module in self._modules]
        for (name, value), version in zip(self._fixed.items(), versions, strict=True):
            if value._version != version:
                raise RuntimeError(
                    f"the backbone changes its parameter {name}, which is not trained, in its forward, and would do so "
                    "in the passes after the inner step too; want a buffer, which only the first pass changes"
                )
        if writes:
            _write([module._buffers for module in self._modules], after)
        else:
            _restore(self._modules, before)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Hold the backbone for a backward of the pass; nothing is written back."""
        before = [dict(vars(module)) for module in self._modules]
        with self._held():
            yield
        _restore(self._modules, before)

    @contextmanager
    def _held(self):
        buffers = _copies(self._buffers)
        before = [self._swap(module, own) for module, own in zip(self._modules, buffers, strict=True)]
        with ExitStack() as stack:
            stack.callback(_restore, self._modules, before)
            if self._second_order:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                if "torch._dynamo" in sys.modules:  # else nothing is compiled, and the import would take seconds
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield

    def _swap(self, module, buffers):
        """Put the parameters of the pass and `buffers` into a module; returns the attributes replaced."""
        attributes = vars(module)
        before = {name: attributes[name] for name in _SWAPPED if name in attributes}
        attributes["_parameters"] = {name: self._instead.get(id(p), p) for name, p in module._parameters.items()}
        attributes["_buffers"] = buffers
        if isinstance(module, _BatchNorm):
            module.training, module.track_running_stats = not self._frozen, self._tracking or self._frozen
        elif self._frozen and "running_mean" in buffers:
            module.training = False
        return before


class _Draws:
    """Where the random numbers of a pass begin; nothing while a CUDA graph is recorded, which forbids to ask."""

    def __init__(self, device):
        self._device = device if device.type == "cuda" else None
        capturing = self._device is not None and torch.cuda.is_current_stream_capturing()
        self._cpu = None if capturing else torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if self._device and not capturing else None

    @contextmanager
    def repeated(self):
        """Draw the same numbers within the block, and go on after the block as if it had drawn none."""
        if self._cpu is None:
            yield
            return
        with torch.random.fork_rng([self._device] if self._device else []):
            torch.set_rng_state(self._cpu)
            if self._device and self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            yield


def _copies(buffers_of_modules):
    """Copies of the buffers of each module; what two modules share stays shared."""
    buffers_of_modules = list(buffers_of_modules)
    own = {id(value): value for buffers in buffers_of_modules for value in buffers.values() if value is not None}
    made = {key: torch.empty_like(value) for key, value in own.items()}
    _copy(list(made.values()), list(own.values()))
    return [{name: made.get(id(value)) for name, value in buffers.items()} for buffers in buffers_of_modules]


@torch.no_grad()
def _copy(targets, sources):
    """Copy tensors into others, those of one dtype in one launch."""
    for dtype in {target.dtype for target in targets}:
        places = [place for place, target in enumerate(targets) if target.dtype == dtype]
        torch._foreach_copy_([targets[place] for place in places], [sources[place] for place in places])


def _restore(modules, before):
    for module, attributes in zip(modules, before, strict=True):
        vars(module).update(attributes)


def _write(own_of_modules, made_of_modules):
    """Write buffers that a pass has made into the modules' own, in place if they are alike."""
    targets, sources = [], []
    for own, made in zip(own_of_modules, made_of_modules, strict=True):
        for name, value in made.items():
            mine = own.get(name)
            if mine is None or value is None or _kind(mine) != _kind(value):
                own[name] = None if value is None else value.detach()
            else:
                targets.append(mine)
                sources.append(value)
    _copy(targets, sources)


def _kind(tensor):
    return tensor.shape, tensor.dtype, tensor.device
