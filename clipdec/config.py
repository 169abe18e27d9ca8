"""The settings of a run: the parameters of notebooks/04_train.ipynb, checked before anything is done with them."""

import difflib
import json
import math
import types
import typing
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from clipdec.data import DATA


@dataclass
class Config:
    """Settings of `fit`. Relative paths start at the repository's root. Raises ValueError for a wrong type or value."""

    data: str = "emoji"
    out_dir: str = "runs/emoji"
    image_tower: str = "mini"
    image_weights: str | None = None
    image_weights_by_order: bool = False
    text_tower: str = "mini"
    label_embeddings: str | None = None
    prompt: str = "a photo of {}"
    train_image_tower: bool = False
    embed_dim: int = 96
    epochs: int = 4
    batch_size: int = 32
    lr: float = 4e-3
    weight_decay: float = 1e-2
    alpha: float = 1.0
    beta: float = 1.0
    ema_decay: float = 0.99
    label_samples: int = 32
    weight_samples: bool = False
    amp: bool = False
    num_workers: int = 0
    seed: int = 0
    device: str = "auto"
    resume: bool = False

    def __post_init__(self):
        for field in fields(self):
            setattr(self, field.name, _typed(field.name, getattr(self, field.name), field.type))
        for field in fields(self):
            self._require(field.name, field.type is not float or math.isfinite(getattr(self, field.name)), "finite")
        for name in ("epochs", "batch_size", "embed_dim"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("alpha", "beta", "weight_decay", "label_samples", "num_workers", "seed"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("alpha", self.alpha + self.beta > 0, "more than 0 where beta is 0")
        self._require("lr", self.lr > 0, "more than 0")
        self._require("ema_decay", 0 <= self.ema_decay < 1, "from 0 to below 1")
        self._require("embed_dim", self.embed_dim % 8 == 0, "a multiple of the 8 attention heads")
        self._require("prompt", self.prompt.count("{}") == 1, "a text with one {} where the label goes, as 'a photo of {}'")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError):
            self._require("device", False, "auto, cpu, or a device that this torch has")

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
