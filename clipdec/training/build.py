"""From the settings of a run to its model, and from a run folder back to both."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model

from clipdec.labels import LabelSpace
from clipdec.losses import CombinedLoss
from clipdec.model import CLIPDecoder
from clipdec.towers import ImageTower, encode_labels, load_clip
from clipdec.training.config import Config, read_settings
from clipdec.training.embeddings import load_label_embeddings
from clipdec.training.fast import make_fast
from clipdec.training.inputs import changed, inputs_of
from clipdec.training.shared import TRAIN, find_run


def _file(config, name):
    """The file that a setting names, or None. Raises FileNotFoundError if it is not there."""
    path = config.path(name)
    if path and not path.is_file():
        raise FileNotFoundError(f"there is no file {path}, which {name} names: give the path of one, or leave it out")
    return path


def image_tower(config):
    return ImageTower(config.image_tower, _file(config, "image_weights"), config.image_weights_by_order, config.windows)


def label_queries(config, names):
    """The vectors [L, D] that a run asks with, of length 1: its text tower's, or those of its label_embeddings file."""
    if config.label_embeddings:
        return F.normalize(load_label_embeddings(_file(config, "label_embeddings"), names), dim=-1)
    return encode_labels(names, config.text_tower, config.prompt)


def sentence_tower(config):
    """The text tower of the sentences, or None where the sentence of an image is the mean of its labels' vectors.

    That is so with label_embeddings and no sentence_tower: a text tower of another space would make no sense there.
    """
    return config.sentence_tower or (None if config.label_embeddings else config.text_tower)


def uses_clip(config):
    """Whether CLIP's own answer can be added: the head asks for it, and images, labels and CLIP share one space."""
    own = config.image_tower == config.text_tower and not config.train_image_tower and not config.label_embeddings
    return config.head == "residual" and own


def build_loss(config):
    points = config.as_author
    alpha = config.alpha / config.batch_size if "sum_loss" in points else config.alpha
    return CombinedLoss(alpha, config.beta, "equal_are_negatives" not in points, "detached_focus" in points)


def build_model(config, references):
    """A CLIPDecoder with fresh weights; `references` [S, D] are the vectors of the labels in training."""
    encoder = sentence_tower(config)
    sentence_features = encode_labels(["a"], encoder).shape[1] if encoder else references.shape[1]
    tower = image_tower(config)
    torch.manual_seed(config.seed)  # only now: loading a tower draws random numbers, the first time
    sizes = sentence_features, config.embed_dim, config.train_image_tower, config.dropout
    model = CLIPDecoder(tower, references, *sizes, config.head)
    make_fast(model.decoder)
    if uses_clip(config):
        model.clip_scale.copy_(load_clip(config.text_tower).model.logit_scale.detach().exp().clamp(max=100))
    if config.checkpoint_tower:
        recompute_activations(tower)
    for part in (model.image_proj, model.text_proj):
        part.requires_grad_("random_projections" not in config.as_author)
    if "fixed_scale" in config.as_author:
        model.log_scale.requires_grad_(False).fill_(0.1)  # exp(0.1), the author's scale
    return model


def recompute_activations(tower):
    """Recompute a tower's activations in the backward pass instead of keeping them. Raises ValueError if it cannot."""
    try:
        tower.trunk.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:  # timm's networks that cannot raise the first
        remedy = "set checkpoint_tower False"
        raise ValueError(f"{tower.name} cannot recompute activations ({error}): {remedy}") from error


def read_labels(run_folder):
    """The LabelSpace of a run. Raises FileNotFoundError if the folder holds none."""
    path = Path(run_folder).expanduser() / "labels.json"
    if not path.is_file():
        raise FileNotFoundError(f"the run in {run_folder} is not finished, it has no labels.json: resume it")
    found = read_settings(path)
    if found.keys() != {"seen", "unseen"}:
        raise ValueError(f"{path} holds not just seen and unseen names: it is of another version")
    return LabelSpace(**found)


def load_run(run_folder, revision=None):
    """(Config, CLIPDecoder in evaluation mode) of a run folder that `fit` wrote, or a shared run: see `find_run`.

    Raises FileNotFoundError if there is none, ValueError if the checkpoint does not fit its config, or if the labels,
    the frozen tower or the label vectors are not those that it was trained with.
    """
    folder = find_run(run_folder, revision)
    config, path = Config.load(folder), folder / "checkpoint.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}: {TRAIN}, or give another run folder")
    try:
        with safe_open(path, "pt") as file:
            references, about = torch.zeros(file.get_slice("references").get_shape()), file.metadata() or {}
        model = build_model(config, references)
        load_model(model, str(path))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} does not fit its config.json ({reason}): both must come from one run") from error
    if about:  # runs of older versions have none
        settings, inputs = (json.loads(about[name]) for name in ("settings", "inputs"))
        found = inputs_of(config, read_labels(folder), None if config.train_image_tower else model.tower)
        others = changed(settings, {k: v for k, v in config.decisive().items() if k in settings})
        if others := others or changed(inputs, found):
            raise ValueError(f"{path} was trained with another {others}: bring that back, or train anew")
    return config, model.eval()
