"""Photographs for a prepared data set: read safely, upright, RGB, small, and a reason for each that cannot be used."""

import hashlib
import io
import os
import random
import sys
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path, PurePosixPath, PureWindowsPath

from clipdec.images import ImageError, open_image
from clipdec.labels import same_name
from data_prep import script
from data_prep.writer import ABSENT, FEATURES, LeftOut, write

QUALITY = 90  # of the JPEGs
FORMAT = 2  # part of labels.json: the first did not keep equal photos apart


def make_row(item, size):
    """The row of a (name, file, labels) or (name, file, labels, absent): its image as JPEG. The file is a path, the
    bytes of one, or the LeftOut that came of reading it; `absent` labels are verified not to be there. Raises LeftOut.
    """
    name, source, *labels = item
    if isinstance(source, LeftOut):
        raise source
    try:
        image, file = open_image(source, name, short_side=size), io.BytesIO()
    except ImageError as error:
        raise LeftOut(error.reason, error.detail) from None
    image.save(file, "JPEG", quality=QUALITY, comment=b"")  # equal pixels are equal bytes
    return {"image": {"bytes": file.getvalue(), "path": name}} | dict(zip(("labels", "absent"), labels))


def inside(root, name):
    """The path root/name. Raises ValueError if a name that comes from a data set would leave root."""
    path, drive = PurePosixPath(name), PureWindowsPath(name).drive
    if path.is_absolute() or drive or ".." in path.parts or "\\" in name or not path.parts:
        raise ValueError(f"the data set names an image outside its folder: {name!r}")
    return Path(root, path)


def prepare(args, splits, seen, unseen, *, source, licence, root=None, load=None, **facts):
    """Prepare photos for zero-shot training in the folder args.out.

    Train keeps the images that carry a seen label, and of their labels the seen ones; a part of it becomes val. Test
    keeps every image and all of its labels. With `keep_unseen`, labels.json lists the unseen ones of train images too.

    Args:
        args: the options that all scripts share: out, size, val, seed, workers, max_missing, keep_unseen.
        splits: {"train": [(name, label names)], "test": ...}; a name is a path below `root`, or whatever `load` reads.
            Where not every label was asked about, rows are (name, label names, names of labels verified absent).
        source, licence, and further facts: kept in labels.json.
        load: for images that are not files, see `write`; it names those of train "train <name>". Val is then the end
            of train, so that a stream is read once.
    """
    index = {name: i for i, name in enumerate([*seen, *unseen])}
    codes = lambda names: sorted({index[name] for name in names if name in index})
    shown, test = ([(name, *map(codes, labels)) for name, *labels in splits[split]] for split in ("train", "test"))
    own = lambda codes: [i for i in codes if i < len(seen)]
    train = [(name, *map(own, labels)) for name, *labels in shown if own(labels[0])]
    if not train or not test:
        found = f"{len(train)} train images carry a seen label and there are {len(test)} test images"
        raise ValueError(f"{found}: both are needed")
    plan = with_val(train, args.val, args.seed, at_end=bool(load)) | {"test": test}
    unused = len(shown) - len(train)
    showing = [(name, labels) for name, labels, *_ in shown if labels and min(labels) < len(seen) <= max(labels)]
    untold = f"{len(showing)} of the used ones also show an unseen label, which training is not told"
    print(f"train: {unused} images without a seen label are not used; {untold}")
    items, missing = _find(plan, Path(root).expanduser().absolute()) if root else (plan, [])
    sizes = [os.path.getsize(file) for rows in items.values() for _, file, *_ in rows] if root else []
    info = {"seen": list(seen), "unseen": list(unseen), "source": source, "licence": licence, "format": FORMAT}
    info |= facts | {"size": args.size, "seed": args.seed, "val": args.val}
    info |= {"train_without_seen_label": unused, "train_showing_unseen": len(showing), "missing": len(missing)}
    if args.keep_unseen:
        stored = (lambda name: f"train {name}") if load else (lambda name: PurePosixPath(name).as_posix())
        named = {stored(name): [unseen[i - len(seen)] for i in labels if i >= len(seen)] for name, labels in showing}
        info["unseen_in_train"] = named  # read by clipdec/training/sentences.py
    info["records"] = hashlib.sha256(repr((items, sizes)).encode()).hexdigest()  # which images with which labels
    make = partial(make_row, size=args.size)
    features = ABSENT if len(test[0]) == 3 else FEATURES
    rest = {"load": load, "left_out": missing, "max_missing": args.max_missing, "features": features}
    return write(args.out, info, items, make, args.workers, **rest)


def with_val(train, share, seed, at_end):
    """{"train": rows, "val": rows}: a share of the rows of train, drawn or from their end, is val."""
    n = min(max(1, round(share * len(train))), len(train) - 1) if share else 0
    if share and not n:
        raise ValueError("only one train image carries a seen label, and val needs one: give --val 0, or more images")
    held = set(range(len(train) - n, len(train)) if at_end else random.Random(seed).sample(range(len(train)), n))
    return {"train": [row for i, row in enumerate(train) if i not in held], "val": [train[i] for i in sorted(held)]}


def _find(plan, root):
    """({split: [(name, file, *labels)]}, [(split, name, reason, detail)]): images whose files are there; the missing.
    """
    items, missing, listing = {}, [], cache(_listing)
    for split, rows in plan.items():
        files = [(inside(root, name), labels) for name, *labels in rows]
        below = lambda file: file.relative_to(root).as_posix()
        items[split] = [(below(file), str(file), *labels) for file, labels in files if file.is_file()]
        lacking = [below(file) for file, _ in files if not file.is_file()]
        missing += [(split, name, "missing", _alike(root, name, listing)) for name in lacking]
    return items, missing


def _listing(folder):
    """{key of comparison: name} of what a folder holds."""
    return {same_name(path.name): path.name for path in folder.iterdir()} if folder.is_dir() else {}


def _alike(root, name, listing):
    """Says which file differs from a missing one in upper and lower case, spaces or Unicode form only; "" if none."""
    folder = root
    for part in PurePosixPath(name).parts:
        if same_name(part) not in listing(folder):
            return ""
        folder = folder / listing(folder)[same_name(part)]
    return f"there is {folder.relative_to(root).as_posix()}: write its name so"


def parser(doc, out=None, max_missing=10.0):
    """An ArgumentParser with the options that all scripts share. max_missing: the default of that option."""
    options = script.parser(doc, out)
    options.add_argument("--size", type=script.count, default=256, help="short side of the stored images, px")
    options.add_argument("--val", type=script.share, default=0.1, help="share of the train images that becomes val")
    options.add_argument("--seed", type=script.seed, default=0, help="seed of every random choice")
    readers = os.cpu_count() or 1
    options.add_argument("--workers", type=script.count, default=readers, help="processes that read images")
    told = "also keep the unseen labels of train images, for sentences as the author's code makes them (as_author)"
    options.add_argument("--keep-unseen", action="store_true", help=told)
    percent = "percent of the images that may be missing or unreadable"
    options.add_argument("--max-missing", type=script.percent, default=max_missing, help=percent)
    return options


@contextmanager
def run(options):
    """The parsed command line, for the work of a script; its error becomes a message that says what to do."""
    args = options.parse_args()
    fail = lambda text: sys.exit(f"{options.prog}: {text}")
    with script.messages(fail, "stopped: the same command goes on from here"):
        yield args
