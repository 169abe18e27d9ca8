"""A data set of the Hugging Face hub with an image column and a list of labels, prepared for zero-shot training.

    python -m data_prep.hub --dataset detection-datasets/coco --labels-column objects.category --hold-out 0.2

Its images are streamed: only those that are used are read, so a laptop can take a part (--limit 5000). --dataset may
also be a local folder: of image or parquet files, or one that `save_to_disk` wrote.
"""

import re
import zipfile
import zlib
from functools import reduce
from pathlib import Path

import datasets
import fsspec
from huggingface_hub.errors import EntryNotFoundError
from tqdm.auto import tqdm

from data_prep import photos, script
from data_prep.folder import add_unseen_options, split_labels
from data_prep.names import one_spelling, relabel
from data_prep.writer import LeftOut

ALSO = {"val": "validation", "validation": "val"}  # which of them a split is called depends on how a folder was read


def open_splits(dataset, config, revision, train, test):
    """{"train", "test"}: the splits of these names, each as an IterableDataset. Raises ValueError."""
    splits = _all_splits(dataset, config, revision)
    train, test = (ALSO[name] if name not in splits and ALSO.get(name) in splits else name for name in (train, test))
    if train == test:
        raise ValueError(f"--train-split and --test-split are both {train!r}: test would be what was trained on")
    if lacking := [name for name in (train, test) if name not in splits]:
        remedy = f"choose --train-split and --test-split among {', '.join(splits)}"
        if len(splits) == 1:
            only = f"its only split is {next(iter(splits))!r}"
            remedy = f"{only}; divide it by train_test_split of the library datasets, and give what save_to_disk writes"
        raise ValueError(f"{dataset} has no split {lacking[0]!r}: {remedy}")
    return {"train": splits[train], "test": splits[test]}


def _all_splits(dataset, config, revision):
    """{name: IterableDataset} of every split."""
    folder = Path(dataset)
    if (folder / "state.json").is_file():  # save_to_disk of one split
        rows = datasets.load_from_disk(dataset)
        return {str(rows.split or "train"): rows.to_iterable_dataset()}
    if (folder / "dataset_dict.json").is_file():
        return {name: rows.to_iterable_dataset() for name, rows in datasets.load_from_disk(dataset).items()}
    try:
        return datasets.load_dataset(dataset, config, revision=revision, streaming=True)
    except RuntimeError as error:  # it comes with a program that would have to be run
        raise ValueError(f"{dataset} cannot be read ({error}): take a copy as parquet files") from None


def label_feature(features, column):
    """The feature of one label in `column`, a list of labels; dots lead into a column of columns, or a list of them."""
    feature, listed = features, False
    try:
        for key in column.split("."):
            if not isinstance(feature, dict):
                feature, listed = _item(feature), True
            feature = feature[key]
        feature = feature if listed else _item(feature)
    except (KeyError, TypeError, AttributeError):
        remedy = f"choose --labels-column among {', '.join(features)}"
        raise ValueError(f"there is no list of labels {column!r}: {remedy}") from None
    if not isinstance(feature, datasets.ClassLabel) and getattr(feature, "dtype", "") not in ("string", "large_string"):
        kind = f"{feature}, neither names nor classes with names"
        raise ValueError(f"the labels of {column!r} are {kind}: choose another --labels-column")
    return feature


def _item(feature):
    """The feature of the items of a list."""
    return feature[0] if isinstance(feature, list) else feature.feature


def read_labels(rows, column, limit):
    """[(index, label names)] of the first rows; their images are not read. Raises ValueError for an unknown class."""
    feature, found = label_feature(rows.features, column), []
    classes = dict(enumerate(feature.names)) if isinstance(feature, datasets.ClassLabel) else None
    rows = rows.select_columns(column.split(".")[0])
    for index, row in enumerate(tqdm(rows.take(limit) if limit else rows, desc="labels", unit=" rows")):
        values = {v for v in reduce(_enter, column.split("."), row) or [] if v not in (None, -1)}  # -1: not annotated
        if classes and (odd := values - classes.keys()):
            fault = f"the class {min(odd)}, but its {len(classes)} classes are 0 to {len(classes) - 1}"
            raise ValueError(f"row {index} of the column {column!r} has {fault}: choose another --labels-column")
        found.append((index, sorted(classes[value] for value in values) if classes else sorted(values)))
    return found


