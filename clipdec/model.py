"""CLIP-Decoder: image tower, ML-Decoder head, and the projections that align images with sentences."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from clipdec.training.config import Config
from clipdec.decoder import MLDecoder
from clipdec.labels import encode_labels, encode_texts, join_names, load_label_embeddings
from clipdec.matching_decoder import MatchingDecoder
from clipdec.training.processes import share, wait
from clipdec.training.progress import progress
from clipdec.training.tokens import Store, digest
from clipdec.towers import ImageTower, load_clip, text_key

HEADS = {"ml_decoder": MLDecoder, "linear": partial(MatchingDecoder, match=False), "matching": MatchingDecoder, "residual": MatchingDecoder}


class CLIPDecoder(nn.Module):
    """Ali & Khan, ICCV 2023 Workshops (arXiv 2406.14830), with trained alignment projections and a learned logit scale.

    Args:
        tower: an ImageTower.
        references: vectors [S, D] of the labels in training.
        sentence_features: length of a sentence vector (text tower).
        embed_dim: width of the decoder; its feed-forward width is 8/3 of it (768 -> 2048, the paper's).
        train_tower: whether the tower's weights are trained, and part of a checkpoint.
        dropout: dropout rate of the decoder.
        head: "ml_decoder", the paper's; "linear", with the projections of MatchingDecoder; "matching", with its outputs by label
            too; "residual", which is that and may have CLIP's own answer added, see `score`.
    """

    ALIGNED = 512  # width of the common space of images and sentences

    def __init__(self, tower, references, sentence_features, embed_dim=768, train_tower=False, dropout=0.1, head="ml_decoder"):
        super().__init__()
        self.decoder = HEADS[head](tower.num_features, references.shape[1], embed_dim, ff_dim=embed_dim * 8 // 3, dropout=dropout)
        self.image_proj = nn.Linear(embed_dim, self.ALIGNED, bias=False)
        self.text_proj = nn.Linear(sentence_features, self.ALIGNED, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.register_buffer("references", references)
        self.register_buffer("clip_scale", torch.tensor(100.0))
        self.register_buffer("clip_weight", torch.zeros(()))  # of CLIP's own answer in a logit
        if head != "ml_decoder":
            self.decoder.centre_on(references)
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

    def score(self, tokens, vectors, queries, prepared=None, need_attention=False):
        """Logits [B, L] with CLIP's own answer: those of the head, and `clip_weight` times `clip_evidence`.

        Args:
            tokens, vectors: what the tower gives, [B, N, C] and [B, D].
            queries: label vectors [L, D]; prepared: what the decoder's `prepare` made of them, if they are asked more than once.
            need_attention: also return the head's attention maps [B, L, N].
        """
        answer = self(tokens, queries if prepared is None else prepared, need_attention=need_attention)
        logits, maps = answer if need_attention else (answer, None)
        if self.clip_weight:
            logits = logits + self.clip_weight * self.clip_evidence(vectors, queries)
        return (logits, maps) if need_attention else logits

    def clip_evidence(self, vectors, queries):
        """Untouched CLIP on whole images: log of exp(s cos(v, t)) over its sum for the labels in training, [B, L].

        v is an image's global vector, t a label's vector, s CLIP's logit scale. The sum makes images comparable, as the softmax
        does that CLIP was trained with, and a label's answer still does not depend on what else is asked.
        """
        vectors = self.clip_scale * F.normalize(vectors.float(), dim=-1)
        return vectors @ queries.T - (vectors @ self.references.T).logsumexp(-1, keepdim=True)

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


def uses_clip(config):
    """Whether CLIP's own answer can be added in this run: its head asks for it, and images, labels and CLIP share one space."""
    own = config.image_tower == config.text_tower and not config.train_image_tower and not config.label_embeddings
    return config.head == "residual" and own


def build_model(config, queries):
    """A CLIPDecoder with fresh weights for a run's Config; `queries` [L, D] are the vectors of the labels to train."""
    encoder = sentence_tower(config)
    sentence_features = encode_labels(["a"], encoder).shape[1] if encoder else queries.shape[1]
    tower = ImageTower(config.image_tower, config.path("image_weights"), config.image_weights_by_order)
    torch.manual_seed(config.seed)  # only now: loading a tower draws random numbers, the first time
    model = CLIPDecoder(tower, queries, sentence_features, config.embed_dim, config.train_image_tower, config.dropout, config.head)
    if uses_clip(config):
        model.clip_scale.copy_(load_clip(config.text_tower).model.logit_scale.detach().exp().clamp(max=100))
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
            references = torch.zeros(file.get_slice("references").get_shape())
        model = build_model(config, references)
        load_model(model, str(path))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit its config.json ({str(error).splitlines()[0]}): both must come from one run") from error
    return config, model.eval()
