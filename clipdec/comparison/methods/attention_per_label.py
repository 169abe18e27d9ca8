"""Attention per label (Kim et al., NeurIPS 2018, as LESA's tables name it): each label looks for itself."""

from torch import nn

from clipdec.comparison.methods.ranking import ranking_loss


class AttentionPerLabel(nn.Module):
    """a_{r,c} = softmax over r of h_r' U w_c;  f_c = sum_r a_{r,c} h_r;  s_c = f_c' V w_c; ranking loss.

    No code of it is public; the formula is ML-Decoder's layer without value and output projections and feed-forward.
    Here s_c is summed up as sum_r a_{r,c} (h_r' V w_c), which is the same and needs no [B, L, C]; the tokens are ours,
    where the tables have VGG's.
    """

    def __init__(self, sizes):
        super().__init__()
        self.u, self.v = (nn.Linear(sizes.token, sizes.label, bias=False) for _ in range(2))

    def forward(self, tokens, vectors, labels):
        attention = (self.u(tokens) @ labels.T).softmax(1)  # [B, N, L]
        return (attention * (self.v(tokens) @ labels.T)).sum(1)

    def loss(self, tokens, vectors, labels, targets):
        return ranking_loss(self(tokens, vectors, labels), targets)
