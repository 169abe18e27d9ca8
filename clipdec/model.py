"""CLIP-Decoder: image tower, ML-Decoder head, and the projections that align images with sentences."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from clipdec.config import Config
from clipdec.decoder import MLDecoder
from clipdec.labels import encode_labels, encode_texts, join_names, load_label_embeddings
from clipdec.processes import share, wait
from clipdec.progress import progress
from clipdec.store import Store, digest
from clipdec.towers import ImageTower, text_key


class CLIPDecoder(nn.Module):
    """Ali & Khan, ICCV 2023 Workshops (arXiv 2406.14830), with trained alignment projections and a learned logit scale.

    Args:
        tower: an ImageTower.
        query_features: length D of a label vector.
        sentence_features: length of a sentence vector (text tower).
        embed_dim: width of the decoder; its feed-forward width is 8/3 of it (768 -> 2048, the paper's).
        train_tower: whether the tower's weights are trained, and part of a checkpoint.
        dropout: dropout rate of the decoder.
    """

    ALIGNED = 512  # width of the common space of images and sentences

    def __init__(self, tower, query_features, sentence_features, embed_dim=768, train_tower=False, dropout=0.1):
        super().__init__()
        self.decoder = MLDecoder(tower.num_features, query_features, embed_dim, ff_dim=embed_dim * 8 // 3, dropout=dropout)
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

    def forward(self, images, queries, sentences=None, need_attention=False):
        """Logits [B, L] of labels `queries` [L, D] for images given as pixels [B, 3, H, W] or as tokens [B, N, C].

        With `sentences` [B, S], the text vector of each image's labels: (logits, image vectors [B, 512], text vectors
        [B, 512]) for the alignment loss. With `need_attention`: (logits, maps [B, L, N]).
        """
        tokens = self.tower(images)[0] if images.ndim == 4 else images.float()  # cached tokens are float16
        embedded = self.decoder.embed(tokens)
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


def sentence_tower(config):
    """The text tower of the sentences, or None where the sentence of an image is the mean of its labels' vectors.

    That is so with label_embeddings and no sentence_tower: a text tower of another space would make no sense beside them.
    """
    return config.sentence_tower or (None if config.label_embeddings else config.text_tower)


def encode_sentences(split, labels, config, asked=None, folder=None):
    """The text vector [M, S] of each image: its seen labels joined in one sentence, "a photo of sky, car and road".

    Args:
        split, labels: a Split and the LabelSpace of its targets.
        asked: indices of the labels that sentences may name, by default all seen ones.
        folder: where vectors are kept for the next call, keyed by text tower and sentences. None keeps them in memory.
    """
    asked = labels.seen_index if asked is None else asked
    targets, encoder = split.targets[:, asked], sentence_tower(config)
    if encoder is None:
        vectors = label_vectors(config, [labels.names[i] for i in asked])
        return torch.cat([F.normalize(part.float() @ vectors, dim=-1) for part in targets.split(4096)])
    joined = [config.prompt.replace("{}", join_names([labels.names[asked[i]] for i in row.nonzero().flatten()])) for row in targets]
    place = {sentence: i for i, sentence in enumerate(dict.fromkeys(joined))}  # equal label sets are encoded once
    texts, width = list(place), encode_labels(["a"], encoder).shape[1]
    kept = folder / f"sentences-{digest(text_key(encoder), *texts)}" if folder else None
    store = Store(kept, len(texts), {"vectors": ((width,), np.float32)})
    todo = share(store.missing(torch.arange(len(texts))))
    for rows in progress(todo.split(1024) if len(todo) else [], desc="sentences"):
        store.write(rows, {"vectors": encode_texts([texts[i] for i in rows], encoder, config.device)})
    wait()
    return store.rows("vectors", torch.tensor([place[sentence] for sentence in joined], dtype=torch.long))


def build_model(config, query_features):
    """A CLIPDecoder with fresh weights for a run's Config."""
    encoder = sentence_tower(config)
    sentence_features = encode_labels(["a"], encoder).shape[1] if encoder else query_features
    tower = ImageTower(config.image_tower, config.path("image_weights"), config.image_weights_by_order)
    torch.manual_seed(config.seed)  # only now: loading a tower draws random numbers, the first time
    model = CLIPDecoder(tower, query_features, sentence_features, config.embed_dim, config.train_image_tower, config.dropout)
    if config.checkpoint_tower:
        tower.checkpoint()
    for part in (model.image_proj, model.text_proj):
        part.requires_grad_(config.train_projections)
    if not config.learn_scale:
        model.log_scale.requires_grad_(False).fill_(0.1)  # exp(0.1), the author's scale
    return model


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
