"""The closed-set form of ML-Decoder: fewer queries than classes, each query decoded into a group of them."""

import torch
from torch import nn

from clipdec.decoder import MLDecoder


class GroupMLDecoder(MLDecoder):
    """ML-Decoder with group decoding (Ridnik et al., WACV 2023, section 3.3): tokens to logits of a fixed list of
    classes.

    K fixed random queries pass through the layer of MLDecoder. Query k gives the logits of the classes k G to
    k G + G - 1, with G = ceil(classes / K), by a product of its own.

    Args:
        in_features: channels C of a token.
        num_classes: how many classes.
        num_queries: K; no more than there are classes.
        embed_dim, num_heads, ff_dim, dropout: as in MLDecoder.
    """

    def __init__(
        self, in_features, num_classes, num_queries=100, embed_dim=768, num_heads=8, ff_dim=2048, dropout=0.1
    ):
        super().__init__(in_features, 1, embed_dim, num_heads, ff_dim, dropout)
        del self.query_proj, self.output
        num_queries = min(num_queries, num_classes)
        group = -(-num_classes // num_queries)
        self.register_buffer("query_embed", torch.randn(num_queries, embed_dim))  # not trained
        self.group_weight = nn.Parameter(torch.empty(num_queries, embed_dim, group))  # [K, d, G]
        self.group_bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.xavier_normal_(self.group_weight)

    def forward(self, tokens, need_attention=False):
        """Logits [B, num_classes] of tokens [B, N, in_features]; with `need_attention` also maps [B, K, N]."""
        return self.decode(self.embed(tokens), None, need_attention)

    def embed_queries(self, queries):
        """The fixed queries [K, embed_dim]."""
        return self.query_embed

    def logits(self, x, queries):
        """[B, K, d] -> [B, num_classes]."""
        groups = torch.einsum("bkd,kdg->bkg", x, self.group_weight)  # [B, K, G]
        return groups.flatten(1)[:, : len(self.group_bias)] + self.group_bias

    def adapt(self, state):
        """Closed-set weights of the reference code, or of timm's MLDecoder, under the names used here."""
        renamed = {"output.weight": "group_weight", "output.bias": "group_bias"}
        return {renamed.get(name, name): value for name, value in state.items()}
