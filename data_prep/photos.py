"""Photographs for a prepared data set: read safely, upright, RGB, small, and a reason for each that cannot be used."""

import hashlib
import io
import os
import random
import re
import sys
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from data_prep import script
from data_prep.writer import LeftOut, write

Image.init()
# not EPS, which runs a program
FORMATS = [f for f in ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM") if f in Image.OPEN]
MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # of a JPEG's segments; the others belong to its compressed data
QUALITY = 90  # of the JPEGs


def open_photo(data, size):
    """The bytes of an image file as an upright RGB image, its short side at most `size` px.

    16-bit grey is brought to 8 bits by its high byte; what is transparent becomes white. Raises LeftOut if the file is
    empty, truncated, too large (Pillow's limit against decompression bombs), or not an image.
    """
    if not data:
        raise LeftOut("empty", "0 bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF and the like
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.format in ("JPEG", "MPO") and not _has_end(data):  # libjpeg would paint what is lost
                raise LeftOut("truncated", "the JPEG has no end")
            scale = min(1, 2 * size / min(image.size))  # a JPEG is decoded at a fraction
            image.draft(image.mode, (round(image.width * scale), round(image.height * scale)))
            ImageOps.exif_transpose(image, in_place=True)
            image = _eight_bits(image)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise LeftOut("too large", str(error)) from None
        except LeftOut:
            raise
        except Exception as error:  # Pillow's decoders raise errors of many kinds
            raise LeftOut("truncated" if "truncated" in str(error).lower() else "unreadable", str(error)) from None
    return ImageOps.cover(image, (size, size), Image.BICUBIC) if min(image.size) > size else image


def _has_end(jpeg):
    """Whether the segments of a JPEG, one behind the other, lead to its end marker."""
    found = MARKER.search(jpeg, 2)
    while found and found[1] != b"\xd9":
        found = MARKER.search(jpeg, found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2], "big"))
    return bool(found)


def _eight_bits(image):
    """Any photo as RGB."""
    if image.mode == "F":
        raise LeftOut("unreadable", "floating-point pixels")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def make_row(item, size):
    """The row of a (name, file, labels), the file a path or the bytes of one: its image as JPEG. Raises LeftOut."""
    name, source, labels = item
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise LeftOut("missing" if isinstance(error, FileNotFoundError) else "unreadable", error.strerror) from None
    file = io.BytesIO()
    open_photo(data, size).save(file, "JPEG", quality=QUALITY)
    return {"image": {"bytes": file.getvalue(), "path": name}, "labels": labels}


def inside(root, name):
    """The path root/name. Raises ValueError if a name that comes from a data set would leave root."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise ValueError(f"the data set names an image outside its folder: {name!r}")
    return Path(root, path)


def prepare(args, splits, seen, unseen, *, source, licence, root=None, load=None, max_missing=100.0):
    """Prepare photos for zero-shot training in the folder args.out.

    Train keeps the images that carry a seen label, and of their labels the seen ones; a part of it becomes val. Test
    keeps every image and all of its labels.

    Args:
        args: the options that all scripts share: out, size, val, seed, workers.
        splits: {"train": [(name, label names)], "test": ...}; a name is a path below `root`, or whatever `load` reads.
        source, licence: kept in labels.json.
        load: for images that are not files, see `write`; val is then the end of train, so that a stream is read once.
        max_missing: percent of the images that may be missing or unreadable.
    """
    index = {name: i for i, name in enumerate([*seen, *unseen])}
    codes = lambda names: sorted({index[name] for name in names if name in index})
    shown, test = ([(name, codes(names)) for name, names in splits[split]] for split in ("train", "test"))
    train = [(name, own) for name, labels in shown if (own := [i for i in labels if i < len(seen)])]
    if not train or not test:
        found = f"{len(train)} train images carry a seen label and there are {len(test)} test images"
        raise ValueError(f"{found}: both are needed")
    n = round(args.val * len(train))
    held = set(range(len(train) - n, len(train)) if load else random.Random(args.seed).sample(range(len(train)), n))
    plan = {"train": [row for i, row in enumerate(train) if i not in held], "val": [train[i] for i in sorted(held)]}
    plan["test"] = test
    unused = len(shown) - len(train)
    showing = sum(min(labels) < len(seen) <= max(labels) for _, labels in shown if labels)
    untold = f"{showing} of the used ones also show an unseen label, which training is not told"
    print(f"train: {unused} images without a seen label are not used; {untold}")
    items, missing = _find(plan, root) if root else (plan, [])
    info = {"seen": list(seen), "unseen": list(unseen), "source": source, "licence": licence}
    info |= {"size": args.size, "seed": args.seed, "val": args.val}
    info |= {"train_without_seen_label": unused, "train_showing_unseen": showing, "missing": len(missing)}
    info["records"] = hashlib.sha256(repr(items).encode()).hexdigest()  # which images with which labels
    make = partial(make_row, size=args.size)
    return write(args.out, info, items, make, args.workers, load=load, left_out=missing, max_missing=max_missing)


def _find(plan, root):
    """({split: [(name, file, labels)]}, [(split, name, reason, detail)]): images whose files are there, and missing."""
    items, missing = {}, []
    for split, rows in plan.items():
        files = [(name, inside(root, name), labels) for name, labels in rows]
        items[split] = [(name, str(file), labels) for name, file, labels in files if file.is_file()]
        missing += [(split, name, "missing", "") for name, file, _ in files if not file.is_file()]
    return items, missing


def parser(doc, out=None):
    """An ArgumentParser with the options that all scripts share."""
    options = script.parser(doc, out)
    options.add_argument("--size", type=script.count, default=256, help="short side of the stored images, px")
    options.add_argument("--val", type=script.share, default=0.1, help="share of the train images that becomes val")
    options.add_argument("--seed", type=script.seed, default=0, help="seed of every random choice")
    options.add_argument("--workers", type=script.count, default=os.cpu_count(), help="processes that read images")
    return options


@contextmanager
def run(options):
    """The parsed command line, for the work of a script; its error becomes a message that says what to do."""
    args = options.parse_args()
    fail = lambda text: sys.exit(f"{options.prog}: {text}")
    with script.messages(fail, "stopped: the same command goes on from here"):
        yield args
