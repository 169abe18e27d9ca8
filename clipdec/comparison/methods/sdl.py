"""SDL (Ben-Cohen et al., "Semantic Diversity Learning for Zero-Shot Multi-Label Classification", ICCV 2021)."""

import torch.nn.functional as F
from torch import nn

from clipdec.comparison.methods.ranking import by_image, gaps


class SDL(nn.Module):
    """An image is k directions: one linear layer takes the mean token to A [k, D];  s_c = max over k of a_k . w_c.

    Loss of an image: 2 ((1 - l) (1 + V) sum over pairs log(1 + exp(s_n - s_p)) / |P| + l R), mean over images, with V
    the variance of its labels' vectors and R that of A over k, both summed over dimensions; k = 7 and l = 0.3, as the
    code has them for NUS-WIDE and by default (github.com/Alibaba-MIIL/ZS_SDL, SDL_loss.py). Here: our tokens, where the
    paper trains TResNet-M end to end at 448 px and more.
    """

    def __init__(self, sizes, k=7, weight=0.3):
        super().__init__()
        self.directions = nn.Linear(sizes.token, k * sizes.label, bias=False)
        self.k, self.weight = k, weight

    def embed(self, tokens):
        """A, [B, k, D]."""
        return self.directions(tokens.mean(1)).unflatten(1, (self.k, -1))

    def forward(self, tokens, vectors, labels):
        return (self.embed(tokens) @ labels.T).amax(1)

    def loss(self, tokens, vectors, labels, targets):
        a = self.embed(tokens)
        image, gap, negative = gaps((a @ labels.T).amax(1), targets)
        cost = by_image((F.softplus(gap) * negative).sum(1), image, len(a)) / targets.sum(1)  # [B]
        loss = (1 + diversity(labels, targets)) * cost
        return 2 * ((1 - self.weight) * loss + self.weight * a.var(1).sum(1)).mean()


def diversity(labels, targets):
    """V [B]: the unbiased variance of the vectors of each image's labels, summed over dimensions; 0 with one label."""
    count, targets = targets.sum(1), targets.float()
    mean = targets @ labels / count[:, None]  # [B, D]
    squares = targets @ labels.square().sum(1) - count * mean.square().sum(1)
    return squares.clamp(min=0) / (count - 1).clamp(min=1)
