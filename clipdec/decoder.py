"""The ML-Decoder attention head: every label asks the image about itself.

Ridnik et al., "ML-Decoder: Scalable and Versatile Classification Head", WACV 2023, in its zero-shot form
(one query for each label, one shared output), as the CLIP-Decoder paper uses it.
"""

import torch.nn.functional as F
from torch import nn


class MLDecoder(nn.Module):
    """Tokens of images and vectors of labels to logits; labels are data, not weights.

    One decoder layer without self-attention among the queries:
        q = ReLU(queries W_q),  t = ReLU(tokens W_t)
        x = LN(q + dropout(q));  x = LN(x + dropout(MHA(x, t, t)));  x = LN(x + dropout(FF(x)));  logit = x w + b

    Args:
        in_features: channels C of a token.
        query_features: length D of a label vector.
        embed_dim: width of the layer; a multiple of num_heads.
        num_heads: attention heads.
        ff_dim: hidden width of the feed-forward network.
        dropout: dropout rate while training.

    Raises: ValueError if embed_dim is not a multiple of num_heads.
    """

    def __init__(self, in_features, query_features, embed_dim=768, num_heads=8, ff_dim=2048, dropout=0.1):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of the {num_heads} heads, got {embed_dim}")
        self.num_heads = num_heads
        self.token_proj = nn.Linear(in_features, embed_dim)
        self.query_proj = nn.Linear(query_features, embed_dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(embed_dim) for _ in range(3))
        self.attention_q, self.attention_k, self.attention_v, self.attention_out = (nn.Linear(embed_dim, embed_dim) for _ in range(4))
        self.linear1, self.linear2 = nn.Linear(embed_dim, ff_dim), nn.Linear(ff_dim, embed_dim)
        self.output = nn.Linear(embed_dim, 1)
        self.dropout = nn.Dropout(dropout)

    def embed(self, tokens):
        """Tokens in the width of the layer: [B, N, in_features] -> [B, N, embed_dim]."""
        return F.relu(self.token_proj(tokens))

    def forward(self, tokens, queries, need_attention=False):
        """Logits of every label for every image.

        Args:
            tokens: [B, N, in_features].
            queries: label vectors [L, query_features].
            need_attention: also return where each label looked, averaged over heads.

        Returns: logits [B, L], or (logits, maps [B, L, N]), each map summing to 1.
        """
        return self.decode(self.embed(tokens), queries, need_attention)

    def decode(self, embedded, queries, need_attention=False):
        """`forward` from embedded tokens [B, N, embed_dim]."""
        q = F.relu(self.query_proj(queries))[None]  # [1, L, d]
        if self.training and self.dropout.p:  # each image has a dropout mask of its own; else the labels are worked on once
            q = q.expand(len(embedded), -1, -1)  # [B, L, d]
        x = self.norm1(q + self.dropout(q))
        attended, maps = self._attend(x, embedded, need_attention)
        x = self.norm2(x + self.dropout(attended))  # [B, L, d]
        x = self.norm3(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))
        logits = self.output(x).squeeze(-1)  # [B, L]
        return (logits, maps) if need_attention else logits

    def _attend(self, x, t, need_attention):
        """Multi-head cross-attention of labels x [1 or B, L, d] over tokens t [B, N, d]: ([B, L, d], maps or None)."""
        q, k, v = (
            layer(y).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [., heads, ., d / heads]
            for layer, y in ((self.attention_q, x), (self.attention_k, t), (self.attention_v, t))
        )
        q = q.expand(len(t), -1, -1, -1)
        if need_attention:
            weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)  # [B, heads, L, N]
            out, maps = self.dropout(weights) @ v, weights.mean(1)
        else:
            out, maps = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout.p if self.training else 0.0), None
        return self.attention_out(out.transpose(1, 2).flatten(2)), maps
