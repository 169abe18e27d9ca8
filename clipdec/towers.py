"""Image and text towers behind one face: the packaged mini CLIP, open_clip and timm.

A tower is named `mini`, `open_clip:<model>/<pretrained tag or file>`, `local-dir:<folder>` of such a CLIP as the mini
one, or, for images only, `timm:<model>`.
"""

import os
import re
from copy import deepcopy
from functools import lru_cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import open_clip
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models import load_state_dict, remap_state_dict
from torch import nn

MINI = Path(__file__).parent / "mini_clip"
KNOWN = "known are mini, open_clip:<model>/<pretrained tag or file>, local-dir:<folder> and, for images, timm:<model>"
UNIT = 128  # sizes and places of windows are in 128ths of an image's sides
WINDOWS = {0: "", 4: "72/56", 25: "72/28+56/24"}  # the four corners; 9 of about half a side and 16 smaller ones


@lru_cache(maxsize=2)
def load_clip(name):
    """A whole CLIP by tower name, in evaluation mode: `.model`, `.preprocess` (PIL image -> pixels) and `.tokenizer`.

    Raises ValueError if open_clip does not know the model, or its weights cannot be had.
    """
    kind, _, rest = name.partition(":")
    if name == "mini" or (kind == "local-dir" and rest):
        model_name, pretrained = f"local-dir:{os.path.expanduser(rest) or MINI}", None
    elif kind == "open_clip" and "/" in rest:
        model_name, pretrained = rest.split("/", 1)
        pretrained = os.path.expanduser(pretrained)
    else:
        raise ValueError(f"unknown CLIP tower {name!r}: {KNOWN}")
    if kind == "open_clip" and model_name not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {model_name!r}: open_clip.list_models() names them")
    try:
        # squash: a centre crop would cut off objects that are labels of the image
        options = {"weights_only": True, "image_resize_mode": "squash"}
        model, preprocess = open_clip.create_model_from_pretrained(model_name, pretrained, **options)
        # a folder's own settings of a tokenizer may ask for code to be run
        plain = None if pretrained else open_clip.SimpleTokenizer(context_length=model.context_length)
        tokenizer = plain or open_clip.get_tokenizer(model_name)
    except Exception as error:  # torch, safetensors and the hub raise errors of their own
        remedy = "check the tag or file, and the network if they must be downloaded"
        raise ValueError(f"the weights of {name!r} cannot be loaded ({error}): {remedy}") from error
    return SimpleNamespace(model=model.eval(), preprocess=preprocess, tokenizer=tokenizer)


