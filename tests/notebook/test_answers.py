"""What the panel and the notebooks compute of predicted sets, by hand."""

import numpy as np
import pytest
import torch

from clipdec.notebook.answers import set_figures


def test_figures_of_predicted_sets_by_hand():
    predicted = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 0, 1]]).bool()
    targets = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 1, 0, 0]]).bool()
    assert set_figures(predicted, targets) == pytest.approx((3 / 5, 3 / 5, 6 / 10))
    assert set_figures(predicted[1:], targets[1:]) == pytest.approx((1 / 2, 1, 2 / 3))
    none = torch.zeros_like(predicted)
    assert np.isnan(set_figures(none, targets)[0]) and set_figures(none, targets)[1:] == (0, 0)
    assert np.isnan(set_figures(predicted, none)[1]) and set_figures(predicted, none)[0] == 0
    assert np.isnan(set_figures(none, none)).all()
