"""Recover-and-Match (Tan et al., "Recover and Match", CVPR 2025): each label gets its regions by optimal transport."""

import torch
import torch.nn.functional as F
from torch import nn

from clipdec.comparison.methods.text_space import TextSpace

SHARP = 100.0  # what CLIP multiplies cosines with


class RecoverAndMatch(nn.Module):
    """q_{r,c} = cos(p_r, w_c); plan T = Sinkhorn of the cost 1 - softmax_c(100 q), with the masses
    softmax_r(max_c q / 0.1) of tokens and 1 / C of labels;  s_c = C sum_r T_{r,c} q_{r,c} / tau;  score = mean of the
    softmaxes over labels of s and of cos(d, w_c) / t; tau, from 0.2 (2e-4 for NUS-WIDE's 1,006 labels), and t, from
    0.01 on, are learned.

    While training, the cost of a pair is raised by -0.05 log F, F the part of token r in what untouched CLIP gives
    label c (softmax over r of 20 softmax_c), for absent labels its lowest. Loss (MMC), of both: one softmax over all
    pairs of the batch, minus the mean log-probability of the present ones. github.com/EricTan7/RAM, ot_solver.py and
    mmc_loss.py: 100 rounds at most, until the change is below 1e-3; entropy 0.1, 0.15 in training; no gradient through
    T. Here: adapters in the tower's last blocks, which recover what patches mean, are replaced by `TextSpace`.
    """

    def __init__(self, sizes):
        super().__init__()
        self.space = TextSpace(sizes)
        self.log_tau, self.log_sharp = nn.Parameter(torch.tensor(0.2).log()), nn.Parameter(torch.tensor(SHARP).log())

    def logits(self, tokens, vectors, labels, targets=None):
        """(matched, global) logits, each [B, L]; with `targets` those of training."""
        p, d = (F.normalize(x, dim=-1) for x in self.space(tokens, vectors))
        q = p @ labels.T  # [B, N, L]
        with torch.no_grad():
            cost, entropy = 1 - (SHARP * q).softmax(-1), 0.1
            if targets is not None:
                cost, entropy = cost - 0.05 * self.teacher(tokens, labels, targets).log(), 0.15
            plan = sinkhorn(cost, (q.amax(-1) / 0.1).softmax(-1), entropy)
        matched = len(labels) * (plan * q).sum(1) / self.log_tau.exp()
        return matched, self.log_sharp.exp() * d @ labels.T

    def teacher(self, tokens, labels, targets):
        """F, [B, N, L]."""
        q = F.normalize(tokens @ self.space.projection, dim=-1) @ labels.T
        parts = (20 * (SHARP * q).softmax(-1)).softmax(1)
        return torch.where(targets[:, None], parts, parts.min())

    def forward(self, tokens, vectors, labels):
        return sum(logits.softmax(-1) for logits in self.logits(tokens, vectors, labels)) / 2

    def loss(self, tokens, vectors, labels, targets):
        return sum(mmc_loss(logits, targets) for logits in self.logits(tokens, vectors, labels, targets))


def mmc_loss(logits, targets):
    """Minus the mean log-probability of the present pairs, in one softmax over all [B, L]."""
    return -logits.flatten().log_softmax(0)[targets.flatten()].mean()


def sinkhorn(cost, mass, entropy, rounds=100, tolerance=1e-3):
    """The plan [B, N, L] of transport with the least cost plus entropy, from `mass` [B, N] to labels of equal mass."""
    kernel = (-cost / entropy).exp()
    tokens, labels = torch.ones_like(mass), torch.full_like(kernel[:, 0], 1 / cost.shape[-1])
    for _ in range(rounds):
        before = tokens
        tokens = mass / (kernel @ labels[..., None]).squeeze(-1)
        labels = 1 / cost.shape[-1] / (tokens[:, None] @ kernel).squeeze(1)
        if (tokens - before).abs().mean() < tolerance:
            break
    return tokens[..., None] * kernel * labels[:, None]
