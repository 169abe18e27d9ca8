"""MS-COCO as it is downloaded, prepared for zero-shot training with the splits 48/17 or 65/15.

    python -m data_prep.coco --root COCO --out data/coco-48-17 --split 48/17

COCO holds `annotations/instances_{train,val}{year}.json` and the image folders `train{year}` and `val{year}`.
Its train images are those of train and val here, its val images those of test. An image carries a class if any of its
annotations does, crowds included. Classes in neither list (15 with 48/17) are ignored.
"""

import json
from pathlib import Path

from clipdec.labels import read_names
from data_prep import photos
from data_prep.names import SPLITS

LISTS = {"48/17": ("coco_seen48", "coco_unseen17"), "65/15": ("coco_seen65", "coco_unseen15")}


def read_instances(path):
    """[(file name, class names)] of an instances_*.json, in its order, and the names of all classes."""
    # only the ids are kept of an annotation while the file is parsed: its outlines would fill the memory
    slim = lambda entry: (entry["image_id"], entry["category_id"]) if "category_id" in entry else entry
    with open(path, encoding="utf8") as file:
        try:
            content = json.load(file, object_hook=slim)
            names = {c["id"]: c["name"] for c in content["categories"]}
            labels = {image["id"]: set() for image in content["images"]}
            for image, category in content["annotations"]:
                labels[image].add(names[category])
            rows = [(image["file_name"], sorted(labels[image["id"]])) for image in content["images"]]
        except (KeyError, TypeError, ValueError) as error:
            fault = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path} is not a COCO instances file ({fault}): download it again") from None
    return rows, set(names.values())


def read_split(root, split, year, known, limit):
    """[(path of the image below root, class names)] of COCO's train or val."""
    folder = f"{split}{year}"
    path = Path(root) / "annotations" / f"instances_{folder}.json"
    if not path.is_file():
        remedy = "--root is the folder that holds COCO's annotations and images, and --year 2014 or 2017"
        raise FileNotFoundError(f"there is no {path}: {remedy}")
    rows, names = read_instances(path)
    if lacking := sorted(set(known) - names):
        raise ValueError(f"{path} lacks the classes {', '.join(lacking)}: it is not COCO's")
    if not (Path(root) / folder).is_dir():
        raise FileNotFoundError(f"there is no image folder {Path(root) / folder}: unpack {folder}.zip in {root}")
    return [(f"{folder}/{name}", labels) for name, labels in rows[:limit]]


def main():
    options = photos.parser(__doc__)
    options.add_argument("--root", required=True, help="COCO's folder")
    options.add_argument("--split", choices=LISTS, default="48/17", help="seen/unseen classes")
    options.add_argument("--year", choices=("2014", "2017"), default="2017", help="which of COCO's files")
    options.add_argument("--limit", type=int, help="only the first images of train and of val, this many of each")

    with photos.run(options) as args:
        seen, unseen = (read_names(SPLITS / f"{name}.txt")[0] for name in LISTS[args.split])
        train, val = (read_split(args.root, split, args.year, seen + unseen, args.limit) for split in ("train", "val"))
        splits, source = {"train": train, "test": val}, f"MS-COCO {args.year}, {args.split}"
        licence = "annotations CC BY 4.0 (cocodataset.org); each image under the terms of its Flickr page"
        photos.prepare(args, splits, seen, unseen, root=args.root, source=source, licence=licence)



if __name__ == "__main__":
    main()
