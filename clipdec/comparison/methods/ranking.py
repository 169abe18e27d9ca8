"""The losses over pairs that methods of the field share. Each asks, in every image, that positives score above others.

Only the positives, of which an image has few, are held against all labels: memory [positives, L], not [B, L, L].
"""

import torch.nn.functional as F


def gaps(scores, targets):
    """(image [P] of every positive of the batch, s_n - s_p [P, L] to all labels n, whether n is a negative [P, L])."""
    image, label = targets.nonzero(as_tuple=True)
    return image, scores[image] - scores[image, label][:, None], ~targets[image]


def by_image(values, image, count):
    """Sums of `values` [P] over the positives of each image, [B]."""
    return values.new_zeros(count).index_add(0, image, values)


def ranking_loss(scores, targets):
    """max(0, 1 + s_n - s_p), summed over the pairs of an image, over the number of pairs that are above 0; mean over
    images. Of LESA (Huynh & Elhamifar, CVPR 2020, github.com/hbdat/cvpr20_LESA), as BiAM and MKT use it too.

    Args: scores [B, L]; targets [B, L] bool.
    """
    image, gap, negative = gaps(scores, targets)
    violation = (1 + gap).clamp(min=0) * negative  # [P, L]
    total, count = (by_image(each, image, len(scores)) for each in (violation.sum(1), (violation > 0).sum(1).float()))
    return (total / (count + 1e-8)).mean()


def ranknet_loss(scores, targets):
    """log(1 + exp(s_n - s_p)), mean over the pairs of an image and over images (Burges et al., ICML 2005)."""
    image, gap, negative = gaps(scores, targets)
    cost = (F.softplus(gap) * negative).sum(1) / negative.sum(1).clamp(min=1)  # [P]
    return (by_image(cost, image, len(scores)) / targets.sum(1).clamp(min=1)).mean()
