"""OpenImages v4 from its official files, prepared with the 7,186 seen and 400 unseen labels of the literature.

    python -m data_prep.open_images --root OPENIMAGES --limit 100000 --out data/open-images

OPENIMAGES holds the photos, train/<ImageID>.jpg and test/<ImageID>.jpg, and the folder 2018_04 with

    class-descriptions.csv      machine id and display name of every class
    classes-trainable.txt       machine ids of the seen labels, in order
    unseen_labels.txt           machine ids, one a line (the published pickle as text: pickles are not read)
    top_400_unseen.csv          which of these are the unseen labels, numbers from 0; without this file all of them are
    train/train-annotations-human-imagelabels.csv, test/test-annotations-human-imagelabels.csv

A label is known by its machine id and named by its display name; of several with one name all but the first have their
id behind it. People were asked about a few labels of an image: the column `labels` holds those that are there, `absent`
those that are verified not to be there. Val is a part of train, as in all scripts; OpenImages' own is not used.

AP of a label is over the images of which it is known, as in LESA and BiAM, and so is high: it does not compare with
NUS-WIDE. P, R and F1 at 10 and 20 count what is not known as wrong, as there. Labels without a positive in test are no
part of mAP here; there they count 0, and BiAM's seen labels are only the 4,728 annotated in test.
"""

import csv
from pathlib import Path

from tqdm.auto import tqdm

from clipdec.labels import LabelSpace, clean_name, read_names, read_text, same_name
from data_prep import photos, script

HEADER = ["ImageID", "Source", "LabelName", "Confidence"]
PLACES = {"1": 0, "0": 1}  # of a Confidence: among the labels that are there, or that are verified absent
EXPECTED = {  # the images with human labels in LESA's setting, and the literature's counts
    "seen labels": 7_186, "unseen labels": 400, "train images": 5_501_586, "test images": 125_436,
    "unseen labels a test image": 1.28,
}  # fmt: skip


def file(root, name):
    """The path of one of the files in 2018_04. Raises FileNotFoundError."""
    path = Path(root, "2018_04", name)
    if not path.is_file():
        contents = "OpenImages' 2018_04 with its class files and annotations, and the photos in train and test"
        raise FileNotFoundError(f"there is no {path}: --root is the folder that holds {contents}")
    return path


def read_classes(root):
    """(LabelSpace, {machine id: name}), seen labels first, each in the order of its list. Raises ValueError."""
    display = read_descriptions(file(root, "class-descriptions.csv"))
    seen, unseen = read_names(file(root, "classes-trainable.txt"))[0], read_unseen(root)
    if both := [mid for mid in unseen if mid in set(seen)]:
        raise ValueError(f"{both[0]} is in classes-trainable.txt and an unseen label: take it out of one of the lists")
    if lacking := [mid for mid in [*seen, *unseen] if mid not in display]:
        found = f"class-descriptions.csv lacks {len(lacking)} of the labels, such as {lacking[0]}"
        raise ValueError(f"{found}: take all class files from one release of OpenImages")
    names = unique_names(display, [*seen, *unseen])
    return LabelSpace([names[mid] for mid in seen], [names[mid] for mid in unseen]), names


def read_descriptions(path):
    """{machine id: display name}. A name may be in quotes, and what follows the first comma is all of it."""
    display, rows = {}, csv.reader(read_text(path).splitlines())
    for mid, *parts in filter(None, rows):
        display[mid] = clean_name(",".join(parts))
        if not display[mid]:
            raise ValueError(f"{path}, line {rows.line_num}: expected a machine id, a comma and a name")
    return display


def read_unseen(root):
    """Machine ids of the unseen labels: those of unseen_labels.txt, or which of them top_400_unseen.csv numbers."""
    listed, chosen = read_names(file(root, "unseen_labels.txt"))[0], Path(root, "2018_04", "top_400_unseen.csv")
    if not chosen.is_file():
        return listed
    places = [int(n) if n.isdecimal() else -1 for n in read_names(chosen)[0]]
    if wrong := [number for number, place in enumerate(places, 1) if not 0 <= place < len(listed)]:
        bounds = f"a number from 0 to {len(listed) - 1}, the places in unseen_labels.txt"
        raise ValueError(f"{chosen}, line {wrong[0]}: expected {bounds}")
    return [listed[place] for place in places]


