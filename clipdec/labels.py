"""Label names, prompts, and the vectors that stand for labels."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from clipdec.towers import load_clip


@dataclass(frozen=True)
class LabelSpace:
    """The seen labels, which training images carry, and the unseen ones, which none does.

    A label's index is its place in `names`: seen first, then unseen.
    Raises ValueError for an empty or repeated name, or one that is both seen and unseen.
    """

    seen: list[str]
    unseen: list[str]

    def __post_init__(self):
        for part, names in (("seen", self.seen), ("unseen", self.unseen)):
            blank = [i for i, name in enumerate(names) if not isinstance(name, str) or not name.strip()]
            if blank:
                raise ValueError(f"label {blank[0]} of the {part} labels is empty: give every label a name")
            if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
                raise ValueError(f"repeated among the {part} labels: {', '.join(repeated)}: name each label once")
        if both := sorted(set(self.seen) & set(self.unseen)):
            raise ValueError(f"both seen and unseen: {', '.join(both)}: take each of them out of one list")

    @property
    def names(self):
        return self.seen + self.unseen

    def kind(self, name):
        """"seen", "unseen", or "new" for a name that is not of this space."""
        return self._kinds.get(name, "new")

    @cached_property
    def _kinds(self):
        return dict.fromkeys(self.seen, "seen") | dict.fromkeys(self.unseen, "unseen")

    @property
    def seen_index(self):
        """Indices of the seen labels, [len(seen)]."""
        return torch.arange(len(self.seen))

    @property
    def unseen_index(self):
        """Indices of the unseen labels, [len(unseen)]."""
        return torch.arange(len(self.seen), len(self.seen) + len(self.unseen))


def join_names(names):
    """"sky, car and road": the names of one image as its caption lists them."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def encode_labels(names, text_tower="mini", prompt="a photo of {}"):
    """CLIP text vectors of labels: each name put into the prompt, encoded, scaled to length 1.

    Args:
        names: label names (or whole phrases), L of them.
        text_tower: `mini` or `open_clip:<model>/<pretrained tag or file>`.
        prompt: text with one `{}` for the name.

    Returns: float32 tensor [L, D], rows of length 1. Kept for the next call with the same arguments.
    Raises: ValueError for no or empty names, a prompt without `{}`, or an unknown tower.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise ValueError("encode_labels needs at least one name and no empty ones")
    if prompt.count("{}") != 1:
        raise ValueError(f"prompt must hold {{}} once, where the label goes, as in 'a photo of {{}}', got {prompt!r}")
    return _encode(names, text_tower, prompt).clone()


@lru_cache(maxsize=64)
def _encode(names, text_tower, prompt):
    return encode_texts([prompt.replace("{}", name) for name in names], text_tower)


@torch.no_grad()
def encode_texts(texts, text_tower="mini", device="cpu"):
    """CLIP vectors of whole sentences, on the CPU, scaled to length 1: [number of texts, D]."""
    clip = load_clip(text_tower)
    clip.model.to(device)
    batches = (texts[i : i + 256] for i in range(0, len(texts), 256))
    vectors = [clip.model.encode_text(clip.tokenizer(batch).to(device)).float().cpu() for batch in batches]
    return F.normalize(torch.cat(vectors), dim=-1)


def load_label_embeddings(path, names):
    """Label vectors from an .npz with `names` [K] and `vectors` [K, D], in the order of `names`, scaled to length 1: [L, D].

    Raises ValueError if the file is not such an .npz or lacks a name.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            rows, vectors = [str(n) for n in file["names"]], file["vectors"]
    except Exception as error:  # numpy and zipfile raise errors of many kinds
        raise ValueError(f"label_embeddings {path} is not an .npz with `names` and `vectors`: {error}") from None
    if vectors.ndim != 2 or len(vectors) != len(rows):
        raise ValueError(f"label_embeddings {path}: {len(rows)} names but vectors of shape {vectors.shape}")
    row = {name: i for i, name in enumerate(rows)}
    if missing := [n for n in names if n not in row]:
        raise ValueError(f"label_embeddings {path} has no vector for {len(missing)} labels: {', '.join(missing)}")
    return F.normalize(torch.from_numpy(vectors[[row[n] for n in names]]).float(), dim=-1)
