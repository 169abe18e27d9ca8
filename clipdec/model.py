"""CLIP-Decoder: image tower, ML-Decoder head, and the projections that align images with sentences."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from clipdec.decoder import MatchingDecoder, MLDecoder

HEADS = {"ml_decoder": MLDecoder, "matching": MatchingDecoder, "residual": MatchingDecoder}
HEADS["linear"] = partial(MatchingDecoder, match=False)


class CLIPDecoder(nn.Module):
    """Ali & Khan, ICCV 2023 Workshops (arXiv 2406.14830), with trained alignment projections and a learned logit scale.

    Args:
        tower: an ImageTower. Vectors of windows come to equal length, and each with a learned place, to the decoder.
        references: vectors [S, D] of the labels in training.
        sentence_features: length of a sentence vector (text tower).
        embed_dim: width of the decoder; its feed-forward width is 8/3 of it (768 -> 2048, the paper's).
        train_tower: whether the tower's weights are trained. A frozen tower is no part of a checkpoint.
        dropout: dropout rate of the decoder.
        head: "ml_decoder", the paper's; "linear", with MatchingDecoder's projections; "matching", with its outputs by
            label too; "residual", which is that and may have CLIP's own answer added, see `score`.
    """

    ALIGNED = 512  # width of the common space of images and sentences

    def __init__(
        self, tower, references, sentence_features, embed_dim=768, train_tower=False, dropout=0.1, head="ml_decoder"
    ):
        super().__init__()
        sizes = tower.num_features, references.shape[1], embed_dim
        self.decoder = HEADS[head](*sizes, ff_dim=embed_dim * 8 // 3, dropout=dropout)
        self.image_proj = nn.Linear(embed_dim, self.ALIGNED, bias=False)
        self.text_proj = nn.Linear(sentence_features, self.ALIGNED, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.register_buffer("references", references)
        self.register_buffer("clip_scale", torch.tensor(100.0))
        self.register_buffer("clip_weight", torch.zeros(()))  # of CLIP's own answer in a logit
        if head != "ml_decoder":
            self.decoder.centre_on(references)
        self.places = nn.Parameter(torch.zeros(tower.num_tokens, embed_dim)) if tower.boxes else None
        self.tower, self.train_tower = tower.requires_grad_(train_tower), train_tower
        if not train_tower:
            self.register_state_dict_post_hook(_leave_out_tower)
            self.register_load_state_dict_post_hook(_miss_no_tower)

    @property
    def logit_scale(self):
        """What cosines of L_clip are multiplied with: starts at 1 / 0.07, at most 100 as CLIP's."""
        return self.log_scale.exp().clamp(max=100)

    def forward(self, images, queries, sentences=None, need_attention=False):
        """Logits [B, L] of labels `queries` [L, D] for images given as pixels [B, 3, H, W] or as tokens [B, N, C].

        With `sentences` [B, S], the text vector of each image's labels: (logits, image vectors [B, 512], text vectors
        [B, 512]) for the alignment loss. With `need_attention`: (logits, maps [B, L, N]).
        """
        tokens = self.tower(images)[0] if images.ndim == 4 else images.float()  # cached tokens are float16
        t = self.embed(tokens)  # [B, N, d]
        answer = self.decoder.decode(t, queries, need_attention)
        if sentences is None:
            return answer
        return answer, self.image_proj(t.mean(1)), self.text_proj(sentences)

    def embed(self, tokens):
        """Tokens [B, N, C] in the width of the decoder, [B, N, d]; those of windows of length sqrt(C), and placed."""
        if self.places is None:
            return self.decoder.embed(tokens)
        return self.decoder.embed(F.normalize(tokens, dim=-1) * tokens.shape[-1] ** 0.5) + self.places

    def score(self, tokens, vectors, queries, need_attention=False):
        """Logits [B, L] with CLIP's own answer: those of the head, and `clip_weight` times `clip_evidence`, the highest
        of all that the tower saw of an image.

        Args:
            tokens, vectors: what the tower gives, [B, N, C] and [B, D].
            queries: label vectors [L, D].
            need_attention: also return the head's attention maps [B, L, N].
        """
        answer = self(tokens, queries, need_attention=need_attention)
        logits, maps = answer if need_attention else (answer, None)
        if self.clip_weight:
            looks = tokens if self.tower.boxes else vectors[:, None]  # windows' tokens are global vectors
            logits = logits + self.clip_weight * self.clip_evidence(looks, queries).amax(1)
        return (logits, maps) if need_attention else logits

    def clip_evidence(self, vectors, queries):
        """Untouched CLIP: log of exp(s cos(v, t)) over its sum for the labels in training, [..., L].

        v is a global vector of `vectors` [..., D], of an image or a window of it, t a label's vector, s CLIP's logit
        scale. The sum makes images comparable, as the softmax does that CLIP was trained with, and a label's answer
        still does not depend on what else is asked.
        """
        vectors = self.clip_scale * F.normalize(vectors.float(), dim=-1)
        return vectors @ queries.T - (vectors @ self.references.T).logsumexp(-1, keepdim=True)


def _leave_out_tower(module, state, prefix, _):
    for name in [name for name in state if name.startswith(f"{prefix}tower.")]:
        del state[name]


def _miss_no_tower(module, keys):
    keys.missing_keys[:] = [name for name in keys.missing_keys if "tower" not in name.split(".")]
