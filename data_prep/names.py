"""Names as others write them: labels and paths of images, brought to one form at the door."""

import posixpath
import re
from collections import Counter
from pathlib import Path

from clipdec.labels import NO_LABEL, clean_name, same_name

SPLITS = Path(__file__).parent / "splits"
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def image_path(name, folder=""):
    """A path with slashes and without detours: "a.jpg" for "./a.jpg" and, below `folder`, for "folder/a.jpg"."""
    path = posixpath.normpath(name.strip().replace("\\", "/"))  # written on Windows
    return path.removeprefix(f"{folder}/") if folder else path


def one_spelling(found, listed=()):
    """{name as it is written: its label}: names that differ by case, spaces or Unicode form only are one label.

    It keeps its spelling in `listed`, the labels that are known, or else the most frequent one, of equally frequent
    ones the first. Names that mean "no label" are not there. Prints what was joined and left out.

    Args: found, (place, name) of every label that was read, in order.
    Raises ValueError for a name that joins labels ("cat,dog" beside "cat"), and if all labels are numbers.
    """
    counts, places = Counter(), {}
    for place, name in found:
        counts[name] += 1
        places.setdefault(name, place)
    clean = Counter()
    for name, number in counts.items():
        clean[clean_name(name)] += number
    spelled = {same_name(name): name for name in [*(name for name, _ in reversed(clean.most_common())), *listed]}
    labels = {name: spelled[same_name(name)] for name in counts if same_name(name) not in NO_LABEL}
    _refuse(labels, places)
    if none := [name for name in counts if name not in labels]:
        print(f"{sum(counts[name] for name in none)} times {' or '.join(map(repr, none))} was taken as no label")
    if other := [name for name, label in labels.items() if name.strip() != label]:
        number = len({labels[name] for name in other})
        shown = ", ".join(f"{_show(name)} is {labels[name]!r}" for name in other[:3])
        print(f"{number} {'label was' if number == 1 else 'labels were'} written in several ways: {shown}")
    return labels


def _show(name):
    """A name in quotes; what clean_name changes is escaped, as it cannot be seen otherwise."""
    return repr(name) if name.strip() == clean_name(name) else ascii(name)


def _refuse(labels, places):
    """Raise ValueError for labels that would be none."""
    keys = {same_name(label) for label in labels.values()}
    for name in labels:
        parts = re.split("[,|;]", name)
        if beside := [part.strip() for part in parts if len(parts) > 1 and same_name(part) in keys]:
            remedy = "separate the labels, or rename one of them"
            raise ValueError(f"{places[name]}: {name!r} would be a label beside {beside[0]!r}: {remedy}")
    if labels and all(map(NUMBER.fullmatch, labels.values())):
        name = next(iter(labels))
        raise ValueError(f"{places[name]}: the labels are numbers, such as {name!r}: give their names instead")


def relabel(rows, labels):
    """[(image, labels)] of [(image, names)], by the labels of the names."""
    return [(image, sorted({labels[name] for name in names if name in labels})) for image, names in rows]
