"""What the panel and the notebooks compute of predicted sets, by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipdec.metrics import zsl_report
from clipdec.notebook.answers import Part, set_figures


def test_figures_of_predicted_sets_by_hand():
    predicted = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 0, 1]]).bool()
    targets = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 1, 0, 0]]).bool()
    assert set_figures(predicted, targets) == pytest.approx((3 / 5, 3 / 5, 6 / 10))
    assert set_figures(predicted[1:], targets[1:]) == pytest.approx((1 / 2, 1, 2 / 3))
    none = torch.zeros_like(predicted)
    assert np.isnan(set_figures(none, targets)[0]) and set_figures(none, targets)[1:] == (0, 0)
    assert np.isnan(set_figures(predicted, none)[1]) and set_figures(predicted, none)[0] == 0
    assert np.isnan(set_figures(none, none)).all()


@pytest.mark.parametrize("ranking", ["zsl", "gzsl"])
@pytest.mark.parametrize("keep", ["all", "relevant"])
def test_a_part_counts_what_is_known_as_the_report_does(tiny, ranking, keep):
    logits, known = torch.randn(tiny.test.targets.shape), torch.rand(tiny.test.targets.shape) < 0.3
    split = replace(tiny.test, known=known | tiny.test.targets)
    part = Part(tiny.labels, logits, split, ranking, keep)
    report = zsl_report(logits, split.targets, tiny.labels, keep, split.known)
    assert part.precisions.nanmean().item() == pytest.approx(report[ranking]["map"])
    assert part.precisions.nanmean() > Part(tiny.labels, logits, tiny.test, ranking, keep).precisions.nanmean()
