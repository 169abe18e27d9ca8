"""Probabilities that mean what they say."""

import math

import pytest
import torch

from clipdec.calibration import Calibration, best_threshold, fit_calibration, platt


def drawn(images, labels, scale, shift, spread=3):
    """Logits, and targets that have the probabilities sigmoid(scale * logit + shift)."""
    logits = spread * torch.randn(images, labels)
    return logits, torch.rand(images, labels) < (scale * logits + shift).sigmoid()


def test_platt_finds_the_scale_and_shift_behind_the_labels():
    scale, shift = platt(*drawn(200, 500, 0.5, -1))
    assert scale == pytest.approx(0.5, abs=0.02) and shift == pytest.approx(-1, abs=0.03)


def test_platt_of_labels_that_are_told_apart_without_an_error_stays_finite():
    scale, shift = platt(torch.tensor([3.0, 2.0, -1.0, -2.0, -3.0]), torch.tensor([1, 1, 0, 0, 0]).bool())
    probabilities = (scale * torch.tensor([2.5, -2.0]) + shift).sigmoid().tolist()
    # (2 + 1) / (2 + 2), 1 / (3 + 2)
    assert 0 < scale < 20 and probabilities == pytest.approx([3 / 4, 1 / 5], abs=0.07)


def test_platt_keeps_the_order_of_labels_of_a_bad_model():
    logits, targets = drawn(100, 50, -2, -3, spread=1)
    scale, shift = platt(logits, targets)
    rate = targets.double().mean().item()
    assert 0 < scale < 0.01 and torch.tensor(shift).sigmoid().item() == pytest.approx(rate, rel=0.02)


def test_the_threshold_has_the_best_f1_of_all():
    targets = torch.rand(40, 30) < 0.1
    probabilities = (0.3 * targets + torch.rand(40, 30)).mul(20).round() / 26  # many are equal
    sets = {threshold: probabilities >= threshold for threshold in probabilities.unique().tolist()}
    f1 = {t: 2 * (chosen & targets).sum().item() / (chosen.sum() + targets.sum()).item() for t, chosen in sets.items()}
    found = best_threshold(probabilities, targets)
    assert f1[found] == pytest.approx(max(f1.values())) and found > 0.3


def test_a_calibration_is_fitted_to_all_labels_at_once():
    logits, targets = drawn(200, 50, 0.5, -1)
    fitted = fit_calibration(logits, targets)
    assert fitted.log_odds(torch.tensor(2.0)).item() == pytest.approx(0, abs=0.1) and 0.2 < fitted.threshold < 0.5
    assert fitted.base_rate == pytest.approx(targets.float().mean().item())
    assert fitted.threshold == pytest.approx(best_threshold(fitted.log_odds(logits).sigmoid(), targets), abs=1e-5)
    assert fitted.note == ""


@pytest.mark.parametrize("sign, true, reason, base_rate", [
    (1, [], "it holds no image", 0.5), (1, [[0] * 4] * 9, "none of its images carries a label", 0.5),
    (1, [[1] * 4] * 9, "each of its images carries all labels", 0.5),
    (-1, [[1, 0, 0, 0]] * 9, "hardly score higher", 0.25), (0.055, [[1, 0, 0, 0]] * 9, "hardly score higher", 0.25),
    (1, [[1, 0, 0, 0]] * 9, "", 0.25),
])  # fmt: skip
def test_what_cannot_be_fitted_keeps_the_order_and_says_so(sign, true, reason, base_rate):
    """Where a bad model got a scale of nearly 0, all its probabilities were the base rate."""
    targets = torch.tensor(true).reshape(-1, 4).bool()
    logits = sign * 3.0 * targets + torch.linspace(-1, 1, targets.numel()).reshape(targets.shape)
    found, asked = fit_calibration(logits, targets), torch.linspace(-3, 3, 2000)
    assert reason in found.note and bool(reason) == bool(found.note) and found.base_rate == base_rate
    assert (found.log_odds(asked).sigmoid().diff() > 0).all()
    if reason:
        assert (found.scale, found.shift, found.threshold) == (1, 0, 0.5) and found.at(0.1).note == found.note
    assert Calibration(**{k: v for k, v in vars(found).items() if k != "note"}).note == ""  # a file of before


def test_another_base_rate_moves_probabilities_by_bayes_rule():
    """A label in 1 % of the images and one in 30 %, with both outcomes of a test that sees 80 % and errs in 10 %."""
    fitted = Calibration(scale=2.0, shift=-1.0, threshold=0.3, base_rate=0.01)
    moved = fitted.at(0.3)
    posterior = lambda base_rate, ratio: base_rate * ratio / (base_rate * ratio + 1 - base_rate)
    for ratio in (0.8 / 0.1, 0.2 / 0.9):
        p = posterior(0.01, ratio)
        logit = (math.log(p / (1 - p)) + 1) / 2  # the one that is given this probability
        probability = torch.tensor(moved.scale * logit + moved.shift).sigmoid().item()
        assert probability == pytest.approx(posterior(0.3, ratio), rel=1e-5)
    assert (moved.threshold, moved.scale, moved.base_rate) == (0.3, 2.0, 0.3)
    assert moved.at(0.01).shift == pytest.approx(-1.0)
    for wrong in (0, 1, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            fitted.at(wrong)
