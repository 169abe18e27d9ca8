"""NUS-WIDE from its official files, prepared with the 925 seen and 81 unseen labels of the zero-shot literature.

    python -m data_prep.nus_wide --root NUS --out data/nus-wide

NUS holds ImageList, Groundtruth, NUS_WID_Tags, ConceptsList and the photos in Flickr. Seen are the 1,000 tags without
the 81 concepts. Train images have their tags, test images their tags for seen and human annotations for unseen labels.
"""

from collections import Counter
from itertools import zip_longest
from pathlib import Path

import numpy as np

from clipdec.labels import read_names, read_text
from data_prep import photos, script
from data_prep.names import SPLITS, image_path, one_spelling

# Of all 107,859 test images; derived from the published label counts, not figures of a paper.
EXPECTED = {
    "train images": 161_789, "test images": 107_859,
    "unseen positives in test": 202_400, "unseen labels a test image": 1.88, "positives in test": 734_000,
    "chance mAP, unseen (%)": 2.3, "chance mAP, all (%)": 0.7,
}


def derive(root):
    """(the tags without the concepts, the 81 concepts, the 1,000 tags). Raises ValueError if they are not the known."""
    known = {part: read_names(SPLITS / f"nus_wide_{part}.txt")[0] for part in ("seen925", "unseen81")}
    lists = [file(root, name) for name in ("NUS_WID_Tags/TagList1k.txt", "ConceptsList/Concepts81.txt")]
    found = [(path, name) for path in lists for name in read_names(path)[0]]
    labels = one_spelling(found, sum(known.values(), []))
    tags, unseen = ([labels.get(name, name) for path, name in found if path == each] for each in lists)
    seen = [tag for tag in tags if tag not in set(unseen)]
    for part, names in (("seen925", seen), ("unseen81", unseen)):
        if odd := sorted(set(names) ^ set(known[part])):
            which = f"{len(odd)} differ from data_prep/splits/nus_wide_{part}.txt, such as {', '.join(odd[:5])}"
            raise ValueError(f"the labels of {root} are not those of NUS-WIDE: {which}")
    return seen, unseen, tags


def file(root, name):
    """The path of one of the official files. Raises FileNotFoundError."""
    path = Path(root) / name
    if not path.is_file():
        contents = "NUS-WIDE's ImageList, Groundtruth, NUS_WID_Tags, ConceptsList and Flickr"
        raise FileNotFoundError(f"there is no {path}: --root is the folder that holds {contents}")
    return path


def read_flags(path, width):
    """The places of the 1s in each line of a file, `width` flags a line. Raises ValueError that names a wrong line."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            flags = np.frombuffer(line.translate(None, b" \t\r\n"), np.uint8)
            if not len(flags):
                continue  # an empty line at the end
            if len(flags) != width or flags.min() < ord("0") or flags.max() > ord("1"):
                raise ValueError(f"{path}, line {number}: expected {width} flags 0 or 1")
            yield np.flatnonzero(flags == ord("1"))


def read_split(root, split, seen, unseen, tags):
    """[(path of the image below root, label names)] of NUS-WIDE's Train or Test, in the order of its image list."""
    images = f"ImageList/{split}Imagelist.txt"
    lines = [line for line in read_text(file(root, images)).splitlines() if line.strip()]
    rows = [(f"Flickr/{image_path(line, 'Flickr')}", []) for line in lines]
    used = [tag if tag in seen else None for tag in tags]  # a concept's tag is not its annotation
    columns = [(f"NUS_WID_Tags/{split}_Tags1k.dat", used)]
    columns += [(f"Groundtruth/TrainTestLabels/Labels_{concept}_{split}.txt", [concept]) for concept in unseen]
    for name, names in columns:
        path = file(root, name)
        for row, places in zip_longest(rows, read_flags(path, len(names))):
            if row is None or places is None:
                fault = f"differ in length ({len(rows)} images): they are not of one data set"
                raise ValueError(f"{path} and {images} {fault}")
            row[1].extend(names[i] for i in places if names[i])
    return rows


def refuse_repeated(splits):
    """Raise ValueError if an image is listed twice, in one of the splits or in two."""
    times = Counter(image for rows in splits.values() for image, _ in rows)
    if twice := [image for image, number in times.items() if number > 1]:
        lists = " and of ".join(name for name, rows in splits.items() if twice[0] in dict(rows))
        which = f"{len(twice)} images are listed more than once, such as {twice[0]} in the list of {lists}"
        raise ValueError(f"{which}: an image is in one split, once; unpack NUS-WIDE's ImageList again")


def counts(splits, seen, unseen):
    """The figures of EXPECTED, counted."""
    test = [labels for _, labels in splits["test"]]
    total, known = sum(map(len, test)), set(unseen)
    hidden = sum(label in known for labels in test for label in labels)
    images = max(len(test), 1)
    figures = [len(splits["train"]), len(test), hidden, hidden / images, total]
    figures += [100 * hidden / images / len(unseen), 100 * total / images / len(seen + unseen)]
    return dict(zip(EXPECTED, figures))


def main():
    options = photos.parser(__doc__, "data/nus-wide", max_missing=0.0)
    options.add_argument("--root", type=script.path, required=True, help="NUS-WIDE's folder")

    with photos.run(options) as args:
        seen, unseen, tags = derive(args.root)
        splits = {split.lower(): read_split(args.root, split, seen, unseen, tags) for split in ("Train", "Test")}
        refuse_repeated(splits)
        script.print_beside(counts(splits, seen, unseen), EXPECTED)
        licence = "for research; each image under the terms of its Flickr page"
        terms = {"source": "NUS-WIDE (Chua et al., CIVR 2009), 925/81", "licence": licence}
        photos.prepare(args, splits, seen, unseen, root=args.root, **terms)


if __name__ == "__main__":
    main()
