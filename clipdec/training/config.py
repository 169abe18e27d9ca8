"""The settings of a run: the parameters of notebooks/04_train.ipynb, checked before anything is done with them.

A setting's name, type, bound and help stand here and nowhere else; its values for the presets in presets.toml.
"""

import difflib
import json
import math
import os
import tomllib
import types
import typing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch

from clipdec.data import at_home
from clipdec.towers import windows_of
from clipdec.training.shared import FILES, TRAIN, beside

PRESETS = tomllib.loads((Path(__file__).parent / "presets.toml").read_text(encoding="utf8"))

# What the author's code does, where in it, and what is done here. Its files are those of
# github.com/aliman80/ML_Decoder: train_zsl_nus.py, src_files/loss_functions/losses.py and
# src_files/helper_functions/helper_functions.py.
AS_AUTHOR = {
    "random_projections": "the two projections of L_clip are not in the optimiser and stay random (losses.py: "
    "CLIPLoss.__init__); here they are trained",
    "fixed_scale": "the logit scale of L_clip is not in the optimiser and stays at exp(0.1) (losses.py: "
    "CLIPLoss.__init__); here it is learned, from 1/0.07 on",
    "equal_are_negatives": "images with the same labels are negatives of each other in L_clip (losses.py: "
    "CLIPLoss.forward); here they are not",
    "best_on_test": "every epoch is measured on test with the plain and the averaged weights, and the larger mAP "
    "counts and chooses the epoch, P, R and F1 are those of the plain weights (train_zsl_nus.py: validate_multi); "
    "here val chooses, and the averaged weights alone are measured",
    "last_weights": "the file of the best epoch has a name that nothing reads, so that the last epoch counts "
    "(train_zsl_nus.py: train_multi_label_zsl); here the best one does",
    "keep_unlabelled": "images without a seen label are trained on (helper_functions.py: get_datasets_from_csv); "
    "here they are left out",
    "sum_loss": "L_c is summed over the images of a batch and L_clip is a mean, so that alpha, and with Adam the "
    "decay, weigh 1 / batch_size of what they say (losses.py: AsymmetricLoss.forward, CLIPLoss.forward); here both are "
    "means",
    "detached_focus": "the focusing weights of L_c have no gradient (train_zsl_nus.py: train_multi_label_zsl; "
    "losses.py: AsymmetricLoss.forward); here they have theirs",
    "trained_sentence_tower": "the CLIP that encodes the sentences is trained, without weight decay and without an "
    "average (train_zsl_nus.py: train_multi_label_zsl); here it is frozen, and each sentence encoded once",
    "unseen_in_sentences": "a sentence joins all names that the data list for an image, unseen ones too "
    "(helper_functions.py: parse_csv_data); here those of the labels in training",
    "sentence_of_77_characters": "a sentence takes a name only if it has fewer than 77 characters then, in the order "
    "of the data file (helper_functions.py: parse_csv_data); here it takes all names; with this point too they stand "
    "in the order of the labels",
    "cutout_first": "Cutout comes before RandAugment, its square anywhere, also over the edge, in a random colour "
    "(helper_functions.py: CutoutPIL; train_zsl_nus.py: main); here after it, inside, in the tower's mean",
}
SWITCHES = {  # the first six before there was `as_author`, each True by default: config.json files have them
    "train_projections": "random_projections", "learn_scale": "fixed_scale", "mask_equal": "equal_are_negatives",
    "choose_on_val": "best_on_test", "keep_best": "last_weights", "drop_unlabelled": "keep_unlabelled",
}  # fmt: skip

FREE = {"preset", "resume", "device", "processes", "num_workers", "out_dir", "save_minutes"}  # change no result
FREE |= FILES | {"data"}  # nor does the name of a file; what is in it, inputs.py compares

AT_LEAST_0 = "0 or more", lambda value: value >= 0
AT_LEAST_1 = "at least 1", lambda value: value >= 1
ABOVE_0 = "more than 0", lambda value: value > 0
SHARE = "from 0 to below 1", lambda value: 0 <= value < 1
WIDTHS = "a multiple of the 8 attention heads, at least 8", lambda value: value >= 8 and value % 8 == 0
SEED = "from 0 to below 2^63", lambda value: 0 <= value < 2**63
PROMPT = "a text with one {} where the label goes, as 'a photo of {}'", lambda value: value.count("{}") == 1
POINTS = f"names of {', '.join(AS_AUTHOR)}, or all", lambda value: set(value) <= AS_AUTHOR.keys() or value == ["all"]
LOOK = "known", lambda value: windows_of(value) is not None  # which says itself what is wrong
DEVICE = "auto, cpu, or a device that this torch has", lambda value: value == "auto" or _is_there(value)


