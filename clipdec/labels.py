"""Label names: the seen and the unseen ones, the sentence that lists an image's, and what leaks between them."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache

import snowballstemmer
import torch

STEM = snowballstemmer.stemmer("english").stemWord
IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "feet": "foot", "teeth": "tooth",
    "geese": "goose", "mice": "mouse", "oxen": "ox", "ran": "run", "swam": "swim",
}  # fmt: skip


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


def sentences(targets, names, prompt="a photo of {}"):
    """Each image's sentence, "a photo of sky, car and road": targets [M, L] are those of the labels `names` [L]."""
    listed = ([names[i] for i in row.nonzero().flatten()] for row in targets)
    return [prompt.replace("{}", join_names(each)) for each in listed]


def leakage(labels):
    """Unseen names that a seen name gives away: its twins, and what kind each is.

    "plural": one is the other's plural by its spelling (cat, cats). "lemma": the same stem or an irregular plural
    (running, run; person, people). "word": all words of one name are in the other (tiger, tiger face). Case, hyphens
    and punctuation do not count; a name without a word has no twin.

    Args: labels, a LabelSpace.
    Returns: {unseen name: [(seen name, kind)]}, only of names that have one.
    """
    seen = [(name, _words(name)) for name in labels.seen]
    twins = {}
    for name in labels.unseen:
        kinds = [(other, _twin(_words(name), words)) for other, words in seen]
        twins[name] = [(other, kind) for other, kind in kinds if kind]
    return {name: found for name, found in twins.items() if found}


def _words(name):
    words = name.lower().replace("-", " ").replace("_", " ").split()
    return [word for word in words if any(map(str.isalnum, word))]


def _twin(a, b):
    """The kind of twin that two lists of words are, or None."""
    if not a or not b:
        return None
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
