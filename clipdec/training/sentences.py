"""The sentences of training images: which labels they name, how they join the names, and a text tower to be trained."""

from copy import deepcopy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from clipdec.labels import sentences
from clipdec.towers import load_clip
from clipdec.training.build import sentence_tower


def told(split, data, asked, config):
    """(a split of train, indices of labels): what its sentences name. Those `asked` in training, or as in the author's
    code all labels of an image: the split then has the unseen ones among its targets, and must be shown to nothing
    else.
    """
    if "unseen_in_sentences" not in config.as_author:
        return split, asked
    return replace(split, targets=split.targets | unseen_shown(split, data)), torch.arange(len(data.labels.names))


def unseen_shown(split, data):
    """The unseen labels of each image of a split of train, bool [M, L]. Only data prepared with --keep-unseen hold
    them, by the names of the images.
    """
    shown, listed = torch.zeros_like(split.targets), data.info.get("unseen_in_train", {})
    index = {name: i for i, name in enumerate(data.labels.names) if i >= len(data.labels.seen)}
    images = [name for part in split.rows.data.column("image").chunks for name in part.field("path").to_pylist()]
    for row, i in zip(shown, split.index.tolist()):
        row[[index[name] for name in listed.get(images[i], []) if name in index]] = True
    return shown


def join(targets, names, config):
    """Each image's sentence; targets [M, L] are those of the labels `names` [L]."""
    if "sentence_of_77_characters" not in config.as_author:
        return sentences(targets, names, config.prompt)
    return [short_sentence([names[i] for i in row.nonzero().flatten()], config.prompt) for row in targets]


def short_sentence(names, prompt):
    """A sentence as the author's code joins it: a name with which it would have 77 characters is left out, and what
    follows a name depends on its place among all, so that a sentence may end in a comma or an "and".
    """
    text, end = prompt.split("{}")
    for place, name in enumerate(names, 1 - len(names)):  # 0 is the last
        if len(text + name) < 77:
            text += name + {0: "", -1: " and "}.get(place, ", ")
    return text + end


class SentenceTower(nn.Module):
    """A CLIP's text tower to be trained, a copy: token ids [B, T] -> vectors [B, S] of length 1."""

    def __init__(self, name):
        super().__init__()
        self.clip = deepcopy(load_clip(name).model).requires_grad_(True)  # training must not change the shared CLIP
        self.clip.visual = None

    def forward(self, ids):
        return F.normalize(self.clip.encode_text(ids), dim=-1)


def trained_tower(config):
    """The SentenceTower of a run, None where the sentences' text tower is not trained."""
    trained = "trained_sentence_tower" in config.as_author
    return SentenceTower(sentence_tower(config)).to(config.device) if trained else None


def token_ids(split, labels, config, asked):
    """What a SentenceTower reads of each image's sentence, [M, T]: the names of the labels `asked`."""
    joined = join(split.targets[:, asked], [labels.names[i] for i in asked], config)
    return load_clip(sentence_tower(config)).tokenizer(joined)
