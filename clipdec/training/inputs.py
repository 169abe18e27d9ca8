"""What goes into a run, as short texts: others where data, labels or weights are others, whatever they are called."""

import hashlib
import json

import torch

from clipdec.towers import load_clip
from clipdec.training.embeddings import load_label_embeddings


def digest(*parts):
    """A short name for all of `parts` (texts, or dicts of tensors), another one if anything in them is another."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode() + b"\0")
            continue
        for key, value in part.items():
            found.update(f"{key} {tuple(value.shape)} {value.dtype}\0".encode())
            found.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def tower_weights(tower):
    return digest(tower.trunk.state_dict())


def text_weights(name):
    return digest({k: v for k, v in load_clip(name).model.state_dict().items() if not k.startswith("visual.")})


def tower_key(tower):
    """Identifies an ImageTower, its weights, its preprocessing and its windows."""
    windows = [str(tower.boxes)] if tower.boxes else []  # one without keeps the key that it had before there were any
    return digest(tower.name, str(tower.preprocess), tower_weights(tower), *windows)


def text_key(name):
    """Identifies the text tower of a CLIP and its weights."""
    return digest(name, text_weights(name))


def inputs_of(config, labels, tower=None, data=None):
    """{input: text} of what scores are made of beside a run's settings.

    Args: labels, the run's LabelSpace; tower, its ImageTower, as it is before any training; data, its Data.
    """
    found = {"data": data.fingerprint} if data else {}
    found["labels"] = digest(*labels.seen, "", *labels.unseen)
    if tower:
        found["image_tower"] = tower_weights(tower)
    if config.label_embeddings:
        vectors = load_label_embeddings(config.path("label_embeddings"), labels.names)
        found["label_embeddings"] = digest({"vectors": vectors})
    else:
        found["text_tower"] = text_weights(config.text_tower)
    if config.sentence_tower and data:
        found["sentence_tower"] = text_weights(config.sentence_tower)
    if "unseen_in_sentences" in config.as_author and data:
        found["unseen_in_train"] = digest(json.dumps(data.info.get("unseen_in_train")))
    return found


def changed(kept, now):
    """What differs of two dicts in the names of `now`, in words that show both; "" if nothing does."""
    pairs = [(name, kept.get(name), value) for name, value in now.items() if kept.get(name) != value]
    return ", ".join(f"{name} {before!r} (now {value!r})" for name, before, value in pairs)
