"""Scores of whole splits, the ZSL and GZSL protocol, and what leaks between label names."""

from dataclasses import asdict
from functools import lru_cache

import snowballstemmer
import torch
from torch.utils.data import DataLoader

from clipdec.comparison.methods.raw_clip import raw_clip_scores
from clipdec.calibration import fit_calibration, seen_offset
from clipdec.data import Pixels, encode_images, held_labels
from clipdec.labels import LabelSpace
from clipdec.metrics import zsl_report
from clipdec.model import label_vectors
from clipdec.training.processes import gather, share

TASKS = {"zsl": "ZSL", "zsl_without_twins": "ZSL without twins", "gzsl": "GZSL"}
STEM = snowballstemmer.stemmer("english").stemWord
IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "feet": "foot", "teeth": "tooth", "geese": "goose", "mice": "mouse",
    "oxen": "ox", "ran": "run", "swam": "swim",
}


def encoded(model, split, data, config):
    """Cached (tokens [M, N, C], global vectors [M, D]) of a split for a frozen tower, None for a trained one, whose tokens change,
    or if the disk is too small for them."""
    if model.train_tower:
        return None
    kept = encode_images(model.tower, split, data.folder / "tokens", num_workers=config.num_workers, device=config.device)
    return None if kept[0] is None else kept


@torch.no_grad()
def predict(model, split, queries, kept=None, batch_size=64, num_workers=0):
    """Logits [M, L] of labels `queries` [L, D] for every image of a split, in its order, on the CPU.

    `kept`, what `encoded` gave for the split, saves encoding its images again. Several processes share the images.
    """
    device = next(model.parameters()).device
    queries = queries.to(device)
    prepared = model.eval().decoder.prepare(queries)  # once for all images
    mine = share(torch.arange(len(split)))
    if kept is None:
        model.tower.to(device).eval()
        loader = DataLoader(Pixels(split, model.tower.preprocess), batch_size, sampler=mine.tolist(), num_workers=num_workers)
        batches = (model.tower(pixels.to(device)) for pixels, *_ in loader)
    else:
        batches = ([rows[part].to(device) for rows in kept] for part in mine.split(batch_size) if len(part))
    parts = [model.score(*batch, queries, prepared).float().cpu() for batch in batches]
    return gather(torch.cat([torch.empty(0, len(queries)), *parts]), len(split))


def full_report(scores, targets, labels, keep="all"):
    """`zsl_report`, and as `zsl_without_twins` its ZSL figures for the unseen labels that have no seen twin (see `leakage`)."""
    twins = leakage(labels)
    alone = [i for i in labels.unseen_index.tolist() if labels.names[i] not in twins]
    rest = zsl_report(scores[:, alone], targets[:, alone], LabelSpace([], [labels.names[i] for i in alone]), keep)["zsl"] if alone else {}
    report = zsl_report(scores, targets, labels, keep) | {"zsl_without_twins": rest}
    report["protocol"]["unseen_with_twin"] = len(twins)
    return report


def split_scores(model, split, data, config):
    """Logits [M, L] of all labels of a data set for every image of one of its splits."""
    return predict(model, split, label_vectors(config, data.labels.names), encoded(model, split, data, config), num_workers=config.num_workers)


def evaluate(model, data, config, keep="all"):
    """The figures of metrics.json for the test split: ZSL, GZSL and seen of the model, and raw CLIP on the same images.

    What val decides on: "calibration", the Calibration of the seen labels there, and with labels held out of the training also
    "gzsl_calibrated": GZSL after `seen_offset` was taken off the seen labels. The held-out labels play the unseen ones.
    """
    scores, targets = split_scores(model, data.test, data, config), data.test.targets
    report = full_report(scores, targets, data.labels, keep)
    raw = full_report(raw_clip_scores(data, config), targets, data.labels, keep)
    report["raw_clip"] = {part: raw[part] for part in TASKS}
    seen, (_, held) = data.labels.seen_index, held_labels(data.labels, config)
    val, val_targets = split_scores(model, data.val, data, config)[:, seen], data.val.targets[:, seen]
    report["calibration"] = asdict(fit_calibration(val, val_targets))
    if len(held):
        report["seen_offset"] = offset = seen_offset(val, val_targets, torch.isin(seen, held))
        calibrated = scores - offset * (torch.arange(scores.shape[1]) < len(data.labels.seen))
        report["gzsl_calibrated"] = zsl_report(calibrated, targets, data.labels, keep)["gzsl"]
    return report


def result_table(metrics):
    """The figures of metrics.json as a text table, in percent."""
    columns = {"map": "mAP", "f1@3": "F1@3", "f1@5": "F1@5"}
    rows = [("CLIP-Decoder", metrics), ("raw CLIP", metrics["raw_clip"])]
    lines = [f"{'':14}" + "".join(f"{name:^24}" for name in TASKS.values()), f"{'':14}" + "".join(f"{c:>8}" for c in columns.values()) * len(TASKS)]
    lines += [f"{name:14}" + "".join(f"{m[task].get(c, float('nan')):8.1f}" for task in TASKS for c in columns) for name, m in rows]
    protocol = metrics["protocol"]
    foot = f"{protocol['test_images']} test images, keep={protocol['keep']}, {protocol['labels_without_positives']} labels without a positive left out; "
    return "\n".join([*lines, foot + f"{protocol['unseen_with_twin']} unseen labels have a seen twin"])


def leakage(labels):
    """Unseen names that a seen name gives away: its twins, and what kind each is.

    "plural": one is the other's plural by its spelling (cat, cats). "lemma": the same stem or an irregular plural (running, run;
    person, people). "word": all words of one name are in the other (tiger, tiger face). Case and hyphens do not count.

    Args: labels, a LabelSpace.
    Returns: {unseen name: [(seen name, kind)]}, only of names that have one.
    """
    seen = [(name, _words(name)) for name in labels.seen]
    twins = {name: [(other, kind) for other, words in seen if (kind := _twin(_words(name), words))] for name in labels.unseen}
    return {name: found for name, found in twins.items() if found}


def _words(name):
    return name.lower().replace("-", " ").replace("_", " ").split()


def _twin(a, b):
    """The kind of twin that two lists of words are, or None."""
    if a[:-1] == b[:-1] and (a[-1] in _plurals(b[-1]) or b[-1] in _plurals(a[-1])):
        return "plural"
    a, b = ({_lemma(word) for word in words} for words in (a, b))
    return "lemma" if a == b else "word" if a < b or b < a else None


def _plurals(word):
    """Spellings that the plural of a word may have."""
    forms = {word + "s", word + "es"}
    if word.endswith("y"):
        forms.add(word[:-1] + "ies")
    if word.endswith(("f", "fe")):
        forms.add(word.rstrip("e")[:-1] + "ves")
    return forms


@lru_cache(maxsize=None)
def _lemma(word):
    return STEM(IRREGULAR.get(word, word))


def nearest_seen(labels, vectors):
    """For each unseen label the seen one whose vector is nearest.

    Args: labels, a LabelSpace; vectors [L, D], unit rows in the order of labels.names.
    Returns: list of (unseen name, nearest seen name, cosine), the nearest first.
    """
    cosine, index = (vectors[labels.unseen_index] @ vectors[labels.seen_index].T).max(1)
    return sorted(zip(labels.unseen, (labels.seen[i] for i in index), cosine.tolist()), key=lambda row: -row[2])
