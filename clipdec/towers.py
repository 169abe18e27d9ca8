"""Image and text towers behind one face: the packaged mini CLIP, open_clip and timm.

A tower is named `mini`, `open_clip:<model>/<pretrained tag or file>` or, for images only, `timm:<model>`.
"""

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

from clipdec.training.tokens import digest

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
        # squash: a centre crop would cut off objects that are labels of the image
        model, preprocess = open_clip.create_model_from_pretrained(model_name, pretrained, weights_only=True, image_resize_mode="squash")
        tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:  # torch, safetensors and the hub raise errors of their own
        raise ValueError(f"the weights of {name!r} cannot be loaded ({error}): check the tag or file, and the network if they must be downloaded") from error
    return SimpleNamespace(model=model.eval(), preprocess=preprocess, tokenizer=tokenizer)


@lru_cache(maxsize=2)
def text_key(name):
    """Identifies the text tower of a CLIP and its weights."""
    return digest(name, {k: v for k, v in load_clip(name).model.state_dict().items() if not k.startswith("visual.")})


class ImageTower(nn.Module):
    """Images to patch tokens and one global vector.

    forward: pixels [B, 3, H, W] -> (tokens [B, N, C], global vectors [B, D]).
    `preprocess` turns a PIL image into pixels; `num_features` is C; `grid` is (rows, columns) with N = rows * columns.
    Of a CLIP the global vector is the one that text vectors are compared with; of a timm model, its pooled features.
    Input size, mean and standard deviation are the tower's own; an image is scaled to that size whole, not cropped.

    Args:
        name: see the module's docstring.
        weights: for timm, a local checkpoint (.safetensors, or .pth holding tensors only); without it timm's own
            pretrained weights, which it downloads.
        by_order: take the checkpoint's tensors in their order instead of by name, for a file of the same network
            whose names differ; every shape must agree.

    Raises ValueError if the tower is unknown, the weights do not fit, or the network has no spatial features.
    """

    def __init__(self, name="mini", weights=None, by_order=False):
        super().__init__()
        self.name = name
        kind, _, rest = name.partition(":")
        if kind == "timm":
            self.trunk, self.preprocess = _timm_trunk(rest, weights, by_order)
        elif weights:
            raise ValueError(f"image_weights is for timm towers: name the file in the tower instead, open_clip:<model>/{weights}")
        else:
            clip = load_clip(name)
            self.trunk, self.preprocess = deepcopy(clip.model.visual).cpu(), clip.preprocess  # training must not change the shared CLIP
        self.trunk.to(memory_format=torch.channels_last)  # faster convolutions
        try:
            with torch.no_grad():
                maps, vectors = self.eval()._maps(self.preprocess(_BLANK)[None])
            self.num_features, self.grid = maps.shape[1], tuple(maps.shape[2:])
        except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
            raise ValueError(f"{name} gives no map of spatial features ({error}): choose another tower") from error
        self.embed_dim = vectors.shape[-1]

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
            last, maps = self.trunk.forward_intermediates(pixels, indices=1)
            return _as_map(last, maps[-1]), self.trunk.forward_head(last, pre_logits=True)
        plain = getattr(self.trunk, "attn_pool", None) is None  # CoCa's norm comes after its pooling
        out = self.trunk.forward_intermediates(pixels, indices=1, normalize_intermediates=plain)
        return out["image_intermediates"][-1], out["image_features"]

    def forward(self, pixels):
        maps, vectors = self._maps(pixels.contiguous(memory_format=torch.channels_last))
        return maps.flatten(2).transpose(1, 2), vectors  # [B, N, C], [B, D]

    def checkpoint(self):
        """Recompute activations in the backward pass instead of keeping them. Raises ValueError if the network cannot."""
        try:
            self.trunk.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:  # timm's networks that cannot raise the first
            raise ValueError(f"{self.name} cannot recompute activations ({error}): set checkpoint_tower False") from error

    @cached_property
    def key(self):
        """Identifies the tower, its weights and its preprocessing: cached tokens are stored under it."""
        return digest(self.name, str(self.preprocess), self.trunk.state_dict())


def _as_map(last, like):
    """The final features of a timm model as a map [B, C, rows, columns], with the rows and columns of the map `like`.

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
        raise ValueError(f"the weights of timm:{model_name} cannot be downloaded ({error}): give a local file as image_weights") from error
    if weights:
        state = _read_checkpoint(weights)
        try:
            state = _in_order(state, trunk.state_dict()) if by_order else state
            trunk.reset_classifier(0)  # published weights may have another number of classes
            wanted = trunk.state_dict().keys()
            if missing := wanted - state.keys():
                raise ValueError(f"it lacks {len(missing)} tensors, such as {min(missing)}" + ("" if by_order else "; if only names differ, set image_weights_by_order"))
            trunk.load_state_dict({k: v for k, v in state.items() if k in wanted})
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"image_weights {weights} does not fit timm:{model_name}: {error}") from error
    else:
        trunk.reset_classifier(0)
    config = timm.data.resolve_model_data_config(trunk) | {"crop_pct": 1.0, "crop_mode": "squash"}
    return trunk, timm.data.create_transform(**config, is_training=False)


def _read_checkpoint(path):
    """{name: tensor} of a .safetensors file, or of one that torch saved, from which no code is run."""
    try:
        state = load_file(path) if str(path).endswith(".safetensors") else torch.load(path, map_location="cpu", weights_only=True)
        return dict(state.get("state_dict", state))
    except Exception as error:  # torch and safetensors raise errors of their own
        raise ValueError(f"image_weights {path} cannot be read: {error}") from error


def _in_order(state, own):
    """The tensors of a checkpoint under the model's `own` names, matched by their order. Raises ValueError if a shape differs."""
    if len(state) != len(own):
        raise ValueError(f"it holds {len(state)} tensors, the network {len(own)}: they cannot be matched by order")
    for (name, value), (wanted, like) in zip(state.items(), own.items()):
        if value.shape != like.shape:
            raise ValueError(f"by order, {name} {tuple(value.shape)} would become {wanted} {tuple(like.shape)}: it is another network")
    return dict(zip(own, state.values()))
