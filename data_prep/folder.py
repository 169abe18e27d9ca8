"""Your own photos: a folder of images and a CSV of labels, prepared for zero-shot training.

    python -m data_prep.folder --images photos --labels labels.csv --unseen names.txt --out data/mine

The CSV has the columns `image,labels` (a path below the folder; labels separated by `;`), or `image` and one column of
0 and 1 a label. Unseen labels are listed one a line (--unseen), or drawn among all (--hold-out 0.2 --seed 0). Every
photo that carries one is in test, with a share of the others (--test), so that no training photo shows one.
"""

import csv
import difflib
import random
from pathlib import Path

from clipdec.labels import read_names
from data_prep import photos


def read_table(path):
    """[(image, label names)] of a labels CSV. Raises ValueError that names the line that is wrong."""
    with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte-order mark
        table = csv.reader(file)
        header = [name.strip() for name in next(table, [])]
        if "image" not in header or len(header) < 2:
            forms = "image,labels or image and one column a label"
            raise ValueError(f"{path}: the first line must name the columns: {forms}")
        if repeated := sorted({name for name in header if header.count(name) > 1 or not name}):
            raise ValueError(f"{path}: empty or repeated columns: {', '.join(map(repr, repeated))}")
        rows, lines = [], {}
        for cells in table:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                counts = f"{len(cells)} cells where the first line has {len(header)}"
                raise ValueError(f"{path}, line {table.line_num}: {counts}; quote a cell that holds a comma")
            row = dict(zip(header, (cell.strip() for cell in cells)))
            image = row.pop("image").replace("\\", "/")  # written on Windows
            if image in lines:
                both = f"lines {lines[image]} and {table.line_num}"
                raise ValueError(f"{path}: {image} stands in {both}: write all its labels in one")
            lines[image] = table.line_num
            rows.append((image, _labels(row, f"{path}, line {table.line_num}")))
    return rows


def _labels(row, place):
    """The labels of one line: those of the column `labels`, or the columns that hold a 1."""
    if list(row) == ["labels"]:
        return list(dict.fromkeys(label.strip() for label in row["labels"].split(";") if label.strip()))
    for name, cell in row.items():
        if cell not in ("0", "1"):
            raise ValueError(f"{place}: column {name!r} holds {cell!r}, not 0 or 1")
    return [name for name, cell in row.items() if cell == "1"]


def split_labels(names, unseen_file, hold_out, seed):
    """(seen, unseen): the names of a list file, or a share of all names drawn at random, are unseen."""
    if unseen_file:
        unseen = read_names(unseen_file)[0]
        for name in unseen:
            if name not in names:
                close = difflib.get_close_matches(name, names, 1)
                hint = f": did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"{unseen_file} lists {name!r}, which no image carries{hint}")
    elif not 0 < hold_out < 1:
        raise ValueError("--hold-out must be above 0 and below 1")
    else:
        unseen = random.Random(seed).sample(names, max(1, round(hold_out * len(names))))
    seen = [name for name in names if name not in set(unseen)]
    if not seen:
        raise ValueError("every label is unseen: some must be left for training")
    return seen, [name for name in names if name in set(unseen)]


def split_rows(rows, unseen, share, seed):
    """{"train", "test"}: every image with an unseen label and a share of the others is in test."""
    hidden = set(unseen)
    others = [i for i, (_, labels) in enumerate(rows) if not hidden & set(labels)]
    train = set(others) - set(random.Random(seed).sample(others, round(share * len(others))))
    return {"train": [rows[i] for i in sorted(train)], "test": [row for i, row in enumerate(rows) if i not in train]}


def add_unseen_options(options):
    """Either a list of the unseen labels or a share of all labels."""
    which = options.add_mutually_exclusive_group(required=True)
    which.add_argument("--unseen", help="text file of the unseen labels, one a line")
    which.add_argument("--hold-out", type=float, help="share of the labels that becomes unseen, drawn with --seed")


def main():
    options = photos.parser(__doc__, "data/mine")
    options.add_argument("--images", required=True, help="folder of the photos")
    options.add_argument("--labels", required=True, help="CSV: image,labels or image and one 0/1 column a label")
    share = "share of the photos without an unseen label that is in test"
    options.add_argument("--test", type=float, default=0.2, help=share)
    add_unseen_options(options)

    with photos.run(options) as args:
        rows = read_table(args.labels)
        names = sorted({name for _, labels in rows for name in labels})
        seen, unseen = split_labels(names, args.unseen, args.hold_out, args.seed)
        splits = split_rows(rows, unseen, args.test, args.seed)
        source = f"photos of {Path(args.images).name}, labels of {Path(args.labels).name}"
        photos.prepare(args, splits, seen, unseen, root=args.images, source=source, licence="that of the photos")



if __name__ == "__main__":
    main()
