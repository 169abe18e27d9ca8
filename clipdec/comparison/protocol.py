"""One protocol for every method that is trained on seen labels: same images, tokens, label vectors, seeds and choices.

A method is an nn.Module of three parts:
    __init__(sizes)                                 its weights, for `Sizes`
    forward(tokens, vectors, labels) -> [B, L]      scores of labels [L, D] for images, as `Images` gives them
    loss(tokens, vectors, labels, targets)          a number to go down; targets [B, L] bool, each image with a positive

As `fit` does it for the heads: labels held out of the training by the seed (`held_labels`); AdamW with OneCycle; the
moving average of the weights is what is judged, after every epoch, by the mean of two mAPs on val, of the labels in
training and of the held-out ones; the last epoch within a standard error of the highest counts, and an end is made when
`patience` epochs brought no higher one. The limit of epochs, PROTOCOL, and the size of a batch are the same for methods
and heads, so all may take as many steps; the heads alone train in mixed precision, for speed. A label that is not known
of an image (`Split.known`) counts as absent in training. The learning rate is, of FACTORS times the method's own, the
one whose epoch is best with seed 0; the other seeds take it over.
"""

import math
import time
from copy import deepcopy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel

from clipdec.metrics import average_precision
from clipdec.trainer import moving_average, optimiser_with_schedule, sample_labels
from clipdec.training.build import image_tower, label_queries
from clipdec.training.epochs import epoch_that_counts, highest, val_figures
from clipdec.training.scores import held_labels
from clipdec.training.tokens import kept_tokens

FACTORS = 0.3, 1.0, 3.0
PROTOCOL = {"epochs": 8, "patience": 3, "amp": True}


class Sizes(NamedTuple):
    """What a method is built for: widths of a token, a global vector and a label vector, the vectors [S, D] of the
    labels in training, and the run's Config.
    """

    token: int
    vector: int
    label: int
    seen: torch.Tensor
    config: object


class Images:
    """A split as the methods get it: tokens [B, N, C] of length sqrt(C), global vectors [B, D] of length 1."""

    def __init__(self, tower, split, data, config):
        self.tokens, self.vectors = kept_tokens(tower, split, data, config)
        self.device = config.device

    def __len__(self):
        return len(self.vectors)

    def batch(self, rows):
        tokens, vectors = self.tokens[rows].to(self.device).float(), self.vectors[rows].to(self.device)
        return F.normalize(tokens, dim=-1) * tokens.shape[-1] ** 0.5, F.normalize(vectors, dim=-1)


def trained_scores(method, data, config):
    """(scores [M, L] of test by a `method` trained on the data's seen labels, {what is to be said of the training}).

    A method may say in `encode(config, names)` what stands for labels in place of the run's label vectors.
    """
    asked, held = held_labels(data.labels, config)
    queries = label_queries(config, data.labels.names)
    labels = method.encode(config, data.labels.names) if hasattr(method, "encode") else queries
    labels, tower = labels.to(config.device), image_tower(config)
    train, val, test = (Images(tower, split, data, config) for split in (data.train, data.val, data.test))
    sizes = Sizes(tower.num_features, tower.embed_dim, queries.shape[1], queries[asked], config)
    torch.manual_seed(config.seed)
    model, began = method(sizes).to(config.device), time.perf_counter()
    rows = data.train.targets[:, asked].any(1).nonzero().flatten()
    seen = labels[data.labels.seen_index]
    judge = lambda model: val_maps(scores_of(model, val, seen), data.val, asked, held)
    found = learn(model, train, rows, data.train.targets[:, asked], labels[asked], judge, config)
    trained = time.perf_counter()
    scores = scores_of(model, test, labels)
    seconds = {"training_seconds": trained - began, "scoring_seconds": time.perf_counter() - trained}
    return scores, found | {"weights": count_weights(model)} | seconds


def learn(model, images, rows, targets, labels, judge, config):
    """Train a method, leave the averaged weights of its best epoch in it: {"best_epoch", "val_map", "val_maps"}.

    Args: images, of train, of which `rows` are trained on; targets, [images, L] of the labels in training; labels, what
    stands for those; judge, from a model to `val_figures`.
    """
    steps = math.ceil(len(rows) / config.batch_size)
    optimiser, schedule = optimiser_with_schedule(
        config.optimiser, [p for p in model.parameters() if p.requires_grad], config.epochs * steps, config.lr,
        config.weight_decay,
    )  # fmt: skip
    average, history = AveragedModel(model, multi_avg_fn=moving_average(config.ema_decay)), []
    for epoch in range(1, config.epochs + 1):
        model.train()
        for part in rows[torch.randperm(len(rows))].tensor_split(steps):
            asked = sample_labels(targets[part], config.label_samples)[0] if config.label_samples else slice(None)
            loss = model.loss(*images.batch(part), labels[asked], targets[part][:, asked].to(labels.device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            average.update_parameters(model)
        history.append({"epoch": epoch} | judge(average.module))
        if epoch_that_counts(history) == epoch:
            kept = deepcopy(average.module.state_dict())
        if config.patience and epoch - highest(history)["epoch"] >= config.patience:
            break
    model.load_state_dict(kept)
    best, maps = epoch_that_counts(history), [row["val_map"] for row in history]
    return {"best_epoch": best, "val_map": maps[best - 1], "val_maps": maps}


def count_weights(model):
    """Numbers that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def scores_of(model, images, labels, size=64):
    """Scores [M, L] of all images, on the CPU."""
    model.eval()
    parts = torch.arange(len(images)).split(size)
    return torch.cat([torch.empty(0, len(labels)), *(model(*images.batch(part), labels).cpu() for part in parts)])


def val_maps(scores, split, asked, held):
    """`val_figures` of seen labels, in training and held out of it."""
    seen = split.select(labels=torch.arange(scores.shape[1]))
    precisions = 100 * average_precision(scores, seen.targets, known=seen.known)
    return val_figures({"val_seen_map": precisions[asked], "val_held_map": precisions[held]})