def encode_labels(names, text_tower="mini", prompt="a photo of {}"):
    """CLIP text vectors of labels: each name put into the prompt, encoded, scaled to length 1.

    Args:
        names: label names (or whole phrases), L of them.
        text_tower: `mini` or `open_clip:<model>/<pretrained tag or file>`.
        prompt: text with one `{}` for the name.

    Returns: float32 tensor [L, D], rows of length 1. Kept for the next call with the same arguments.
    Raises: ValueError for no or empty names, a prompt without `{}`, or an unknown tower.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise ValueError("encode_labels needs at least one name and no empty ones")
    if prompt.count("{}") != 1:
        raise ValueError(f"prompt must hold {{}} once, where the label goes, as in 'a photo of {{}}', got {prompt!r}")
    return _encode_labels(names, text_tower, prompt).clone()


@lru_cache(maxsize=64)
def _encode_labels(names, text_tower, prompt):
    return encode_texts([prompt.replace("{}", name) for name in names], text_tower)


@torch.no_grad()
def encode_texts(texts, text_tower="mini", device="cpu"):
    """CLIP vectors of whole sentences, on the CPU, scaled to length 1: [number of texts, D]."""
    clip = load_clip(text_tower)
    clip.model.to(device)
    batches = (texts[i : i + 256] for i in range(0, len(texts), 256))
    vectors = [clip.model.encode_text(clip.tokenizer(batch).to(device)).float().cpu() for batch in batches]
    return F.normalize(torch.cat(vectors), dim=-1)


def windows_of(windows):
    """(top, left, size) of square windows, in 128ths of an image's sides.

    Args: windows, a key of WINDOWS, or sizes and strides: "72/28+56/24" is windows of 72 every 28, as many as fit, and
        of 56 every 24, each in reading order. Raises ValueError for anything else.
    """
    text = WINDOWS.get(windows, windows)
    if windows != 0 and not re.fullmatch(r"([1-9]\d?/[1-9]\d?\+)+", f"{text}+"):
        known = f"{', '.join(map(str, WINDOWS))}, or sizes and strides up to 99, such as 72/28+56/24"
        raise ValueError(f"windows must be {known}; got {windows!r}")
    boxes = []
    for size, stride in re.findall(r"(\d+)/(\d+)", text):
        starts = range(0, UNIT - int(size) + 1, int(stride))
        boxes += [(*corner, int(size)) for corner in product(starts, starts)]
    return boxes


def cut(pixels, top, left, size):
    """A window of pixels [B, 3, H, W], see `windows_of`, scaled up to [B, 3, H, W]."""
    height, width = pixels.shape[-2:]
    rows, columns = (
        slice(round(start * side / UNIT), round((start + size) * side / UNIT))
        for start, side in ((top, height), (left, width))
    )
    return F.interpolate(pixels[..., rows, columns], (height, width), mode="bicubic", antialias=True)


class ImageTower(nn.Module):
    """Images to tokens and one global vector.

    forward: pixels [B, 3, H, W] -> (tokens [B, N, C], global vectors [B, D]). Tokens are an image's patches; with
    `windows` they are the global vectors of the whole image and of each window, a pass through the tower each.
    `preprocess` turns a PIL image into pixels, whole, in the tower's own size, mean and standard deviation;
    `num_tokens` is N, `num_features` C, `grid` the patches' (rows, columns) and `passes` how many times the tower sees
    an image. Of a CLIP the global vector is the one that text vectors are compared with; of a timm model, its pooled
    features.

    Args:
        name: see the module's docstring.
        weights: for timm, a local checkpoint (.safetensors, or .pth of tensors only), in place of a download.
        by_order: take the checkpoint's tensors by their order, for a file of the same network with other names.
        windows: see `windows_of`.

    Raises ValueError if the tower is unknown, the weights do not fit, or the network has no spatial features.
    """

    def __init__(self, name="mini", weights=None, by_order=False, windows=0):
        super().__init__()
        self.name, self.boxes = name, windows_of(windows)
        self.passes = 1 + len(self.boxes)
        kind, _, rest = name.partition(":")
        if kind == "timm":
            self.trunk, self.preprocess = _timm_trunk(rest, weights, by_order)
        elif weights:
            remedy = f"name the file in the tower instead, open_clip:<model>/{weights}"
            raise ValueError(f"image_weights is for timm towers: {remedy}")
        else:
            clip = load_clip(name)
            self.trunk = deepcopy(clip.model.visual).cpu()  # training must not change the shared CLIP
            self.preprocess = clip.preprocess
        self.trunk.to(memory_format=torch.channels_last)  # faster convolutions
        try:
            with torch.no_grad():
                maps, vectors = self.eval()._maps(self.preprocess(Image.new("RGB", (64, 64)))[None])
            self.grid, self.embed_dim = tuple(maps.shape[2:]), vectors.shape[-1]
        except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
            raise ValueError(f"{name} gives no map of spatial features ({error}): choose another tower") from error
        patches = self.grid[0] * self.grid[1], maps.shape[1]
        self.num_tokens, self.num_features = (self.passes, self.embed_dim) if self.boxes else patches

    def train(self, mode=True):
        """As nn.Module's, but a frozen tower stays in evaluation mode."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def __deepcopy__(self, memo):
        """A frozen tower is shared by the copies of a model (averages of weights are such copies)."""
        if not any(p.requires_grad for p in self.parameters()):
            return self
        copied = self.__class__.__new__(self.__class__)
        copied.__dict__ = deepcopy(self.__dict__, memo)
        return copied

    def forward(self, pixels):
        maps, vectors = self._maps(pixels)
        if not self.boxes:
            return maps.flatten(2).transpose(1, 2), vectors  # [B, N, C], [B, D]
        windows = self._maps(torch.cat([cut(pixels, *box) for box in self.boxes]))[1]
        return torch.cat([vectors[None], windows.unflatten(0, (len(self.boxes), -1))]).transpose(0, 1), vectors

    def _maps(self, pixels):
        """(last feature map [B, C, rows, columns], global vectors [B, D]) in one pass."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if self.name.startswith("timm:"):
            last, maps = self.trunk.forward_intermediates(pixels, indices=1)
            return _as_map(last, maps[-1]), self.trunk.forward_head(last, pre_logits=True)
        plain = getattr(self.trunk, "attn_pool", None) is None  # CoCa's norm comes after its pooling
        out = self.trunk.forward_intermediates(pixels, indices=1, normalize_intermediates=plain)
        return out["image_intermediates"][-1], out["image_features"]


def _as_map(last, like):
    """The final features of a timm model as a map [B, C, rows, columns], with the grid of the map `like`.

    They have passed the last norm and, in some networks, a last convolution that the intermediate maps lack.
    """
    grid = like.shape[-2:]
    if last.ndim == 4:
        return last if last.shape[-2:] == grid else last.permute(0, 3, 1, 2)  # some transformers put channels last
    tokens = last[:, -grid.numel() :]  # class and register tokens come first
    return tokens.transpose(1, 2).unflatten(2, grid) if tokens.shape[1] == grid.numel() else like


def _timm_trunk(model_name, weights, by_order):
    """(timm model without its classifier, its evaluation transform)."""
    if not timm.is_model(model_name):
        raise ValueError(f"timm has no model {model_name!r}: timm.list_models('*{model_name[:6]}*') names some like it")
    try:
        trunk = timm.create_model(model_name, pretrained=weights is None)
    except (OSError, RuntimeError) as error:
        remedy = "give a local file as image_weights"
        raise ValueError(f"the weights of timm:{model_name} cannot be downloaded ({error}): {remedy}") from error
    try:
        _load_weights(trunk, weights, by_order) if weights else trunk.reset_classifier(0)
    except Exception as error:  # torch, safetensors and timm raise errors of their own
        raise ValueError(f"image_weights {weights} does not fit timm:{model_name}: {error}") from error
    config = timm.data.resolve_model_data_config(trunk) | {"crop_pct": 1.0, "crop_mode": "squash"}
    return trunk, timm.data.create_transform(**config, is_training=False)


def _load_weights(trunk, path, by_order):
    """Load a checkpoint, from which no code is run, into a timm model, and take the model's classifier off."""
    state = load_state_dict(str(path), weights_only=True)
    if by_order:
        count = len(trunk.state_dict())
        if len(state) != count:
            raise ValueError(f"it holds {len(state)} tensors, the network {count}: they cannot be matched by order")
        state = remap_state_dict(state, trunk, allow_reshape=False)
    trunk.reset_classifier(0)  # published weights may have another number of classes
    wanted = trunk.state_dict().keys()
    if missing := wanted - state.keys():
        hint = "" if by_order else "; if only names differ, set image_weights_by_order"
        raise ValueError(f"it lacks {len(missing)} tensors, such as {min(missing)}{hint}")
    trunk.load_state_dict({name: value for name, value in state.items() if name in wanted})
