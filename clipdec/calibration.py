"""Probabilities that mean what they say, by what was neither trained on nor is tested."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

UNFITTED = "probabilities are not calibrated, only their order counts: val cannot tell, as {}"
LEAST_GAP = 0.01  # between calibrated logits of true labels and of others; below it the scale is next to 0


@dataclass(frozen=True)
class Calibration:
    """What turns a model's logit into a probability, and a probability into a decision.

    The probability is sigmoid(scale * logit + shift); labels of at least the probability `threshold` are predicted. One
    of each for all labels: the order of labels stays, and so do ZSL and GZSL figures. It holds where a label is in a
    share `base_rate` of the images, as in those that it was fitted on; see `at`. `note` says if it could not be fitted.
    """

    scale: float = 1.0
    shift: float = 0.0
    threshold: float = 0.5
    base_rate: float = 0.5
    note: str = ""

    def log_odds(self, logits):
        """Logits of probabilities: sigmoid of them is the probability."""
        return self.scale * logits + self.shift

    def at(self, base_rate):
        """The Calibration for images in which a label is there with the probability `base_rate`, before a look at them.

        By Bayes' rule the log-odds move by as much as those of the base rate (Saerens et al., Neural Computation 2002).
        """
        if not 0 < base_rate < 1:
            raise ValueError(f"base_rate must be between 0 and 1, as 0.05 for one image of twenty, got {base_rate}")
        shift = self.shift + log_odds(base_rate) - log_odds(self.base_rate)
        return replace(self, shift=shift, base_rate=base_rate)


def log_odds(probability):
    """Logarithm of p / (1 - p)."""
    return math.log(probability / (1 - probability))


def fit_calibration(logits, targets):
    """The Calibration of a model: `platt`, then `best_threshold`.

    Args: logits, targets, bool, [M, L] or [P], of images that were not trained on. Where these cannot tell what a logit
    means, probabilities stay sigmoids of the logits, and a note says why.
    """
    if not targets.any() or targets.all():
        there = "each of its images carries all labels" if targets.any() else "none of its images carries a label"
        return Calibration(note=UNFITTED.format(there if len(targets) else "it holds no image"))
    rate, (scale, shift) = targets.double().mean().item(), platt(logits, targets)
    if not scale * (logits[targets].mean() - logits[~targets].mean()) > LEAST_GAP:
        return Calibration(base_rate=rate, note=UNFITTED.format("true labels hardly score higher than others"))
    threshold = best_threshold((scale * logits.double() + shift).sigmoid(), targets)
    return Calibration(scale, shift, threshold, rate)


def best_threshold(probabilities, targets):
    """The probability from which on predicted labels have the highest F1, counted over all images and labels (micro).

    Args: probabilities, targets, of one shape, with a label that is there.
    """
    values, order = probabilities.flatten().sort(descending=True, stable=True)
    hits = targets.flatten()[order].cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(hits) + 1) + hits[-1])
    f1[:-1][values[:-1] == values[1:]] = 0  # labels of equal probability are predicted together
    return values[f1.argmax()].item()


def platt(logits, targets):
    """(scale, shift) with which sigmoid(scale * logit + shift) is a probability: the least cross-entropy.

    The targets are those of Platt (1999), a little inside of 0 and 1, so that labels that are told apart without an
    error do not get endless logits. The scale is above 0: it keeps the order of labels, also of a bad model.

    Args: logits, targets, of one shape, of images that were not trained on.
    """
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log(scale), shift
    logits, targets = logits.flatten().double(), targets.flatten().double()
    positives, negatives = targets.sum(), (1 - targets).sum()
    targets = torch.where(targets > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    optimiser = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = F.binary_cross_entropy_with_logits(parameters[0].exp() * logits + parameters[1], targets)
        value.backward()
        return value

    optimiser.step(loss)
    return parameters[0].exp().item(), parameters[1].item()
