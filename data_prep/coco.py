"""MS-COCO as it is downloaded, prepared for zero-shot training with the splits 48/17 or 65/15.

    python -m data_prep.coco --root COCO --out data/coco-48-17 --split 48/17

COCO holds `annotations/instances_{train,val}{year}.json` and the image folders `train{year}` and `val{year}`.
Its train images are those of train and val here, its val images those of test. An image carries a class if any of its
annotations does, crowds included. Classes in neither list (15 with 48/17) are ignored.
"""

import json
from pathlib import Path

from clipdec.labels import read_names
from data_prep import photos, script
from data_prep.names import SPLITS, image_path, one_spelling, relabel

LISTS = {"48/17": ("coco_seen48", "coco_unseen17"), "65/15": ("coco_seen65", "coco_unseen15")}


ID = (int, str)
FIELDS = {  # that are read of the entries of the file's lists
    "categories": {"id": ID, "name": str}, "images": {"id": ID, "file_name": str},
    "annotations": {"image_id": ID, "category_id": ID},
}  # fmt: skip


def read_instances(path, folder="", listed=()):
    """[(file name, class names)] of an instances_*.json, in its order, and the names of all classes.

    A file name that starts with `folder` is taken without it; a class that is in `listed` has the spelling there.
    An image that is listed twice counts once; one that is there under several ids has the classes of all.
    Raises ValueError that names the entry that is wrong.
    """
    content = _load(path)
    names = _by_id(_entries(content, "categories", path), path)
    files = _by_id([(i, image_path(name, folder)) for i, name in _entries(content, "images", path)], path)
    spelled = one_spelling(((path, name) for name in names.values()), listed)
    labels = {file: set() for file in files.values()}
    for image, category in _entries(content, "annotations", path):
        labels[_look_up(image, files, "images", path)].add(_look_up(category, names, "categories", path))
    if twice := len(files) - len(labels):
        print(f"{Path(path).name}: {twice} images are there under another id too: the labels of both are joined")
    return relabel(labels.items(), spelled), set(spelled.values())


def _load(path):
    """The contents of a JSON file."""
    # only the ids are kept of an annotation while the file is parsed: its outlines would fill the memory
    ids = FIELDS["annotations"]
    slim = lambda entry: {key: entry[key] for key in ids} if ids.keys() <= entry.keys() else entry
    with open(path, encoding="utf-8-sig") as file:
        try:
            return json.load(file, object_hook=slim)
        except ValueError as error:
            raise ValueError(f"{path} is not a COCO instances file ({error}): download it again") from None


def _entries(content, part, path):
    """The fields of every entry of one of the file's lists, as tuples."""
    entries = content.get(part) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not a COCO instances file: it has no list {part!r}")
    for number, entry in enumerate(entries, 1):
        for key, kind in FIELDS[part].items():
            value = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(value, kind) or value == "":
                found = f"no {key}" if value is None else f"the {key} {value!r}"
                raise ValueError(f"{path} is not a COCO instances file: entry {number} of {part!r} has {found}")
        yield tuple(entry[key] for key in FIELDS[part])


def _by_id(entries, path):
    """{id: what it stands for}."""
    found = {}
    for key, value in entries:
        if found.setdefault(key, value) != value:
            raise ValueError(f"{path}: the id {key!r} is that of {found[key]} and of {value}: give each its own")
    return found


def _look_up(key, found, part, path):
    """What an id stands for that an annotation names."""
    if key not in found:
        alike = [other for other in found if str(other) == str(key)]
        hint = f"it is {alike[0]!r} there: write both as numbers" if alike else "take the annotation out, or add it"
        raise ValueError(f"{path}: an annotation has the id {key!r}, which none of {part!r} has; {hint}")
    return found[key]


def read_split(root, split, year, known, limit):
    """[(path of the image below root, class names)] of COCO's train or val."""
    folder = f"{split}{year}"
    path = Path(root) / "annotations" / f"instances_{folder}.json"
    if not path.is_file():
        remedy = "--root is the folder that holds COCO's annotations and images, and --year 2014 or 2017"
        raise FileNotFoundError(f"there is no {path}: {remedy}")
    rows, names = read_instances(path, folder, known)
    if lacking := sorted(set(known) - names):
        raise ValueError(f"{path} lacks the classes {', '.join(lacking)}: it is not COCO's")
    if not (Path(root) / folder).is_dir():
        raise FileNotFoundError(f"there is no image folder {Path(root) / folder}: unpack {folder}.zip in {root}")
    return [(f"{folder}/{name}", labels) for name, labels in rows[:limit]]


def main():
    options = photos.parser(__doc__)
    options.add_argument("--root", type=script.path, required=True, help="COCO's folder")
    options.add_argument("--split", choices=LISTS, default="48/17", help="seen/unseen classes")
    options.add_argument("--year", choices=("2014", "2017"), default="2017", help="which of COCO's files")
    first = "only the first images of train and of val, this many of each"
    options.add_argument("--limit", type=script.count, help=first)

    with photos.run(options) as args:
        seen, unseen = (read_names(SPLITS / f"{name}.txt")[0] for name in LISTS[args.split])
        train, val = (read_split(args.root, split, args.year, seen + unseen, args.limit) for split in ("train", "val"))
        splits, source = {"train": train, "test": val}, f"MS-COCO {args.year}, {args.split}"
        licence = "annotations CC BY 4.0 (cocodataset.org); each image under the terms of its Flickr page"
        photos.prepare(args, splits, seen, unseen, root=args.root, source=source, licence=licence)



if __name__ == "__main__":
    main()
