"""What the panel and the notebooks compute of predicted sets and of probabilities, by hand."""

import numpy as np
import pytest
import torch

from clipdec.notebook.answers import mean_gap, reliability, set_figures


def test_figures_of_predicted_sets_by_hand():
    predicted = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 0, 1]]).bool()
    targets = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 1, 0, 0]]).bool()
    assert set_figures(predicted, targets) == pytest.approx((3 / 5, 3 / 5, 6 / 10))
    assert set_figures(predicted[1:], targets[1:]) == pytest.approx((1 / 2, 1, 2 / 3))
    none = torch.zeros_like(predicted)
    assert np.isnan(set_figures(none, targets)[0]) and set_figures(none, targets)[1:] == (0, 0)
    assert np.isnan(set_figures(predicted, none)[1]) and set_figures(predicted, none)[0] == 0
    assert np.isnan(set_figures(none, none)).all()


def test_reliability_by_hand():
    probabilities = torch.tensor([[0.05, 0.15, 0.12], [0.95, 1.0, 0.0]])
    mean, share, count = reliability(probabilities, torch.tensor([[0, 1, 0], [1, 1, 0]]))
    assert count.tolist() == [2, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert mean[[0, 1, 9]].tolist() == pytest.approx([0.025, 0.135, 0.975]) and share[[0, 1, 9]].tolist() == [0, 0.5, 1]
    assert mean[2:9].isnan().all() and share[2:9].isnan().all()


def test_the_mean_gap_is_over_the_pairs_that_are_asked_for():
    probabilities, targets = torch.tensor([[0.25, 0.05, 0.05, 0.05]] * 2), torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]])
    assert mean_gap(probabilities, targets) == pytest.approx(100 * (2 * 0.25 + 6 * 0.05) / 8)
    assert mean_gap(probabilities, targets, 0.1) == pytest.approx(25)  # two of a quarter, one of them there
    assert mean_gap(torch.zeros(2, 4), targets) == pytest.approx(100 / 8)  # 0 everywhere: the base rate
    assert np.isnan(mean_gap(probabilities, targets, 0.9))
