"""DualCoOp (Sun et al., "Fast Adaptation to Multi-Label Recognition with Limited Annotations", NeurIPS 2022)."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn

from clipdec.comparison.methods.text_space import into_text_space
from clipdec.losses import asymmetric_loss
from clipdec.towers import load_clip


class DualCoOp(nn.Module):
    """Two learned contexts before every name, one that a label is there, one that it is not; CLIP is frozen.

        t+, t- = text tower of [start] context+/- name "." [end], of length 1;  o+/-_{r,c} = 20 cos(h_r, t+/-_c)
        a = softmax over r of o+;  s+/- = 5 sum_r a_r o+/-_r;  score = s+ - s-, the logit of softmax(s-, s+)

    Loss: the asymmetric one with exponents 2 (absent) and 1 (present), clip 0.05, on 100 labels drawn in each step, as
    for NUS-WIDE. After the paper and its code (dualcoop.py; SGD, lr 1e-3 for NUS-WIDE, 50 epochs). h_r: projected
    patches and the global vector; with windows their global vectors. Here: AdamW, and patches without the value path.
    Contexts there have 64 vectors from N(0, 0.02); the second starts like that here too, but both are as long as the
    run's prompt, and the first starts as its words: names in places unknown to a small text tower mean nothing to it.
    """

    DRAWN = 100

    def __init__(self, sizes):
        super().__init__()
        self.text = text_tower(sizes.config)
        self.register_buffer("projection", into_text_space(sizes))
        words = self.text.token_embedding(prompt_ids(sizes.config)).detach()  # [P, W]
        self.context = nn.Parameter(torch.stack([words, 0.02 * torch.randn_like(words)]))

    @staticmethod
    def encode(config, names):
        """Names as token ids [L, T], in the places that the contexts leave, cut after the longest."""
        clip = load_clip(config.text_tower)
        left = clip.model.positional_embedding.shape[0] - len(prompt_ids(config))
        ids = clip.tokenizer([f"{name}." for name in names], context_length=left)
        return ids[:, : int(ids.argmax(1).max()) + 1]  # the end has the highest id

    def texts(self, ids):
        """t+ and t-, each [L, D], of length 1."""
        text, each = self.text, self.context[:, None].expand(-1, len(ids), -1, -1).flatten(0, 1)  # [2 L, P, W]
        name = text.token_embedding(ids).repeat(2, 1, 1)  # [2 L, T, W]
        x = torch.cat([name[:, :1], each, name[:, 1:]], 1)
        x = text.transformer(x + text.positional_embedding[: x.shape[1]], attn_mask=causal(x.shape[1], x.device))
        end = ids.argmax(1).repeat(2) + self.context.shape[1]
        x = text.ln_final(x[torch.arange(len(x), device=x.device), end]) @ text.text_projection
        return F.normalize(x, dim=-1).chunk(2)

    def forward(self, tokens, vectors, labels):
        tokens = torch.cat([F.normalize(tokens @ self.projection, dim=-1), vectors[:, None]], 1)
        positive, negative = (20 * tokens @ text.T for text in self.texts(labels))  # [B, N + 1, L]
        return 5 * (positive.softmax(1) * (positive - negative)).sum(1)

    def loss(self, tokens, vectors, labels, targets):
        drawn = torch.randperm(len(labels))[: self.DRAWN].to(labels.device)
        return asymmetric_loss(self(tokens, vectors, labels[drawn]), targets[:, drawn], gamma_neg=2, gamma_pos=1)


def prompt_ids(config):
    """Token ids [P] of the words before the name in the run's prompt, or of all if there are none before."""
    before, _, after = config.prompt.partition("{}")
    ids = load_clip(config.text_tower).tokenizer([before.strip() or after or "a photo of"])[0]
    return ids[1 : ids.argmax()]


def text_tower(config):
    """The text half of the run's CLIP, frozen. Raises ValueError where it is not built as CLIP's own is."""
    model = load_clip(config.text_tower).model
    if not hasattr(model, "token_embedding"):
        raise ValueError(f"the text tower of {config.text_tower} takes no learned context: give another text_tower")
    text = deepcopy(model).cpu().requires_grad_(False)
    del text.visual
    return text


def causal(length, device):
    return torch.full((length, length), float("-inf"), device=device).triu(1)
