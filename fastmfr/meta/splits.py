"""The meta-gradient of a meta-batch: split by split, or over domains that share their passes between the splits.

Split by split, with L_S the meta-train and L_T the meta-test loss of a split:

    theta' = theta - alpha grad L_S      v = grad L_T at theta'      gamma grad L_S + (1 - gamma) (v - alpha H v)

Shared, where a domain's loss L_j looks at that domain alone and L_S is the mean of the others' L_j: with g_j and H_j
the gradient and Hessian of L_j at theta, and V = sum of all v_i, the sum over the N splits is

    theta'_i = theta - alpha / (N - 1) (sum of g - g_i)
    gamma (sum of g) + (1 - gamma) (V - alpha / (N - 1) sum_j H_j (V - v_j))

so each domain's gradient is taken once and its Hessian met once: N products with a Hessian instead of N (N - 1).
"""

from functools import reduce

import torch

from fastmfr.meta.embedding import LOSSES, norm

COUNTS = ("positives", "negatives")  # of mined pairs: of several domains added up, where losses are averaged


def one_by_one(engine, theta, splits, alpha, gamma, order):
    """(gradient, losses, norms): the mean over the splits as a list like theta, and {name: (splits,)} twice."""
    total, logs = None, []
    for train, test in splits:
        gradient, *log = _split(engine, theta, train, test, alpha, gamma, order)
        if total is None:
            total = gradient
        else:
            torch._foreach_add_(total, gradient)
        logs.append(log)
    if total is None:
        raise ValueError("want at least one split, got none")
    torch._foreach_div_(total, len(logs))
    terms, tested, norms = map(_stack, zip(*logs, strict=True))
    return total, _losses(terms, tested), norms


def _split(engine, theta, train, test, alpha, gamma, order):
    """(gradient, meta-train losses, meta-test losses, norms) of one split; what else it held is free afterwards."""
    terms, pulls, g, curve = engine.train(theta, train, train.domain_B, twice=order == 2)
    tested, v = engine.test(torch._foreach_add(theta, g, alpha=-alpha), test)
    norms = _norms(norm(g), norm(v), torch.zeros_like(terms.total), pulls)
    g = torch._foreach_lerp(g, v, 1 - gamma)  # what was in g before is let go: the Hessian needs the room
    if order == 2:
        hv = curve(v)
        torch._foreach_add_(g, hv, alpha=-(1 - gamma) * alpha)
        norms["alpha_hv_over_v"] = alpha * norm(hv) / _positive(norms["meta_test"])
    return g, vars(terms), vars(tested), norms


def shared(engine, theta, domains, alpha, gamma, order):
    """The same out of (train, test) batches of each domain; a split trains on the trains of all domains but its own."""
    trained, tests = [], []
    for train, test in domains:
        trained.append(engine.train(theta, train, None, twice=order == 2))
        tests.append(test)
    N = len(trained)
    if N < 2:
        raise ValueError(f"want the batches of at least two domains to share between splits, got {N}")
    terms, pulls, all_g, curves = map(list, zip(*trained, strict=True))
    del trained  # the lists let go of each gradient when it has served
    sum_g = reduce(torch._foreach_add, all_g)
    all_v, tested, norms = _look_ahead(engine, theta, tests, all_g, sum_g, alpha / (N - 1), pulls)
    sum_v = reduce(torch._foreach_add, all_v)
    total = torch._foreach_lerp(sum_g, sum_v, 1 - gamma)
    if order == 2:
        hv = curves.pop()(torch._foreach_sub(sum_v, all_v.pop()))
        while curves:
            hv = torch._foreach_add(hv, curves.pop()(torch._foreach_sub(sum_v, all_v.pop())))
        torch._foreach_add_(total, hv, alpha=-(1 - gamma) * alpha / (N - 1))
        norms["alpha_hv_over_v"] += alpha / (N - 1) * norm(hv) / _positive(norm(sum_v))
    terms = {name: (value.sum() - value) / (1 if name in COUNTS else N - 1)
             for name, value in _stack([vars(term) for term in terms]).items()}  # fmt: skip
    return torch._foreach_div(total, N), _losses(terms, tested), norms


def _look_ahead(engine, theta, tests, all_g, sum_g, step, all_pulls):
    """([v], losses, norms) of all splits, without what H v adds to the norms; empties `all_g`. `step` is of the sum."""
    all_v, tested, norms = [], [], []
    for i, test in enumerate(tests):
        g = torch._foreach_sub(sum_g, all_g.pop(0))
        length_g = norm(g) / (len(tests) - 1)
        terms, v = engine.test(torch._foreach_add(theta, g, alpha=-step), test)
        all_v.append(v)
        tested.append(vars(terms))
        pulls = torch.linalg.vector_norm(torch.stack(all_pulls[:i] + all_pulls[i + 1 :]), dim=0)
        norms.append(_norms(length_g, norm(v), torch.zeros_like(terms.total), pulls))
    return all_v, _stack(tested), _stack(norms)


def _stack(logs):
    """Dicts of one value a split -> one dict of (splits,), detached."""
    return {name: torch.stack([log[name].detach() for log in logs]) for name in logs[0]}


def _losses(terms, tested):
    """Those of meta-train, and beside them those of meta-test, where nothing is aligned."""
    return terms | {f"{name}_test": value for name, value in tested.items() if name != "domain_alignment"}


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
