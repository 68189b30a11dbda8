"""The summands of a meta-gradient: split by split, or one over domains that share their passes between the splits.

Split by split, with L_S the meta-train and L_T the meta-test loss of a split:

    theta' = theta - alpha grad L_S      v = grad L_T at theta'      gamma grad L_S + (1 - gamma) (v - alpha H v)

Shared, where a domain's loss L_j looks at that domain alone and L_S is the mean of the others' L_j: with g_j and H_j
the gradient and Hessian of L_j at theta, and V = sum of all v_i, the sum over the N splits is

    theta'_i = theta - alpha / (N - 1) (sum of g - g_i)
    gamma (sum of g) + (1 - gamma) (V - alpha / (N - 1) sum_j H_j (V - v_j))

so each domain's gradient is taken once and its Hessian met once: N products with a Hessian instead of N (N - 1).
All of it is arithmetic on flat buffers; one that has served is used again, for the Hessian needs the room.
Shape suffix: P = parameters laid end to end.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fastmfr.config.meta_settings import MetaSettings
from fastmfr.flat import Flat
from fastmfr.kernels.meta_update import look_ahead  # pyright: ignore[reportMissingImports]  # the folder kernels/
from fastmfr.losses import LOSSES, MfrLosses
from fastmfr.meta.types import Summand

COUNTS = ("positives", "negatives")  # of mined pairs: of several domains added up, where losses are averaged


def summands(
    settings: MetaSettings, engine, flat: Flat, theta_P: Tensor, splits: Iterable, alpha: float, losses: MfrLosses
) -> Iterator[tuple[Summand, bool]]:
    """(summand, whether it is the last) of a meta-batch. Raises ValueError where there are too few splits."""
    if settings.order == 0:
        alpha = 0.0
    order = settings.order if alpha else 0  # at alpha = 0 the Hessian has no part in the gradient
    take = _one_by_one if settings.sharing == "none" else _shared
    return take(engine, flat, theta_P, splits, alpha, order, losses)


def joined(logs):
    """(losses, norms) of several summands as one."""
    return tuple(
        {name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in zip(*logs, strict=True)
    )


def _one_by_one(engine, flat, theta_P, splits, alpha, order, losses):
    """Of each split, in three buffers that all of them use."""
    g_P, v_P, hv_P = flat.empty(), flat.empty(), flat.empty() if order == 2 else None
    waiting = iter(splits)
    split = next(waiting, None)
    if split is None:
        raise ValueError("want at least one split, got none")
    while split is not None:
        summand = _split(engine, flat, theta_P, split, alpha, losses, g_P, v_P, hv_P)
        split = None  # images of two splits are never held together
        split = next(waiting, None)
        yield summand, split is None


def _split(engine, flat, theta_P, split, alpha, losses, g_P, v_P, hv_P):
    """The summand of one split, in these buffers; what else it held is free afterwards."""
    train, test = split
    terms, pulls, g, curve = engine.train(flat.views(theta_P), train, train.domain_B, losses, twice=hv_P is not None)
    flat.fill(g_P, g)
    del g
    look_ahead(v_P, theta_P, g_P, alpha)
    tested, v = engine.test(flat.views(v_P), test, losses)
    flat.fill(v_P, v)  # in the place of theta', which has served
    del v
    norms = _norms(g_P.norm(), v_P.norm(), torch.zeros_like(terms.total), pulls)
    if hv_P is not None:
        flat.fill(hv_P, curve(flat.views(v_P)))
        norms["alpha_hv_over_v"] = alpha * hv_P.norm() / _positive(norms["meta_test"])
    return Summand(g_P, v_P, hv_P, alpha, _losses(_of_one(vars(terms)), _of_one(vars(tested))), _of_one(norms))


def _shared(engine, flat, theta_P, domains, alpha, order, losses):
    """One for all splits, out of (train, test) batches of each domain; a split trains on all trains but its own."""
    terms, pulls, curves, tests, g_NP = [], [], [], [], []
    for train, test in domains:
        term, pull, g, curve = engine.train(flat.views(theta_P), train, None, losses, twice=order == 2)
        g_NP.append(flat.fill(flat.empty(), g))
        for values, value in ((terms, term), (pulls, pull), (curves, curve), (tests, test)):
            values.append(value)
        del g
    N = len(tests)
    if N < 2:
        raise ValueError(f"want the batches of at least two domains to share between splits, got {N}")
    step = alpha / (N - 1)
    g_P = _sum(g_NP)
    tested, norms = _look_ahead(engine, flat, theta_P, tests, losses, g_P, g_NP, step, pulls)
    v_NP = g_NP  # each was overwritten by its split's v
    v_P, hv_P = _sum(v_NP), None
    if order == 2:
        hv_P = _curved(flat, curves, v_P, v_NP)
        norms["alpha_hv_over_v"] += step * hv_P.norm() / _positive(v_P.norm())
    trained = {
        name: (value.sum() - value) / (1 if name in COUNTS else N - 1)
        for name, value in _stack([vars(term) for term in terms]).items()
    }
    yield Summand(g_P, v_P, hv_P, step, _losses(trained, tested), norms), True


def _look_ahead(engine, flat, theta_P, tests, losses, sum_g_P, g_NP, step, all_pulls):
    """(losses, norms) of all splits, without what H v adds to the norms; puts each split's v in the place of its g."""
    base_P = flat.empty()
    look_ahead(base_P, theta_P, sum_g_P, step)
    tested, norms = [], []
    for i, (test, g_P) in enumerate(zip(tests, g_NP, strict=True)):
        length_g = torch.dist(sum_g_P, g_P) / (len(tests) - 1)
        look_ahead(g_P, base_P, g_P, -step)
        terms, v = engine.test(flat.views(g_P), test, losses)
        flat.fill(g_P, v)
        tested.append(vars(terms))
        pulls = torch.linalg.vector_norm(torch.stack(all_pulls[:i] + all_pulls[i + 1 :]), dim=0)
        norms.append(_norms(length_g, g_P.norm(), torch.zeros_like(terms.total), pulls))
    return _stack(tested), _stack(norms)


def _curved(flat, curves, sum_v_P, v_NP):
    """The sum over domains of H_j (V - v_j); empties both lists, so that a state is let go when it has served."""
    total_P = flat.zeros()
    while curves:
        direction_P = torch.sub(sum_v_P, v_NP[-1], out=v_NP.pop())
        torch._foreach_add_(flat.views(total_P), list(curves.pop()(flat.views(direction_P))))
    return total_P


def _sum(flats):
    total_P = flats[0].clone()
    for flat_P in flats[1:]:
        total_P += flat_P
    return total_P


def _of_one(log):
    """What `_stack` gives of a single split, without a launch."""
    return {name: value.detach()[None] for name, value in log.items()}


def _stack(logs):
    """Dicts of one value a split -> one dict of (splits,), detached."""
    return {name: torch.stack([log[name].detach() for log in logs]) for name in logs[0]}


def _losses(trained, tested):
    """Those of meta-train, and beside them those of meta-test, where nothing is aligned."""
    return trained | {f"{name}_test": value for name, value in tested.items() if name != "domain_alignment"}


def _norms(meta_train, meta_test, alpha_hv_over_v, pulls):
    shares = pulls / _positive(pulls.sum())
    return {
        "meta_train": meta_train,
        "meta_test": meta_test,
        "alpha_hv_over_v": alpha_hv_over_v,
        **{f"share_{name}": share for name, share in zip(LOSSES, shares, strict=True)},
    }


def _positive(value):
    return value.clamp_min(torch.finfo(value.dtype).tiny)
