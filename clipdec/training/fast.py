"""The same head in less time and memory, swapped in by `make_fast`. `make bench` measures what each part saves."""

import torch
from torch import nn

PAIRS = 4096  # label-image pairs that are decoded at a time in evaluation: bounds the memory, and suits the caches


def make_fast(head):
    """Let a head decode labels in parts where no gradient is needed, and draw its dropout masks faster. In place."""
    kind = type(head)
    head.__class__ = type(kind.__name__, (InParts, kind), {})
    head.dropout = FastDropout(head.dropout.p)
    return head


class InParts:
    """Of a head: some labels at a time, so that the memory does not grow with their number, but for what is
    returned.
    """

    def layer(self, queries, k, v, need_attention=False):
        if torch.is_grad_enabled():
            return super().layer(queries, k, v, need_attention)
        plain, count = super().layer, max(1, PAIRS // max(1, len(k)))
        logits, maps = zip(*[plain(part, k, v, need_attention) for part in queries.split(count)])
        return torch.cat(logits, 1), torch.cat(maps, 1) if need_attention else None


class FastDropout(nn.Dropout):
    """nn.Dropout with masks drawn faster on the CPU: four entries from every 64 random bits, p being exact to
    1/65536.
    """

    def forward(self, x):
        if not (self.training and self.p) or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        return x * keep_mask(x.shape, self.p, x.dtype)


def keep_mask(shape, p, dtype=torch.float32):
    """0 with the probability p, else 1 / (1 - p)."""
    size = torch.Size(shape).numel()
    bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:size].view(shape)
    return (bits >= round(p * 65536) - 32768).to(dtype).div_(1 - p)
