"""What seen labels give away of unseen ones: twins among the names, and the nearest vectors."""

from functools import lru_cache

import snowballstemmer

STEM = snowballstemmer.stemmer("english").stemWord
IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "feet": "foot", "teeth": "tooth",
    "geese": "goose", "mice": "mouse", "oxen": "ox", "ran": "run", "swam": "swim",
}  # fmt: skip


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


def nearest_seen(labels, vectors):
    """For each unseen label the seen one whose vector is nearest.

    Args: labels, a LabelSpace; vectors [L, D], unit rows in the order of labels.names.
    Returns: list of (unseen name, nearest seen name, cosine), the nearest first.
    """
    cosine, index = (vectors[labels.unseen_index] @ vectors[labels.seen_index].T).max(1)
    return sorted(zip(labels.unseen, (labels.seen[i] for i in index), cosine.tolist()), key=lambda row: -row[2])
