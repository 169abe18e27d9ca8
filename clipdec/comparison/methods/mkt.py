"""MKT (He et al., "Open-Vocabulary Multi-Label Classification via Multi-Modal Knowledge Transfer", AAAI 2023)."""

import torch.nn.functional as F
from torch import nn

from clipdec.comparison.methods.ranking import ranking_loss
from clipdec.comparison.methods.text_space import TextSpace


class MKT(nn.Module):
    """Two streams: local, the mean of a label's highest p_r . w_c, and global, d . w_c. Each vector of scores is
    divided by its L2 norm over the labels asked, and s is the mean of the two. Loss: ranking + mean |d - CLIP's own d|.

    github.com/sunanhe/MKT, clip_vit.py and engine_nus_first_stage.py: p_r and d by CLIP's projection, trained with the
    last two blocks of the tower, AdamW, lr 1e-3. Here: the projection alone is trained (`TextSpace`), of tokens that
    are kept; the 16 highest of its 196 patches are as large a share of ours; stage 2, which trains the text tower's
    embeddings, is left out.
    """

    SHARE = 16 / 196

    def __init__(self, sizes):
        super().__init__()
        self.space = TextSpace(sizes)

    def forward(self, tokens, vectors, labels):
        p, d = self.space(tokens, vectors)
        highest = max(1, round(self.SHARE * p.shape[1]))
        local = (p @ labels.T).transpose(1, 2).topk(highest).values.mean(-1)  # [B, L]
        return (F.normalize(local, dim=-1) + F.normalize(d @ labels.T, dim=-1)) / 2

    def loss(self, tokens, vectors, labels, targets):
        kept = F.l1_loss(self.space(tokens, vectors)[1], vectors)
        return ranking_loss(self(tokens, vectors, labels), targets) + kept
