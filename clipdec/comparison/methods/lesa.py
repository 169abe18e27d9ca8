"""LESA, shared multi-attention (Huynh & Elhamifar, "A Shared Multi-Attention Framework", CVPR 2020)."""

import torch
import torch.nn.functional as F
from torch import nn

from clipdec.comparison.methods.ranking import ranking_loss


class LESA(nn.Module):
    """M = 10 attentions, shared by all labels, of which each takes the best one:

        e_{m,r} = w_m . tanh(W1 [h_r; 1]),  a_m = softmax over r of e_m,  f_m = sum_r a_{m,r} h_r
        s_{m,c} = f_m . W w_c,  s_c = max over m

    Loss: ranking + 0.1 spread + 0.001 better + 0.01 apart, see the methods of those names. Constants and formulas are
    those of github.com/hbdat/cvpr20_LESA (RMSProp, lr 1e-3, batch 32). Here: our tokens in place of VGG's 14 x 14
    cells; a linear layer in place of its 2 x 2 convolution before all, as windows lie in no grid; AdamW.
    """

    def __init__(self, sizes, heads=10):
        super().__init__()
        self.first, self.norm = nn.Linear(sizes.token, sizes.token), nn.BatchNorm1d(sizes.token)
        self.hidden, self.attention = nn.Linear(sizes.token, sizes.token), nn.Linear(sizes.token, heads)
        self.classifier = nn.Linear(sizes.label, sizes.token, bias=False)

    def all_scores(self, tokens, labels):
        """(s_{m,c} [B, M, L], attention before its softmax [B, M, N], scores of the mean token [B, L])."""
        h = self.norm(self.first(tokens).flatten(0, 1)).view_as(tokens)
        e = self.attention(self.hidden(h).tanh()).transpose(1, 2)  # [B, M, N]
        w = self.classifier(labels).T  # [C, L]
        return e.softmax(-1) @ h @ w, e, h.mean(1) @ w

    def forward(self, tokens, vectors, labels):
        return self.all_scores(tokens, labels)[0].amax(1)

    def loss(self, tokens, vectors, labels, targets):
        each, e, mean = self.all_scores(tokens, labels)
        scores = each.amax(1)
        more = 0.1 * self.spread(each, targets) + 0.001 * self.better(scores, mean, targets) + 0.01 * self.apart(e)
        return ranking_loss(scores, targets) + more

    def spread(self, each, targets):
        """An image's labels shall take different attentions: squares of how many each gets, mean over those."""
        taken = (each.softmax(1) * targets[:, None]).sum(-1)  # [B, M]
        return taken.square().mean()

    def better(self, scores, mean, targets):
        """A label's best attention shall tell more than the mean token: what it falls short by, summed."""
        return (-(scores - mean) * (2 * targets.float() - 1)).clamp(min=0).sum()

    def apart(self, e):
        """Attentions shall look at different places: the norm of all their cosines with each other."""
        e = F.normalize(e, dim=-1)
        gram = e @ e.transpose(1, 2)  # [B, M, M]
        return (gram * (1 - torch.eye(gram.shape[1], device=gram.device))).norm()
