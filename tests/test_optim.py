import pytest

from fastmfr.training.optim import meta_rates, pretrain_rate

PAPER = {"alpha": 4e-4, "beta": 4e-4, "tau_p": 0.3, "tau_n": 0.04, "decay_every": 1000}


def test_the_papers_schedule():
    assert meta_rates(999, **PAPER) == meta_rates(0, **PAPER)
    later = meta_rates(2500, **PAPER)
    assert (later.alpha, later.beta) == (1e-4, 1e-4)
    assert later.tau_p == pytest.approx(0.5)
    assert later.tau_n == pytest.approx(0.16)
    assert meta_rates(4999, **PAPER).tau_n < 1 < meta_rates(5000, **PAPER).tau_n


def test_pretraining_warms_up_and_ends_at_nothing():
    rates = [pretrain_rate(step, 100, 0.1, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-4
