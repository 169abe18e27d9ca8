"""Your own photos: a folder of images and a CSV of labels, prepared for zero-shot training.

    python -m data_prep.folder --images photos --labels labels.csv --unseen names.txt --out data/mine

The CSV has the columns `image,labels` (a path below the folder; labels separated by `;`), as what
`python -m clipdec.predictor --csv` writes, or `image` and one column of 0 and 1 a label; between columns is a comma, a
semicolon or a tab. Unseen labels are listed one a line (--unseen), or drawn among all (--hold-out 0.2 --seed 0). Every
photo that carries one is in test, with a share of the others (--test), so that no training photo shows one.
"""

import difflib
import os
import random
import re
from collections import Counter
from pathlib import Path

from clipdec.labels import NO_LABEL, LabelSpace, read_names, same_name
from data_prep import photos, script
from data_prep.names import image_path, one_spelling, relabel
from data_prep.tables import read_rows

FLAGS = dict.fromkeys(("1", "1.0", "true", "yes"), True) | dict.fromkeys(("0", "0.0", "false", "no"), False)
LIST = re.compile(r"[\[({]\s*(['\"].*)?[\])}]")  # as Python writes it


TAGS = {"probabilities", "asked"}  # columns beside image,labels of what `python -m clipdec.predictor --csv` writes


def read_table(path, images=""):
    """[(image, label names)] of a labels CSV, the images below the folder `images`. Raises ValueError that names the
    line that is wrong.
    """
    header, table = read_rows(path, "image")
    header = [same_name(name) if same_name(name) in ("image", "labels") else name for name in header]
    if repeated := sorted({name for name in header if header.count(name) > 1 or not name}):
        raise ValueError(f"{path}: empty or repeated columns: {', '.join(map(repr, repeated))}: name each once")
    listed, tags = set(header) - TAGS == {"image", "labels"}, TAGS & set(header)
    rows, lines = [], {}
    for line, cells in table:
        row = dict(zip(header, cells))
        if listed:
            row = {name: cell for name, cell in row.items() if name not in TAGS}
        image = row.pop("image")
        image = image_path(_below(image, images) if listed and tags else image)
        if image == ".":
            raise ValueError(f"{path}, line {line}: it names no image: write its path, or take out the line")
        if image in lines:
            both = f"lines {lines[image]} and {line}"
            raise ValueError(f"{path}: {image} stands in {both}: write all its labels in one")
        lines[image] = line
        rows.append((image, row))
    place = lambda image: f"{path}, line {lines[image]}"
    mark = (";" if tags else _separator([row["labels"] for _, row in rows], path)) if listed else None
    rows = [(image, _list(row, mark, place(image)) if mark else _columns(row, place(image))) for image, row in rows]
    return relabel(rows, one_spelling((place(image), name) for image, names in rows for name in names))


def _below(image, folder):
    """The path below a folder of a photo that is named from the working directory, as tags have it; any other as it is.
    """
    path, folder = os.path.abspath(image), os.path.join(os.path.abspath(folder), "")
    return path.removeprefix(folder) if path.startswith(folder) else image


def _separator(cells, path):
    """What separates the labels in the cells: `;`, or, if none holds one, a `,` or `|` whose parts recur in others."""
    found = [] if any(";" in cell for cell in cells) else [mark for mark in ",|" if _recur(cells, mark)]
    if len(found) > 1:
        raise ValueError(f"{path}: some labels are separated by a comma and some by a |: separate all by ;")
    if found:
        example = next(cell for cell in cells if found[0] in cell)
        print(f"{Path(path).name}: labels are separated by {found[0]!r}, as in {example!r}")
    return found[0] if found else ";"


def _recur(cells, mark):
    """Whether a part of a cell is also in a cell of other parts."""
    parts = [set(map(same_name, cell.split(mark))) - NO_LABEL for cell in {same_name(cell) for cell in cells}]
    counts = Counter(part for group in parts for part in group)
    return any(len(group) > 1 and any(counts[part] > 1 for part in group) for group in parts)


