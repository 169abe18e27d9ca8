"""The ML-Decoder attention head: every label asks the image about itself.

Ridnik et al., "ML-Decoder: Scalable and Versatile Classification Head", WACV 2023, in its zero-shot form
(one query for each label, one shared output), as the CLIP-Decoder paper uses it.
"""

import re
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

CHUNK = 4096  # label-image pairs that are decoded at a time in evaluation: bounds the memory, and suits the caches


class Prepared(NamedTuple):
    """What depends on the labels alone: their state after the first norm, their attention queries, output weights of their own."""

    x: torch.Tensor  # [1 or B, L, d]
    q: torch.Tensor  # [1 or B, heads, L, d / heads]
    output: torch.Tensor | None = None  # [L, d]; None: one output for all labels


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
        self.dropout = Dropout(dropout)

    def forward(self, tokens, queries, need_attention=False):
        """Logits of every label for every image.

        Args:
            tokens: [B, N, in_features].
            queries: label vectors [L, query_features], or what `prepare` made of them.
            need_attention: also return where each label looked, averaged over heads.

        Returns: logits [B, L], or (logits, maps [B, L, N]), each map summing to 1.
        """
        return self.decode(self.embed(tokens), queries, need_attention)

    def embed(self, tokens):
        """Tokens in the width of the layer: [B, N, in_features] -> [B, N, embed_dim]."""
        return F.relu(self.token_proj(tokens))

    def embed_queries(self, queries):
        """Label vectors in the width of the layer: [L, query_features] -> [L, embed_dim]."""
        return F.relu(self.query_proj(queries))

    def prepare(self, queries, images=1):
        """The part of the layer before the image comes in: label vectors [L, query_features] -> Prepared.

        In evaluation it is the same for all images, so it can be computed once and passed in place of the vectors.
        While training each of `images` images has a dropout mask of its own.
        """
        q = self.embed_queries(queries).expand(images, -1, -1)  # [1 or B, L, d]
        x = self.norm1(q + self.dropout(q))
        return Prepared(x, self._split(self.attention_q(x)))

    def decode(self, embedded, queries, need_attention=False):
        """`forward` from embedded tokens [B, N, embed_dim]."""
        kv = self.keys_values(embedded)
        if torch.is_grad_enabled():
            logits, maps = self._decode(self._part(queries, slice(None), embedded.shape[0]), kv, need_attention)
        else:
            logits, maps = self._decode_in_parts(embedded, queries, kv, need_attention)
        return (logits, maps) if need_attention else logits

    def _decode(self, labels, kv, need_attention):
        """Logits [B, L] and attention maps [B, L, N] (or None) of Prepared labels."""
        decoded, maps = self.layer(labels.x, labels.q, kv, need_attention)
        return self._logits(decoded, labels.output), maps

    def _logits(self, decoded, output):
        """[B, L, d] -> [B, L]."""
        return self.output(decoded).squeeze(-1)

    def layer(self, x, q, kv, need_attention=False):
        """The decoder layer from its first norm on: ([B, L, d], maps [B, L, N] or None)."""
        attended, maps = self._attend(q, *kv, need_attention)
        x = self.norm2(x + self.dropout(attended))  # [B, L, d]
        x = self.norm3(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x), inplace=True)))))
        return x, maps

    def _attend(self, q, k, v, need_attention):
        """Multi-head cross-attention of labels over tokens: ([B, L, d], maps [B, L, N] or None)."""
        q = q.expand(k.shape[0], -1, -1, -1)
        few_tokens = self.num_heads * k.shape[2] < k.shape[2] + self.attention_out.in_features
        if not (few_tokens or need_attention or self.dropout.active):
            return self.attention_out(_merge(F.scaled_dot_product_attention(q, k, v))), None
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)  # [B, heads, L, N]
        mix = self._mix_projected if few_tokens else lambda weights, v: self.attention_out(_merge(weights @ v))
        return mix(self.dropout(weights), v), weights.mean(1) if need_attention else None

    def keys_values(self, embedded):
        """Attention keys and values of embedded tokens, [B, heads, N, d / heads] each."""
        return self._split(self.attention_k(embedded)), self._split(self.attention_v(embedded))

    def _split(self, y):
        """[B, N, d] -> [B, heads, N, d / heads]."""
        return y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    # The same in less time or memory.

    def _mix_projected(self, weights, v):
        """attention_out(weights v), the values projected before they are mixed: fewer products where tokens are few."""
        heads = self.attention_out.weight.unflatten(1, (self.num_heads, -1))  # [d, heads, d / heads]
        projected = torch.einsum("bhnc,dhc->bhnd", v, heads)  # [B, heads, N, d]
        return weights.transpose(1, 2).flatten(2) @ projected.flatten(1, 2) + self.attention_out.bias  # [B, L, d]

    def _decode_in_parts(self, embedded, queries, kv, need_attention):
        """`_decode` of some labels at a time: the memory does not grow with their number, but for what is returned."""
        images, tokens, _ = embedded.shape
        count = queries.x.shape[1] if isinstance(queries, Prepared) else len(queries)
        logits, maps = embedded.new_empty(images, count), embedded.new_empty(images, count if need_attention else 0, tokens)
        size = max(1, CHUNK // max(1, images))
        for part in (slice(i, i + size) for i in range(0, count, size)):
            logits[:, part], looked = self._decode(self._part(queries, part, images), kv, need_attention)
            if need_attention:
                maps[:, part] = looked
        return logits, maps

    def _part(self, queries, part, images):
        """Some of the labels, Prepared."""
        if isinstance(queries, Prepared):
            return Prepared(queries.x[:, part], queries.q[:, :, part], None if queries.output is None else queries.output[part])
        return self.prepare(queries[part], images if self.dropout.active else 1)

    def load_reference_state_dict(self, state_dict):
        """Load zero-shot weights of the ML-Decoder reference code, of its head or of a whole model.

        Raises ValueError if tensors are missing or of another size.
        """
        own = from_reference(state_dict)
        own["output.weight"] = own["output.weight"].reshape(1, -1)  # there [d, 1]
        if "query_proj.weight" not in own:  # there left out where label vectors have the width of the layer
            own |= {"query_proj.weight": torch.eye(self.query_proj.in_features), "query_proj.bias": torch.zeros(self.query_proj.in_features)}
        load_fitting(self, own)


def _merge(y):
    """[B, heads, L, d / heads] -> [B, L, d]."""
    return y.transpose(1, 2).flatten(2)


# ---- weights of the reference code ------------------------------------------------------------------------------

# github.com/Alibaba-MIIL/ML_Decoder, src_files/ml_decoder/ml_decoder.py: its names, and ours
REFERENCE = {
    "embed_standart": "token_proj", "wordvec_proj": "query_proj", "query_embed.weight": "query_embed",
    "duplicate_pooling_bias": "output.bias", "duplicate_pooling": "output.weight",
    "layers.0.norm": "norm", "layers.0.linear": "linear", "layers.0.multihead_attn.out_proj": "attention_out",
}  # fmt: skip


def from_reference(state_dict):
    """Tensors of the reference code under the names used here; those of other parts of a model are left out."""
    own = {}
    for name, value in state_dict.items():
        name = name.rpartition("head.")[2].removeprefix("module.").removeprefix("decoder.")
        if kind := re.fullmatch(r"layers\.0\.multihead_attn\.in_proj_(weight|bias)", name):
            own |= {f"attention_{part}.{kind[1]}": third for part, third in zip("qkv", value.chunk(3))}
        for theirs, ours in REFERENCE.items():
            if name.startswith(theirs):
                own[ours + name.removeprefix(theirs)] = value
                break
    if "output.weight" not in own:
        raise ValueError("these are not weights of the ML-Decoder reference code: they hold no duplicate_pooling")
    return own


def load_fitting(module, state):
    """load_state_dict whose ValueError names what does not fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit this {type(module).__name__}: {error}") from error


# ---- dropout ----------------------------------------------------------------------------------------------------


class Dropout(nn.Dropout):
    """nn.Dropout, with masks drawn faster on the CPU, where nn.Dropout takes a third of a training step.

    `place`, (first, end, total): which of `total` images x holds. The mask is drawn for all of them and cut, so that several
    processes that share a batch, with the same random state, drop what one process would. On the CPU only.
    """

    place = None

    @property
    def active(self):
        return self.training and self.p > 0

    def forward(self, x):
        if not self.active or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        first, end, total = self.place or (0, len(x), len(x))
        return x * keep_mask((total, *x.shape[1:]), self.p, x.dtype)[first:end]


def keep_mask(shape, p, dtype=torch.float32):
    """0 with the probability p (to 1/65536), else 1 / (1 - p): four entries from every 64 random bits."""
    size = torch.Size(shape).numel()
    bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:size].view(shape)
    return (bits >= round(p * 65536) - 32768).to(dtype).div_(1 - p)
