"""CLIP's patches as they are for themselves: MaskCLIP and TagCLIP's coarse step."""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from clipdec.comparison.methods.raw_clip import joined, patch_projection
from clipdec.towers import load_clip
from clipdec.training.pixels import Pixels
from clipdec.training.scores import clip_text


def mask_clip_scores(data, config):
    """MaskCLIP (Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022): cosine of a label with its best patch,
    [M, L], where the last attention is replaced by its value path: out(v) of the patch itself.

    The paper segments, with the label of the highest cosine in each patch; here the best patch answers for the image.
    """
    text = clip_text(data.labels, config, (config.prompt,))
    return joined(((patches @ text.T).amax(1) for patches in value_patches(data.test, config)), data)


def tag_clip_scores(data, config):
    """The coarse step of TagCLIP (Lin et al., AAAI 2024), [M, L]: in the last block a patch attends to itself alone, a
    softmax over all labels says what it shows (scale 100 there, CLIP's own here), and the best patch counts.

    github.com/linyq2117/TagCLIP, classify.py. Left out: its second step, which spreads scores along attention, its
    third, which asks again about crops, and names of background; one prompt here, 80 there.
    """
    text = clip_text(data.labels, config, (config.prompt,))
    scale = load_clip(config.text_tower).model.logit_scale.exp().detach().cpu()
    best = ((scale * patches @ text.T).log_softmax(-1).amax(1) for patches in value_patches(data.test, config))
    return joined(best, data)


@torch.no_grad()
def value_patches(split, config):
    """Patches of a split's images in the space of the text vectors, of length 1, on the CPU, [64, N, D] at a time.

    Raises ValueError if the run's CLIP is not a plain ViT.
    """
    clip, projection = load_clip(config.text_tower), patch_projection(config)
    if projection is None or not hasattr(clip.model.visual, "transformer"):
        raise ValueError(f"the image tower of {config.text_tower} has no value path: it is not a plain ViT")
    visual = clip.model.visual.to(config.device)
    for pixels, *_ in DataLoader(Pixels(split, clip.preprocess), 64, num_workers=config.num_workers):
        yield F.normalize(_value_path(visual, pixels.to(config.device)).cpu() @ projection, dim=-1)


def _value_path(visual, pixels):
    """Patches [B, N, C] after the last block, in which each attends to itself alone, and the last norm."""
    *_, last = visual.transformer.resblocks
    options = {"stop_early": True, "intermediates_only": True, "output_fmt": "NLC"}
    before = len(visual.transformer.resblocks) - 2
    x = visual.forward_intermediates(pixels, indices=[before], **options)["image_intermediates"][0]  # [B, N, C]
    weight, bias = (part.chunk(3)[2] for part in (last.attn.in_proj_weight, last.attn.in_proj_bias))
    x = x + last.ls_1(last.attn.out_proj(F.linear(last.ln_1(x), weight, bias)))
    return visual.ln_post(x + last.ls_2(last.mlp(last.ln_2(x))))
