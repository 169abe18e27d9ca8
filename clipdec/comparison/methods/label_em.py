"""LabelEM (Akata et al., TPAMI 2016): a bilinear score of the image's global vector and the label's vector."""

from torch import nn

from clipdec.comparison.methods.ranking import ranking_loss


class LabelEM(nn.Module):
    """s_c = g' U w_c, with the ranking loss (margin 1).

    Here: g is CLIP's global vector, where the paper has Fisher vectors; all negatives of an image count alike, where
    the paper draws them and weighs them by an estimated rank (WSABIE); AdamW in place of plain SGD.
    """

    def __init__(self, sizes):
        super().__init__()
        self.u = nn.Linear(sizes.vector, sizes.label, bias=False)

    def forward(self, tokens, vectors, labels):
        return self.u(vectors) @ labels.T

    def loss(self, tokens, vectors, labels, targets):
        return ranking_loss(self(tokens, vectors, labels), targets)
