"""Untouched CLIP with the face of a trained model: it looks at windows of an image, and nothing is trained."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from clipdec.labels import read_names
from clipdec.model import CLIPDecoder
from clipdec.towers import ImageTower, load_clip

VOCABULARY = Path(__file__).with_name("vocabulary.txt")  # the names of COCO and NUS-WIDE
UNCALIBRATED = "untouched CLIP knows no probabilities: only the order of labels counts, and none is predicted"
REMEDY = "calibrate the predictor on some photos of yours (docs/using.md)"


def vocabulary():
    """Names to start from, those of COCO and NUS-WIDE, each once."""
    return read_names(VOCABULARY)[0]


def is_clip(name):
    """Whether a text names a CLIP, as towers are named, and no folder that is there."""
    name = str(name)
    return (name == "mini" or name.startswith(("open_clip:", "local-dir:"))) and not Path(name).is_dir()


class RawClip(nn.Module):
    """CLIP without any training. A label's score is the highest that one look at the image gives it, the whole or a
    window: the log-softmax over the labels `references` of CLIP's scaled cosines (`CLIPDecoder.clip_evidence`). Its
    sigmoid is the label's share in a softmax between it and all of them.

    Args: name, a CLIP, see `clipdec.towers`; references, label vectors [S, D]; windows, as an ImageTower's.
    """

    clip_evidence, train_tower = CLIPDecoder.clip_evidence, False

    def __init__(self, name, references, windows):
        super().__init__()
        self.tower = ImageTower(name, windows=windows).requires_grad_(False)
        self.register_buffer("references", references)
        self.register_buffer("clip_scale", load_clip(name).model.logit_scale.detach().exp().clamp(max=100))

    def score(self, tokens, vectors, queries, need_attention=False):
        """Scores [B, L] of labels `queries` [L, D] for what the tower gives; with `need_attention` also maps [B, L, N],
        1 at the look that a label's score comes from. A tower without windows has one look, which all its patches
        share.
        """
        evidence = self.clip_evidence(tokens if self.tower.boxes else vectors[:, None], queries)  # [B, looks, L]
        scores, best = evidence.max(1)
        if not need_attention:
            return scores
        if not self.tower.boxes:
            return scores, torch.full((*scores.shape, tokens.shape[1]), 1 / tokens.shape[1])
        return scores, F.one_hot(best, tokens.shape[1]).float()
