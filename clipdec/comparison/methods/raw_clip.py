"""Untouched CLIP: what is asked of it beside the plain cosine, which is `clipdec.training.scores.raw_clip_scores`."""

from functools import partial

import torch
import torch.nn.functional as F

from clipdec.towers import ImageTower, load_clip
from clipdec.training.scores import clip_text, raw_clip_scores
from clipdec.training.tokens import encode_split, kept_tokens

PROMPTS = ("{}", "a photo of {}", "a picture of {}", "an image with {}")
ensemble_scores = partial(raw_clip_scores, prompts=PROMPTS)  # the mean of PROMPTS in place of the run's prompt, [M, L]


def softmax_scores(data, config):
    """Untouched CLIP as it was trained: logarithms of a softmax of an image's cosines over all labels, [M, L]; with
    windows, the highest of the whole image's and each window's.

    Of one image the order within it, and F1@K, stay. That of images, and mAP, does not: with no label ahead all get
    little.
    """
    scale = load_clip(config.text_tower).model.logit_scale.exp().detach().cpu()
    looks = look_cosines(data, config, (config.prompt,))
    return joined(((scale * part).log_softmax(-1).amax(1) for part in looks), data)


def window_scores(data, config):
    """Untouched CLIP that looks at the whole image and at each of the run's windows, [M, L]: logarithms of the highest
    probability of a label, by a softmax of cosines over the seen labels. What else is asked does not change an answer.
    """
    scale, seen = load_clip(config.text_tower).model.logit_scale.exp().detach().cpu(), data.labels.seen_index
    evidence = lambda logits: (logits - logits[..., seen].logsumexp(-1, keepdim=True)).amax(1)
    return joined((evidence(scale * part) for part in look_cosines(data, config, (config.prompt,))), data)


def joined(parts, data):
    """Scores [M, L] of parts of test, which may have no image."""
    return torch.cat([torch.empty(0, len(data.labels.names)), *parts])


def look_cosines(data, config, prompts):
    """Cosines of what `looks` gives for test with each label's text vector, [64, 1 + n, L] at a time."""
    text = clip_text(data.labels, config, prompts)
    return (part @ text.T for part in looks(data.test, data, config))


def looks(split, data, config):
    """Global vectors, of length 1, of the whole image and of the run's n windows, [64, 1 + n, D] at a time."""
    tower = ImageTower(config.text_tower, windows=config.windows)
    if config.windows:
        parts = kept_tokens(tower, split, data, config)[0].split(64)
    else:
        parts = (part[:, None] for part in encode_split(tower, split, data, config)[1].split(64))
    return (F.normalize(part.float(), dim=-1) for part in parts)


def patch_scores(data, config):
    """Cosine of each label's text vector with an image's best patch, [M, L].

    The tokens of the last layer go through the projection as they are. MaskCLIP (Zhou et al., ECCV 2022) also replaces
    the last attention by its value path, which is not done here.
    Raises ValueError if the CLIP's image tower has no projection for its patches (it is not a plain ViT).
    """
    tower, projection = ImageTower(config.text_tower), patch_projection(config)
    if projection is None:
        raise ValueError(f"the image tower of {config.text_tower} has no projection that its patches could go through")
    text = clip_text(data.labels, config, (config.prompt,))
    tokens, _ = kept_tokens(tower, data.test, data, config)
    patches = (F.normalize(part.float() @ projection, dim=-1) for part in tokens.split(64))  # each [64, N, D]
    return joined(((part @ text.T).amax(1) for part in patches), data)


def patch_projection(config):
    """The projection [C, D] of a ViT's tokens into the space of the text vectors, None for another tower."""
    projection = getattr(load_clip(config.text_tower).model.visual, "proj", None)
    return None if projection is None else projection.detach().float().cpu()
