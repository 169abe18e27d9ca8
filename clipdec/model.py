"""CLIP-Decoder: image tower, ML-Decoder head, and the projections that align images with sentences."""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from clipdec.config import Config
from clipdec.decoder import MLDecoder
from clipdec.labels import encode_labels, load_label_embeddings
from clipdec.towers import ImageTower


class CLIPDecoder(nn.Module):
    """Ali & Khan, ICCV 2023 Workshops (arXiv 2406.14830), with trained alignment projections and a learned logit scale.

    Args:
        tower: an ImageTower.
        query_features: length D of a label vector.
        sentence_features: length of a sentence vector (text tower).
        embed_dim: width of the decoder; its feed-forward width is 8/3 of it (768 -> 2048, the paper's).
        train_tower: whether the tower's weights are trained, and part of a checkpoint.
    """

    ALIGNED = 512  # width of the common space of images and sentences

    def __init__(self, tower, query_features, sentence_features, embed_dim=768, train_tower=False):
        super().__init__()
        self.decoder = MLDecoder(tower.num_features, query_features, embed_dim, ff_dim=embed_dim * 8 // 3)
        self.image_proj = nn.Linear(embed_dim, self.ALIGNED, bias=False)
        self.text_proj = nn.Linear(sentence_features, self.ALIGNED, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.train_tower = train_tower
        if train_tower:
            self.tower = tower
        else:
            self.__dict__["tower"] = tower.requires_grad_(False)  # kept out of parameters, checkpoints and averages

    @property
    def logit_scale(self):
        """What cosines of L_clip are multiplied with: starts at 1 / 0.07, at most 100 as CLIP's."""
        return self.log_scale.exp().clamp(max=100)

    def tokens(self, pixels):
        """Patch tokens of images: [B, 3, H, W] -> [B, N, C]."""
        return self.tower(pixels)[0]

    def forward(self, tokens, queries, sentences=None, need_attention=False):
        """Logits [B, L] of labels `queries` [L, D] for images given as tokens [B, N, C].

        With `sentences` [B, S], the text vector of each image's labels: (logits, image vectors [B, 512], text vectors
        [B, 512]) for the alignment loss. With `need_attention`: (logits, maps [B, L, N]).
        """
        embedded = self.decoder.embed(tokens.float())  # cached tokens are float16
        if sentences is None:
            return self.decoder.decode(embedded, queries, need_attention)
        return self.decoder.decode(embedded, queries), self.image_proj(embedded.mean(1)), self.text_proj(sentences)

    def save(self, path):
        """Write the trained weights as safetensors."""
        save_model(self, str(path))


def label_vectors(config, names):
    """The vectors [L, D] that a run asks with: its text tower's, or those of its label_embeddings file."""
    if config.label_embeddings:
        return load_label_embeddings(config.path("label_embeddings"), names)
    return encode_labels(names, config.text_tower, config.prompt)


def build_model(config, query_features):
    """A CLIPDecoder with fresh weights for a run's Config."""
    # with label_embeddings a sentence is the mean of its labels' vectors, else the text tower's
    sentence_features = query_features if config.label_embeddings else encode_labels(["a"], config.text_tower, config.prompt).shape[1]
    tower = ImageTower(config.image_tower, config.path("image_weights"), config.image_weights_by_order)
    torch.manual_seed(config.seed)  # only now: loading a tower draws random numbers, the first time
    return CLIPDecoder(tower, query_features, sentence_features, config.embed_dim, config.train_image_tower)


def load_run(run_folder):
    """(Config, CLIPDecoder in evaluation mode) of a run folder that `fit` wrote.

    Raises FileNotFoundError if there is none, ValueError if the checkpoint does not fit its config.
    """
    config, path = Config.load(run_folder), Path(run_folder) / "checkpoint.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}: train one with notebooks/04_train.ipynb, or give another run folder")
    try:
        with safe_open(path, "pt") as file:
            query_features = file.get_slice("decoder.query_proj.weight").get_shape()[1]
        model = build_model(config, query_features)
        load_model(model, str(path))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit its config.json ({str(error).splitlines()[0]}): both must come from one run") from error
    return config, model.eval()
