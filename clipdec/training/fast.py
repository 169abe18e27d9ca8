"""The same head in less time and memory, swapped in by `make_fast`. `make bench` measures what it saves."""

import torch
from torch import nn

PAIRS = 4096  # label-image pairs that are decoded at a time in evaluation: bounds the memory, and suits the caches


def make_fast(head):
    """Swap `Faster` and `FasterDropout` into a head, in place: its weights and, but for rounding, its logits stay."""
    kind = type(head)
    head.__class__ = type(kind.__name__, (Faster, kind), {})
    head.dropout = FasterDropout(head.dropout.p).train(head.training)
    return head


class Faster:
    """Two methods of a head: labels decoded in parts where no gradient is needed, and attention to few tokens."""

    def layer(self, queries, k, v, need_attention=False):
        if torch.is_grad_enabled():
            return super().layer(queries, k, v, need_attention)
        images, labels, tokens = len(k), len(queries), k.shape[2]
        logits = k.new_empty(images, labels)  # before all else: what is kept must not lie between what is thrown away
        maps = k.new_empty(images, labels, tokens) if need_attention else None
        size = max(1, PAIRS // max(1, images))
        for part in (slice(first, first + size) for first in range(0, labels, size)):
            logits[:, part], looked = super().layer(queries[part], k, v, need_attention)
            if need_attention:
                maps[:, part] = looked
        return logits, maps

    def attend(self, x, k, v):
        """Each head's values go through their part of attention_out before they are mixed: less work for few tokens."""
        width = self.attention_out.in_features
        if self.num_heads * k.shape[2] >= k.shape[2] + width:
            return super().attend(x, k, v)
        weights = self.attention(x, k)  # [B, h, L, N]
        heads = self.attention_out.weight.unflatten(1, (self.num_heads, -1))  # [d, h, d / h]
        projected = torch.einsum("bhnc,dhc->bhnd", v, heads).flatten(1, 2)  # [B, h N, d]
        mixed = self.dropout(weights).transpose(1, 2).flatten(2) @ projected  # [B, L, d]
        return mixed + self.attention_out.bias, weights


class FasterDropout(nn.Dropout):
    """nn.Dropout with masks drawn faster on the CPU: four entries from every 64 random bits, p exact to 1/65536."""

    def forward(self, x):
        if not (self.training and self.p) or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        return x * keep_mask(x.shape, self.p, x.dtype)


def keep_mask(shape, p, dtype=torch.float32):
    """0 with the probability p, else 1 / (1 - p)."""
    size = torch.Size(shape).numel()
    bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:size].view(shape)
    return (bits >= round(p * 65536) - 32768).to(dtype).div_(1 - p)
