"""How much of the gradient each loss supplies: measured without a step, chosen, and warned of."""

import io

import pytest
import torch
from rich.console import Console
from test_meta_engines import LOSSES, readable, splits

from fastmfr.config import Config, Meta
from fastmfr.losses import LOSSES as NAMES
from fastmfr.meta import PairBatch, meta_gradient
from fastmfr.meta.balance import ALIGNMENT, loss_gradient_norms, weight_at_share
from fastmfr.training import Logbook
from fastmfr.training.balance import SHARE, AlignmentWeight, warn_of_curvature, warn_of_shares


@pytest.fixture
def logbook(tmp_path):
    return Logbook(tmp_path, Console(file=io.StringIO(), width=400, highlight=False))


def text(logbook):
    return logbook.console.file.getvalue()


def shares(net, batch_norm, losses=LOSSES):
    """Of a meta-gradient: the share of each loss, a row a split."""
    settings = {"alpha": 0.0, "gamma": 1.0, "order": 0, "losses": losses, "batch_norm": batch_norm}
    norms = meta_gradient(net, splits(), **settings).norms
    return torch.stack([norms[f"share_{name}"] for name in NAMES], 1)


@pytest.mark.parametrize("batch_norm", ["batch", "frozen", "per_domain"])
def test_the_norms_are_those_of_the_meta_gradient_and_nothing_is_changed(batch_norm):
    net = readable()
    before, lot = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    norms_N3 = loss_gradient_norms(net, (train for train, _ in splits()), LOSSES, batch_norm)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), lot)
    torch.testing.assert_close(norms_N3 / norms_N3.sum(1, keepdim=True), shares(net, batch_norm))


def test_the_weight_that_is_chosen_makes_the_share_that_is_said(logbook):
    net = readable()
    settings = Meta(domain_alignment="auto", tau_p=1.0, tau_n=-1.0, scale=3.0)
    weight = AlignmentWeight(settings)
    weight.choose(net, [splits()[0][0]], logbook)
    assert f"meta.domain_alignment {weight.value:g}, chosen" in text(logbook)
    assert "supplies 10 % of the gradient; at 1 it would supply" in text(logbook)
    losses = type(LOSSES)(tau_p=1.0, tau_n=-1.0, scale=3.0, domain_alignment=weight.value)
    norms_3 = loss_gradient_norms(net, [splits()[0][0]], losses, "batch")[0]
    assert (norms_3[ALIGNMENT] / norms_3.sum()).item() == pytest.approx(SHARE, rel=0.01)


def test_where_a_split_trains_on_one_domain_there_is_nothing_to_align(logbook):
    train = splits()[0][0]
    one = PairBatch(train.gallery_B3HW, train.probe_B3HW, torch.zeros_like(train.domain_B))
    weight = AlignmentWeight(Meta(domain_alignment="auto"))
    weight.choose(readable(), [one], logbook)
    assert weight.value == 0
    assert "nothing to align; with a third source there would be" in text(logbook)


def test_a_weight_that_was_typed_is_no_part_of_a_state():
    typed, chosen = AlignmentWeight(Meta(domain_alignment=0.5)), AlignmentWeight(Meta(domain_alignment="auto"))
    assert (typed.value, typed.is_auto, dict(typed.state_dict())) == (0.5, False, {})
    assert (list(chosen.state_dict()), chosen.is_auto) == (["chosen"], True)


def test_alignment_that_drowns_the_rest_is_told_with_the_weight_to_set(logbook):
    part = {"share_hard_pair": 0.01, "share_soft_classification": 0.02, "share_domain_alignment": 0.97}
    warn_of_shares(part, Config(), 2.0, logbook)
    set_to = 2.0 * (0.03 / 0.97) * (0.1 / 0.9)
    assert weight_at_share(0.97 / 2.0, 0.03, 0.1) == pytest.approx(set_to, rel=0.01)
    assert "domain_alignment supplies 97 % of the gradient, more than the other losses together" in text(logbook)
    assert f"for 10 % set --meta.domain_alignment {set_to:.3g} (now 2), or auto" in text(logbook)


def test_losses_in_balance_and_a_small_look_ahead_are_not_warned_of(logbook):
    part = {"share_hard_pair": 0.3, "share_soft_classification": 0.3, "share_domain_alignment": 0.4}
    warn_of_shares(part, Config(), 1.0, logbook)
    warn_of_curvature(0.3, 0.1, logbook)
    assert text(logbook) == ""
    warn_of_curvature(3.0, 0.1, logbook)
    assert "3.0 times the first-order one" in text(logbook)
