"""Image and text towers behind one face: the packaged mini CLIP, open_clip and timm.

A tower is named `mini`, `open_clip:<model>/<pretrained tag or file>` or, for images only, `timm:<model>`.
"""

import hashlib
from copy import deepcopy
from functools import cached_property, lru_cache
from pathlib import Path
from types import SimpleNamespace

import open_clip
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

MINI = Path(__file__).parent / "mini_clip"
_BLANK = Image.new("RGB", (64, 64))
NAMES = "known are mini, open_clip:<model>/<pretrained tag or file> and, for images, timm:<model>"


@lru_cache(maxsize=2)
def load_clip(name):
    """A whole CLIP by tower name, in evaluation mode: its `.model`, `.preprocess` (PIL image -> pixels) and `.tokenizer`.

    Raises ValueError if open_clip does not know the model, or its weights cannot be had.
    """
    kind, _, rest = name.partition(":")
    if name == "mini":
        model_name, pretrained = f"local-dir:{MINI}", None
    elif kind == "open_clip" and "/" in rest:
        model_name, pretrained = rest.split("/", 1)
    else:
        raise ValueError(f"unknown CLIP tower {name!r}: {NAMES}")
    if name != "mini" and model_name not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {model_name!r}: open_clip.list_models() names them")
    try:
        model, preprocess = open_clip.create_model_from_pretrained(model_name, pretrained, weights_only=True)
        tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:  # torch, safetensors and the hub raise errors of their own
        raise ValueError(f"the weights of {name!r} cannot be loaded ({error}): check the tag or file, and the network if they must be downloaded") from error
    return SimpleNamespace(model=model.eval(), preprocess=preprocess, tokenizer=tokenizer)


class ImageTower(nn.Module):
    """Images to patch tokens and one global vector.

    forward: pixels [B, 3, H, W] -> (tokens [B, N, C], global vectors [B, D]).
    `preprocess` turns a PIL image into pixels; `num_features` is C; `grid` is (rows, columns) with N = rows * columns.
    Of a CLIP the global vector is the one that text vectors are compared with; of a timm model, its pooled features.

    Args:
        name: see the module's docstring.
        weights: for timm, a local checkpoint (.safetensors, or .pth holding tensors only); without it timm's own
            pretrained weights, which it downloads.
    """

    def __init__(self, name="mini", weights=None):
        super().__init__()
        self.name = name
        kind, _, rest = name.partition(":")
        if kind == "timm":
            self.trunk, self.preprocess = _timm_trunk(rest, weights)
        elif weights:
            raise ValueError(f"image_weights is for timm towers: name the file in the tower instead, open_clip:<model>/{weights}")
        else:
            clip = load_clip(name)
            self.trunk, self.preprocess = deepcopy(clip.model.visual).cpu(), clip.preprocess  # training must not change the shared CLIP
        with torch.no_grad():
            pixels = self.preprocess(_BLANK)[None]
            tokens, vectors = self.eval()(pixels)
        self.num_features, self.embed_dim = tokens.shape[-1], vectors.shape[-1]
        self.grid = tuple(self._maps(pixels)[0].shape[-2:])

    def __deepcopy__(self, memo):
        """A frozen tower is shared by the copies of a model (averages of weights are such copies)."""
        if any(p.requires_grad for p in self.parameters()):
            copied = self.__class__.__new__(self.__class__)
            copied.__dict__ = deepcopy(self.__dict__, memo)
            return copied
        return self

    def _maps(self, pixels):
        """(last feature map [B, C, rows, columns], global vectors [B, D]) in one pass."""
        if self.name.startswith("timm:"):
            last, maps = self.trunk.forward_intermediates(pixels, indices=1, norm=True)
            return maps[-1], self.trunk.forward_head(last, pre_logits=True)
        out = self.trunk.forward_intermediates(pixels, indices=1, normalize_intermediates=True)
        return out["image_intermediates"][-1], out["image_features"]

    def forward(self, pixels):
        maps, vectors = self._maps(pixels)
        return maps.flatten(2).transpose(1, 2), vectors  # [B, N, C], [B, D]

    @cached_property
    def key(self):
        """Identifies the tower, its weights and its preprocessing: cached tokens are stored under it."""
        digest = hashlib.sha256(f"{self.name}\n{self.preprocess}".encode())
        for key, value in self.trunk.state_dict().items():
            digest.update(key.encode() + value.cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else key.encode())
        return digest.hexdigest()[:16]


def _timm_trunk(model_name, weights):
    """(timm model without its classifier, its evaluation transform)."""
    if not timm.is_model(model_name):
        raise ValueError(f"timm has no model {model_name!r}: timm.list_models('*{model_name[:6]}*') names some like it")
    try:
        trunk = timm.create_model(model_name, pretrained=weights is None, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"the weights of timm:{model_name} cannot be downloaded ({error}): give a local file as image_weights") from error
    if weights:
        try:
            state = load_file(weights) if str(weights).endswith(".safetensors") else torch.load(weights, map_location="cpu", weights_only=True)
            state = dict(state.get("state_dict", state))
        except Exception as error:  # torch and safetensors raise errors of their own
            raise ValueError(f"image_weights {weights} cannot be read: {error}") from error
        state = {k: v for k, v in state.items() if k in trunk.state_dict()}
        missing = set(trunk.state_dict()) - set(state)
        if missing:
            raise ValueError(f"image_weights {weights} does not fit timm:{model_name}: it lacks {len(missing)} tensors, such as {min(missing)}")
        try:
            trunk.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"image_weights {weights} does not fit timm:{model_name}: {error}") from error
    return trunk, timm.data.create_transform(**timm.data.resolve_model_data_config(trunk), is_training=False)