def _list(row, mark, place):
    """The names of one line, of the column `labels`."""
    if LIST.fullmatch(row["labels"]):
        raise ValueError(f"{place}: {row['labels']} is a list of a program: write its labels separated by ;")
    return [name for name in row["labels"].split(mark) if name.strip()]


def _columns(row, place):
    """The names of one line, of the columns that hold a 1."""
    for name, cell in row.items():
        if cell.casefold() not in FLAGS:
            remedy = "write 1 where the photo has the label and 0 where not, or name a list of labels `labels`"
            raise ValueError(f"{place}: column {name!r} holds {cell!r}, not 0 or 1: {remedy}")
    return [name for name, cell in row.items() if FLAGS[cell.casefold()]]


def split_labels(names, args, classes=()):
    """(seen, unseen): the names of two list files, those of --unseen and all others, or a share drawn at random.

    Args: names, those that an image carries; args, what `add_unseen_options` adds; classes, names that a data set
        knows beside these, which a list may hold.
    """
    if not names:
        raise ValueError("no image carries a label: see what the table or the column of labels holds")
    if args.seen and not args.unseen:
        raise ValueError("--seen lists what --hold-out would draw from: give both lists, --seen and --unseen")
    known = {same_name(name): name for name in (*classes, *names)}
    if args.unseen:
        unseen = _listed(args.unseen, known)
    else:
        unseen = set(random.Random(args.seed).sample(names, max(1, round(args.hold_out * len(names)))))
    seen = _listed(args.seen, known) if args.seen else set(names) - unseen
    if not seen:
        raise ValueError("every label is unseen: some must be left for training")
    if both := sorted(seen & unseen):
        raise ValueError(f"{args.seen} and {args.unseen} both list {both[0]!r}: a label is seen or unseen")
    space = LabelSpace(sorted(seen), sorted(unseen))
    return space.seen, space.unseen


def _listed(path, known):
    """The names of a list file, as they are `known`, {what names are compared by: name}."""
    found = set()
    for name in read_names(path)[0]:
        if same_name(name) not in known:
            close = difflib.get_close_matches(name, known.values(), 1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{path} lists {name!r}, which no image carries{hint}")
        found.add(known[same_name(name)])
    return found


def split_rows(rows, unseen, share, seed):
    """{"train", "test"}: every image with an unseen label and a share of the others is in test."""
    hidden = set(unseen)
    others = [i for i, (_, labels) in enumerate(rows) if not hidden & set(labels)]
    train = set(others) - set(random.Random(seed).sample(others, round(share * len(others))))
    return {"train": [rows[i] for i in sorted(train)], "test": [row for i, row in enumerate(rows) if i not in train]}


def add_unseen_options(options):
    """Either a list of the unseen labels or a share of all labels, and which others are used."""
    which = options.add_mutually_exclusive_group(required=True)
    which.add_argument("--unseen", type=script.path, help="text file of the unseen labels, one a line")
    share = script.number(float, lambda x: 0 < x < 1, "a share above 0 and below 1")
    which.add_argument("--hold-out", type=share, help="share of the labels that becomes unseen, drawn with --seed")
    only = "text file of the seen labels, if not all others are: those in neither list are ignored"
    options.add_argument("--seen", type=script.path, help=only)


def main():
    options = photos.parser(__doc__, "data/mine")
    options.add_argument("--images", type=script.path, required=True, help="folder of the photos")
    table = "CSV: image,labels or image and one 0/1 column a label"
    options.add_argument("--labels", type=script.path, required=True, help=table)
    share = "share of the photos without an unseen label that is in test"
    options.add_argument("--test", type=script.share, default=0.2, help=share)
    add_unseen_options(options)

    with photos.run(options) as args:
        if not Path(args.images).is_dir():
            raise FileNotFoundError(f"there is no folder {args.images}: --images is the folder of the photos")
        rows = read_table(args.labels, args.images)
        names = sorted({name for _, labels in rows for name in labels})
        seen, unseen = split_labels(names, args)
        splits = split_rows(rows, unseen, args.test, args.seed)
        source = f"photos of {Path(args.images).name}, labels of {Path(args.labels).name}"
        photos.prepare(args, splits, seen, unseen, root=args.images, source=source, licence="that of the photos")



if __name__ == "__main__":
    main()
