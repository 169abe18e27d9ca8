"""Tokens in the space of the label vectors, for the methods that start from what CLIP already knows."""

import torch
from torch import nn

from clipdec.comparison.methods.raw_clip import patch_projection


def into_text_space(sizes):
    """The matrix [C, D] that takes tokens to the label vectors' space: CLIP's projection for patches, the identity for
    vectors of windows, which are there.

    Raises ValueError if they cannot get there: images or labels of another space.
    """
    projection = torch.eye(sizes.label) if sizes.config.windows else patch_projection(sizes.config)
    if projection is None or projection.shape != (sizes.token, sizes.label) or sizes.vector != sizes.label:
        found = f"tokens of {sizes.config.image_tower} cannot be compared with the label vectors"
        raise ValueError(f"{found}: give image_tower and text_tower one CLIP, a ViT, and no label_embeddings")
    return projection


class TextSpace(nn.Module):
    """Tokens [B, N, C] and global vectors [B, D] to the space of the label vectors, and by one matrix within it, that
    is trained from the identity on: where a method trains CLIP's projection, or adapters in its tower, it stands for
    them.
    """

    def __init__(self, sizes):
        super().__init__()
        self.register_buffer("projection", into_text_space(sizes))
        self.own = nn.Parameter(torch.eye(sizes.label))

    def forward(self, tokens, vectors):
        return tokens @ self.projection @ self.own, vectors @ self.own
