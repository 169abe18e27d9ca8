"""An offset between the logits of seen and of unseen labels, for one list of both."""

import torch

OFFSETS = torch.arange(-100, 101) / 20  # logits from -5 to 5


def seen_offset(logits, targets, unseen, k=3):
    """What to take off the logits of seen labels before they are ranked with unseen ones (calibrated stacking: Chao et
    al., ECCV 2016). In one list an unseen label has all seen ones as rivals for an image's best k. The offset is the
    one with the highest harmonic mean of R@k of the seen and R@k of the unseen labels; of several, the smallest.

    Args: logits, targets, [M, L] of images that are not those of the test; unseen, bool [L], the labels held out of the
        training, which play the unseen ones.
    Returns: a number, 0 where no image carries one of either kind.
    """
    positives = targets[:, ~unseen].sum(), targets[:, unseen].sum()
    if not all(positives):
        return 0.0
    quality = []
    for offset in OFFSETS:
        best = (logits - offset * ~unseen).topk(min(k, logits.shape[1]), dim=1).indices  # [M, k]
        hits = targets.gather(1, best)
        seen_recall, unseen_recall = hits[~unseen[best]].sum() / positives[0], hits[unseen[best]].sum() / positives[1]
        quality.append(2 * seen_recall * unseen_recall / (seen_recall + unseen_recall).clamp(min=1e-9))
    quality = torch.stack(quality)
    best = OFFSETS[quality >= quality.max() - 1e-9]
    return best[best.abs().argmin()].item()
