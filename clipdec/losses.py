"""The combined loss of CLIP-Decoder: L = alpha * L_clip + beta * L_c."""

import torch
import torch.nn.functional as F
from torch import nn


def asymmetric_loss(logits, targets, gamma_neg=4, gamma_pos=0, clip=0.05, weights=None, detach_focus=False):
    """L_c, the asymmetric loss of Ridnik et al., ICCV 2021: summed over labels, mean over images.

    With p = sigmoid(logit) and p_m = max(p - clip, 0), a positive costs -(1 - p)^gamma_pos log p
    and a negative -p_m^gamma_neg log(1 - p_m): easy negatives, which are nearly all, weigh little.

    Args:
        logits, targets: [B, L]; targets 0 or 1.
        gamma_neg, gamma_pos: focusing exponents, 0 or at least 1 (below, the gradient has no limit at p = 0 or 1).
        clip: probability below which a negative costs nothing.
        weights: [L] or [B, L], what each cost is multiplied with, such as the labels that a sampled one stands for, or
            0 for a label that is not known of an image.
        detach_focus: the focusing weights, (1 - p)^gamma_pos and p_m^gamma_neg, are constants to the gradient.
    """
    logits, targets = logits.float(), targets.to(torch.float32)
    p = logits.sigmoid()
    p_m = (p - clip).clamp(min=0)
    focus, focus_m = (p.detach(), p_m.detach()) if detach_focus else (p, p_m)
    positive = -F.logsigmoid(logits) * (1 - focus) ** gamma_pos
    # log(1 - p_m); without clipping by logsigmoid, which stays exact where p rounds to 1
    negative = -(torch.log1p(-p_m) if clip else F.logsigmoid(-logits)) * focus_m**gamma_neg
    cost = torch.where(targets > 0, positive, negative)  # [B, L]
    return (cost if weights is None else cost * weights).sum() / len(logits)


def alignment_loss(image_vectors, text_vectors, logit_scale, targets=None):
    """L_clip, the symmetric InfoNCE of Radford et al., ICML 2021, between images and the sentences of their labels.

    Args:
        image_vectors, text_vectors: [B, D], row i of one belongs to row i of the other; any length, normalised here.
        logit_scale: what cosines are multiplied with, 1 / temperature (scalar).
        targets: [B, L]; images that share a label set have the same sentence and are not negatives of each other.

    Returns: scalar, 0 at best, log(B) where nothing is aligned and nothing masked.
    """
    cosine = F.normalize(image_vectors.float(), dim=-1) @ F.normalize(text_vectors.float(), dim=-1).T
    logits = logit_scale * cosine  # [B, B], row: image, column: text
    own = torch.arange(len(logits), device=logits.device)
    if targets is not None:
        targets = targets.float()
        common, count = targets @ targets.T, targets.sum(1)
        same = (common.eq(count) & common.eq(count[:, None])).fill_diagonal_(False)  # equal sets have all in common
        logits = logits.masked_fill(same, float("-inf"))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class CombinedLoss(nn.Module):
    """L = alpha * L_clip + beta * L_c.

    forward returns (L, L_c, L_clip), the last two without their weights. A term of weight 0 is not computed and is 0.
    As in the author's code: without `mask_equal`, images that share a label set are negatives of each other in L_clip;
    with `detach_focus`, the focusing weights of L_c have no gradient.
    """

    def __init__(self, alpha=1.0, beta=1.0, mask_equal=True, detach_focus=False):
        super().__init__()
        self.alpha, self.beta, self.mask_equal, self.detach_focus = alpha, beta, mask_equal, detach_focus

    def forward(self, logits, targets, image_vectors, text_vectors, logit_scale, label_sets=None, weights=None):
        """As the two losses; `label_sets` are the targets of L_clip, by default `targets`; `weights` those of L_c."""
        zero = logits.new_zeros(())
        l_c = asymmetric_loss(logits, targets, weights=weights, detach_focus=self.detach_focus) if self.beta else zero
        label_sets = (targets if label_sets is None else label_sets) if self.mask_equal else None
        l_clip = alignment_loss(image_vectors, text_vectors, logit_scale, label_sets) if self.alpha else zero
        return self.alpha * l_clip + self.beta * l_c, l_c, l_clip
