"""BiAM (Narayan et al., "Discriminative Region-Based Multi-Label Zero-Shot Learning", ICCV 2021)."""

import torch
import torch.nn.functional as F
from torch import nn

from clipdec.comparison.methods.ranking import ranking_loss


class BiAM(nn.Module):
    """Tokens that have heard of each other and of the scene; a label is scored by the tokens that suit it best.

        t = norm(ReLU(W h));  region: t + self-attention (8 heads), then r + MLP(r) of twice the width
        scene: v = LeakyReLU(W t), c = v * sigmoid(mean_r v * W dropout(g)), c + W c
        u = LeakyReLU(W [region; scene]);  s_c = mean of the highest u_r . (W w_c + b);  ranking loss

    github.com/akshitac8/BiAM, model.py: width 256, the 6 highest of 196 cells, dropouts 0.1 (attention) and 0.2 (g);
    Adam, lr 1e-3, 40 epochs. Here: our tokens and CLIP's global vector in place of VGG's; the width is a half, that of
    the label vectors; as large a share of the tokens as 6 of 196; linear layers in place of 3 x 3 convolutions, as
    windows lie in no grid.
    """

    SHARE, SLOPE = 6 / 196, 0.2

    def __init__(self, sizes, width=128):
        super().__init__()
        self.first, self.norm = nn.Linear(sizes.token, width), nn.BatchNorm1d(width, eps=1e-3)
        self.attention = nn.MultiheadAttention(width, 8, dropout=0.1, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.scene, self.scene_out = nn.Linear(width, width), nn.Linear(width, width)
        self.gate = nn.Sequential(nn.Dropout(0.2), nn.Linear(sizes.vector, width))
        self.join = nn.Linear(2 * width, 2 * width)
        self.classifier = nn.Linear(sizes.label, 2 * width)

    def embed(self, tokens, vectors):
        """u, [B, N, 2 width]."""
        t = F.relu(self.first(tokens))
        t = self.norm(t.flatten(0, 1)).view_as(t)
        region = t + self.attention(t, t, t, need_weights=False)[0]
        region = region + self.mlp(region)
        v = F.leaky_relu(self.scene(t), self.SLOPE)
        c = v * (v.mean(1) * self.gate(vectors)).sigmoid()[:, None]
        scene = c + self.scene_out(c)
        return F.leaky_relu(self.join(torch.cat([region, scene], -1)), self.SLOPE)

    def forward(self, tokens, vectors, labels):
        scores = self.classifier(labels) @ self.embed(tokens, vectors).transpose(1, 2)  # [B, L, N]
        return scores.topk(max(1, round(self.SHARE * tokens.shape[1]))).values.mean(-1)

    def loss(self, tokens, vectors, labels, targets):
        return ranking_loss(self(tokens, vectors, labels), targets)
