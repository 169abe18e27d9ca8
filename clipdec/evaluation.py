"""Scores of whole splits, the ZSL and GZSL protocol, the raw-CLIP baseline, and what leaks between label names."""

import torch
from torch.utils.data import DataLoader

from clipdec.data import Pixels, encode_images
from clipdec.labels import encode_labels
from clipdec.metrics import zsl_report
from clipdec.model import label_vectors
from clipdec.towers import ImageTower


def tokens_of(model, split, data, config):
    """Cached tokens [M, N, C] of a split for a frozen tower, None for a trained one, whose tokens change."""
    if model.train_tower:
        return None
    return encode_images(model.tower, split, data.folder / "tokens", num_workers=config.num_workers, device=config.device)[0]


@torch.no_grad()
def predict(model, split, queries, tokens=None, batch_size=64, num_workers=0):
    """Logits [M, L] of labels `queries` [L, D] for every image of a split, in its order, on the CPU.

    `tokens` [M, N, C] of the split save encoding its images again.
    """
    device = next(model.parameters()).device
    model, queries = model.eval(), queries.to(device)
    if tokens is None:
        model.tower.to(device).eval()
        batches = (model.tokens(pixels.to(device)) for pixels, *_ in DataLoader(Pixels(split, model.tower.preprocess), batch_size, num_workers=num_workers))
    else:
        batches = (part.to(device) for part in tokens.split(batch_size))
    parts = [model(batch, queries).float().cpu() for batch in batches]
    return torch.cat(parts) if parts else torch.empty(0, len(queries))


def raw_clip_scores(data, config):
    """Untouched CLIP on test: cosine of the global image vector with each label's text vector, [M, L].

    The CLIP is the run's text tower, with the run's prompt, whatever image tower the run trains on.
    """
    _, vectors = encode_images(ImageTower(config.text_tower), data.test, data.folder / "tokens", num_workers=config.num_workers, device=config.device)
    text = encode_labels(data.labels.names, config.text_tower, config.prompt)
    return torch.nn.functional.normalize(vectors, dim=-1) @ text.T


def evaluate(model, data, config, keep="all"):
    """The figures of metrics.json for the test split: ZSL, GZSL and seen of the model, and raw CLIP on the same images."""
    queries, tokens = label_vectors(config, data.labels.names), tokens_of(model, data.test, data, config)
    scores = predict(model, data.test, queries, tokens, num_workers=config.num_workers)
    report = zsl_report(scores, data.test.targets, data.labels, keep)
    raw = zsl_report(raw_clip_scores(data, config), data.test.targets, data.labels, keep)
    return report | {"raw_clip": {"zsl": raw["zsl"], "gzsl": raw["gzsl"]}}


def result_table(metrics):
    """The figures of metrics.json as a text table, in percent."""
    columns = ("map", "f1@3", "f1@5")
    rows = [("CLIP-Decoder", metrics), ("raw CLIP", metrics["raw_clip"])]
    head = f"{'':14}" + "".join(f"{task + ' ' + name:>12}" for task in ("ZSL", "GZSL") for name in ("mAP", "F1@3", "F1@5"))
    lines = [f"{name:14}" + "".join(f"{m[task].get(c, float('nan')):12.1f}" for task in ("zsl", "gzsl") for c in columns) for name, m in rows]
    protocol = metrics["protocol"]
    foot = f"{protocol['test_images']} test images, keep={protocol['keep']}, {protocol['labels_without_positives']} labels without a positive left out"
    return "\n".join([head, *lines, foot])


def nearest_seen(labels, vectors):
    """What leaks from seen to unseen names: for each unseen label its nearest seen one.

    Args: labels, a LabelSpace; vectors [L, D], unit rows in the order of labels.names.
    Returns: list of (unseen name, nearest seen name, cosine, words that both names hold), the nearest first.
        Words count as shared if they differ by a plural s only; and, of, with, in do not count.
    """
    cosine, index = (vectors[labels.unseen_index] @ vectors[labels.seen_index].T).max(1)
    rows = []
    for name, c, i in zip(labels.unseen, cosine.tolist(), index.tolist()):
        words, others = ({w.lower().removesuffix("s") for w in n.split()} for n in (name, labels.seen[i]))
        rows.append((name, labels.seen[i], c, sorted((words & others) - {"and", "of", "with", "in"})))
    return sorted(rows, key=lambda row: -row[2])
