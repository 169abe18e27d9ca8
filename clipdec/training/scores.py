"""Scores of whole splits, what val decides by them, and the figures of metrics.json."""

from dataclasses import asdict
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from clipdec.calibration import fit_calibration
from clipdec.data import split_seen
from clipdec.metrics import average_precision, zsl_report
from clipdec.towers import ImageTower, encode_labels
from clipdec.training.build import label_queries, uses_clip
from clipdec.training.inputs import changed, inputs_of
from clipdec.training.offset import seen_offset
from clipdec.training.pixels import Pixels
from clipdec.training.processes import gather, share
from clipdec.training.reliability import reliability_report
from clipdec.training.report import HEADINGS, full_report
from clipdec.training.run_folder import read_scores
from clipdec.training.tokens import encode_split, encoded

CLIP_WEIGHTS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def held_labels(labels, config):
    """(indices of the seen labels asked in training, of those that a run's Config holds out of it to choose by).

    Raises ValueError if none would be left to train on.
    """
    count = round(config.hold_out * len(labels.seen))
    if count == len(labels.seen):
        found = f"hold_out {config.hold_out} keeps all seen labels ({count}) out of the training"
        raise ValueError(f"{found}: choose a smaller one")
    return split_seen(labels, count, config.seed)


@torch.no_grad()
def predict(model, split, queries, kept=None, batch_size=64, num_workers=0):
    """Logits [M, L] of labels `queries` [L, D] for every image of a split, in its order, on the CPU.

    `kept`, what `encoded` gave for the split, saves encoding its images again. Several processes share the images.
    """
    device = next(model.parameters()).device
    model.eval()
    queries, mine = queries.to(device), share(torch.arange(len(split)))
    if kept is None:
        pixels, batch_size = Pixels(split, model.tower.preprocess), -(-batch_size // model.tower.passes)
        loader = DataLoader(pixels, batch_size, sampler=mine.tolist(), num_workers=num_workers)
        batches = (model.tower(images.to(device)) for images, *_ in loader)
    else:
        batches = ([rows[part].to(device) for rows in kept] for part in mine.split(batch_size) if len(part))
    parts = [model.score(*batch, queries).float().cpu() for batch in batches]
    return gather(torch.cat([torch.empty(0, len(queries)), *parts]), len(split))


def split_scores(model, split, data, config):
    """Logits [M, L] of all labels of a data set for every image of one of its splits."""
    queries = label_queries(config, data.labels.names)
    return predict(model, split, queries, encoded(model, split, data, config), num_workers=config.num_workers)


def run_scores(run_folder, model, data, config):
    """`split_scores` of a run's model on test, taken from its folder if `fit` has kept those of these data there."""
    if kept := read_scores(run_folder, "test"):
        tower = None if config.train_image_tower else model.tower  # what it was before the training is not known here
        if not changed(kept[1], config.decisive() | inputs_of(config, data.labels, tower, data)):
            return kept[0]
    return split_scores(model, data.test, data, config)


def raw_clip_scores(data, config, prompts=None):
    """Untouched CLIP on test: cosine of the global image vector with each label's text vector, [M, L].

    The CLIP is the run's text tower, whatever image tower the run trains on; the prompt is the run's, or the mean of
    the text vectors of several `prompts` (Radford et al., ICML 2021, section 3.1.4).
    """
    return clip_vectors(data, config, data.test) @ clip_text(data.labels, config, prompts or (config.prompt,)).T


def clip_vectors(data, config, split):
    """Global vectors of the run's CLIP, of length 1, [M, D]."""
    _, vectors = encode_split(ImageTower(config.text_tower), split, data, config)
    return F.normalize(vectors[:], dim=-1)


def clip_text(labels, config, prompts):
    """Text vectors of the run's CLIP, the mean over prompts, of length 1, [L, D]."""
    return F.normalize(sum(encode_labels(labels.names, config.text_tower, prompt) for prompt in prompts), dim=-1)


def evaluate(model, data, config, keep="all", save=None):
    """The figures of metrics.json for the test split: ZSL, GZSL and seen of the model, and raw CLIP on the same images.

    What val decides on: "calibration", the Calibration of the seen labels there, and with labels held out of training
    also "gzsl_calibrated": GZSL after `seen_offset` was taken off the seen labels. Held-out labels play the unseen.
    "reliability" says of the calibrated probabilities on test, of seen and of unseen labels, how far they can be
    believed. `save(val=..., test=...)`, if given, is called with the logits [M, L] of both splits.

    Where not all pairs of image and label are known (`Split.known`), mAP, calibration and reliability are of those that
    are. A part that cannot be computed does not cost the run: "left_out" names it and says why.
    """
    test, val = (cache(partial(split_scores, model, split, data, config)) for split in (data.test, data.val))
    seen = data.labels.seen_index
    fitted = cache(lambda: fit_calibration(*known_pairs(val(), data.val, seen)))
    parts = {
        "test": lambda: full_report(test(), data.test.targets, data.labels, keep, data.test.known),
        "raw_clip": lambda: {"raw_clip": _raw_clip(data, config, keep)},
        "calibration": lambda: {"calibration": asdict(fitted())},
        "reliability": lambda: {"reliability": _reliability(fitted(), test(), data)},
        "gzsl_calibrated": lambda: _with_offset(val()[:, seen], test(), data, config, keep),
        "scores": lambda: save(val=val(), test=test()) or {} if save else {},
    }
    report, left_out = {}, {}
    for part, figures in parts.items():
        try:
            report |= figures()
        except Exception as error:
            left_out[part] = f"{type(error).__name__}: {error}"
    return report | ({"left_out": left_out} if left_out else {})


def known_pairs(scores, split, labels):
    """Scores and targets of some labels, [M, L]; where not all pairs are known, [P] of those that are."""
    scores, asked = scores[:, labels], split.select(labels=labels)
    if asked.known is None:
        return scores, asked.targets
    return scores[asked.known], asked.targets[asked.known]


def _raw_clip(data, config, keep):
    test = data.test
    report = full_report(raw_clip_scores(data, config), test.targets, data.labels, keep, test.known)
    return {task: report[task] for task in HEADINGS}


def _reliability(calibration, logits, data):
    kinds = {"seen": data.labels.seen_index, "unseen": data.labels.unseen_index}
    probabilities = calibration.log_odds(logits).sigmoid()
    return {k: reliability_report(*known_pairs(probabilities, data.test, i)) for k, i in kinds.items() if len(i)}


def _with_offset(val, scores, data, config, keep):
    seen, (_, held) = data.labels.seen_index, held_labels(data.labels, config)
    if not len(held):
        return {}
    offset = seen_offset(val, data.val.targets[:, seen], torch.isin(seen, held))
    calibrated = scores - offset * (torch.arange(scores.shape[1]) < len(seen))
    gzsl = zsl_report(calibrated, data.test.targets, data.labels, keep, data.test.known)["gzsl"]
    return {"seen_offset": offset, "gzsl_calibrated": gzsl}


def choose_clip_weight(model, data, config):
    """How much of CLIP's own answer goes into a logit: of CLIP_WEIGHTS the one with the best mAP on val; 0 without one.

    What counts is the mean of two mAPs, of the labels held out of the training, which are as unseen ones, and of all
    seen labels, so that neither ZSL nor GZSL is bought with the other. It leaves the model's weight as it is.
    """
    _, held = held_labels(data.labels, config)
    if not uses_clip(config) or not len(held):
        return 0.0
    seen = data.val.targets[:, data.labels.seen_index].any(0).nonzero().flatten()  # those that occur
    val, before, scores = data.val.select(labels=seen), model.clip_weight.item(), {}
    for weight in (0.0, 1.0):
        model.clip_weight.fill_(weight)
        scores[weight] = split_scores(model, data.val, data, config)[:, seen]
    model.clip_weight.fill_(before)
    quality = []
    for weight in CLIP_WEIGHTS:
        mixed = scores[0.0] + weight * (scores[1.0] - scores[0.0])  # a logit is linear in the weight
        precisions = average_precision(mixed, val.targets, known=val.known)
        quality.append(precisions.mean() + precisions[torch.isin(seen, held)].mean().nan_to_num())
    return CLIP_WEIGHTS[torch.stack(quality).argmax()]
