"""Two baselines without a name: each token is mapped to the label vectors' space, and the label's best tokens count."""

import torch
import torch.nn.functional as F
from torch import nn

from clipdec.losses import asymmetric_loss


class PerPatch(nn.Module):
    """z_r = map(h_r), q_{r,c} = cos(z_r, w_c);  s_c = a sum_r softmax_r(k q_{r,c}) q_{r,c} + b; asymmetric loss.

    The map is one linear layer, or with a `hidden` width an MLP of two; a (start 10), b (start -5) and k (start 10) are
    learned. Tokens, label vectors, L_c, epochs and batches are those of the heads, so their decoder stands against this
    map; but they have L_clip too, and sample 128 labels a step in place of 256.
    """

    def __init__(self, sizes, hidden=0):
        super().__init__()
        self.map = nn.Linear(sizes.token, sizes.label, bias=False)
        if hidden:
            self.map = nn.Sequential(nn.Linear(sizes.token, hidden), nn.GELU(), nn.Linear(hidden, sizes.label))
        self.log_a, self.log_k = (nn.Parameter(torch.tensor(10.0).log()) for _ in range(2))
        self.b = nn.Parameter(torch.tensor(-5.0))

    def forward(self, tokens, vectors, labels):
        cosine = F.normalize(self.map(tokens), dim=-1) @ labels.T  # [B, N, L]
        pooled = ((self.log_k.exp() * cosine).softmax(1) * cosine).sum(1)
        return self.log_a.exp() * pooled + self.b

    def loss(self, tokens, vectors, labels, targets):
        return asymmetric_loss(self(tokens, vectors, labels), targets)
