"""Fast0Tag (Zhang et al., CVPR 2016): a network finds the direction along which an image's labels rank first."""

from torch import nn

from clipdec.comparison.methods.ranking import ranknet_loss


class Fast0Tag(nn.Module):
    """f = Linear(ReLU(Linear(ReLU(Linear(g))))),  s_c = f . w_c; loss: RankNet, mean over an image's pairs.

    Widths 8096 and 2048, dropout 0.3 before the last layer (github.com/stevehuanghe/multi_label_zsl, fast_zero_tag.py;
    Adam, lr 5e-4). Here: g is CLIP's global vector, where the paper has VGG's 4096 numbers, and the widths are a
    quarter, so that a run takes a minute; all pairs are counted, where that code draws negatives.
    """

    def __init__(self, sizes):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(sizes.vector, 2024), nn.ReLU(), nn.Linear(2024, 512), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(512, sizes.label),
        )  # fmt: skip

    def forward(self, tokens, vectors, labels):
        return self.layers(vectors) @ labels.T

    def loss(self, tokens, vectors, labels, targets):
        return ranknet_loss(self(tokens, vectors, labels), targets)