def one_of(*names):
    return f"{', '.join(names[:-1])} or {names[-1]}", lambda value: value in names


def setting(help, bound=("", lambda value: True), default=None):
    return field(default=default, metadata={"help": help, "bound": bound})


@dataclass
class Config:
    """Settings of `fit`: those of a preset (presets.toml), and what is given beside it; None means the preset's value.

    Relative paths start at the repository's root, or the folder that CLIPDEC_HOME names. Raises ValueError for a wrong
    type or value, or an unknown preset.
    """

    preset: str = setting("mini, clip or paper: the value of every parameter that is None", one_of(*PRESETS), "mini")
    data: str = setting('"emoji", or the folder of a prepared data set')
    out_dir: str = setting("run folder to write")
    image_tower: str = setting("tower that turns images into tokens")
    image_weights: str | None = setting("local checkpoint of a timm tower")
    image_weights_by_order: bool = setting("match the checkpoint to the network by the order of its tensors")
    windows: int | str = setting("windows of an image that the tower sees too: 0, 4, 25, or sizes and strides", LOOK)
    text_tower: str = setting("CLIP of labels, of sentences where no other is named, and of the raw-CLIP baseline")
    sentence_tower: str | None = setting("CLIP that encodes the sentences of the alignment loss, if another")
    label_embeddings: str | None = setting(".npz with names and vectors, in place of the text tower's label vectors")
    prompt: str = setting("sentence around a label's name", PROMPT)
    train_image_tower: bool = setting("False: frozen, its tokens computed once and cached")
    checkpoint_tower: bool = setting("True: a trained tower recomputes activations: less memory, a third more time")
    augment: bool = setting("True: RandAugment and Cutout; images are then encoded anew in every epoch")
    head: str = setting(
        "ml_decoder: the paper's; linear, matching, residual: this repository's, in three steps (notebook 03b)",
        one_of("ml_decoder", "linear", "matching", "residual"),
    )
    embed_dim: int = setting("width of the decoder (the paper's code: 768)", WIDTHS)
    dropout: float = setting("dropout rate of the decoder", SHARE)
    label_samples: int = setting("absent labels decoded in a step beside those present in it; 0: all", AT_LEAST_0)
    weight_samples: bool = setting("True: the sampled labels stand for all absent ones in the loss")
    alpha: float = setting("weight of the alignment loss L_clip", AT_LEAST_0)
    beta: float = setting("weight of the classification loss L_c", AT_LEAST_0)
    epochs: int = setting("passes over the training images", AT_LEAST_1)
    batch_size: int = setting("images in a step, over all processes and parts", AT_LEAST_1)
    accumulate: int = setting("parts in which a step takes its images one after the other: less memory", AT_LEAST_1)
    optimiser: str = setting("adam or adamw", one_of("adam", "adamw"))
    lr: float = setting("peak learning rate of OneCycle", ABOVE_0)
    weight_decay: float = setting("on matrices only", AT_LEAST_0)
    clip_grad: float = setting("largest norm of the gradient; 0: not clipped", AT_LEAST_0)
    ema_decay: float = setting("decay of the average of the weights, which is what is evaluated", SHARE)
    hold_out: float = setting("share of the seen labels kept out of training, to choose the epoch by; 0: none", SHARE)
    patience: int = setting("end after so many epochs without a better one; 0: never", AT_LEAST_0)
    amp: bool = setting("mixed precision: bfloat16 where the device has it, else float16")
    compile: bool = setting("torch.compile")
    processes: int = setting("GPUs, or processes on the CPU, that train together; `fit` starts them", AT_LEAST_1)
    num_workers: int = setting("processes that load images, for each training process", AT_LEAST_0)
    save_minutes: float = setting("minutes between two states on the disk; 0: after every step", AT_LEAST_0)
    seed: int = setting("seed of everything random", SEED)
    device: str = setting("auto (cuda if it is there, else cpu), cpu, cuda, mps, ...", DEVICE)
    resume: bool = setting("go on from the last state in out_dir")
    as_author: list = setting("points of the author's code to follow, between commas, or all (config.py)", POINTS)

    def __post_init__(self):
        preset = PRESETS["mini"] | PRESETS.get(self.preset, {})
        for setting in fields(self):
            given = getattr(self, setting.name)
            value = _typed(setting, preset.get(setting.name) if given is None else given)
            setattr(self, setting.name, value)
            wanted, holds = setting.metadata["bound"]
            self._require(setting.name, setting.type is not float or math.isfinite(value), "finite")
            self._require(setting.name, holds(value), wanted)
        self._require("alpha", self.alpha + self.beta > 0, "more than 0 where beta is 0")
        frozen = "False with a frozen tower: it trains nothing there (set train_image_tower)"
        self._require("checkpoint_tower", self.train_image_tower or not self.checkpoint_tower, frozen)
        if self.device == "auto":
            self.device = "cuda" if _is_there("cuda") else "cpu"

    def _require(self, name, holds, wanted):
        if not holds:
            raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)!r}")

    @classmethod
    def from_parameters(cls, namespace):
        """The Config of a notebook: `namespace` is its globals() right after the parameters.

        papermill only warns of a name it does not know, so every other plain value found there is an error.
        """
        known = {f.name for f in fields(cls)}
        plain = str, int, float, bool, list, dict, types.NoneType
        found = {k: v for k, v in namespace.items() if k in known or not k.startswith("_") and isinstance(v, plain)}
        found = without_switches(found)
        for name in found.keys() - known - {"In", "Out"}:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
            raise ValueError(f"unknown parameter {name!r}: {hint}")
        return cls(**{k: found[k] for k in known if k in found})

    @classmethod
    def load(cls, run_folder):
        """The Config that a run was made with; a file of FILES that lies in the folder goes before one elsewhere.

        Raises FileNotFoundError if the folder holds none.
        """
        path = Path(run_folder).expanduser() / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path.parent.absolute()} is not a run folder (it has no config.json): {TRAIN}")
        settings = without_switches(read_settings(path))
        if unknown := sorted(settings.keys() - {f.name for f in fields(cls)}):
            remedy = "it is of another version: update clipdec"
            raise ValueError(f"{path} has settings that are not known here, {', '.join(unknown)}: {remedy}")
        files = {name: settings[name] for name in FILES if isinstance(settings.get(name), str)}
        found = {name: beside(file, path.parent) for name, file in files.items()}
        config = cls(**settings | found | {"device": "auto"})
        config.num_workers = min(config.num_workers, os.cpu_count() or 1)  # it may come from a larger machine
        return config

    def as_dict(self):
        return asdict(self)

    def decisive(self):
        """The settings {name: value} that results depend on."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}

    def path(self, name):
        """The path in setting `name`, from HOME, or None."""
        value = getattr(self, name)
        return None if value is None else at_home(value)


def read_settings(path):
    """The settings in a JSON file. Raises FileNotFoundError if there is no such file, ValueError if it holds none."""
    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(f"there is no file {path}: give the path of one")
    try:
        settings = json.loads(Path(path).expanduser().read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): correct it there") from None
    if not isinstance(settings, dict):
        raise ValueError(f'{path} holds no settings: write them as {{"epochs": 20, ...}}')
    return settings


def without_switches(settings):
    """Settings as `config.json` holds them, an old file's SWITCHES turned into the names of `as_author`."""
    kept = {name: value for name, value in settings.items() if name not in SWITCHES or not isinstance(value, bool)}
    points = [point for switch, point in SWITCHES.items() if settings.get(switch) is False]
    return kept | {"as_author": _names(kept.get("as_author") or []) + points} if points else kept


def _names(value):
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else list(value)


def _typed(setting, value):
    """`value` if it is of the setting's type, a whole number also for a float. The ValueError says how to write it."""
    accepted = typing.get_args(setting.type) or (setting.type,)
    if list in accepted and isinstance(value, str | list | tuple):
        names = _names(value)
        return [name for name in AS_AUTHOR if name in names] + [name for name in names if name not in AS_AUTHOR]
    if type(value) in accepted:
        return value
    if float in accepted and type(value) is int:
        return float(value)
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", list: "a list of names"}
    papermill = " (papermill: -p reads numbers and True or False, -y may leave them a text)"
    hint = papermill if isinstance(value, str) else ""
    wanted = " or ".join(kinds[kind] for kind in accepted if kind in kinds)
    raise ValueError(f"{setting.name} must be {wanted}, got {value!r:.80}{hint}")


def _is_there(name):
    """Whether torch has this device. Asked without starting CUDA, so that processes can still be forked."""
    try:
        device = torch.device(name)
    except RuntimeError:
        return False
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    return (device.index or 0) < counts.get(device.type, 0)
