"""The head that is the default here: MLDecoder whose output for a label is made from the label's own vector."""

import torch
import torch.nn.functional as F
from torch import nn

from clipdec.decoder import MLDecoder


class MatchingDecoder(MLDecoder):
    """MLDecoder with linear projections and an output for each label.

    In the closed set every class has output weights of its own; the zero-shot form of ML-Decoder lost them, as they cannot be
    learned for a label without images. Here the label's vector gives them, so that a logit says how well what the label found
    in the image matches the label. Label vectors are taken relative to the mean of the labels in training, which all share.

        u = normalise(queries - mean),  q = u W_q,  t = tokens W_t
        x as in MLDecoder;  logit = x (w + u W_u) + b

    Notebook 03 explains it, notebook 06 measures it against MLDecoder.

    Args: those of MLDecoder, and
        match: whether the output depends on the label; without it only the projections differ from MLDecoder.
    """

    def __init__(self, in_features, query_features, embed_dim=768, num_heads=8, ff_dim=2048, dropout=0.1, match=True):
        super().__init__(in_features, query_features, embed_dim, num_heads, ff_dim, dropout)
        self.register_buffer("query_mean", torch.zeros(query_features))
        self.label_output = nn.Linear(query_features, embed_dim, bias=False) if match else None
        if match:
            nn.init.zeros_(self.label_output.weight)  # starts as MLDecoder's one output for all

    def centre_on(self, queries):
        """Take label vectors relative to the mean of `queries` [L, D], those of the labels in training, from now on."""
        self.query_mean.copy_(queries.mean(0))

    def embed(self, tokens):
        return self.token_proj(tokens)

    def embed_queries(self, queries):
        return self.query_proj(self._centred(queries))

    def prepare(self, queries, images=1):
        prepared = super().prepare(queries, images)
        return prepared if self.label_output is None else prepared._replace(output=self.output.weight + self.label_output(self._centred(queries)))

    def _logits(self, decoded, output):
        if output is None:
            return super()._logits(decoded, output)
        return torch.linalg.vecdot(decoded, output) + self.output.bias  # [B, L]

    def _centred(self, queries):
        return F.normalize(queries - self.query_mean, dim=-1)
