"""Whether probabilities can be believed: bin by bin, where they are not next to 0, and beside the base rate."""

import math

import torch
import torch.nn.functional as F

ROWS = 512  # images that are looked at together


def reliability(probabilities, targets, bins=10):
    """How often labels of a certain probability are there: (mean probability, share that is true, number), each [bins].

    The bins are equally wide from 0 to 1; an empty one is nan. A calibrated model has the first two equal.
    """
    sums = torch.zeros(3, bins, dtype=torch.float64)
    for p, t in zip(probabilities.split(ROWS), targets.split(ROWS)):
        bin_of = (p.flatten() * bins).long().clamp(0, bins - 1)
        for row, values in zip(sums, (p, t, torch.ones_like(p))):
            row += torch.bincount(bin_of, values.flatten().double(), bins)
    return sums[0] / sums[2], sums[1] / sums[2], sums[2].long()


def mean_gap(mean, share, count):
    """Mean gap between probability and share over the pairs of image and label in some bins of `reliability`, in
    points; nan without a pair. Where nearly all pairs are absent, to say 0 everywhere has a small gap over all bins, so
    the first is better left out.
    """
    return 100 * ((count * (mean - share).abs()).nan_to_num().sum() / count.sum()).item()


def log_loss_skill(probabilities, targets):
    """How much lower the log-loss is than that of the base rate said everywhere, in percent: 100 for one who knows, 0
    for one who knows the base rate of these very pairs and nothing else, below 0 for worse (Murphy, Skill scores,
    Monthly Weather Review 1988, says it of squared errors). nan where all pairs are alike.
    """
    rate = targets.double().mean().item()
    if not 0 < rate < 1:
        return torch.nan
    pairs = zip(probabilities.split(ROWS), targets.split(ROWS))
    loss = sum(F.binary_cross_entropy(p, t.to(p.dtype), reduction="sum").item() for p, t in pairs) / targets.numel()
    return 100 * (1 - loss / -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)))


def reliability_report(probabilities, targets):
    """The figures of probabilities, [M, L] or [P], in metrics.json: gaps in points, others in percent, bins in lists.
    """
    bins = mean, share, count = reliability(probabilities, targets)
    likely = [part[1:] for part in bins]  # from 0.1 on
    return {
        "base_rate": 100 * targets.double().mean().item(), "log_loss_skill": log_loss_skill(probabilities, targets),
        "gap": mean_gap(*bins), "gap_from_0.1": mean_gap(*likely),
        "pairs_from_0.1": 100 * (likely[2].sum() / count.sum()).item(),
        "bins": {"probability": mean.tolist(), "share": share.tolist(), "pairs": count.tolist()},
    }  # fmt: skip
