"""The heads: every label asks the image about itself, by cross-attention from its vector to the image's tokens."""

import torch
import torch.nn.functional as F
from torch import nn


class MLDecoder(nn.Module):
    """Tokens of images and vectors of labels to logits; labels are data, not weights. The head of Ridnik et al.,
    "ML-Decoder: Scalable and Versatile Classification Head", WACV 2023, in its zero-shot form (a query for each label,
    one shared output), as the CLIP-Decoder paper uses it.

    One decoder layer without self-attention among the queries:
        q = ReLU(queries W_q),  t = ReLU(tokens W_t)
        x = LN(q + dropout(q));  x = LN(x + dropout(MHA(x, t, t)));  x = LN(x + dropout(FF(x)));  logit = x w + b

    Args:
        in_features, query_features: channels C of a token, length D of a label vector.
        embed_dim: width d of the layer; a multiple of num_heads.
        num_heads, ff_dim: attention heads h, hidden width of the feed-forward network.
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
        four = (nn.Linear(embed_dim, embed_dim) for _ in range(4))
        self.attention_q, self.attention_k, self.attention_v, self.attention_out = four
        self.linear1, self.linear2 = nn.Linear(embed_dim, ff_dim), nn.Linear(ff_dim, embed_dim)
        self.output = nn.Linear(embed_dim, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens, queries, need_attention=False):
        """Logits of every label for every image.

        Args:
            tokens: [B, N, in_features].
            queries: label vectors [L, query_features].
            need_attention: also return where each label looked, averaged over heads.

        Returns: logits [B, L], or (logits, maps [B, L, N]), each map summing to 1.
        """
        return self.decode(self.embed(tokens), queries, need_attention)

    def embed(self, tokens):
        """Tokens in the width of the layer: [B, N, in_features] -> [B, N, d]."""
        return F.relu(self.token_proj(tokens))

    def embed_queries(self, queries):
        """Label vectors in the width of the layer: [L, query_features] -> [L, d]."""
        return F.relu(self.query_proj(queries))

    def decode(self, t, queries, need_attention=False):
        """`forward` from embedded tokens t [B, N, d]."""
        k, v = self.split_heads(self.attention_k(t)), self.split_heads(self.attention_v(t))  # [B, h, N, d / h]
        logits, maps = self.layer(queries, k, v, need_attention)
        return (logits, maps) if need_attention else logits

    def layer(self, queries, k, v, need_attention=False):
        """The decoder layer and its output: (logits [B, L], maps [B, L, N] or None)."""
        q = self.embed_queries(queries)[None]  # [1, L, d]
        if self.training and self.dropout.p:
            q = q.expand(len(k), -1, -1)  # [B, L, d]: each image has a dropout mask of its own
        x = self.norm1(q + self.dropout(q))
        attended, weights = self.attend(x, k, v)
        x = self.norm2(x + self.dropout(attended))  # [B, L, d]
        x = self.norm3(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))
        return self.logits(x, queries), weights.mean(1) if need_attention else None

    def attend(self, x, k, v):
        """Multi-head attention of labels x over tokens: ([B, L, d], weights [B, h, L, N])."""
        weights = self.attention(x, k)
        mixed = self.dropout(weights) @ v  # [B, h, L, d / h]
        return self.attention_out(mixed.transpose(1, 2).flatten(2)), weights

    def attention(self, x, k):
        """How much labels x [1 or B, L, d] look at each token: [B, h, L, N], summing to 1 over the tokens."""
        q = self.split_heads(self.attention_q(x))  # [1 or B, h, L, d / h]
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)

    def split_heads(self, y):
        """[B, N, d] -> [B, h, N, d / h]."""
        return y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def logits(self, x, queries):
        """One output for all labels: [B, L, d] -> [B, L]."""
        return self.output(x).squeeze(-1)

    def load_reference_state_dict(self, state_dict):
        """Load weights of the ML-Decoder reference code, of its head or of a whole model.

        Raises ValueError if tensors are missing or of another size.
        """
        try:
            self.load_state_dict(self.adapt(from_reference(state_dict)))
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit this {type(self).__name__}: {error}") from error

    def adapt(self, state):
        """What `from_reference` gives for the zero-shot form, in the shapes that tensors have here."""
        if "query_proj.weight" not in state:  # there left out where label vectors have the width of the layer
            width = self.query_proj.in_features
            state |= {"query_proj.weight": torch.eye(width), "query_proj.bias": torch.zeros(width)}
        return state | {"output.weight": state["output.weight"].reshape(1, -1)}  # there [d, 1]


class MatchingDecoder(MLDecoder):
    """MLDecoder with linear projections and an output for each label.

    In the closed set every class has output weights of its own; the zero-shot form of ML-Decoder lost them, as they
    cannot be learned for a label without images. Here the label's vector gives them, so that a logit says how well what
    the label found in the image matches the label. Label vectors are taken relative to the mean of the labels in
    training, which all share.

        u = normalise(queries - mean),  q = u W_q,  t = tokens W_t
        x as in MLDecoder;  logit = x (w + u W_u) + b

    Notebook 03b explains it, notebook 06 measures it against MLDecoder. Args: those of MLDecoder, and
        match: whether the output depends on the label; without it only the projections differ from MLDecoder.
    """

    def __init__(self, in_features, query_features, embed_dim=768, num_heads=8, ff_dim=2048, dropout=0.1, match=True):
        super().__init__(in_features, query_features, embed_dim, num_heads, ff_dim, dropout)
        self.register_buffer("query_mean", torch.zeros(query_features))
        self.label_output = nn.Linear(query_features, embed_dim, bias=False) if match else None
        if match:
            nn.init.zeros_(self.label_output.weight)  # starts as MLDecoder's one output for all

    def centre_on(self, queries):
        """Take label vectors relative to the mean of `queries` [L, D], the labels in training, from now on."""
        self.query_mean.copy_(queries.mean(0))

    def centred(self, queries):
        """u, [L, D]."""
        return F.normalize(queries - self.query_mean, dim=-1)

    def embed(self, tokens):
        return self.token_proj(tokens)

    def embed_queries(self, queries):
        return self.query_proj(self.centred(queries))

    def logits(self, x, queries):
        if self.label_output is None:
            return super().logits(x, queries)
        output = self.output.weight + self.label_output(self.centred(queries))  # [L, d]
        return torch.linalg.vecdot(x, output) + self.output.bias  # [B, L]


REFERENCE = {  # github.com/Alibaba-MIIL/ML_Decoder, src_files/ml_decoder/ml_decoder.py: its names, and ours
    "embed_standart": "token_proj", "wordvec_proj": "query_proj", "query_embed.weight": "query_embed",
    "duplicate_pooling_bias": "output.bias", "duplicate_pooling": "output.weight",
    "layers.0.norm": "norm", "layers.0.linear": "linear", "layers.0.multihead_attn.out_proj": "attention_out",
}  # fmt: skip


def from_reference(state_dict):
    """Tensors of the reference code under the names used here; those of other parts of a model are left out."""
    own = {}
    for name, value in state_dict.items():
        name = name.rpartition("head.")[2].removeprefix("module.").removeprefix("decoder.")
        if name.startswith("layers.0.multihead_attn.in_proj_"):
            kind = name.rpartition("_")[2]
            own |= {f"attention_{part}.{kind}": third for part, third in zip("qkv", value.chunk(3))}
        for theirs, ours in REFERENCE.items():
            if name.startswith(theirs):
                own[ours + name.removeprefix(theirs)] = value
                break
    if "output.weight" not in own:
        raise ValueError("these are not weights of the ML-Decoder reference code: they hold no duplicate_pooling")
    return own