def _enter(value, key):
    if isinstance(value, list):
        return [v[key] for v in value if v is not None]
    return None if value is None else value[key]


class Images:
    """The image files of a streamed split by index; an index must be higher than the one before."""

    def __init__(self, rows, column, dataset):
        if not isinstance(rows.features.get(column), datasets.Image):
            remedy = f"choose --image-column among {', '.join(rows.features)}"
            raise ValueError(f"{column!r} is not a column of images: {remedy}")
        self.rows = rows.select_columns(column).cast_column(column, datasets.Image(decode=False))
        self.column, self.dataset, self.stream = column, dataset, None

    def __getitem__(self, index):
        """The bytes of an image file, the path of one in a local folder, or the LeftOut of one that is not there."""
        if self.stream is None:
            self.stream = enumerate(self.rows.skip(index), index)
        row = next((row for i, row in self.stream if i == index), None)
        if row is None:
            remedy = "it has changed meanwhile: the same command reads it anew, and --revision keeps it as it is"
            raise ValueError(f"{self.dataset} ends before its image {index}, whose labels were read: {remedy}")
        cell = row[self.column] or {"bytes": b""}
        return cell["bytes"] if cell["bytes"] is not None else self._file(cell["path"])

    def _file(self, path):
        """A file that the data set names, if it is on the hub or inside the data set's own folder."""
        if path is None:
            return b""
        if re.fullmatch(r"(zip://[^:]*::)?hf://[^:]+", path):
            return _download(path)
        if "::" in path or "://" in path or Path(self.dataset).resolve() not in Path(path).resolve().parents:
            raise ValueError(f"the data set names an image outside its folder: {path}")
        return path if Path(path).exists() else LeftOut("missing", path)


def _download(path):
    """The bytes of a file on the hub; LeftOut if there is none. A failing connection ends the work."""
    try:
        with fsspec.open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, EntryNotFoundError):
        return LeftOut("missing", path)
    except (KeyError, zipfile.BadZipFile, zlib.error) as error:
        return LeftOut("unreadable", f"{path}: {error}")


def main():
    options = photos.parser(__doc__, "data/hub")
    options.add_argument("--dataset", type=script.path, required=True, help="name on the hub, or a local folder")
    options.add_argument("--config", help="configuration of the data set, where it has several")
    options.add_argument("--revision", help="commit or tag, so that another day gives the same data")
    options.add_argument("--train-split", default="train", help="split that train and val are made of")
    options.add_argument("--test-split", default="test", help="split that test is made of")
    options.add_argument("--image-column", default="image", help="column of the images")
    leads = "a list of names or classes; objects.category leads into a column"
    options.add_argument("--labels-column", default="labels", help=leads)
    first = "only the first images of train and of test, this many of each"
    options.add_argument("--limit", type=script.count, help=first)
    add_unseen_options(options)

    with photos.run(options) as args:
        streams = open_splits(args.dataset, args.config, args.revision, args.train_split, args.test_split)
        found = {split: read_labels(rows, args.labels_column, args.limit) for split, rows in streams.items()}
        places = ((f"{args.dataset}, {split} {i}", row) for split, rows in found.items() for i, row in rows)
        spelled = one_spelling((place, name) for place, row in places for name in row)
        splits = {split: relabel(rows, spelled) for split, rows in found.items()}
        labels = sorted({name for rows in splits.values() for _, row in rows for name in row})
        classes = getattr(label_feature(streams["train"].features, args.labels_column), "names", None) or ()
        seen, unseen = split_labels(labels, args, classes)
        images = {split: Images(rows, args.image_column, args.dataset) for split, rows in streams.items()}
        images["val"] = images["train"]  # its end
        load = lambda split, items: [(f"{split} {i}", images[split][i], row) for i, row in items]
        name = Path(args.dataset).name if Path(args.dataset).exists() else args.dataset  # a folder is nobody else's
        source = f"{name} {args.revision or ''}".strip()
        licence = getattr(streams["train"].info, "license", "") or "see the data set's page"
        photos.prepare(args, splits, seen, unseen, load=load, source=source, licence=licence)



if __name__ == "__main__":
    main()