def unique_names(display, mids):
    """{machine id: name}, in which no two names are one label: of equal ones all but the first have their id behind."""
    names, used = {}, set()
    for mid in mids:
        names[mid] = display[mid] if same_name(display[mid]) not in used else f"{display[mid]} ({mid})"
        used.add(same_name(names[mid]))
    return names


def read_split(root, split, names, limit):
    """{ImageID: (names of labels that are there, of labels verified absent)} of the first images of train or test.

    The rows of an image may stand anywhere. The file is read line by line, and only what is used of it is kept. A label
    that is there by one row and absent by another is not known. Prints what is left out.
    """
    path = file(root, f"{split}/{split}-annotations-human-imagelabels.csv")
    images, others = {}, 0
    for image, mid, place in read_rows(path):
        if image not in images and limit and len(images) == limit:
            continue
        verified = images.setdefault(image, ([], []))
        if mid in names:
            verified[place].append(names[mid])
        else:
            others += 1
    unsure = sum(map(drop_contradictions, images.values()))
    print(f"{split}: {others} rows of other classes are not used")
    print(f"{split}: {unsure} labels are there by one row and absent by another, so nothing is known of them")
    return images


def drop_contradictions(verified):
    """Take out of (names there, names absent) what is in both. Returns how many names that are."""
    both = set(verified[0]) & set(verified[1])
    for labels in verified if both else ():
        labels[:] = [name for name in labels if name not in both]
    return len(both)


def read_rows(path):
    """(ImageID, machine id, place in PLACES) of every row of an annotation file. Raises ValueError."""
    with open(path, newline="", encoding="utf-8-sig") as lines:
        rows = csv.reader(lines)
        if next(rows, None) != HEADER:
            raise ValueError(f"{path}: the first line must be {','.join(HEADER)}: download it again")
        for row in tqdm(rows, desc=path.name, unit=" rows", mininterval=1):
            if len(row) != 4 or row[3] not in PLACES:
                expected = f"{','.join(HEADER)} with a Confidence of 0 or 1"
                raise ValueError(f"{path}, line {rows.line_num}: expected {expected}")
            yield row[0], row[2], PLACES[row[3]]


def counts(labels, train, test):
    """The figures of EXPECTED, counted."""
    unseen = set(labels.unseen)
    hidden = sum(name in unseen for there, _ in test.values() for name in set(there))
    figures = len(labels.seen), len(labels.unseen), len(train), len(test), hidden / max(1, len(test))
    return dict(zip(EXPECTED, figures))


def main():
    options = photos.parser(__doc__, "data/open-images")
    options.add_argument("--root", type=script.path, required=True, help="OpenImages' folder")
    first = "only the first images of train and of test, this many of each"
    options.add_argument("--limit", type=script.count, help=first)

    with photos.run(options) as args:
        labels, names = read_classes(args.root)
        train, test = (read_split(args.root, split, names, args.limit) for split in ("train", "test"))
        if twice := train.keys() & test.keys():
            remedy = "an image is in one split: download the annotations again"
            raise ValueError(f"{len(twice)} images are in train and in test, such as {min(twice)}: {remedy}")
        script.print_beside(counts(labels, train, test), EXPECTED)
        rows = {"train": train, "test": test}
        splits = {split: [(f"{split}/{i}.jpg", *each) for i, each in images.items()] for split, images in rows.items()}
        licence = "annotations CC BY 4.0 (Google); each image under the terms of its Flickr page"
        terms = {"source": "OpenImages v4, 7,186/400", "licence": licence, "machine_ids": [*names]}
        photos.prepare(args, splits, labels.seen, labels.unseen, root=args.root, **terms)


if __name__ == "__main__":
    main()
