"""NUS-WIDE from its official files, prepared with the 925 seen and 81 unseen labels of the zero-shot literature.

    python -m data_prep.nus_wide --root NUS --out data/nus-wide

NUS holds ImageList, Groundtruth, NUS_WID_Tags, ConceptsList and the photos in Flickr. Seen are the 1,000 tags without the 81
concepts. Train images have their tags; test images have their tags for the seen labels and the human annotation for the unseen.
"""

from itertools import zip_longest
from pathlib import Path

import numpy as np

from data_prep import photos
from data_prep.names import SPLITS, read_names

# Of all 107,859 test images; derived from the published label counts, not figures of a paper.
EXPECTED = {
    "train images": 161_789, "test images": 107_859, "unseen positives in test": 202_400, "unseen labels a test image": 1.88,
    "positives in test": 734_000, "chance mAP, unseen (%)": 2.3, "chance mAP, all (%)": 0.7,
}


def derive(root):
    """(seen, unseen, tags): the 1,000 tags without the 81 concepts, the concepts, the tags. Raises ValueError if a list is not the known one."""
    tags, unseen = (read_names(file(root, name))[0] for name in ("NUS_WID_Tags/TagList1k.txt", "ConceptsList/Concepts81.txt"))
    seen = [tag for tag in tags if tag not in set(unseen)]
    for part, names in (("seen925", seen), ("unseen81", unseen)):
        known = read_names(SPLITS / f"nus_wide_{part}.txt")[0]
        if set(names) != set(known):
            odd = sorted(set(names) ^ set(known))
            raise ValueError(f"the labels of {root} are not those of NUS-WIDE: {len(odd)} differ from data_prep/splits/nus_wide_{part}.txt, such as {', '.join(odd[:5])}")
    return seen, unseen, tags


def file(root, name):
    """The path of one of the official files. Raises FileNotFoundError."""
    path = Path(root) / name
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: --root is the folder that holds NUS-WIDE's ImageList, Groundtruth, NUS_WID_Tags, ConceptsList and Flickr")
    return path


def read_flags(path, width):
    """For each line of a file of 0s and 1s, `width` a line, the places of the 1s. Raises ValueError that names a line that differs."""
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
    images = [line.strip().replace("\\", "/") for line in file(root, f"ImageList/{split}Imagelist.txt").read_text().splitlines() if line.strip()]
    rows = [(f"Flickr/{image}", []) for image in images]
    known = set(seen)
    columns = [(f"NUS_WID_Tags/{split}_Tags1k.dat", [tag if tag in known else None for tag in tags])]  # a concept's tag is not its annotation
    columns += [(f"Groundtruth/TrainTestLabels/Labels_{concept}_{split}.txt", [concept]) for concept in unseen]
    for name, names in columns:
        path = file(root, name)
        for row, places in zip_longest(rows, read_flags(path, len(names))):
            if row is None or places is None:
                raise ValueError(f"{path} and ImageList/{split}Imagelist.txt differ in length ({len(rows)} images): they are not of one data set")
            row[1].extend(names[i] for i in places if names[i])
    return rows


def counts(splits, seen, unseen):
    """The figures of EXPECTED, counted."""
    test = [labels for _, labels in splits["test"]]
    total, known = sum(map(len, test)), set(unseen)
    hidden = sum(label in known for labels in test for label in labels)
    images = max(len(test), 1)
    figures = [len(splits["train"]), len(test), hidden, hidden / images, total, 100 * hidden / images / len(unseen), 100 * total / images / len(seen + unseen)]
    return dict(zip(EXPECTED, figures))


def main():
    options = photos.parser(__doc__, "data/nus-wide")
    options.add_argument("--root", required=True, help="NUS-WIDE's folder")
    options.add_argument("--max-missing", type=float, default=0.0, help="percent of the images that may be missing or unreadable")

    def prepare(args):
        seen, unseen, tags = derive(args.root)
        splits = {ours: read_split(args.root, theirs, seen, unseen, tags) for ours, theirs in (("train", "Train"), ("test", "Test"))}
        print(f"{'':28}{'here':>12}{'complete':>12}")
        for name, count in counts(splits, seen, unseen).items():
            print(f"{name:28}{count:12,.6g}{EXPECTED[name]:12,.6g}")
        photos.prepare(
            args, splits, seen, unseen, root=args.root, max_missing=args.max_missing, source="NUS-WIDE (Chua et al., CIVR 2009), 925/81",
            licence="for research; each image under the terms of its Flickr page",
        )

    photos.run(options, prepare)


if __name__ == "__main__":
    main()
