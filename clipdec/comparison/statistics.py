"""How sure a difference is: paired by seed, and by image with a bootstrap."""

import torch

from clipdec.metrics import NAN, check


def difference(ours, others):
    """`ours` minus `others` in mAP, of each task; both are (row, maps) of `run_system` for every seed.

    The interval is that of the mean, 95 %, when the test images are drawn again. An image that is drawn twice raises AP
    a little. So the draws are taken around their own mean, and laid around the measured one. Draws without a positive
    say nothing. nan where no test image carries a label of the task.
    """
    found = {}
    for task in ("zsl", "gzsl"):
        each = [a[task].get("map", NAN) - b[task].get("map", NAN) for (a, _), (b, _) in zip(ours, others)]
        mean = sum(each) / len(each)
        draws = torch.stack([a[task] - b[task] for (_, a), (_, b) in zip(ours, others)]).mean(0)  # [R]
        interval = (draws - draws.nanmean()).nanquantile(torch.tensor([0.025, 0.975], dtype=draws.dtype)) + mean
        found[task] = {"mean": mean, "min": min(each), "max": max(each), "interval": interval.tolist()}
    return found


def bootstrap_weights(images, draws=500, seed=0):
    """How often each image is in each of `draws` samples of as many, drawn with replacement: [R, M]."""
    drawn = torch.randint(max(1, images), (draws, images), generator=torch.Generator().manual_seed(seed))
    return torch.stack([row.bincount(minlength=images) for row in drawn]).double()


def resampled_map(scores, targets, weights):
    """mAP of samples of the images: what `average_precision` gives where image m is there weights[r, m] times.

    Args: scores, targets [M, L]; weights [R, M], numbers of 0 or more.
    Returns: float64 [R] in 0..1, each the mean over the labels that have a positive in the sample.
    """
    scores, targets = check(scores, targets)
    total, labels = torch.zeros(2, len(weights), dtype=torch.float64)
    for label in targets.any(0).nonzero().flatten().tolist():
        positive = targets[:, label]
        above = scores[:, label] >= scores[positive, label][:, None]  # [P, M]: images at or above each positive
        above, own = above.to(weights.dtype), weights[:, positive]  # own: [R, P]
        precision = own @ above[:, positive].T / (weights @ above.T).clamp(min=1e-12)  # [R, P]
        count = own.sum(1)
        total += torch.where(count > 0, (own * precision).sum(1) / count.clamp(min=1e-12), 0)
        labels += count > 0
    return total / labels
