"""The settings of a run: the parameters of notebooks/04_train.ipynb, checked before anything is done with them."""

import difflib
import json
import math
import tomllib
import types
import typing
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from clipdec.data import DATA

PRESETS = tomllib.loads((Path(__file__).parent / "presets.toml").read_text(encoding="utf8"))


@dataclass
class Config:
    """Settings of `fit`: those of a preset (presets.toml), and what is given beside it; None means the preset's value.

    Relative paths start at the repository's root. Raises ValueError for a wrong type or value, or an unknown preset.
    """

    preset: str = "mini"
    data: str = None
    out_dir: str = None
    image_tower: str = None
    image_weights: str | None = None
    image_weights_by_order: bool = None
    text_tower: str = None
    sentence_tower: str | None = None
    label_embeddings: str | None = None
    prompt: str = None
    train_image_tower: bool = None
    checkpoint_tower: bool = None
    augment: bool = None
    head: str = None
    embed_dim: int = None
    dropout: float = None
    label_samples: int = None
    weight_samples: bool = None
    alpha: float = None
    beta: float = None
    epochs: int = None
    batch_size: int = None
    accumulate: int = None
    optimiser: str = None
    lr: float = None
    weight_decay: float = None
    clip_grad: float = None
    ema_decay: float = None
    hold_out: float = None
    patience: int = None
    amp: bool = None
    compile: bool = None
    processes: int = None
    num_workers: int = None
    save_minutes: float = None
    seed: int = None
    device: str = None
    resume: bool = None
    train_projections: bool = None
    learn_scale: bool = None
    mask_equal: bool = None
    choose_on_val: bool = None
    keep_best: bool = None
    drop_unlabelled: bool = None

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        preset = PRESETS["mini"] | PRESETS[self.preset]
        for field in fields(self):
            value = getattr(self, field.name)
            setattr(self, field.name, _typed(field.name, preset.get(field.name) if value is None else value, field.type))
        for field in fields(self):
            self._require(field.name, field.type is not float or math.isfinite(getattr(self, field.name)), "finite")
        for name in ("epochs", "batch_size", "embed_dim", "accumulate", "processes"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("alpha", "beta", "weight_decay", "clip_grad", "label_samples", "patience", "num_workers", "save_minutes", "seed"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("ema_decay", "dropout", "hold_out"):
            self._require(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        self._require("alpha", self.alpha + self.beta > 0, "more than 0 where beta is 0")
        self._require("lr", self.lr > 0, "more than 0")
        self._require("head", self.head in ("ml_decoder", "linear", "matching", "residual"), "ml_decoder, linear, matching or residual")
        self._require("optimiser", self.optimiser in ("adam", "adamw"), "adam or adamw")
        self._require("embed_dim", self.embed_dim % 8 == 0, "a multiple of the 8 attention heads")
        self._require("prompt", self.prompt.count("{}") == 1, "a text with one {} where the label goes, as 'a photo of {}'")
        frozen = "False with a frozen tower: it trains nothing there (set train_image_tower)"
        self._require("checkpoint_tower", self.train_image_tower or not self.checkpoint_tower, frozen)
        if self.device == "auto":
            self.device = "cuda" if _is_there("cuda") else "cpu"
        self._require("device", _is_there(self.device), "auto, cpu, or a device that this torch has")

    def _require(self, name, holds, wanted):
        if not holds:
            raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)!r}")

    @classmethod
    def from_parameters(cls, namespace):
        """The Config of a notebook: `namespace` is its globals() right after the parameters.

        papermill only warns of a name it does not know, so every other plain value found there is an error.
        """
        known = {f.name for f in fields(cls)}
        plain = {k: v for k, v in namespace.items() if not k.startswith("_") and isinstance(v, (str, int, float, bool, list, dict, types.NoneType))}
        for name in plain.keys() - known - {"In", "Out"}:
            close = difflib.get_close_matches(name, known, 1)
            raise ValueError(f"unknown parameter {name!r}" + (f": did you mean {close[0]!r}?" if close else f": known are {', '.join(sorted(known))}"))
        return cls(**{k: plain[k] for k in known if k in plain})

    @classmethod
    def load(cls, run_folder):
        """The Config that a run was made with. Raises FileNotFoundError if the folder holds none."""
        path = Path(run_folder) / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{run_folder} is not a run folder (it has no config.json): train one with notebooks/04_train.ipynb")
        return cls(**json.loads(path.read_text()) | {"device": "auto"})

    def as_dict(self):
        return asdict(self)

    def path(self, name):
        """The path in setting `name`, from the repository's root, or None."""
        value = getattr(self, name)
        return None if value is None else DATA.parent / Path(value).expanduser()


def _typed(name, value, kind):
    """`value` if it is of the type `kind`, a whole number also for a float. Raises ValueError that says how to write it."""
    accepted = typing.get_args(kind) or (kind,)
    if type(value) in accepted:
        return value
    if float in accepted and type(value) is int:
        return float(value)
    wanted = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}[accepted[0]]
    hint = " (papermill: -p reads numbers and True or False, -y may leave them a text)" if isinstance(value, str) else ""
    raise ValueError(f"{name} must be {wanted}, got {value!r}{hint}")


def _is_there(name):
    """Whether torch has this device. Asked without starting CUDA, so that processes can still be forked."""
    try:
        device = torch.device(name)
    except RuntimeError:
        return False
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    return (device.index or 0) < counts.get(device.type, 0)
