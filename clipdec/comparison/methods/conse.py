"""CONSE (Norouzi et al., ICLR 2014): an image lies among the vectors of the seen labels that a classifier finds."""

import torch
import torch.nn.functional as F
from torch import nn


class CONSE(nn.Module):
    """s_c = cosine of w_c with the mean of the vectors of an image's 10 most probable seen labels, by probability.

    Probabilities are those of a linear layer on CLIP's global vector, a softmax over the labels in training; its loss
    is the cross-entropy to an image's labels, which share its probability. The paper has a network for ImageNet there.
    """

    SCALE = 10.0  # unit vectors in, logits that can tell a thousand labels apart out

    def __init__(self, sizes, top=10):
        super().__init__()
        self.register_buffer("seen", sizes.seen)
        self.classifier, self.top = nn.Linear(sizes.vector, len(sizes.seen)), min(top, len(sizes.seen))

    def forward(self, tokens, vectors, labels):
        probabilities, best = self.classifier(self.SCALE * vectors).softmax(-1).topk(self.top)  # [B, top]
        embedded = torch.einsum("bt,btd->bd", probabilities, self.seen[best])
        return F.normalize(embedded, dim=-1) @ labels.T

    def loss(self, tokens, vectors, labels, targets):
        return F.cross_entropy(self.classifier(self.SCALE * vectors), F.normalize(targets.float(), p=1))
