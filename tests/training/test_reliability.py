"""How far probabilities can be believed, by hand and beside scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from clipdec.training import reliability as module
from clipdec.training.reliability import log_loss_skill, mean_gap, reliability, reliability_report


def test_reliability_by_hand(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 1)  # the images are looked at one after the other
    probabilities = torch.tensor([[0.05, 0.15, 0.12], [0.95, 1.0, 0.0]])
    mean, share, count = reliability(probabilities, torch.tensor([[0, 1, 0], [1, 1, 0]]))
    assert count.tolist() == [2, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert mean[[0, 1, 9]].tolist() == pytest.approx([0.025, 0.135, 0.975]) and share[[0, 1, 9]].tolist() == [0, 0.5, 1]
    assert mean[2:9].isnan().all() and share[2:9].isnan().all()


def test_the_figures_of_a_report_by_hand():
    probabilities, targets = torch.tensor([[0.25, 0.05, 0.05, 0.05]] * 2), torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]])
    found = reliability_report(probabilities, targets)
    assert found["gap"] == pytest.approx(100 * (2 * 0.25 + 6 * 0.05) / 8)
    assert found["gap_from_0.1"] == pytest.approx(25)  # two of a quarter, one of them there
    assert (found["pairs_from_0.1"], found["base_rate"]) == (25, 12.5)
    assert found["bins"]["pairs"] == [6, 0, 2, 0, 0, 0, 0, 0, 0, 0] and found["bins"]["share"][2] == 0.5
    everywhere = reliability(torch.zeros(2, 4), targets)  # 0 everywhere: the base rate, and no pair from 0.1 on
    assert mean_gap(*everywhere) == pytest.approx(12.5) and np.isnan(mean_gap(*(part[1:] for part in everywhere)))


def test_log_loss_skill_is_that_of_scikit_learn():
    targets = torch.rand(600, 9) < 0.1  # more images than are looked at together
    probabilities = (torch.randn(600, 9) + 2 * targets - 2).sigmoid()
    rate = targets.float().mean().item()
    ours, base = (log_loss(targets.flatten(), p.flatten()) for p in (probabilities, torch.full((600, 9), rate)))
    assert log_loss_skill(probabilities, targets) == pytest.approx(100 * (1 - ours / base), abs=1e-3)
    assert log_loss_skill(torch.full((600, 9), rate), targets) == pytest.approx(0, abs=1e-3)
    assert log_loss_skill(targets.float(), targets) == 100 and log_loss_skill(1 - targets.float(), targets) < 0
    assert np.isnan(log_loss_skill(probabilities, torch.zeros_like(targets)))
