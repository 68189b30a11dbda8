"""The summands of a meta-gradient: one for each split, or one over domains whose passes serve all splits.

Without sharing, with L_S the meta-train and L_T the meta-test loss of a split:

    theta' = theta - alpha grad L_S      v = grad L_T at theta'      gamma grad L_S + (1 - gamma) (v - alpha H v)

With sharing, a domain's loss L_j sees that domain alone, and L_S is the mean of the L_j of the other domains. With g_j
and H_j the gradient and Hessian of L_j at theta, and V the sum of all v_i, the sum over the N splits is

    theta'_i = theta - alpha / (N - 1) (sum of g - g_i)
    gamma (sum of g) + (1 - gamma) (V - alpha / (N - 1) sum_j H_j (V - v_j))

so each domain costs one gradient and one Hessian-vector product: N products in all, instead of N (N - 1).
All of it is arithmetic on flat buffers. A buffer is used again when its content has served, for H v needs the memory.
Shape suffix: P = parameters laid end to end.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fastmfr.config.meta_settings import MetaSettings
from fastmfr.distributed import Ranks
from fastmfr.flat import Flat
from fastmfr.kernels.meta_update import look_ahead  # pyright: ignore[reportMissingImports]  # the folder kernels/
from fastmfr.losses import LOSSES, MfrLosses
from fastmfr.meta.engine import Engine
from fastmfr.meta.pair_batches import train_and_test
from fastmfr.meta.types import Split, Summand
from fastmfr.profiling import CURVATURE, UPDATE, part_of_step

COUNTS = ("positives", "negatives")  # of mined pairs: summed over domains, while losses are averaged


def summands(
    settings: MetaSettings,
    engine: Engine,
    flat: Flat,
    theta_P: Tensor,
    splits: Iterable[Split],
    alpha: float,
    losses: MfrLosses,
    group: ProcessGroup | None = None,
) -> Iterator[tuple[Summand, bool]]:
    """Compute the summands of one meta-batch, one after the other.

    Args:
        settings: The order, and whether the splits are shared.
        engine: What computes gradients.
        flat: The layout of `theta_P`, in the engine's order of names.
        theta_P: The parameters.
        splits: (train, test) batches of each split, or with sharing of each domain; read one at a time.
        alpha: Inner step size, >= 0.
        losses: The losses of a split.
        group: The ranks that the engine was made with: gradients and H v are summed over the ranks, one message each.

    Returns:
        An iterator over pairs: a summand, and whether it is the last one.

    Raises:
        ValueError: If there is no split, or with sharing fewer than two domains.
    """
    if settings.order == 0:
        alpha = 0.0
    order = settings.order if alpha else 0  # at alpha = 0 the Hessian has no part in the gradient
    compute = _split_by_split if settings.sharing == "none" else _shared
    return compute(engine, flat, Ranks(group), theta_P, splits, alpha, order, losses)


def concatenated(
    logs: Sequence[tuple[dict[str, Tensor], dict[str, Tensor]]],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Concatenate the (losses, norms) of several summands along the splits, name by name."""
    losses, norms = (
        {name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in zip(*logs, strict=True)
    )
    return losses, norms


def _split_by_split(engine, flat, ranks, theta_P, splits, alpha, order, losses):
    """One summand for each split, in three buffers that all of them use."""
    g_P, v_P, hv_P = flat.empty(), flat.empty(), flat.empty() if order == 2 else None
    waiting = iter(splits)
    split = next(waiting, None)
    if split is None:
        raise ValueError("want at least one split, got none")
    while split is not None:
        summand = _of_split(engine, flat, ranks, theta_P, split, alpha, losses, g_P, v_P, hv_P)
        split = None  # images of two splits are never held together
        split = next(waiting, None)
        yield summand, split is None


def _of_split(engine, flat, ranks, theta_P, split, alpha, losses, g_P, v_P, hv_P):
    """The summand of one split, in these buffers; all other memory is free afterwards."""
    train, test = train_and_test(split)
    trained = engine.train(flat.views(theta_P), train, train.domain_B, losses, second_order=hv_P is not None)
    ranks.sum_(flat.fill(g_P, trained.gradient))
    terms, loss_gradient_norms, hvp = trained.terms, trained.loss_gradient_norms, trained.hvp
    del trained  # the gradient's memory
    with part_of_step(UPDATE):
        look_ahead(v_P, theta_P, g_P, alpha)
    tested = engine.test(flat.views(v_P), test, losses)
    ranks.sum_(flat.fill(v_P, tested.gradient))  # in the place of theta', which has served
    test_terms = tested.terms
    del tested
    norms = _norms(g_P.norm(), v_P.norm(), torch.zeros_like(terms.total), loss_gradient_norms)
    if hv_P is not None:
        with part_of_step(CURVATURE):
            ranks.sum_(flat.fill(hv_P, hvp(flat.views(v_P))))
        norms["alpha_hv_over_v"] = alpha * hv_P.norm() / _positive(norms["meta_test"])
    log = _losses(_as_one_split(vars(terms)), _as_one_split(vars(test_terms)))
    return Summand(g_P, v_P, hv_P, alpha, log, _as_one_split(norms))


def _shared(engine, flat, ranks, theta_P, domains, alpha, order, losses):
    """One summand for all splits, from (train, test) batches of each domain.

    A split trains on the train batches of all domains but the one that it tests on.
    """
    terms, loss_gradient_norms, hvps, tests, g_NP = [], [], [], [], []
    for train, test in map(train_and_test, domains):
        trained = engine.train(flat.views(theta_P), train, None, losses, second_order=order == 2)
        g_NP.append(ranks.sum_(flat.fill(flat.empty(), trained.gradient)))
        terms.append(trained.terms)
        loss_gradient_norms.append(trained.loss_gradient_norms)
        hvps.append(trained.hvp)
        tests.append(test)
        del trained  # the gradient's memory
    N = len(tests)
    if N < 2:
        raise ValueError(f"want the batches of at least two domains to share between splits, got {N}")
    step = alpha / (N - 1)
    g_P = _sum_of_buffers(g_NP)
    tested, norms = _test_all(engine, flat, ranks, theta_P, tests, losses, g_P, g_NP, step, loss_gradient_norms)
    v_NP = g_NP  # _test_all has overwritten each g with its split's v
    v_P, hv_P = _sum_of_buffers(v_NP), None
    if order == 2:
        with part_of_step(CURVATURE):
            hv_P = ranks.sum_(_sum_of_hvps(flat, hvps, v_P, v_NP))
        norms["alpha_hv_over_v"] += step * hv_P.norm() / _positive(v_P.norm())
    trained = {
        name: (value.sum() - value) / (1 if name in COUNTS else N - 1)
        for name, value in _stack([vars(term) for term in terms]).items()
    }
    yield Summand(g_P, v_P, hv_P, step, _losses(trained, tested), norms), True


def _test_all(engine, flat, ranks, theta_P, tests, losses, sum_g_P, g_NP, step, loss_gradient_norms):
    """(losses, norms) of the meta-test batches of all splits; overwrites each g of `g_NP` with its split's v.

    The norm alpha_hv_over_v is left 0.
    """
    base_P = flat.empty()
    with part_of_step(UPDATE):
        look_ahead(base_P, theta_P, sum_g_P, step)
    tested, norms = [], []
    for i, (test, g_P) in enumerate(zip(tests, g_NP, strict=True)):
        g_norm = torch.dist(sum_g_P, g_P) / (len(tests) - 1)
        with part_of_step(UPDATE):
            look_ahead(g_P, base_P, g_P, -step)
        at_split = engine.test(flat.views(g_P), test, losses)
        ranks.sum_(flat.fill(g_P, at_split.gradient))
        tested.append(vars(at_split.terms))
        others = torch.stack(loss_gradient_norms[:i] + loss_gradient_norms[i + 1 :])
        zero = torch.zeros_like(at_split.terms.total)
        norms.append(_norms(g_norm, g_P.norm(), zero, torch.linalg.vector_norm(others, dim=0)))
    return _stack(tested), _stack(norms)


def _sum_of_hvps(flat, hvps, sum_v_P, v_NP):
    """The sum over domains of H_j (V - v_j); empties both lists, so that a domain's state is freed after use."""
    total_P = flat.zeros()
    while hvps:
        direction_P = torch.sub(sum_v_P, v_NP[-1], out=v_NP.pop())
        torch._foreach_add_(flat.views(total_P), list(hvps.pop()(flat.views(direction_P))))
    return total_P


def _sum_of_buffers(flats):
    total_P = flats[0].clone()
    for flat_P in flats[1:]:
        total_P += flat_P
    return total_P


def _as_one_split(log):
    """What `_stack` makes of a single split, without a launch."""
    return {name: value.detach()[None] for name, value in log.items()}


def _stack(logs):
    """One {name: ()} for each split -> one {name: (splits,)}, detached."""
    return {name: torch.stack([log[name].detach() for log in logs]) for name in logs[0]}


def _losses(trained, tested):
    """The losses of meta-train together with those of meta-test, which have no domain alignment."""
    return trained | {f"{name}_test": value for name, value in tested.items() if name != "domain_alignment"}


def _norms(meta_train, meta_test, alpha_hv_over_v, loss_gradient_norms):
    fractions = loss_gradient_norms / _positive(loss_gradient_norms.sum())
    return {
        "meta_train": meta_train,
        "meta_test": meta_test,
        "alpha_hv_over_v": alpha_hv_over_v,
        **{f"share_{name}": fraction for name, fraction in zip(LOSSES, fractions, strict=True)},
    }


def _positive(value):
    return value.clamp_min(torch.finfo(value.dtype).tiny)
